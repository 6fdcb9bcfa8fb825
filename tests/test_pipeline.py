"""Resident and streamed batches: every image once under its own id, in an order that depends on the seed."""

import numpy as np
import pytest

from grafit_jax import experiment, parallel, restore, train_step
from grafit_jax.data import pipeline, sources
from grafit_jax.data.records import Records, two_levels
from grafit_jax.errors import UserError
from helpers.runs import assert_close, small_config
from helpers.tfds_data import make_builder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """90 training images 6x5x3 in 3 files; 6 fine classes in 3 coarse classes."""
    folder = tmp_path_factory.mktemp("tfds")
    make_builder(folder)
    return str(folder)


def load(tiny, **options):
    return sources.load(source="tfds:tiny_hierarchy", data_dir=tiny, **options)


def stream_config(tiny, method="grafit", **overrides):
    values = {
        "data.source": "tfds:tiny_hierarchy",
        "data.data_dir": tiny,
        "data.stream": True,
        "train.shuffle_buffer": 20,
        "views.mean": (0.4, 0.4, 0.4),
        "views.std": (0.3, 0.3, 0.3),
        "train.batch_size": 16,
        "train.epochs": 3,
        "checkpoint.every_epochs": 1,
    }
    return small_config(method, **(values | overrides))


def epoch_of(images, seed, batch_size=16, **options):
    batches = list(images.shuffled(batch_size, seed=seed, **({"buffer_size": 20} | options)))
    return np.concatenate([ids for ids, _ in batches]), np.concatenate([x for _, x in batches])


@pytest.mark.quick
def test_epoch_order_is_a_new_permutation_cut_to_full_batches(eight_devices):
    orders = [np.asarray(pipeline.epoch_order(0, epoch, 899, 14, 64)) for epoch in (0, 1)]
    assert orders[0].shape == (8, 14, 8)  # devices, steps, images
    for order in orders:
        assert len(np.unique(order)) == 14 * 64 and order.min() >= 0 and order.max() < 899
    assert not np.array_equal(*orders)
    np.testing.assert_array_equal(orders[0], pipeline.epoch_order(0, 0, 899, 14, 64))
    assert not np.array_equal(orders[0], pipeline.epoch_order(1, 0, 899, 14, 64))


@pytest.mark.parametrize("options", [{}, {"coarse_classes": (2, 0)}, {"holdout": 0.3}])
def test_streamed_records_equal_records_in_memory(tiny, options):
    whole, streamed = load(tiny, **options), load(tiny, stream=True, **options)
    images = streamed["train"].image
    assert images.shape == whole["train"].image.shape and images.dtype == np.uint8
    np.testing.assert_array_equal(images.read(), whole["train"].image)
    assert [len(batch) for batch in images.in_order(32)][:-1] == [32] * (len(images) // 32 - (len(images) % 32 == 0))
    for split in ("train", "test"):
        np.testing.assert_array_equal(streamed[split].label, whole[split].label)
        np.testing.assert_array_equal(streamed[split].train_label, whole[split].train_label)
    np.testing.assert_array_equal(streamed["test"].image, whole["test"].image)  # always in memory
    # A shuffled epoch: each image at most once under its own id, without those past the last full batch.
    ids, shuffled = epoch_of(images, seed=3)
    assert len(ids) == len(np.unique(ids)) == len(images) // 16 * 16
    np.testing.assert_array_equal(shuffled, whole["train"].image[ids])


def test_the_order_depends_only_on_the_seed(tiny):
    images = load(tiny, stream=True)["train"].image
    first, again, other = (epoch_of(images, seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    # With a buffer of one, only the files are shuffled.
    assert np.mean(np.diff(epoch_of(images, 3, buffer_size=1)[0]) == 1) > 0.8 > 0.3 > np.mean(np.diff(first) == 1)


def test_shards_are_disjoint_and_complete(tiny):
    images = load(tiny, stream=True)["train"].image
    parts = [epoch_of(images, 5, batch_size=1, shard=(i, 4))[0] for i in range(4)]
    assert sorted(map(len, parts)) == [22, 22, 23, 23]
    assert sorted(np.concatenate(parts)) == list(range(90))


def test_fingerprint_of_streamed_images_depends_on_the_selected_images(tiny):
    def prints(**options):
        return load(tiny, stream=True, **options)["train"].fingerprint()

    assert prints() == prints() != prints(coarse_classes=(0, 1))


def test_a_streamed_step_equals_a_step_on_resident_data(tiny, eight_devices):
    config = stream_config(tiny)
    run = experiment.load(config)
    feed = experiment.make_feed(run)
    batches = list(feed.epoch(0))
    assert len(batches) == run.steps_per_epoch == 5
    state, memory = restore.initial(run)
    call = train_step.pmap_steps(run, feed)
    for batch in batches[:3]:
        assert batch["image"].shape == (8, 2, 6, 5, 3) and len(batch["image"].sharding.device_set) == 8
        state, memory, _ = call(state, memory, batch)

    with config.unlocked():
        config.data.stream = False
    run = experiment.load(config)
    feed = experiment.make_feed(run)
    data, _ = next(iter(feed.epoch(0)))
    order = np.stack([np.asarray(batch["id"]) for batch in batches], axis=1)
    expected, expected_memory = restore.initial(run)
    call = train_step.pmap_steps(run, feed)
    for _ in range(3):
        expected, expected_memory, _ = call(expected, expected_memory, (data, order))
    assert_close((state, memory), (expected, expected_memory), rtol=1e-4, atol=1e-5)


def test_two_batches_are_prefetched_and_the_waiting_time_is_measured():
    taken = []

    class Slow:
        def __len__(self):
            return 96

        def shuffled(self, batch_size, *, seed, buffer_size, shard, crops, first):
            for i in range(6):
                taken.append(i)
                yield np.arange(16), np.zeros((16, 4, 4, 3), np.uint8)

    records = Records(Slow(), two_levels(None, np.zeros(96, np.int32), (), ("x",)))
    feed = pipeline.Streamed(records, seed=0, batch_size=16, shuffle_buffer=1)
    seen = []
    for _ in feed.epoch(0):
        seen.append(len(taken))
    assert seen == [3, 4, 5, 6, 6, 6]
    assert feed.waited > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"data.source": "digits"},
            r"data\.stream = True with digits; expected it only with .*TFDS.* or image files .*; use False",
        ),
        ({"train.steps_per_call": 4}, "train.steps_per_call = 4; expected 0 or 1 with data.stream"),
    ],
)
def test_invalid_streaming_options_are_refused(tiny, overrides, message):
    with pytest.raises(UserError, match=message):
        experiment.load(stream_config(tiny, **overrides))


def test_data_too_large_for_the_devices_are_refused_before_the_transfer(monkeypatch):
    class Small:
        def memory_stats(self):
            return {"bytes_limit": 100_000}  # 899 digits of 64 bytes are more than half of it

    run = experiment.load(small_config())
    monkeypatch.setattr(parallel, "devices", lambda: [Small()])
    message = r"found 0\.0 GiB of training images; expected at most half of a device's 0\.0 GiB; use data\.stream"
    with pytest.raises(UserError, match=message):
        experiment._check_memory(run.config, run.records["train"])
    with run.config.unlocked():
        run.config.data.stream = True
    experiment._check_memory(run.config, run.records["train"])

"""Crops made on the host: their distribution, their pixels by PIL and TensorFlow, streams and steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax import experiment, restore, train_step
from grafit_jax.data import sources
from grafit_jax.data.readers import decode, tfds
from grafit_jax.errors import UserError
from grafit_jax.views import augment, crops
from grafit_jax.views.crops import Crops
from helpers import image_files
from helpers.runs import small_config
from helpers.tfds_data import make_builder

SCALE, RATIO = (0.2, 0.9), (3 / 4, 4 / 3)
FOUR = Crops(8, ((4, SCALE, RATIO),))


def weights(n_in, n_out, start, length):
    """Returns triangle filters [n_out, n_in], float64, as wide as two output or input pixels, whichever are wider."""
    scale = length / n_out
    centre = start + (np.arange(n_out) + 0.5) * scale
    w = np.maximum(0, 1 - np.abs(np.arange(n_in) + 0.5 - centre[:, None]) / max(scale, 1))
    return w / w.sum(1, keepdims=True)


def resized(image, box, size):
    """Resizes a box (top, left, height, width) to float64 [S, S, C]."""
    rows, columns = (weights(image.shape[i], size, box[i], box[i + 2]) for i in range(2))
    return np.einsum("ah,bw,hwc->abc", rows, columns, image.astype(np.float64))


def test_boxes_on_host_and_device_agree():
    u = np.random.default_rng(0).random((500, crops.DRAWS))
    for height, width, scale in ((30, 40, (0.2, 1.0)), (300, 20, (0.5, 1.0))):  # the second rarely fits
        host = np.stack(crops.random_box(u, height, width, scale, RATIO, np))
        device = np.stack(crops.random_box(jnp.asarray(u, jnp.float32), height, width, scale, RATIO))
        np.testing.assert_allclose(device, host, atol=1e-3)


def test_boxes_depend_only_on_seed_id_and_aspect_ratio():
    boxes = FOUR.boxes(3, 17, 60, 80)
    assert boxes.shape == (4, 4) and boxes.dtype == np.float32
    assert len(np.unique(boxes)) == 16  # all crops differ
    np.testing.assert_array_equal(boxes, FOUR.boxes(3, 17, 60, 80))
    assert (
        np.min(np.abs(boxes - FOUR.boxes(3, 18, 60, 80))) > 0 and np.min(np.abs(boxes - FOUR.boxes(4, 17, 60, 80))) > 0
    )
    np.testing.assert_allclose(FOUR.boxes(3, 17, 120, 160), 2 * boxes, rtol=1e-6)
    # Further views, and crops of another distribution after them, keep the first crops.
    np.testing.assert_array_equal(Crops(8, ((6, SCALE, RATIO),)).boxes(3, 17, 60, 80)[:4], boxes)
    with_key = Crops(8, ((4, SCALE, RATIO), (1, (0.01, 0.02), RATIO))).boxes(3, 17, 60, 80)
    np.testing.assert_array_equal(with_key[:4], boxes)
    assert 0.01 * 4800 <= with_key[4, 2] * with_key[4, 3] <= 0.02 * 4800 < boxes[:, 2:].prod(axis=1).min()
    # A scale of (1, 1) disables cropping, as on the device.
    assert Crops(8, ((2, (1, 1), RATIO),)).boxes(0, 0, 60, 100).tolist() == [[0, 0, 60, 100]] * 2


def test_squares_of_an_image():
    assert crops.whole(6, 10).tolist() == [[0, 0, 6, 10]]
    assert crops.centre(6, 10).tolist() == [[0, 2, 6, 6]]
    assert crops.centre(9, 4).tolist() == [[2.5, 0, 4, 4]]


@pytest.mark.parametrize("name", ["i.png", "i.jpg"])
def test_boxes_of_a_file_are_resized_as_by_numpy(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (45, 33, 3), np.uint8)
    path = image_files.write(tmp_path / name, noise)
    boxes = np.float32([[0, 0, 45, 33], [3.25, 7.5, 12.5, 20.75], [40, 28, 5, 5]])
    got = decode.decode_boxes(path, 12, lambda height, width: boxes)
    assert got.shape == (3, 12, 12, 3) and got.dtype == np.uint8
    for part, box in zip(got, boxes, strict=True):
        assert np.max(np.abs(part - resized(decode.decode(path), box, 12))) <= 1.01


def test_a_jpeg_is_decoded_at_the_size_that_its_smallest_box_needs(tmp_path, monkeypatch):
    path = image_files.write(tmp_path / "i.jpg", image_files.pixels(0, 480, 640), quality=95)
    fine, sizes = decode.decode(path), []
    upright = decode._upright
    monkeypatch.setattr(decode, "_upright", lambda image: sizes.append(image.size) or upright(image))
    whole = decode.decode_boxes(path, 30, crops.whole)[0]
    assert sizes[-1] == (80, 60)  # at least 2 x 30 pixels
    assert np.max(np.abs(whole - resized(fine, (0, 0, 480, 640), 30))) < 6
    quarter = lambda height, width: np.float32([[height / 4, width / 4, height / 8, width / 8]])  # noqa: E731
    part = decode.decode_boxes(path, 30, quarter)[0]
    assert sizes[-1] == (640, 480)
    assert np.max(np.abs(part - resized(fine, (120, 160, 60, 80), 30))) <= 1.01


# From files to steps.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    image_files.write_tree(root, {f"{split}/{c}": 20 for split in ("train", "test") for c in "xy"}, height=40, width=30)
    return f"folder:{root}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """90 training images of 40 x 30 pixels, in 3 files."""
    root = tmp_path_factory.mktemp("tfds")
    make_builder(root, shape=(40, 30, 3))
    return str(root)


@pytest.fixture(params=["folder", "tfds"])
def streamed(request):
    """Images in files, and the same images as an array [N, 40, 30, 3]."""
    if request.param == "folder":
        source = {"source": request.getfixturevalue("folder")}
    else:
        source = {"source": "tfds:tiny_hierarchy", "data_dir": request.getfixturevalue("tiny")}
    images_in_files = sources.load(**source, stream=True, image_size=8)["train"].image
    return images_in_files, sources.load(**source)["train"].image


def test_a_stream_of_crops_has_the_order_of_the_stream_of_images(streamed):
    stream, whole = streamed
    plain = list(stream.shuffled(16, seed=5, buffer_size=30))
    cropped = list(stream.shuffled(16, seed=5, buffer_size=30, crops=FOUR))
    assert len(cropped) == len(plain) == len(whole) // 16
    for (ids, _), (same, x) in zip(plain, cropped, strict=True):
        np.testing.assert_array_equal(ids, same)
        assert x.shape == (16, 4, 8, 8, 3) and x.dtype == np.uint8
    for id_, views in zip(ids, x, strict=True):
        for view, box in zip(views, FOUR.boxes(5, int(id_), 40, 30), strict=True):
            assert np.max(np.abs(view - resized(whole[id_], box, 8))) <= 1.01
    (_, first), (_, other) = (next(iter(stream.shuffled(40, seed=seed, buffer_size=1, crops=FOUR))) for seed in (0, 1))
    assert np.mean(first == other) < 0.1


@pytest.mark.parametrize("fit", ["squash", "centre"])
def test_resize_modes(streamed, fit, request):
    stream, whole = streamed
    source = {"source": "tfds:tiny_hierarchy", "data_dir": request.getfixturevalue("tiny")}
    if not isinstance(stream, tfds.StreamedImages):
        source = {"source": request.getfixturevalue("folder")}
    kept, in_files = (
        sources.load(**source, image_size=8, resize_mode=fit, stream=s)["train"].image for s in (False, True)
    )
    box = {"squash": (0, 0, 40, 30), "centre": (5, 0, 30, 30)}[fit]
    for row in (0, 7, len(whole) - 1):
        assert np.max(np.abs(kept[row] - resized(whole[row], box, 8))) <= 1.01
    np.testing.assert_array_equal(in_files.read(), kept)
    ids, first = next(iter(in_files.shuffled(16, seed=0, buffer_size=30)))
    np.testing.assert_array_equal(first, kept[ids])
    # Another resize mode is another data set for a run that resumes.
    assert (in_files.identity() == stream.identity()) == (fit == "squash")


@pytest.mark.slow
def test_view_t_is_made_from_crop_t():
    views = augment.Views(size=8, mean=(0.0,) * 3, std=(1.0,) * 3, crop_scale=(1, 1), flip_prob=0.0)
    made = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8, 3), np.uint8)
    got = augment.random_views(jnp.asarray(made), jnp.arange(5), jax.random.key(0), views=views, num_views=3)
    np.testing.assert_allclose(got, made.swapaxes(0, 1) / np.float32(255), rtol=1e-6)
    # The other operations have the same draws as without crops on the host.
    views = dataclasses.replace(views, flip_prob=0.5, jitter=(0.4, 0.4, 0.4, 0.1), erase_prob=0.5)
    for t in range(3):
        alone = augment.random_views(
            jnp.asarray(made[:, t]), jnp.arange(5), jax.random.key(1), views=views, num_views=3
        )
        of_all = augment.random_views(jnp.asarray(made), jnp.arange(5), jax.random.key(1), views=views, num_views=3)
        np.testing.assert_allclose(of_all[t], alone[t], atol=1e-6)


def crops_config(folder, method, **overrides):
    values = {
        "data.source": folder, "data.stream": True, "data.image_size": 8, "train.host_crops": True,
        "train.batch_size": 16, "views.mean": (0.4,) * 3, "views.std": (0.3,) * 3, "views.crop_scale": SCALE,
        "eval.recall_at": (1,), "queue.size": 16,
    }  # fmt: skip
    return small_config(method, **(values | overrides))


@pytest.mark.parametrize(
    ("method", "distributions"),
    [
        ("grafit", ((2, SCALE, (0.75, 4 / 3)),)),
        ("baseline", ((1, SCALE, (0.75, 4 / 3)),)),
        ("maskcon", ((1, SCALE, (0.75, 4 / 3)), (1, (0.5, 0.6), (0.75, 4 / 3)))),
    ],
)
@pytest.mark.quick
def test_a_run_has_a_crop_for_each_view_of_its_step(folder, method, distributions, eight_devices):
    run = experiment.load(crops_config(folder, method, **{"key_views.crop_scale": (0.5, 0.6)}))
    assert run.crops == Crops(8, distributions)
    assert run.views.crop_scale == (1, 1)
    assert run.key_views is None or run.key_views.crop_scale == (1, 1)
    batch = next(iter(experiment.make_feed(run).epoch(0)))
    assert batch["image"].shape == (8, 2, run.method.views_per_image(2), 8, 8, 3)


@pytest.mark.slow
def test_queries_and_keys_have_their_own_crops(folder):
    config = crops_config(folder, "selfcon", **{"key_views.flip_prob": 0.0, "model.sync_batch_norm": False})
    run = experiment.load(config)
    state, _ = restore.initial(run)
    step = jax.jit(train_step.make_train_step(run, axis_name=None))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 3), np.uint8)
    label, id_ = jnp.zeros(4, jnp.int32), jnp.arange(4)

    def loss(*of_views):
        image = of_views[0] if len(of_views) == 1 else np.stack(of_views, axis=1)
        metrics = step(state, None, {"image": image, "label": label, "id": id_}, jax.random.key(0))[2]
        return float(metrics["loss"][0])

    query, key, other = pixels
    assert loss(query, query) == pytest.approx(loss(query), rel=1e-6)
    assert loss(query, key) != pytest.approx(loss(query, other), rel=1e-3)
    # The queue holds keys, so the loss is not symmetric.
    assert loss(query, key) != pytest.approx(loss(key, query), rel=1e-4)


def test_what_is_cropped_on_the_host_has_to_be_streamed(folder):
    with pytest.raises(UserError, match=r"train\.host_crops = True; expected False unless data\.stream is on"):
        experiment.load(crops_config(folder, "grafit", **{"data.stream": False}))
    with pytest.raises(
        UserError, match=r"unknown data\.resize_mode 'center' \(did you mean 'centre'\?\); expected one of squash, cen"
    ):
        experiment.load(crops_config(folder, "grafit", **{"data.resize_mode": "center"}))

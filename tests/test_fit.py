"""Whether a training step fits a device, and GPUs and TPUs that JAX does not see."""

import re
import types

import jax
import jax.numpy as jnp
import pytest

from grafit_jax import experiment, fit, memory, parallel, restore, train_step
from grafit_jax.errors import UserError
from helpers.runs import small_config

GIB = 2**30


def loaded(method="grafit", **overrides):
    return experiment.load(small_config(method, **overrides))


def test_what_a_resnet18_keeps_of_a_view_is_what_its_convolutions_give():
    run = loaded("baseline", **{"model.trunk": "resnet18", "model.stem": "imagenet", "views.size": 64})
    # The stem at 32 px, then, after the pooling, stages of 4 or, with that of the shortcut, 5 convolutions.
    values = 32**2 * 64 + 4 * 16**2 * 64 + 5 * 8**2 * 128 + 5 * 4**2 * 256 + 5 * 2**2 * 512
    state = jax.eval_shape(lambda: restore.initial_state(run, placeholder=True))
    view = jax.ShapeDtypeStruct((64, 64, 1), jnp.float32)
    found = fit._kept(run, state, view)
    assert found == pytest.approx(4 * (values + 64**2), rel=0.01)  # with the view itself


def test_frozen_layers_keep_nothing_and_have_no_gradient():
    whole, half, heads = (fit.estimate(loaded("grafit", **{"model.freeze": part})) for part in ("", "2", "trunk"))
    assert heads.each < half.each < whole.each
    assert heads.fixed < half.fixed < whole.fixed


def test_remat_and_a_narrow_dtype_keep_less():
    def each(**overrides):
        return fit.estimate(loaded("baseline", **{"model.trunk": "resnet34"} | overrides)).each

    full = each()
    assert 0.45 * full < each(**{"model.dtype": "bfloat16"}) < 0.6 * full
    assert each(**{"model.remat": True}) < 0.85 * full
    # Weights in bfloat16, which remat keeps too, are not of the images.
    assert each(**{"model.remat": True, "model.dtype": "bfloat16"}) < 0.9 * each(**{"model.dtype": "bfloat16"})


def test_the_fixed_part_counts_state_gradient_memory_and_resident_images():
    run = loaded("grafit")
    state, rows = restore.initial(run)
    arrays = jax.tree.leaves((state, state.params, rows))
    expected = sum(x.nbytes for x in arrays) + run.training.image.nbytes
    assert fit.estimate(run).fixed == expected


def test_each_image_has_its_views_and_only_those_of_the_online_network_are_kept():
    one, two = (fit.estimate(loaded("grafit", **{"views.num_views": t})).each for t in (2, 4))
    assert two == pytest.approx(2 * one, abs=1)
    baseline = fit.estimate(loaded("baseline_mlp")).each
    queue = fit.estimate(loaded("maskcon", **{"queue.size": 64})).each
    assert baseline < queue < 1.5 * baseline  # the key is a second view that keeps nothing


@pytest.mark.slow
@pytest.mark.parametrize("method", ["baseline", "grafit"])
def test_the_estimate_is_near_what_xla_plans(method):
    run = loaded(method, **{"train.batch_size": 128, "model.sync_batch_norm": False})
    state = jax.eval_shape(lambda: restore.initial_state(run, placeholder=True))
    image, shape = run.training.image, jax.ShapeDtypeStruct
    batch = {"image": shape((128, *image.shape[1:]), jnp.uint8)}
    batch |= {name: shape((128,), jnp.int32) for name in ("label", "id")}
    rows = None
    if method == "grafit":
        dim = run.config.model.embed_dim
        rows = memory.Memory(shape((len(image), dim), jnp.float32), shape((len(image),), jnp.int32))
    step = jax.jit(train_step.make_train_step(run, axis_name=None), donate_argnums=(0, 1))
    plan = step.lower(state, rows, batch, state.rng).compile().memory_analysis()
    planned = plan.temp_size_in_bytes + plan.argument_size_in_bytes + image.nbytes
    assert 0.6 * planned < fit.estimate(run)(128) < 1.2 * planned


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(monkeypatch):
    run = loaded("grafit", **{"train.batch_size": 96})
    need = fit.estimate(run)
    limit = int(need.fixed * 1.2 + need.each * 40)
    monkeypatch.setattr(fit, "_limit", lambda: limit)
    with pytest.raises(UserError) as error:
        fit.check(run)
    found = re.search(r"; use train\.batch_size = (\d+), or train\.microbatches = (\d+)\.$", str(error.value))
    for key, value in zip(("train.batch_size", "train.microbatches"), map(int, found.groups()), strict=True):
        fit.check(loaded("grafit", **{"train.batch_size": 96, key: value}))


def refusal(monkeypatch, batch_size, *, parts=1, devices=1, fixed=1.0, limit=22):
    """The message for a step of `fixed` GiB and of 1/16 for each image; None if it is not refused."""
    monkeypatch.setattr(fit, "estimate", lambda run: fit.Need(int(fixed * GIB), GIB // 16))
    monkeypatch.setattr(fit, "_limit", lambda: limit * GIB)
    monkeypatch.setattr(parallel, "num_all_devices", lambda: devices)
    train = types.SimpleNamespace(batch_size=batch_size, microbatches=parts)
    try:
        fit.check(types.SimpleNamespace(config=types.SimpleNamespace(train=train)))
    except UserError as error:
        return str(error)


@pytest.mark.parametrize(
    ("batch_size", "options", "expected"),
    [
        # 1 + 64 GiB. Below 22 / 1.2 GiB are 277 images, and a quarter of the batch is the largest part of at most that.
        (1024, {}, "found train.batch_size = 1024, which takes about 65 GiB a device; expected at most 22 GiB; use "
         "train.batch_size = 256, or train.microbatches = 4."),
        (8192, {"devices": 8}, "found train.batch_size = 8192, which takes about 65 GiB a device; expected at most 22 "
         "GiB; use train.batch_size = 2048, or train.microbatches = 4."),
        (1024, {"parts": 2}, "found train.batch_size = 1024 with train.microbatches = 2, which takes about 33 GiB a "
         "device; expected at most 22 GiB; use train.batch_size = 512, or train.microbatches = 4."),
        # A third of 1020 images is too much, and the next divisor is 4.
        (1020, {}, "found train.batch_size = 1020, which takes about 65 GiB a device; expected at most 22 GiB; use "
         "train.batch_size = 255, or train.microbatches = 4."),
        (512, {"fixed": 20}, "found train.batch_size = 512, which takes about 52 GiB a device; expected at most 22 "
         "GiB; no batch size fits; use a smaller model.trunk or views.size, or fewer views.num_views."),
    ],
)  # fmt: skip
def test_the_message_names_the_largest_part_that_fits(monkeypatch, batch_size, options, expected):
    assert refusal(monkeypatch, batch_size, **options) == expected


def test_a_step_that_needs_little_more_than_there_is_is_not_refused(monkeypatch):
    assert refusal(monkeypatch, 16 * 25) is None  # 26 of 22 GiB
    assert refusal(monkeypatch, 16 * 26) is not None
    assert refusal(monkeypatch, 16 * 50, parts=2) is None


def test_the_processor_has_the_memory_of_the_machine(monkeypatch):
    device = types.SimpleNamespace(memory_stats=lambda: None)
    monkeypatch.setattr(parallel, "devices", lambda: [device] * 4)
    if jax.default_backend() != "cpu":
        pytest.skip("needs JAX on CPU")
    pages = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(fit.os, "sysconf", pages.__getitem__)
    assert fit._limit() == 1_024_000
    monkeypatch.setattr(device, "memory_stats", lambda: {"bytes_limit": 5})
    assert fit._limit() == 5


def test_training_refuses_before_it_writes_anything(tmp_path, monkeypatch):
    from grafit_jax import train

    monkeypatch.setattr(fit, "_limit", lambda: 1000)
    with pytest.raises(UserError, match="no batch size fits"):
        train.train(small_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def machine(root, *files, vendor="0x8086"):
    for name in (*files, "sys/bus/pci/devices/0000:00:04.0/vendor"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{vendor}\n")
    return root


@pytest.fixture
def platforms():
    """`platforms(text)` sets what JAX_PLATFORMS sets."""
    before = jax.config.jax_platforms
    yield lambda text: jax.config.update("jax_platforms", text)
    jax.config.update("jax_platforms", before)


NVIDIA, TPU = "found an NVIDIA GPU that JAX does not see", "found a TPU that JAX does not see"


@pytest.mark.parametrize(
    ("files", "vendor", "expected"),
    [
        ((), "0x1ae0", ""),
        (("dev/nvidia0",), "0x10de", NVIDIA),
        (("dev/nvidia3",), "0x10de", NVIDIA),
        (("dev/nvidiactl",), "0x10de", ""),
        (("proc/driver/nvidia/gpus/0000:01:00.0/information",), "0x10de", NVIDIA),
        (("dev/accel0",), "0x1ae0", TPU),
        (("dev/vfio/0",), "0x1ae0", TPU),
        (("dev/vfio/vfio",), "0x1ae0", ""),
        (("dev/accel0",), "0x8086", ""),
    ],
)
def test_a_device_that_jax_does_not_see_is_one_line(tmp_path, monkeypatch, capsys, platforms, files, vendor, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    root = machine(tmp_path, *files, vendor=vendor)
    platforms(None)
    parallel.warn_of_unseen(root)
    found = capsys.readouterr().err
    platforms("cpu")
    parallel.warn_of_unseen(root)
    assert capsys.readouterr().err == ""  # the user asked for the CPU
    if not expected:
        assert found == ""
    else:
        extra = "cuda" if expected == NVIDIA else "tpu"
        assert found == (
            f"warning: {expected}, so it computes on the CPU; use `pip install -e '.[{extra}]'`, or set "
            "JAX_PLATFORMS=cpu if you want the CPU.\n"
        )


def test_a_hidden_gpu_is_meant_to_be(tmp_path, monkeypatch, capsys, platforms):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    platforms(None)
    parallel.warn_of_unseen(machine(tmp_path, "dev/nvidia0"))
    assert capsys.readouterr().err == ""


def test_with_a_gpu_that_jax_sees_there_is_no_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    parallel.warn_of_unseen(machine(tmp_path, "dev/nvidia0"))
    assert capsys.readouterr().err == ""

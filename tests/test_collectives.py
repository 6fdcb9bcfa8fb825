"""The computed traffic of docs/pods.md against the collectives of steps compiled for eight devices."""

import math
import re

import jax
import pytest
from benchmarks import collectives
from benchmarks.collectives import Traffic

from grafit_jax import experiment, restore, train_step
from helpers.runs import small_config

DEVICES = 8
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# An array's type in HLO text; the brackets of a scalar are empty.
ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")


def counted(hlo):
    """Returns the output bytes of a program's collectives by kind, and the dtypes of scalar outputs."""
    found, scalars = dict.fromkeys(KINDS, 0), []
    for line in hlo.splitlines():
        # The output is between the equals sign and the operation: one array, or several in parentheses.
        if not (match := re.search(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(", line)):
            continue
        for dtype, shape in ARRAY.findall(match[1]):
            assert dtype in ("f32", "s32"), line
            if shape:
                found[match[2]] += 4 * math.prod(map(int, shape.split(",")))
            else:
                scalars.append(dtype)
    return found, scalars


def added(*parts):
    return Traffic(*map(sum, zip(*parts, strict=True)))


def compiled(config):
    """Returns the run, the shapes of its state and the HLO text of its compiled step."""
    run = experiment.load(config)
    state = jax.eval_shape(lambda: restore.initial_state(run, placeholder=True))
    memory = restore.initial_memory(run, state, placeholder=True)
    feed = experiment.make_feed(run)
    lowered = train_step.pmap_steps(run, feed).lower(state, memory, next(iter(feed.epoch(0))))
    # Only code generation is unoptimised: the passes that decide on collectives run as usual.
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return run, state, lowered.compile(quick).as_text()


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("grafit", {}),
        ("snca_plus", {"model.sync_batch_norm": False, "model.embed_dim": 24}),
        ("coins", {"queue.size": 150, "model.head_batch_norm": False}),
    ],
)
def test_a_compiled_step_has_the_computed_traffic(method, overrides, eight_devices):
    config = small_config(method, **overrides)
    run, state, hlo = compiled(config)
    expected = added(*collectives.of_step(config, run.method, state).values())
    # The outputs of a shortcut's batch norm and its block's last one are added, so their biases have equal gradients,
    # which XLA reduces once.
    shortcuts = [block["BatchNorm_2"]["bias"] for block in state.params["trunk"].values() if "BatchNorm_2" in block]
    assert [bias.size for bias in shortcuts] == [32, 64]
    found, scalars = counted(hlo)
    assert found["all-reduce"] == expected.all_reduce - 4 * (32 + 64)
    assert found["all-gather"] == expected.all_gather
    assert found["reduce-scatter"] * DEVICES == expected.reduce_scatter  # each device has its part
    assert found["collective-permute"] == found["all-to-all"] == 0
    assert 0 < len(scalars) <= 2 * 6  # sums and counts of the metrics, not part of the computed traffic


def test_all_forms_of_collectives_are_counted():
    found, scalars = counted(
        """
  %a.1 = f32[2,16]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1}}, to_apply=%r
  %b = (f32[3,3,4,16]{3,2,1,0:T(8,128)}, f32[32]{0}, /*index=2*/f32[]) all-reduce(%x, %y, %z), to_apply=%r
  %c = f32[3]{0} get-tuple-element(%b), index=0, metadata={op_name="all-reduce(f32[9])"}
  ROOT %d = s32[64]{0} all-gather(%x), dimensions={0}
  %e = f32[8,16]{1,0} reduce-scatter(%x), dimensions={0}, to_apply=%r
"""
    )
    assert found["all-reduce"] == 4 * (2 * 16 + 3 * 3 * 4 * 16 + 32) and scalars == ["f32"]
    assert found["all-gather"] == 4 * 64 and found["reduce-scatter"] == 4 * 8 * 16


def test_a_ring_sends_reduced_arrays_twice_and_gathered_or_scattered_ones_once():
    traffic = added(Traffic(all_reduce=800), Traffic(all_reduce=0, all_gather=80, reduce_scatter=16))
    assert traffic.sent(8) == 7 * (100 + 100 + 10 + 2)
    assert traffic.sent(1) == 0


def test_traffic_of_an_imagenet_step_on_a_v3_8():
    line = collectives.ENTRIES["v3_8"]()
    # ResNet-50 without its classifier (25,557,032 - 2,049,000), channels of its batch norms; projector, predictor.
    trunk, channels = 23_508_032, 26_560
    projector, predictor = (i * 4096 + 2 * 4096 + 4096 * 256 + 256 for i in (2048, 256))
    assert line["gradient_megabytes"] * 1e6 == 2 * 4 * (trunk + projector + predictor) * 7 / 8
    # Three reductions of both statistics of all batch norms, and one of the target's, which has no predictor.
    floats = 3 * 2 * (channels + 4096 + 4096) + 2 * (channels + 4096)
    assert line["batch_norm_megabytes"] * 1e6 == pytest.approx(2 * 4 * floats * 7 / 8)
    # Gathered: two embeddings, a label and an id; scattered: a gradient; reduced: four scalars.
    assert line["memory_megabytes"] * 1e6 == pytest.approx(4 * 1024 * (2 * 256 + 2 + 256 + 2 * 4) * 7 / 8)
    assert line["batch_norm_reductions"] == 2 * (53 + 2) + 53 + 1
    megabytes = line["gradient_megabytes"] + line["batch_norm_megabytes"] + line["memory_megabytes"]
    assert line["link_ms"] == pytest.approx(megabytes / 100)  # 100 GB/s
    assert line["compute_ms"] == pytest.approx(134 / (4 * 123 / 3) * 1000)
    assert line["work"] == "v3-8, 8 devices of 128 images"

"""Profiles: operations get the right kind, name and time; a profiled workdir can still be trained in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax.commands import profiling
from grafit_jax.errors import UserError
from grafit_jax.runs import workdir
from helpers.runs import small_config

# As GPUs and TPUs have them: library calls, a fusion without a name of its own, a loop.
HLO = """
%fused_matmul (p: f32[2,2]) -> f32[2,2] {
  %p = f32[2,2]{1,0} parameter(0)
  ROOT %dot.1 = f32[2,2]{1,0} dot(%p, %p), metadata={op_name="jit(f)/Net/Dense_0/dot_general" stack_frame_id=1}
}

%loop_body (q: f32[2]) -> f32[2] {
  %q = f32[2]{0} parameter(0)
  ROOT %sort.1 = f32[2]{0} sort(%q), dimensions={0}, metadata={op_name="jit(f)/while/body/closed_call/sort"}
}

ENTRY %main (x: f32[2,2]) -> f32[2,2] {
  %x = f32[2,2]{1,0} parameter(0)
  %conv.1 = (f32[2,2]{1,0}, u8[0]{0}) custom-call(%x), custom_call_target="__cudnn$convForward", metadata={op_name="jit(f)/Net/Conv_0/conv_general_dilated"}
  %gemm.1 = f32[2,2]{1,0} custom-call(%x), custom_call_target="__cublas$gemm", metadata={op_name="jit(f)/Net/Dense_1/dot_general"}
  %fusion.1 = f32[2,2]{1,0} fusion(%x), kind=kOutput, calls=%fused_matmul
  %while.1 = f32[2]{0} while(%x), condition=%c, body=%loop_body
  ROOT %add.1 = f32[2,2]{1,0} add(%x, %x), metadata={op_name="jit(f)/Net/Conv_0/add"}
}
"""  # noqa: E501


def test_operations_are_summed_by_kind_and_place_and_containers_and_strangers_are_left_out(monkeypatch):
    events = [("conv.1", 3e6), ("conv.1", 4e6), ("gemm.1", 2e6), ("fusion.1", 1e6), ("sort.1", 5e5), ("add.1", 25e4)]
    monkeypatch.setattr(profiling, "_events", lambda path: [*events, ("while.1", 9e9), ("PjitFunction(f)", 9e9)])
    found = profiling.operations("trace", HLO)
    assert [(o.kind, o.name, o.count, o.milliseconds) for o in found] == [
        ("convolution", "Net/Conv_0/conv_general_dilated", 2, 7.0),
        ("matrix product", "Net/Dense_1/dot_general", 1, 2.0),
        ("matrix product", "Net/Dense_0/dot_general", 1, 1.0),
        ("sort", "while/sort", 1, 0.5),
        ("elementwise", "Net/Conv_0/add", 1, 0.25),
    ]
    assert profiling.share(found, "matrix product") == 3 / 10.75
    kinds, operations = profiling.table(found, top=1).split("\n\n")
    assert kinds.splitlines()[2].split() == ["matrix", "product", "3.0", "27.9%", "2"]
    assert operations.splitlines()[1:] == ["convolution  7.0  65.1%  2     Net/Conv_0/conv_general_dilated"]
    with pytest.raises(UserError, match="holds no operation of the traced program"):
        profiling.operations("trace", "")


def test_a_traced_product_takes_the_time_that_it_takes(tmp_path):
    x = jnp.ones((1500, 1500))
    call = jax.jit(lambda x: jnp.sort(x[:2]) + (x @ x)[:2]).lower(x).compile()
    call(x)
    found = profiling.operations(profiling.trace(lambda: call(x), tmp_path), call.as_text())
    # 6.75e9 floating-point operations: no machine does them in the time between two events, a microsecond; the
    # sort of 3,000 numbers takes a hundredth. The product's own end counts, not when it was handed to the threads.
    assert found[0].kind == "matrix product" and profiling.share(found, "matrix product") > 0.5
    assert found[0].milliseconds > 1.0
    assert {o.kind for o in found} >= {"sort"} and all(o.milliseconds > 0 for o in found)


def test_a_steps_profile_names_the_networks_parts_and_leaves_the_workdir_free(tmp_path):
    config = small_config()
    found, path = profiling.profile_step(config, tmp_path)
    assert path.is_relative_to(tmp_path / workdir.PROFILE)
    convolutions = [o.name for o in found if o.kind == "convolution"]
    for direction in ("Network.embed/trunk", "jvp(Network)/Network.embed/trunk", "transpose(jvp(Network))/Network"):
        assert any(name.startswith(direction) for name in convolutions), convolutions
    assert sum(profiling.share(found, kind) for kind in {o.kind for o in found}) == pytest.approx(1.0)
    assert np.isfinite([o.milliseconds for o in found]).all()
    assert config.train.steps_per_call == small_config().train.steps_per_call
    workdir.claim(tmp_path, config)

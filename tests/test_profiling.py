"""A profile is a trace that JAX's profiler reads; its workdir can still be trained in."""

import jax

from grafit_jax.runs import workdir
from helpers.runs import small_config


def test_the_command_leaves_a_trace_of_operations_and_the_workdir_free(tmp_path, cli, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    done = cli(
        "train", "--config=configs/digits.py", f"--workdir={tmp_path}", "--profile", "--config.views.num_views=2"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"trace: {tmp_path}/profile (pip install xprof tensorboard; tensorboard --logdir={tmp_path}/profile)\n"
    )
    [file] = (tmp_path / workdir.PROFILE).rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    events = [event for plane in planes for line in plane.lines for event in line.events]
    operations = {str(dict(event.stats)["hlo_op"]) for event in events if "hlo_op" in dict(event.stats)}
    assert any("convolution" in name for name in operations)
    assert not (tmp_path / "config.json").exists()
    workdir.claim(tmp_path, small_config())

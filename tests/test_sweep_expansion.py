"""Sweeps: the points of a file's sweep(), and errors before a run."""

import pathlib
import shlex

import pytest
from absl import flags
from ml_collections import config_flags
from sweeps import expansion

from grafit_jax import config as config_lib
from grafit_jax import config_checks, presets
from grafit_jax.errors import UserError
from grafit_jax.runs import workdir
from helpers.command_lines import ROOT
from helpers.runs import finish
from helpers.sweep_files import write_file

CONFIG_FILES = sorted((ROOT / "configs").glob("*.py"))
GRID = [{"method": m, "w": w} for m in ("baseline", "grafit") for w in (0.2, 0.5)]


def expand(tmp_path, points, arg="", overrides=(), seeds=None):
    return expansion.expand(write_file(tmp_path, points), arg, dict(overrides), seeds)


def names(sweep):
    return [point.name for point in sweep.points]


def config_of(words):
    """Returns the config and workdir that experiments/train.py parses from its flags."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    values(words)
    return values.config, values.workdir


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda p: p.stem)
def test_every_sweep_of_the_repository_expands_and_its_commands_give_its_configs(path, tmp_path):
    sweep = expansion.expand(str(path), "", {"optimizer.weight_decay": 0.25})
    assert len(sweep.points) > 1 and len(set(names(sweep))) == len(sweep.points)
    expansion.check_directory(sweep, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    for point in sweep.points:
        config_checks.validate(presets.assumed(point.config), num_devices=8)  # `expand` does for one device
        words = shlex.split(shlex.join(expansion.command(point, tmp_path, python="py", root=ROOT)))
        config, target = config_of(words[1:])
        assert config.optimizer.weight_decay == 0.25
        assert (config_lib.differences(config, point.config), target) == ([], str(tmp_path / point.name))
        assert (words[0], pathlib.Path(words[1]).resolve()) == ("py", ROOT / "experiments" / "train.py")


def test_a_list_becomes_a_tuple(tmp_path):
    (point, _) = expand(tmp_path, [{"views.crop_scale": [0.5, 1.0]}, {"w": 0.2}]).points
    assert point.values["views.crop_scale"] == point.config.views.crop_scale == (0.5, 1.0)


def test_keys_without_a_dot_are_arguments_and_those_with_one_are_config_keys(tmp_path):
    points = [
        {"method": "grafit", "optimizer.learning_rate": 0.25, "seed": 3},
        {"w": 1.0, "views.crop_scale": (0.5, 1.0), "optimizer.nesterov": False, "model.pretrained": "it's a,b"},
    ]
    first, second = expand(tmp_path, points, arg="source=npz:x").points
    c = first.config
    assert (c.method, c.seed, c.optimizer.learning_rate, c.data.source) == ("grafit", 3, 0.25, "npz:x")
    c = second.config
    assert (c.method, c.loss.maskcon_weight, c.views.crop_scale, c.optimizer.nesterov) == (
        "baseline",
        1.0,
        (0.5, 1.0),
        False,
    )
    assert c.model.pretrained == "it's a,b" and c.optimizer.learning_rate == 0.1 and c.data.source == "npz:x"
    file = tmp_path / "small.py"
    assert first.flags == (
        f"--config={file}:source=npz:x,method=grafit,seed=3",
        "--config.optimizer.learning_rate=0.25",
    )
    for point in (first, second):
        line = shlex.join(expansion.command(point, tmp_path / "a b", python="py", root=ROOT))
        config, target = config_of(shlex.split(line)[1:])
        assert config_lib.differences(config, point.config) == [] and target == str(tmp_path / "a b" / point.name)


def test_a_name_has_the_differing_values_and_a_seed_other_than_0(tmp_path):
    points = [
        {"method": "maskcon", "w": 0.5, "loss.maskcon_temperature": 0.1, "seed": 0},
        {"method": "maskcon", "w": 0.5, "loss.maskcon_temperature": 0.1, "seed": 1},
        {"method": "maskcon", "loss.maskcon_temperature": 0.2},
        {"method": "maskcon", "loss.maskcon_temperature": 0.2, "source": "npz:/a b/../c"},
    ]
    assert names(expand(tmp_path, points)) == [
        "w=0.5,loss.maskcon_temperature=0.1",
        "w=0.5,loss.maskcon_temperature=0.1,seed=1",
        "loss.maskcon_temperature=0.2",
        "loss.maskcon_temperature=0.2,source=npz_a_b_.._c",
    ]
    assert names(expand(tmp_path, [{"method": "grafit"}])) == ["seed=0"]
    assert names(expand(tmp_path, [{"seed": 0}, {"seed": 4}])) == ["seed=0", "seed=4"]
    signed = [{"views.mean": (0.5,)}, {"views.mean": (-0.5,)}]
    assert names(expand(tmp_path, signed)) == ["views.mean=0.5", "views.mean=-0.5"]
    long = names(expand(tmp_path, [{"source": "npz:" + "x" * 300 + end} for end in "ab"]))
    assert len(set(long)) == 2 and all(len(name) < 230 for name in long)
    assert expansion._name({"source": ".."}, ["source"]) == "source=.."  # a name never leaves the directory


def test_seeds_replace_those_of_every_point(tmp_path):
    points = [{"method": m, "seed": s} for m in ("baseline", "grafit") for s in (0, 1)]
    sweep = expand(tmp_path, points, seeds=[0, 2])
    assert [(p.config.method, p.config.seed) for p in sweep.points] == [
        ("baseline", 0), ("baseline", 2), ("grafit", 0), ("grafit", 2)
    ]  # fmt: skip
    assert names(sweep) == ["method=baseline", "method=baseline,seed=2", "method=grafit", "method=grafit,seed=2"]
    with pytest.raises(UserError, match=r"with the same name"):  # equal points stay an error
        expand(tmp_path, [{"w": 0.2}, {"w": 0.2}], seeds=[0, 1])


def test_command_line_values_apply_to_all_points_and_exclude_points_with_others(tmp_path):
    assert names(expand(tmp_path, GRID, arg="w=0.50")) == ["method=baseline,w=0.5", "method=grafit,w=0.5"]
    (only,) = expand(tmp_path, GRID, arg="method=grafit,w=0.2", overrides={"train.epochs": 7}).points
    assert (only.config.method, only.config.loss.maskcon_weight, only.config.train.epochs) == ("grafit", 0.2, 7)
    assert only.flags == (f"--config={tmp_path}/small.py:method=grafit,w=0.2", "--config.train.epochs=7")
    points = [{"optimizer.learning_rate": rate} for rate in (0.1, 0.2)]
    (only,) = expand(tmp_path, points, overrides={"optimizer.learning_rate": 0.2}).points
    assert only.name == "optimizer.learning_rate=0.2" and only.flags[1:] == ("--config.optimizer.learning_rate=0.2",)


@pytest.mark.parametrize(
    ("points", "arg", "message"),
    [
        (None, "", r"found no points in sweep\(\); expected dicts, such as"),
        ([], "", r"found no points in sweep\(\); expected dicts, such as \{\"method\": \"grafit\"\}"),
        (["grafit"], "", r"found 'grafit' in sweep\(\); expected a dict"),
        ([{1: 2}], "", r"found \{1: 2\} in sweep\(\); expected a dict"),
        (GRID + GRID[1:2], "", r"\{method=baseline, w=0.5\} and \{method=baseline, w=0.5\} with the same name"),
        ([{"source": "npz:a"}, {"source": "npz/a"}], "", r"source=npz:a\} and \{source=npz/a\} with the same name"),
        ([{"source": "npz:a"}, {"source": "npz:A"}], "", r"with the same name"),  # on file systems that ignore case
        ([{"w": 0.5}, {"method": "baseline"}], "", r"\{w=0.5\} and \{method=baseline\} with the same config"),
        (
            GRID,
            "method=byol",
            r"no point .* agrees with the command line, \{method=byol\}; .* \{method=base",
        ),
        (GRID, "w=x", r"w=x; expected a value of type float"),
        (
            [{"methd": "grafit"}],
            "",
            r"point \{methd=grafit\}: found unknown config argument 'methd' \(did you mean 'method'",
        ),
        (
            [{"method": "graft"}],
            "",
            r"point \{method=graft\}: found unknown method 'graft' \(did you mean 'grafit'\?\)",
        ),
        ([{"optimizer.lerning_rate": 1.0}], "", r"unknown config key 'optimizer.lerning_rate' \(did you mean 'opti"),
        (
            [{"w": 0.1}, {"optimizer.learning_rate": "a"}],
            "",
            r"learning_rate = 'a'; expected a value of type float, such as 0.1",
        ),
        ([{"optimizer.learning_rate": -1.0}], "", r"optimizer.learning_rate = -1.0; expected a value > 0"),
        ([{"source": "a,b"}], "", r"found config argument 'b'; expected key=value"),
    ],
)
def test_mistakes_in_a_sweep_are_errors_before_a_run(tmp_path, points, arg, message):
    with pytest.raises(UserError, match=message) as caught:
        expand(tmp_path, points, arg=arg)
    assert "\n" not in str(caught.value)


def test_a_file_without_a_sweep_is_an_error(tmp_path):
    file = tmp_path / "single.py"
    file.write_text((ROOT / "configs" / "digits.py").read_text().partition("def sweep")[0])
    with pytest.raises(UserError, match=r"single.py: found no sweep\(\); expected a function that yields dicts"):
        expansion.expand(str(file), "", {})


def test_shards_are_a_partition(tmp_path):
    points = expand(tmp_path, [{"w": i / 10} for i in range(10)]).points
    for n in (1, 3, 10, 12):
        parts = [expansion.shard(points, f"{i}/{n}") for i in range(n)]
        assert sorted(p.name for part in parts for p in part) == sorted(p.name for p in points)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for wrong in ("3/3", "-1/3", "1", "0/0", "a/b", "", "1/3/5", "1 /3", "1/3\n"):
        with pytest.raises(UserError, match=r"; expected i/n, part i of n, with i from 0 to n - 1"):
            expansion.shard(points, wrong)


def test_only_a_directory_of_this_sweep_is_accepted(tmp_path):
    sweep = expand(tmp_path, GRID)
    part = expand(tmp_path, GRID, arg="method=grafit")
    directory = tmp_path / "runs"
    runs = [directory / point.name for point in sweep.points]
    workdir.claim(runs[0], sweep.points[0].config)
    for there in (expansion.PLOT, ".DS_Store", f"{runs[1].name},seed=3"):
        (directory / there).mkdir()
    runs[2].mkdir()
    (runs[2] / workdir.LOG).write_text("exit status 1\n")
    (runs[2] / "config.json.tmp").write_text("{")  # of a run killed while writing
    for ours in (sweep, part):  # runs of excluded points are accepted
        expansion.check_directory(ours, directory)

    (runs[3] / "holiday").mkdir(parents=True)
    with pytest.raises(UserError, match=r"w=0.5: found unrelated files \(holiday"):
        expansion.check_directory(sweep, directory)
    (runs[3] / "holiday").rmdir()
    (directory / "photos").mkdir()
    with pytest.raises(
        UserError, match=r"runs: found photos; expected only runs of this sweep, .*; use another --workdir"
    ):
        expansion.check_directory(sweep, directory)
    (directory / "photos").rmdir()
    other = expand(tmp_path, GRID, overrides={"train.epochs": 9})
    with pytest.raises(
        UserError, match=r"method=baseline,w=0.2: found the run of another config \(train.epochs: 1 -> 9"
    ):
        expansion.check_directory(other, directory)
    (runs[0] / "metrics.json").write_text('{"map": "high"}')
    (runs[0] / "run.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"baseline,w=0.2: found 'high' as map; expected the file of experiments/train.py"
    ):
        expansion.check_directory(sweep, directory)
    (runs[0] / "config.json").write_text('{"schema": 7}')
    with pytest.raises(UserError, match=r"config.json: found no config that this version can read"):
        expansion.check_directory(sweep, directory)


def test_submit_print_prints_a_command_for_each_incomplete_point(tmp_path, cli):
    file = write_file(tmp_path, GRID)
    target = tmp_path / "a b"
    sweep = expansion.expand(file, "", {"train.epochs": 3})
    finish(target / sweep.points[0].name, sweep.points[0].config, {"map": 0.5})
    done = cli(
        "sweep", f"--config={file}", "--config.train.epochs=3", f"--workdir={target}", "--shard=0/2", "--submit=print"
    )
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    expected = ["python", "experiments/train.py", *sweep.points[2].flags, f"--workdir={target / sweep.points[2].name}"]
    assert shlex.split(line) == expected

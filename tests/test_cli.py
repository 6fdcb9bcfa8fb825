"""Errors on the command line: one line on stderr, exit status 2, no output on stdout, no workdir."""

import os
import subprocess
import sys

import pytest

from grafit_jax.commands import cli as command_line
from grafit_jax.commands import main
from grafit_jax.errors import UserError
from helpers.command_lines import ROOT

# Script and flags -> part of its error message.
MISTAKES = {
    "train --config=configs/nope.py": "found no config file configs/nope.py; expected --config=FILE.py[:key=value,…].",
    "train --config=configs/digits.py:method=grafitt": "unknown method 'grafitt' (did you mean 'grafit'?)",
    "train --config=configs/digits.py --config.optimizer.lerning_rate=1": (
        "unknown config key 'lerning_rate' (did you mean 'learning_rate'?)."
    ),
    "train --config=configs/cifar100.py:preset=cpu --config.data.data_dir={tmp}/empty": (
        "tfds:cifar100: found no prepared data set in {tmp}/empty; run `tfds build cifar100 --data_dir={tmp}/empty`"
    ),
    "train --config=configs/digits.py stray": "found the argument 'stray'; expected flags, as --name=value.",
    "evaluate": "found no run (no config.json); expected the --workdir of experiments/train.py.",
    "reproduce --rows=gaussian": "found unknown row gaussian; expected one of raw_pixels, baseline,",
    "reproduce --again": "found --again without --record; expected both",
    "reproduce --all --table=omniglot": "found --all and --table=omniglot; expected one of them",
    "reproduce --seeds=0,0": "expected distinct whole numbers, as in 0,1,2",
    "sweep --config=configs/digits.py:method=byol": "that agrees with the command line, {{method=byol}}",
    "reproduce --table=cifar100_cpuu": "unknown table 'cifar100_cpuu' (did you mean 'cifar100_cpu'?)",
    "reproduce --table=omniglot --scale=paper": "found --scale=paper for table omniglot; expected one of cpu.",
    "reproduce --seeds=0,x": "expected distinct whole numbers, as in 0,1,2",
}


def assert_one_line(done, expected, target):
    lines = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert (done.returncode, done.stdout) == (2, ""), done.stderr[-2000:]
    assert len(lines) == 1 and expected in lines[0] and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert not target.exists()


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_prints_one_line(tmp_path, cli, line):
    script, *arguments = line.format(tmp=tmp_path).split()
    target = tmp_path / "run"
    done = cli(script, f"--workdir={target}", *arguments)
    assert_one_line(done, MISTAKES[line].format(tmp=tmp_path), target)


def test_an_error_that_adds_the_place_of_another_one_is_the_one_that_is_printed():
    try:
        try:
            raise UserError("found no tensor conv1.")
        except UserError as error:
            raise UserError(f"w.pth: {error}") from None
    except UserError as error:
        assert command_line._message(error) == "w.pth: found no tensor conv1."


def test_an_error_in_the_code_of_a_config_file_keeps_its_traceback(tmp_path, processes):
    (tmp_path / "broken.py").write_text("def get_config(arg=None):\n    return {}['trunk']\n")
    broken = processes("train", f"--config={tmp_path}/broken.py", f"--workdir={tmp_path}/broken")
    assert broken.returncode == 1 and "return {}['trunk']" in broken.stderr and "KeyError: 'trunk'" in broken.stderr


def test_reproduce_reports_failed_rows_at_the_end(tmp_path, cli):
    (tmp_path / "grafit").mkdir()
    (tmp_path / "grafit" / "thesis.tex").touch()
    done = cli("reproduce", "--table=quickstart", "--rows=grafit", f"--workdir={tmp_path}")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"failed: {tmp_path}/grafit: " in done.stderr and "found unrelated files (thesis.tex, …)" in done.stderr


LARGE_PAGES = "glibc.malloc.hugetlb=1"
STARTS = """
import os, sys
from grafit_jax.commands.main import use_large_pages
use_large_pages()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
@pytest.mark.parametrize(
    ("options", "tunables", "expected"),
    [
        ([], None, LARGE_PAGES),
        ([], "glibc.malloc.check=0", "glibc.malloc.check=0"),
        (["-u"], None, None),  # one of Python's own options
        (["-X", "large_pages"], None, None),  # a second start
    ],
)
def test_a_script_starts_again_with_large_pages(tmp_path, options, tunables, expected):
    (tmp_path / "script.py").write_text(STARTS)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if tunables is not None:
        environment["GLIBC_TUNABLES"] = tunables
    words = [sys.executable, *options, str(tmp_path / "script.py"), "--name=a b", ""]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{expected} ['--name=a b', '']\n"


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
@pytest.mark.parametrize("start", ["grafit report", "-m grafit_jax report", "report.py", "reproduce.py"])
def test_commands_start_with_large_pages(monkeypatch, cli, start):
    def execv(path, words):
        raise InterruptedError(path, words)

    script = start.endswith(".py")
    words = [str(ROOT / "experiments" / start)] if script else start.split()
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # so that the command's own value goes with the test
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(sys, "argv", ["grafit", "report"])  # `cli` sets its own
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, *words])
    with pytest.raises(InterruptedError) as again:
        cli(start.removesuffix(".py")) if script else main.main()
    assert again.value.args == (sys.executable, [sys.executable, "-X", "large_pages", *words])

"""The installed command `grafit`, config files by name, words that are not flags, and the content of the wheel."""

import shutil
import subprocess
import sys
import zipfile

import pytest

import grafit_jax
from grafit_jax import config_files
from grafit_jax.commands import main
from grafit_jax.errors import UserError
from helpers.command_lines import ROOT

GRAFIT = ROOT / "grafit_jax" / "__main__.py"


def mistake(done):
    """The message of a command that ended with one line."""
    [line] = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "") and line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.mark.parametrize("words", [(), ("--help",)])
def test_grafit_lists_its_commands(cli, words):
    done = cli(GRAFIT, *words)
    assert (done.returncode, done.stderr) == (0, "")
    listed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[2:10])
    assert [*listed] == ["train", "evaluate", "embed", "search", "app", "discover", "export", "report"]
    assert listed["train"] == "Trains a run by a config file, or resumes the run in the same workdir."


def test_grafit_prints_its_version(cli):
    assert cli(GRAFIT, "--version").stdout == f"grafit_jax {grafit_jax.__version__}\n"


@pytest.mark.parametrize("name", main.COMMANDS)
def test_a_command_describes_itself_as_its_script_does(cli, name):
    done = cli(GRAFIT, name, "--help")
    assert done.stdout == cli(name, "--help").stdout
    assert f"`grafit {name}` of the installed package" in done.stdout and "--workdir: " in done.stdout


def test_a_command_gets_its_flags(tmp_path, cli):
    found = mistake(cli(GRAFIT, "evaluate", f"--workdir={tmp_path / 'run'}"))
    assert found.startswith(f"{tmp_path / 'run'}: found no run")


def test_an_unknown_command_is_one_line_with_the_nearest(cli):
    found = mistake(cli(GRAFIT, "trian", "--workdir=run"))
    assert (
        found == f"found unknown command 'trian' (did you mean 'train'?); expected one of {', '.join(main.COMMANDS)}."
    )


@pytest.mark.parametrize("script", ["train", "sweep"])
@pytest.mark.parametrize("words", [["--config=digits:method=grafitt"], ["--config", "digits:method=grafitt"]])
def test_a_config_file_has_a_name(tmp_path, cli, script, words):
    assert "unknown method 'grafitt'" in mistake(cli(script, f"--workdir={tmp_path / 'run'}", *words))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "digit:method=grafit",
            "found unknown config 'digit' (did you mean 'digits'?); expected one of cifar100, digits,",
        ),
        ("digits.py", "found no config file digits.py; expected --config=FILE.py"),
        ("mine/digits", "found no config file mine/digits; expected --config=FILE.py"),
    ],
)
def test_an_unknown_config_is_one_line(tmp_path, cli, value, message):
    assert mistake(cli("train", f"--workdir={tmp_path / 'run'}", f"--config={value}")).startswith(message)


def test_a_name_is_of_the_package_before_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(config_files, "__file__", str(tmp_path / "grafit_jax" / "config_files.py"))
    for folder in (tmp_path / "configs", tmp_path / "grafit_jax" / "configs"):
        folder.mkdir(parents=True)
        (folder / f"{folder.parent.name}.py").touch()
        (folder / "own.py").touch()
        assert config_files.find("own") == folder / "own.py"
    with pytest.raises(UserError, match="expected one of grafit_jax, own"):
        config_files.find(tmp_path.name)


SCRIPT = """
from absl import flags

from grafit_jax.commands import cli

QUERY = flags.DEFINE_multi_string("query", [], "")
IDS = flags.DEFINE_list("ids", None, "")


def main(argv):
    print(QUERY.value, IDS.value, QUERY.present, IDS.present)


cli.run(main, rest={rest!r})
"""


@pytest.mark.parametrize(
    ("rest", "words", "printed"),
    [
        ("query", ["--query=a.jpg", "b.jpg", "c,d.jpg"], "['a.jpg', 'b.jpg', 'c,d.jpg'] None True False"),
        ("query", ["b.jpg", "--query=a.jpg"], "['a.jpg', 'b.jpg'] None True False"),
        ("query", ["--query", "a.jpg", "--query", "b.jpg"], "['a.jpg', 'b.jpg'] None True False"),
        ("ids", ["--ids=a,b", "c,d", "--query=q"], "['q'] ['a', 'b', 'c,d'] True True"),
        ("ids", ["a", "--", "--b"], "[] ['a', '--b'] False True"),
    ],
)
def test_words_that_are_not_flags_are_values_of_one(tmp_path, cli, rest, words, printed):
    (tmp_path / "script.py").write_text(SCRIPT.format(rest=rest))
    done = cli(tmp_path / "script.py", *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{printed}\n", "")


def test_a_command_without_such_a_flag_refuses_words(tmp_path, cli):
    (tmp_path / "script.py").write_text(SCRIPT.format(rest=None))
    assert mistake(cli(tmp_path / "script.py", "--query=a.jpg", "b.jpg")).startswith("found the argument 'b.jpg'")


def test_a_wheel_has_the_package_and_the_config_files(tmp_path, processes):
    source = tmp_path / "source"
    for folder in ("grafit_jax", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    expected = {str(path.relative_to(source)) for path in (source / "grafit_jax").rglob("*") if path.is_file()}
    expected |= {f"grafit_jax/configs/{path.name}" for path in (source / "configs").glob("*.py")}
    offline = ["--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={tmp_path}"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", *offline, str(source)], check=True, cwd=tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        [entry] = [archive.read(name).decode() for name in archive.namelist() if name.endswith("/entry_points.txt")]
    assert files == expected
    assert "grafit = grafit_jax.commands.main:main" in entry

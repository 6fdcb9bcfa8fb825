"""docs/tutorial_digits.md as its reader has it: every block is executed as printed, and prints what the page shows."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from helpers.command_lines import ROOT, shell_environment

PAGE = ROOT / "docs" / "tutorial_digits.md"
LAID_OUT = ("configs", "docs", "experiments", "grafit_jax")
SCRIPTS = ["train", "train", "evaluate", "embed", "search", "report", "sweep", "reproduce"]
# Not those within names, as in recall@5.
NUMBER = re.compile(r"(?<![\w@=.])-?\d+(?:\.\d+)?(?:e-?\d+)?")
COMMAND = re.compile(r"python experiments/(\w+)\.py")


def blocks(page):
    """[(language, text)] of all fenced blocks, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def execute(language, text, cwd):
    """What a block prints on stdout, of the interpreter of the tests."""
    command = {"bash": ["bash", "-eo", "pipefail", "-c", text], "python": [sys.executable, "-c", text]}[language]
    env = shell_environment()
    env["PATH"] = os.pathsep.join([str(pathlib.Path(sys.executable).parent), env["PATH"]])
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, f"{text}\n{done.stderr[-3000:]}"
    return done.stdout


def differences(shown, printed):
    """What is wrong with an output that a page shows, in a line, or None.

    "…" stands for any lines. Words, keys and names are the same, and so is the order; columns may be of other widths;
    whole numbers differ freely, those with a point by a tenth at most, of one or of what is shown where that is more.
    """
    pattern = ""
    for line in shown.splitlines():
        if line.strip() == "…":
            pattern += r"(?:.*\n)*?"
            continue
        words = [re.escape(part) for part in NUMBER.split(line)]
        text = f"({NUMBER.pattern})".join(re.sub(r"(?:\\ )+", r"[ ]+", re.sub(r"(?:\\-){2,}", "-+", w)) for w in words)
        pattern += text + r"[ ]*\n"
    found = re.fullmatch(pattern, printed)
    if not found:
        return f"of another shape:\n{shown}\nwas printed as:\n{printed[-3000:]}"
    lines = [line for line in shown.splitlines() if line.strip() != "…"]
    wanted = [number for line in lines for number in NUMBER.findall(line)]
    for want, got in zip(wanted, found.groups(), strict=True):
        if "." in want and abs(float(got) - float(want)) > 0.1 * max(1.0, abs(float(want))):
            return f"{want} is shown, {got} was printed:\n{printed[-3000:]}"
    return None


def test_what_a_page_shows_is_compared_by_shape_and_roughly_by_number():
    printed = '{\n    "map": 0.57,\n    "step": 70\n}\nid      label\ntest/3  8\n'
    same = ["…\n", '{\n    "map": 0.61,\n…\n}\nid  label\ntest/12  9\n', printed]
    assert [differences(shown, printed) for shown in same] == [None] * 3
    other = [
        printed.replace("map", "mAP"),
        printed.replace("0.57", "0.68"),
        printed.replace("id ", "ids "),
        printed.replace('    "step": 70\n', ""),
        printed + "1\n",
        "",
    ]
    assert all(differences(shown, printed) for shown in other)


def missing(page, cwd):
    """Files of runs that a page names and that are not in `cwd`, and links of it that lead nowhere."""
    named = sorted(set(re.findall(r"runs/[\w=./]*\w", page)))
    links = re.findall(r"\]\(([\w.]+)\)", page)
    assert named and links
    return [name for name in named if not (cwd / name).exists()] + [
        link for link in links if not (PAGE.parent / link).exists()
    ]


def test_files_that_are_named_and_not_there_are_found(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.npz").touch()
    page = "python x.py --out=runs/a.npz, then `runs/b.png`. ![](tutorial_digits.png) [x](nowhere.md)"
    assert missing(page, tmp_path) == ["runs/b.png", "nowhere.md"]


@pytest.mark.slow
def test_every_command_of_the_tour_prints_what_it_shows(tmp_path):
    page = PAGE.read_text()
    fenced = blocks(page)
    steps, outputs = fenced[::2], fenced[1::2]
    assert {language for language, _ in steps} == {"bash", "python"} and {language for language, _ in outputs} == {
        "text"
    }
    # Whatever stands on the page as a command is run, in whatever way it is set.
    assert COMMAND.findall("\n".join(text for _, text in steps)) == COMMAND.findall(page) == SCRIPTS
    assert [language for language, _ in steps].count("python") == page.count("from grafit_jax.retrieval import") == 1
    for name in LAID_OUT:
        (tmp_path / name).symlink_to(ROOT / name)
    for (language, text), (_, shown) in zip(steps, outputs, strict=True):
        wrong = differences(shown, execute(language, text, tmp_path))
        assert wrong is None, f"{text}\n{wrong}"
    assert missing(page, tmp_path) == []
    assert "](tutorial_digits.png)" in page and (PAGE.parent / "tutorial_digits.png").stat().st_size < 150_000

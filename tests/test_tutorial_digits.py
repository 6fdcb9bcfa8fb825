"""Executes every block of docs/tutorial_digits.md and compares its output with the page."""

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
# Numbers outside of names; not the 5 of recall@5.
NUMBER = re.compile(r"(?<![\w@=.])-?\d+(?:\.\d+)?(?:e-?\d+)?")
COMMAND = re.compile(r"python experiments/(\w+)\.py")


def blocks(page):
    """Returns (language, text) of all fenced blocks, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def execute(language, text, cwd):
    """Returns what a block prints on stdout, run with the tests' interpreter."""
    command = {"bash": ["bash", "-eo", "pipefail", "-c", text], "python": [sys.executable, "-c", text]}[language]
    env = shell_environment()
    env["PATH"] = os.pathsep.join([str(pathlib.Path(sys.executable).parent), env["PATH"]])
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, f"{text}\n{done.stderr[-3000:]}"
    return done.stdout


def differences(shown, printed):
    """Returns how `printed` differs from the output `shown` on the page, or None.

    "…" matches any lines. Words, keys, names and their order must be equal; column widths may differ. Integers may
    differ freely, numbers with a point by 0.1, or by a tenth of the shown value if that is more.
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
        return f"expected output like:\n{shown}\nfound:\n{printed[-3000:]}"
    lines = [line for line in shown.splitlines() if line.strip() != "…"]
    expected = [number for line in lines for number in NUMBER.findall(line)]
    for number, got in zip(expected, found.groups(), strict=True):
        if "." in number and abs(float(got) - float(number)) > 0.1 * max(1.0, abs(float(number))):
            return f"expected {number}, found {got}:\n{printed[-3000:]}"
    return None


def test_outputs_are_compared_exactly_in_words_and_roughly_in_numbers():
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
    """Returns the run files that a page names but `cwd` lacks, and its broken links."""
    named = sorted(set(re.findall(r"runs/[\w=./]*\w", page)))
    links = re.findall(r"\]\(([\w.]+)\)", page)
    assert named and links
    return [name for name in named if not (cwd / name).exists()] + [
        link for link in links if not (PAGE.parent / link).exists()
    ]


def test_missing_files_and_broken_links_are_found(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.npz").touch()
    page = "python x.py --out=runs/a.npz, then `runs/b.png`. ![](tutorial_digits.png) [x](nowhere.md)"
    assert missing(page, tmp_path) == ["runs/b.png", "nowhere.md"]


@pytest.mark.slow
def test_every_command_of_the_tutorial_prints_what_the_page_shows(tmp_path):
    page = PAGE.read_text()
    fenced = blocks(page)
    steps, outputs = fenced[::2], fenced[1::2]
    assert {language for language, _ in steps} == {"bash", "python"} and {language for language, _ in outputs} == {
        "text"
    }
    # Every command on the page is in a fenced block, and every block is run.
    assert COMMAND.findall("\n".join(text for _, text in steps)) == COMMAND.findall(page) == SCRIPTS
    assert [language for language, _ in steps].count("python") == page.count("from grafit_jax.retrieval import") == 1
    for name in LAID_OUT:
        (tmp_path / name).symlink_to(ROOT / name)
    for (language, text), (_, shown) in zip(steps, outputs, strict=True):
        wrong = differences(shown, execute(language, text, tmp_path))
        assert wrong is None, f"{text}\n{wrong}"
    assert missing(page, tmp_path) == []
    assert "](tutorial_digits.png)" in page and (PAGE.parent / "tutorial_digits.png").stat().st_size < 150_000

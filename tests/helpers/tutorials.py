"""Executing the pages of a tutorial: their blocks, and what these print."""

import os
import pathlib
import re
import subprocess
import sys

from helpers.command_lines import ROOT, shell_environment

# What a tutorial needs of the checkout, and the command lines on its page.
LAID_OUT = ("configs", "docs", "experiments", "grafit_jax")
COMMAND = re.compile(r"python experiments/(\w+)\.py")
# Numbers outside of names; not the 5 of recall@5.
NUMBER = re.compile(r"(?<![\w@=.])-?\d+(?:\.\d+)?(?:e-?\d+)?")


def blocks(page):
    """Returns (language, text) of all fenced blocks, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def execute(language, text, cwd):
    """Returns what a block prints on stdout and on stderr, run with the tests' interpreter."""
    command = {"bash": ["bash", "-eo", "pipefail", "-c", text], "python": [sys.executable, "-c", text]}[language]
    env = shell_environment()
    env["PATH"] = os.pathsep.join([str(pathlib.Path(sys.executable).parent), env["PATH"]])
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, f"{text}\n{done.stderr[-3000:]}"
    return done.stdout, done.stderr


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


def missing(page, cwd):
    """Returns the run files that a page names but `cwd` lacks, and its broken links."""
    named = sorted(set(re.findall(r"runs/[\w=./]*\w", page)))
    links = re.findall(r"\]\(([\w.]+)\)", page)
    assert named and links
    return [name for name in named if not (cwd / name).exists()] + [
        link for link in links if not (ROOT / "docs" / link).exists()
    ]

"""The pages: links and commands are valid, and the reference covers every key and flag."""

import ast
import pathlib
import re
import shlex

import pytest
from absl import flags
from study import reference, tables

from grafit_jax import config as config_lib
from grafit_jax import config_files
from grafit_jax.commands import main
from grafit_jax.errors import UserError, choose
from grafit_jax.runs import workdir
from helpers.command_lines import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BY_NAME = {page.name: page for page in PAGES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
DEFINED = re.compile(r"DEFINE_\w+\(\s*\"(\w+)\"")


def prose(page):
    """A page without its fenced blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))


def anchors(page):
    """The anchors of a page's headings, by the rule that GitHub and MkDocs share."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def commands(page):
    """The commands of a page's bash blocks, each a list of words without variables set before it."""
    for language, text in FENCE.findall(page.read_text()):
        if language != "bash":
            continue
        text = re.sub(r"(^|\s)#.*$", "", text.replace("\\\n", " "), flags=re.MULTILINE)
        lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;\n")
        lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
        words = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;\n"):
                if words:
                    yield words
                words = []
            elif words or not re.match(r"[A-Z_]+=", word):
                words.append(word)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_link_has_a_target(name):
    page = BY_NAME[name]
    for target in LINK.findall(prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


def flags_of(script):
    return {*DEFINED.findall(reference.source(script).read_text()), *flags.FLAGS}


def check(words):
    """Raises an error if a documented command would be refused."""
    if words[0] == "make":
        targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1].split()
        assert {word for word in words[1:] if "=" not in word} <= {*targets}, words
    installed = words[0] == "grafit"
    runs_script = re.search(r"python3?$", words[0]) and len(words) > 1 and words[1].startswith("experiments/")
    if not installed and not runs_script:
        return
    script = choose(words[1], "command", main.COMMANDS) if installed else pathlib.Path(words[1]).stem
    known = flags_of(script)
    given = dict(word[2:].partition("=")[::2] for word in words[2:] if word.startswith("--"))
    overrides = {name.partition(".")[2]: value for name, value in given.items() if name.startswith("config.")}
    for name in given:
        assert name.startswith("config.") or name in known or name.removeprefix("no") in known, f"{script} --{name}"
    if "config" in given:
        file, _, arg = given["config"].partition(":")
        path = ROOT / file if file.endswith(".py") else config_files.find(file)
        keys = config_lib.flatten(config_files.load_file(path, arg))
        assert overrides.keys() <= keys.keys(), overrides
    if "table" in given:
        tables.find(given["table"], given.get("scale"))


@pytest.mark.parametrize("name", BY_NAME)
def test_every_command_is_valid(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workdir.claim(pathlib.Path("runs/photos"), config_lib.default())  # the run that a config continues
    for words in commands(BY_NAME[name]):
        check(words)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_import_of_a_python_block_exists(name):
    for language, text in FENCE.findall(BY_NAME[name].read_text()):
        if language == "python":
            imports = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
            try:
                exec(compile(ast.Module(imports, []), name, "exec"), {})
            except ModuleNotFoundError as error:
                if error.name not in ("faiss", "pandas"):
                    raise
                pytest.skip(f"needs {error.name}: make parity")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("make quickstartt", "quickstartt"),
        ("python experiments/train.py --config=configs/digits.py --config.train.epoch=3", "train.epoch"),
        ("python experiments/train.py --config=configs/digits.py:methodd=grafit --workdir=runs/a", "methodd"),
        ("python experiments/train.py --config=configs/digit.py --workdir=runs/a", "digit.py"),
        ("python experiments/embed.py --workdir=runs/a --outt=x.npz", "embed --outt"),
        ("python experiments/reproduce.py --table=quickstartt", "quickstartt"),
        ("grafit trian --config=own:dir=photos --workdir=runs/a", "trian"),
        ("grafit train --config=owm:dir=photos --workdir=runs/a", "owm"),
        ("grafit train --config=own:dirr=photos --workdir=runs/a", "dirr"),
    ],
)
def test_a_refused_command_is_found(line, named):
    with pytest.raises((AssertionError, UserError, OSError), match=re.escape(named)):
        check(shlex.split(line))


def test_the_reference_has_every_key_and_every_flag():
    keys = reference.config_keys()
    for key in config_lib.flatten(config_lib.default()):
        section, _, name = key.rpartition(".")
        of_section = keys.split(f"### {section or 'Top level'}\n")[1].split("\n### ")[0]
        row = next(line for line in of_section.splitlines() if line.startswith(f"| `{name}` |"))
        assert len(row.split(" | ")[-1]) > 10, f"{key} has no comment"
    pages = reference.commands()
    for script in reference.COMMANDS:
        of_script = pages.split(f"## {script}.py\n")[1].split("\n## ")[0]
        for name in DEFINED.findall(reference.source(script).read_text()):
            assert f"| `--{name}` |" in of_script, f"{script} --{name}"
    assert {path.stem for path in (ROOT / "experiments").glob("*.py")} == {*reference.COMMANDS}


def test_a_keys_comment_stands_behind_it_or_above_it():
    source = """
def default():
    c = ConfigDict()
    # Of no key.

    c.seed = 0  # Seed.
    c.data = d = ConfigDict()
    # Two lines
    # above.
    d.source = "x"
    d.plain = ()
    c.views = v = ConfigDict()
    v.update(_augmentations())
    c.keys = _augmentations()  # Views of keys.

def _augmentations():
    a = ConfigDict()
    a.flip = 0.5  # Flip.
"""
    found = reference.key_comments(source)
    assert {key: text for key, text in found.items() if text} == {
        "seed": "Seed.", "data.source": "Two lines above.", "views.flip": "Flip.", "keys.flip": "Flip.",
        "keys": "Views of keys.",
    }  # fmt: skip


def test_the_readme_fits_one_sitting_and_names_every_page():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    nav = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}" in nav
        assert page.name == "index.md" or f"(docs/{page.name})" in readme

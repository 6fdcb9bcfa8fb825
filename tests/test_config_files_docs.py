"""Docstrings of configs/*.py: the same headings in the same order, commands that load, arguments that exist."""

import pathlib
import re

import pytest

from grafit_jax import config_files
from helpers.command_lines import ROOT

CONFIG_FILES = sorted((ROOT / "configs").glob("*.py"))
HEADINGS = ["Paper", "Command", "Arguments", "Hours", "Expect"]

pytestmark = pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.stem)


def sections(path: pathlib.Path) -> dict[str, str]:
    """Heading -> text, with the first line as heading ""."""
    first, *rest = re.split(r"\n\n(\w+):", config_files.load_module(path).__doc__ or "")
    return {"": first, **dict(zip(rest[::2], rest[1::2], strict=True))}


def test_headings_are_in_order_and_not_empty(path):
    found = sections(path)
    assert [*found] == ["", *HEADINGS]
    assert all(text.strip() for text in found.values())
    assert re.fullmatch(r".+: trained on .+, evaluated by .+\.", found[""])
    assert "https://arxiv.org/abs/" in found["Paper"] and "docs/paper.md section" in found["Paper"]


def test_every_command_loads(path):
    commands = re.findall(r"--config=(\S+?\.py)(?::(\S+))?(?=\s)", sections(path)["Command"])
    assert commands
    for file, arg in commands:
        assert ROOT / file == path
        config_files.load_file(path, arg)


def test_arguments_and_defaults_are_those_of_get_config(path, monkeypatch):
    taken = {}
    parse_arg = config_files.parse_arg
    monkeypatch.setattr(config_files, "parse_arg", lambda arg, **given: taken.update(given) or parse_arg(arg, **given))
    module = config_files.load_module(path)
    module.get_config()
    text = sections(path)["Arguments"]
    found = re.findall(r"^    (\w+)= \(default: (\w[\w.]*)", text, flags=re.MULTILINE)
    assert dict(found) == {key: str(value) if value != "" else "none" for key, value in taken.items()}
    for name in (*getattr(module, "PRESETS", ()), *getattr(module, "DATASETS", ())):
        assert re.search(rf"^        {name}  ", text, flags=re.MULTILINE), f"{name} is not described"

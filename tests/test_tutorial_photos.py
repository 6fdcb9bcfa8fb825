"""Executes every block of docs/tutorial_photos.md on a few of its photos, from its ImageNet weights."""

import collections
import re

import pytest

from helpers import hub
from helpers.command_lines import ROOT
from helpers.tutorials import COMMAND, LAID_OUT, blocks, execute, missing

PAGE = ROOT / "docs" / "tutorial_photos.md"
SHARED = ROOT.parent / "shared"
WEIGHTS = SHARED / "weights" / "tf_efficientnet_lite0.safetensors"
EACH = 2  # photos of a fine class in a split


def few_photos(source, target):
    """Writes the repository of the photos with few of every class, as links."""
    (target / "dataset").mkdir(parents=True)
    (target / "dataset" / "classes.csv").symlink_to(source / "dataset" / "classes.csv")
    for split in ("train", "val", "test"):
        count, kept = collections.Counter(), []
        for line in (source / "dataset" / f"{split}.txt").read_text().splitlines():
            name, fine, _ = line.split(", ")
            count[fine] += 1
            if count[fine] <= EACH:
                kept.append(line)
                link = target / "dataset" / name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(source / "dataset" / name)
        (target / "dataset" / f"{split}.txt").write_text("\n".join(kept) + "\n")


def words(line):
    """Returns a line without its numbers and the width of its columns."""
    return re.sub(r"[\d.,]+", "#", line).split()


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"no weights and photos in {SHARED}")
def test_every_command_of_the_tutorial_runs_on_some_of_its_photos(tmp_path, monkeypatch):
    few_photos(SHARED / "data" / "grocery", tmp_path / "GroceryStoreDataset")
    files = {"model.safetensors": WEIGHTS.read_bytes()}
    files["config.json"] = hub.timm_config("tf_efficientnet_lite0", size=224, mean=hub.HALVES, std=hub.HALVES)
    hub.write_cache(tmp_path / "hf" / "hub", "timm/tf_efficientnet_lite0.in1k", files)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in LAID_OUT:
        (tmp_path / name).symlink_to(ROOT / name)
    page = PAGE.read_text()
    fenced = blocks(page)
    run = "\n".join(text for language, text in fenced if language == "bash")
    assert COMMAND.findall(run) == COMMAND.findall(page)
    printed = None  # text above the first command is not printed by one
    for language, text in fenced:
        if language != "text":
            printed = "".join(execute(language, text, tmp_path))
            continue
        # Numbers, and the names of what is near, are those of all photos; the rest is the same.
        lines = [words(line) for line in (printed or "").splitlines()]
        for line in text.splitlines() if printed is not None else ():
            assert words(line) in lines or ".jpg" in line, f"{line}\n{printed[-3000:]}"
        assert text.count("new.jpg") in (0, printed and printed.count("new.jpg")), printed
    assert missing(page, tmp_path) == []

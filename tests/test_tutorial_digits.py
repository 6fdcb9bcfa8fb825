"""Executes every block of docs/tutorial_digits.md and compares its output with the page."""

import pytest

from helpers.command_lines import ROOT
from helpers.tutorials import COMMAND, LAID_OUT, blocks, differences, execute, missing

PAGE = ROOT / "docs" / "tutorial_digits.md"
SCRIPTS = ["train", "train", "evaluate", "embed", "search", "report", "sweep", "reproduce"]


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
        wrong = differences(shown, execute(language, text, tmp_path)[0])
        assert wrong is None, f"{text}\n{wrong}"
    assert missing(page, tmp_path) == []
    assert "](tutorial_digits.png)" in page and (PAGE.parent / "tutorial_digits.png").stat().st_size < 150_000

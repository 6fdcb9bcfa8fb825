"""Executes the Python blocks and the `grafit` commands of the pages about trained models, without a network."""

import importlib.util
import pathlib
import re
import shlex
import shutil

import pytest

import grafit_jax
from helpers import image_files
from helpers.command_lines import ROOT

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
# The files that the pages name, and some more to be searched.
PHOTOS = [
    f"photos/train/{fine}_{i:03}.jpg"
    for fine in ("Apple/Granny-Smith/Granny-Smith", "Apple/Pink-Lady/Pink-Lady", "Pear/Anjou/Anjou")
    for i in range(1, 9)
]
NEW = ["new_photos/apples.jpg", "new_photos/tomatoes.jpg"]


@pytest.fixture
def beside_photos(trained_once, tmp_path, monkeypatch):
    """Changes to a folder with runs/photos, photos/, new_photos/ and the gallery photos.parquet."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("runs").mkdir()
    pathlib.Path("runs/photos").symlink_to(trained_once)
    for i, name in enumerate([*PHOTOS, *NEW]):
        image_files.write(pathlib.Path(name), image_files.pixels(i))
    grafit_jax.Gallery.build(grafit_jax.load("runs/photos"), "photos/train").save("photos.parquet")


@pytest.fixture
def hub(trained_once, tmp_path, monkeypatch):
    """A hub in a folder: uploads go there, and downloads of any revision come from there."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    uploaded = tmp_path / "hub"

    class Api:
        def create_repo(self, name, *, private, exist_ok):
            uploaded.mkdir()

        def upload_folder(self, *, repo_id, folder_path, allow_patterns):
            shutil.copytree(folder_path, uploaded / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: uploaded / name)


def execute(page, cli):
    """Executes a page's Python blocks in one namespace, and its `grafit` commands, in order.

    A command before a text block that begins with "error:" must be refused with this message. Commands that need a
    network, and blocks that need faiss where it is not installed, are left out.
    """
    namespace, done = {}, None
    for language, text in FENCE.findall(page):
        if language == "python" and ("faiss" not in text or importlib.util.find_spec("faiss")):
            exec(compile(text, "page", "exec"), namespace)
        elif language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                if line.startswith("grafit ") and "--hub" not in line:
                    assert done is None or done.returncode == 0, done.stderr
                    done = cli(*shlex.split(line)[1:], cwd=pathlib.Path.cwd())
        elif text.startswith("error:"):
            assert done.returncode == 2 and done.stderr.split() == text.split(), done.stderr
            done = None
    assert done is None or done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["use_model", "share_model", "other_tools", "discover"])
def test_every_block_of_the_page_runs(name, beside_photos, hub, cli):
    execute((ROOT / "docs" / f"{name}.md").read_text(), cli)


def test_a_wrong_block_is_found(beside_photos, cli):
    embed = "grafit embed --workdir=runs/photos --images="
    for wrong, error in (
        ("```python\nimport grafit_jax\n```\n```python\ngrafit_jax.loud('runs/photos')\n```\n", AttributeError),
        (f"```bash\n{embed}photo --out=a.npz\n```\n", AssertionError),
        (f"```bash\n{embed}photo --out=a.npz\n{embed}photos --out=a.npz\n```\n", AssertionError),
        (f"```bash\n{embed}photo \\\n    --out=a.npz\n```\n```text\nerror: another message\n```\n", AssertionError),
    ):
        with pytest.raises(error):
            execute(wrong, cli)

"""The page to search with, in Chromium: upload, neighbours, labels, a file that is no image, a phone; its command."""

import csv
import socket

import numpy as np
import PIL.Image
import pytest

from grafit_jax.commands import models
from grafit_jax.errors import UserError
from grafit_jax.gallery import Gallery
from grafit_jax.report import app
from grafit_jax.retrieval.embeddings import Features
from helpers import browser as browsers
from helpers.command_lines import main

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


class MeanColour:
    """A model whose embedding is the mean colour; layer "projector" swaps red and blue."""

    path = "mean"

    def made_by(self, layer):
        return {"model": "mean", "layer": layer}

    def choose_layer(self, name):
        return name or "trunk"

    def embed(self, images, *, layer):
        try:
            mean = np.asarray(PIL.Image.open(images).convert("RGB"), np.float32).mean(axis=(0, 1))
        except OSError:
            raise UserError(f"found an unreadable image: {images}; repair it or leave it out.") from None
        return mean[None, :: -1 if layer == "projector" else 1]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of three colours, four of each, and their galleries by layer."""
    root = tmp_path_factory.mktemp("photos")
    rows, files, names = [], [], []
    for name, colour in COLOURS.items():
        for n in range(4):
            files.append(str(root / f"{name}_{n}.png"))
            PIL.Image.new("RGB", (40, 30), tuple(np.array(colour) + 3 * n)).save(files[-1])
            rows.append(np.array(colour) + 3.0 * n)
            names.append(name)
    columns = {"coarse_label": np.array(names), "filename": np.array(files)}
    made = {"made_by": {"model": "mean", "layer": "trunk"}}
    features = Features(np.array(rows, np.float32), np.array(files), **columns, **made)
    other = Features(features.embedding, features.id, **columns, made_by={"model": "mean", "layer": "projector"})
    return {"trunk": Gallery(features, MeanColour()), "projector": Gallery(other, MeanColour())}


@pytest.fixture(scope="module")
def served(photos):
    pytest.importorskip("gradio", reason="needs gradio: pip install '.[app]'")
    page = app.build(photos, k=4)
    page.launch(server_name="127.0.0.1", prevent_thread_lock=True, **app.LAUNCH)
    yield page.local_url
    page.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = browsers.start(tmp_path_factory.mktemp("profile"))
    yield started
    started.quit()


@pytest.fixture
def visit(browser, served):
    wait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait(browser, 60)

    def opened(width=browsers.DESK):
        browsers.resize(browser, width)
        browser.get(served)
        wait.until(lambda b: b.find_elements("css selector", "#photo input[type=file]"))
        return wait

    return opened


def drop(browser, path):
    browser.find_element("css selector", "#photo input[type=file]").send_keys(str(path))


def texts(browser, selector):
    return [element.text for element in browser.find_elements("css selector", selector)]


def ticks(browser):
    return browser.find_elements("css selector", "#ticked input[type=checkbox]")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@browsers.NEEDED
def test_a_photo_finds_its_neighbours_and_their_labels_are_a_csv(visit, browser, tmp_path):
    wait = visit()
    PIL.Image.new("RGB", (50, 50), (215, 35, 25)).save(tmp_path / "new.png")
    drop(browser, tmp_path / "new.png")
    wait.until(lambda b: len(b.find_elements("css selector", "#near img")) == 4)
    wait.until(lambda b: len(ticks(b)) == 4)
    shown = texts(browser, "#ticked label")
    assert [line.split()[1] for line in shown] == ["red"] * 4 and all("red_" in line for line in shown)
    assert [float(line.split()[2].rstrip(",")) for line in shown] == sorted(
        (float(line.split()[2].rstrip(",")) for line in shown), reverse=True
    )
    button = browser.find_element("css selector", "#add")
    button.click()  # nothing is ticked
    wait.until(lambda b: any("Tick at least one" in text for text in texts(b, ".toast-body")))
    for box in ticks(browser)[1:3]:
        box.click()
    button.click()
    wait.until(lambda b: texts(b, "#download") == ["Download 2 labels (CSV)"])
    # Another layer finds other neighbours, whose labels are added.
    browser.find_elements("css selector", "#layer input")[1].click()
    wait.until(lambda b: all("blue_" in line for line in texts(b, "#ticked label")))
    ticks(browser)[0].click()
    field = browser.find_element("css selector", "#name textarea, #name input")
    field.clear()
    field.send_keys("sky")
    button.click()
    wait.until(lambda b: texts(b, "#download") == ["Download 3 labels (CSV)"])
    folder = {"behavior": "allow", "downloadPath": str(tmp_path / "downloads")}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", folder)
    browser.find_element("css selector", "#download").click()
    file = tmp_path / "downloads" / "labels.csv"
    wait.until(lambda _: file.is_file())
    rows = [*csv.DictReader(file.read_text().splitlines())]
    assert [row["coarse"] for row in rows] == ["red", "red", "sky"]
    assert [row["path"].split("/")[-1].split("_")[0] for row in rows] == ["red", "red", "blue"]


@browsers.NEEDED
def test_a_file_that_is_no_image_is_one_line(visit, browser, tmp_path):
    wait = visit()
    (tmp_path / "letter.jpg").write_text("Dear curator")
    drop(browser, tmp_path / "letter.jpg")
    wait.until(lambda b: any(text for text in texts(b, ".toast-body")))
    said = texts(browser, ".toast-body")[0].splitlines()
    assert said[-1] == "found an unreadable image: letter.jpg; repair it or leave it out."
    assert browser.find_elements("css selector", "#near img") == []


def test_a_csv_is_not_read(photos, tmp_path):
    """A reader would open the files of this machine that it lists."""
    gradio = pytest.importorskip("gradio", reason="needs gradio: pip install '.[app]'")
    page = app.build(photos)
    search = next(f for f in page.fns.values() if f.name == "search").fn
    (tmp_path / "list.CSV").write_text(f"path\n{photos['trunk'].features.filename[0]}\n")
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr(gradio, "Warning", said.append)
        assert search(str(tmp_path / "list.CSV"), 3, "trunk")[0] == []
    assert said == ["list.CSV: found a folder or a CSV; expected an image."]


@browsers.NEEDED
def test_the_page_fits_a_phone_and_asks_no_other_server(visit, browser, served, tmp_path):
    wait = visit(browsers.PHONE)
    PIL.Image.new("RGB", (50, 50), (20, 220, 20)).save(tmp_path / "new.png")
    drop(browser, tmp_path / "new.png")
    wait.until(lambda b: len(b.find_elements("css selector", "#near img")) == 4)
    assert browser.execute_script("return document.documentElement.scrollWidth") == browsers.PHONE
    assert browsers.screenshot(browser).width == browsers.PHONE
    inside = (
        "return [...document.querySelectorAll('#near img')].every(e => e.getBoundingClientRect().right <= innerWidth)"
    )
    assert browser.execute_script(inside)
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => new URL(e.name).origin)")
    assert {*loaded} <= {served.rstrip("/"), "null"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gallery=a.npz", "--workdir=a", "--model=b"], "found both --workdir and --model; expected one."),
        (["--gallery=no_files.npz"], "no_files.npz: found images without a file; expected a gallery of image files"),
        (["--gallery=lost.npz"], "lost.npz: found no record of its model; expected the model that made it; use"),
        (["--gallery=a.npz", "--host=256.1.1.1"], "cannot serve at 256.1.1.1:"),
    ],
)
def test_command_errors(photos, tmp_path, words, message):
    features = photos["trunk"].features
    Gallery(Features(features.embedding, features.id)).save(tmp_path / "no_files.npz")
    Gallery(Features(features.embedding, features.id, filename=features.filename)).save(tmp_path / "lost.npz")
    done = main("app", f"--port={free_port()}", *words, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}"), done.stderr


def test_a_port_in_use_is_named_at_once(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = main("app", "--gallery=none.npz", f"--port={port}", cwd=tmp_path)
    assert done.returncode == 2
    why = "Address already in use; use another --port or --host."
    assert done.stderr == f"error: cannot serve at 127.0.0.1:{port}: {why}\n"


@pytest.mark.parametrize(("layer", "rows"), [("trunk", 12), ("projector", 11)])
def test_a_second_gallery_is_of_another_layer_and_the_same_images(photos, tmp_path, monkeypatch, layer, rows):
    f = photos[layer].features
    second = Features(f.embedding[:rows], f.id[:rows], filename=f.filename[:rows], made_by=f.made_by)
    photos["trunk"].save(tmp_path / "a.npz")
    Gallery(second).save(tmp_path / "b.npz")
    monkeypatch.setattr(models, "of_gallery", lambda *_: MeanColour())
    done = main("app", f"--port={free_port()}", "--gallery=a.npz", "--gallery=b.npz", cwd=tmp_path)
    expected = "b.npz: found a layer twice, or other images; expected another layer of the same images."
    assert (done.returncode, done.stderr) == (2, f"error: {expected}\n")


def test_without_gradio_the_extra_is_named(photos, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(UserError, match=r"found no gradio; use `pip install -e '\.\[app\]'`"):
        app.build(photos)

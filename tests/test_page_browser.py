"""The page of a run in Chromium, if the system packages of Chromium and its driver are installed."""

import json

import numpy as np
import PIL.Image
import pytest

from grafit_jax.report import confusion, discovered, embedding_map, page
from grafit_jax.retrieval import discovery
from grafit_jax.retrieval.embeddings import Features
from helpers import pages
from helpers.browser import DESK, NEEDED, PHONE, keys, resize, screenshot, start

pytestmark = NEEDED

TEST = pages.odd_records()
RUNS = [pages.run(TEST, "<i>one</i>", noise=1.0), pages.run(TEST, "two", noise=2.0, seed=1)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = start(tmp_path_factory.mktemp("profile"))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page.compose(RUNS, TEST, TEST.id))
    return path


@pytest.fixture
def show(browser, file):
    """Opens the page at a given screen width and colour scheme."""

    def opened(width=DESK, scheme="light", touch=False):
        resize(browser, width)
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch})
        scheme = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        browser.get(file.as_uri())
        return browser

    yield opened
    assert browser.get_log("browser") == []  # no error in any test


def texts(browser, selector):
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
    )


def focused(browser):
    return browser.switch_to.active_element


def press(browser, key):
    focused(browser).send_keys(key)


def choose(browser, name, value):
    """Selects the option number `value` of a menu by keyboard."""
    browser.execute_script(f"document.getElementById('{name}').focus()")
    press(browser, keys.HOME)
    for _ in range(value):
        press(browser, keys.DOWN)


def parse(browser, selector, style):
    """Returns the first number of a computed style, in pixels."""
    value = browser.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, style
    )
    return float(value.partition("px")[0])


def test_the_page_requests_only_its_file_and_runs_no_class_name(show, file):
    browser = show()
    browser.get_log("performance")
    browser.get(file.as_uri())
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requested = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert file.as_uri() in requested
    assert {url for url in requested if not url.startswith("data:")} == {file.as_uri()}
    assert browser.execute_script("return window.ran") is None
    assert browser.execute_script("return document.querySelectorAll('i, b').length") == 0
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth === 9)")


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_page_fits_the_screen_in_light_and_dark_mode(show, width):
    mean = {}
    for scheme in ("light", "dark"):
        browser = show(width, scheme)
        assert browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
        cut = """return [...document.querySelectorAll('main *')].filter(
            e => e.getBoundingClientRect().right > innerWidth && !e.closest('.scroll')).map(e => e.tagName)"""
        assert browser.execute_script(cut) == []
        picture = screenshot(browser)
        assert picture.width == width and picture.height > 2000
        assert len(picture.resize((90, 900), PIL.Image.Resampling.NEAREST).getcolors(2**17)) > 100
        mean[scheme] = np.mean(picture.reduce(8))
    assert mean["light"] > 200 and mean["dark"] < 80


def test_tables_are_sorted_by_keyboard(show):
    browser = show()
    first = "#classes .scroll:first-of-type table"

    def column(number):
        return texts(browser, f"{first} tbody tr > :nth-child({number})")

    before = [float(x) for x in column(6)]
    assert 25.0 in before and 100.0 in before  # 100 would sort before 25 as text
    browser.execute_script(f"document.querySelector('{first} th:nth-child(6) button').focus()")
    press(browser, keys.ENTER)
    assert [float(x) for x in column(6)] == sorted(before) != before
    press(browser, keys.SPACE)
    assert [float(x) for x in column(6)] == sorted(before, reverse=True)
    state = f"return [...document.querySelectorAll('{first} thead th')].map(e => e.getAttribute('aria-sort'))"
    assert browser.execute_script(state) == [None, None, None, None, None, "descending"]
    names = column(1)
    browser.execute_script(f"document.querySelector('{first} th:nth-child(1) button').focus()")
    press(browser, keys.ENTER)
    assert column(1) != names and sorted(column(1)) == sorted(names)
    assert browser.execute_script(state) == ["ascending", None, None, None, None, None]


def test_the_query_menu(show):
    browser = show()
    shown = "return [...document.querySelectorAll('.query')].filter(e => e.offsetHeight).map(e => e.dataset.number)"
    assert browser.execute_script(shown) == list("012345")
    choose(browser, "query-choice", 4)
    assert browser.execute_script(shown) == ["3"]
    choose(browser, "query-choice", 0)
    assert browser.execute_script(shown) == list("012345")


def test_a_page_of_many_classes_shows_twelve_queries_first_and_a_legend(show, tmp_path):
    label = np.tile(np.arange(46), 3)
    test = pages.records(label, label, [f"fine {n}" for n in range(46)], [f"coarse {n}" for n in range(46)])
    (tmp_path / "many.html").write_text(page.compose([pages.run(test)], test, test.id))
    browser = show()
    browser.get((tmp_path / "many.html").as_uri())
    shown = "return [...document.querySelectorAll('.query')].filter(e => e.offsetHeight).map(e => e.dataset.number)"
    assert browser.execute_script(shown) == [str(n) for n in range(12)]
    choose(browser, "query-choice", 1)
    assert browser.execute_script(shown) == [str(n) for n in range(24)]
    choose(browser, "query-choice", 15)
    assert browser.execute_script(shown) == ["13"]
    # Each class of the map has a symbol of its own.
    symbols = browser.execute_script(
        "return [...document.querySelectorAll('#map .legend path')].map(e => e.getAttribute('d') + e.style.fill)"
    )
    assert len(symbols) == len({*symbols}) == 46


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_images_are_enlarged_by_a_click_or_by_the_enter_key(show, width):
    browser = show(width)
    large = """const d = document.querySelector('dialog'), width = (e) => e.getBoundingClientRect().width;
        return d.open ? [d.querySelector('p').textContent, width(d.querySelector('img'))] : null"""
    assert browser.execute_script(large) is None
    image = browser.find_elements("css selector", ".near img")[3]
    size = image.rect["width"]
    for shut in (lambda: press(browser, keys.ESCAPE), lambda: browser.find_element("css selector", "dialog").click()):
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
        image.click()
        words, wide = browser.execute_script(large)
        assert words == image.get_attribute("alt") and 3 * size < wide < width
        shut()
        assert browser.execute_script(large) is None
    browser.execute_script("arguments[0].focus()", image)
    press(browser, keys.ENTER)
    assert browser.execute_script(large)[0] == image.get_attribute("alt")
    press(browser, keys.ESCAPE)
    assert focused(browser) == image


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_names_of_classes_are_not_broken_inside_a_word_and_bars_stand_beside_their_numbers(show, width):
    browser = show(width)
    # A range over a word has rectangles of another top for each of its lines.
    broken = """const found = [];
        for (const cell of document.querySelectorAll('.words, .near small')) {
          for (const node of cell.childNodes) {
            if (node.nodeType !== Node.TEXT_NODE) continue;
            for (const word of node.data.matchAll(/[\\p{L}\\d]+/gu)) {
              const range = document.createRange();
              range.setStart(node, word.index); range.setEnd(node, word.index + word[0].length);
              if (new Set([...range.getClientRects()].map(r => r.top)).size > 1) found.push(word[0]);
            }
          }
        }
        return found"""
    assert browser.execute_script(broken) == []
    apart = """return [...document.querySelectorAll('.bar')].map(e => {
          const range = document.createRange();
          range.selectNodeContents(e);
          return range.getBoundingClientRect().left - e.getBoundingClientRect().left;
        })"""
    assert min(browser.execute_script(apart)) >= parse(browser, ".bar", "gridTemplateColumns")


def test_the_page_of_proposed_classes(show, tmp_path):
    features = Features(pages.embedding(TEST, 0.5), TEST.id, coarse_label=TEST.train_label, label=TEST.label)
    groups = discovery.discover(features, k=2)
    (tmp_path / "found.html").write_text(discovered.page(groups, TEST.id.astype(str), TEST.image.__getitem__))
    for width in (PHONE, DESK):
        browser = show(width)
        browser.get((tmp_path / "found.html").as_uri())
        assert browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
        assert len(texts(browser, ".cluster h3")) == 6
        names = texts(browser, "#overview tbody tr > :first-child")
        browser.execute_script("document.querySelector('#overview th:nth-child(1) button').click()")
        browser.execute_script("document.querySelector('#overview th:nth-child(1) button').click()")
        assert texts(browser, "#overview tbody tr > :first-child") == names[::-1] != names == sorted(names)
        browser.find_elements("css selector", ".near img")[0].click()
        assert browser.execute_script("return document.querySelector('dialog').open")
        press(browser, keys.ESCAPE)


def test_the_confusion_menu(show):
    browser = show()
    names = texts(browser, "#confusion-choice option")
    assert len(names) == 3
    for place, name in enumerate(names):
        choose(browser, "confusion-choice", place)
        coarse = TEST.train_names.index(name)
        for number, run in enumerate(RUNS, 1):
            table = f"#confusion-tables > :nth-child({number})"
            counts = confusion.confusion(TEST.label, run.nearest, np.array([2 * coarse, 2 * coarse + 1]))
            counts = counts if counts[:, -1].any() else counts[:, :-1]
            assert [int(x) for x in texts(browser, f"{table} td")] == counts.ravel().tolist()
            assert texts(browser, f"{table} caption") == [f"{run.name}: {name}"]
            assert texts(browser, f"{table} tbody th") == [*pages.READ[2 * coarse : 2 * coarse + 2]]


TIP = """const tips = [...document.querySelectorAll('.tip')].filter(e => e.offsetHeight);
return tips.map(e => [e.textContent, e.firstChild.style.backgroundPosition, e.firstChild.offsetWidth,
  getComputedStyle(e.firstChild).backgroundImage.slice(0, 15)])"""


def place(browser):
    """Returns the position of the selected image in the first map, or None."""
    ring = browser.execute_script("""const r = document.querySelector('.ring');
        return r.getAttribute('visibility') === 'visible' ? [r.cx.baseVal.value, r.cy.baseVal.value] : null""")
    return ring and tuple(ring)


def test_the_map_by_keyboard(show):
    browser = show()
    drawn = embedding_map.run_map(RUNS[0], TEST.id)["points"]
    assert browser.execute_script(TIP) == [] and place(browser) is None
    browser.execute_script("document.getElementById('map-choice').focus()")
    press(browser, keys.TAB)
    assert focused(browser).get_attribute("class") == "map"
    visited = []
    for key in (None, keys.RIGHT, keys.UP, keys.LEFT, keys.DOWN):
        if key:
            press(browser, key)
        [[text, position, width, image]] = browser.execute_script(TIP)
        assert width == 96 and image == 'url("data:image'
        x, y = place(browser)
        row = drawn.index([x, -y])
        across, down = row % 7, row // 7  # 48 images on a sheet of 7 x 7
        assert [int(pixels.removesuffix("px")) for pixels in position.split()] == [-96 * across, -96 * down]
        assert text == f"{pages.READ[TEST.label[row]]} ({TEST.train_names[TEST.train_label[row]]})"
        assert texts(browser, ".status")[0] == f"test/{row}: {text}"
        visited.append((x, y))
    (x0, _), (x1, y1), (x2, y2), (x3, y3), (_, y4) = visited
    assert x1 > x0 and y2 < y1 and x3 < x2 and y4 > y3  # y points down on a screen
    press(browser, keys.ESCAPE)
    assert browser.execute_script(TIP) == [] and place(browser) is None


def test_the_map_by_mouse_and_touch(show):
    for touch in (False, True):
        browser = show(PHONE if touch else DESK, touch=touch)
        browser.execute_script("document.querySelector('.map').scrollIntoView({block: 'center'})")
        x, y = browser.execute_script("""const b = document.querySelectorAll('.map')[0].querySelectorAll('.point')[7]
            .getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]""")
        assert browser.execute_script(TIP) == []
        if touch:
            point = [{"x": x, "y": y}]
            browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": point})
            browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        else:
            browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})
        [[text, *_]] = browser.execute_script(TIP)
        assert text.startswith(pages.READ[TEST.label[7]])
        if not touch:
            browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": 1, "y": 1})
            assert browser.execute_script(TIP) == []


def test_one_class_is_highlighted(show):
    browser = show()
    choose(browser, "map-choice", 2)
    dim = browser.execute_script(
        "return [...document.querySelectorAll('.map:first-child .point')].map(e => e.matches('.dim'))"
    )
    assert dim == [coarse != 1 for coarse in TEST.train_label] * 2
    press(browser, keys.TAB)
    for key in (keys.LEFT, keys.DOWN, keys.RIGHT):
        press(browser, key)
        assert browser.execute_script(TIP)[0][0].endswith(f"({TEST.train_names[1]})")


def test_the_first_tab_stop_is_a_visible_link_to_the_content(show):
    browser = show(PHONE)
    press(browser, keys.TAB)
    link = focused(browser)
    assert link.text == "Skip to content" and link.rect["x"] >= 0
    assert browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", link) == "solid"
    press(browser, keys.ENTER)
    assert focused(browser).get_attribute("id") == "main"

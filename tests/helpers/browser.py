"""Chromium for tests, if the system packages of Chromium and its driver are installed."""

import base64
import io
import shutil

import PIL.Image
import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install '.[test]'")
keys = pytest.importorskip("selenium.webdriver.common.keys").Keys

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NEEDED = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Chromium: apt-get install chromium chromium-driver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
PHONE, DESK = 360, 1280


def start(profile):
    """Starts a browser with the folder `profile`; the caller quits it."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


def resize(browser, width, height=800):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def screenshot(browser):
    picture = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    return PIL.Image.open(io.BytesIO(base64.b64decode(picture["data"]))).convert("RGB")

"""A real browser for the report's tests: headless Chromium, driven by selenium, off the network."""

import json
import os
import shutil

import pytest

from t2g_jax.report.html import write

HOW = (
    "on Debian and Ubuntu `apt-get install -y chromium chromium-driver`; elsewhere name a Chrome "
    "and its chromedriver in the environment variables CHROME and CHROMEDRIVER; "
    "`pip install selenium` (or the extra `test`)"
)


def _missing(what):
    explanation = f"{what}: {HOW}"
    if os.environ.get("CI") == "true":
        pytest.fail(explanation)
    pytest.skip(explanation)


def _found(variable, *names):
    return os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="session")
def driver():
    """The browser; one for all tests of a process."""
    try:
        from selenium import webdriver
    except ModuleNotFoundError:
        _missing("selenium is not installed")
    chrome = _found(
        "CHROME", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
    )
    chromedriver = _found("CHROMEDRIVER", "chromedriver")
    if chrome is None or chromedriver is None:
        _missing("no Chromium found" if chrome is None else "no chromedriver found")
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost", "window-size=1280,1000",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.set_capability("unhandledPromptBehavior", "ignore")
    service = webdriver.ChromeService(executable_path=chromedriver)
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(60)
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def open_page(driver, tmp_path):
    """open_page(report or path, scheme="light", size=(1280, 1000)) → the driver, page loaded.

    What the console says (script errors, violations of the content security policy), an alert, and
    anything but the page's own file being asked for fail the test when it ends.
    """
    opened = []
    driver.get_log("browser")
    driver.get_log("performance")

    def open_page(page, *, scheme="light", size=(1280, 1000)):
        path = page if hasattr(page, "as_uri") else write(page, tmp_path / "report.html")
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        # Without motion, so that what was scrolled to is where it will be.
        media = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in media.items()]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        driver.get(path.as_uri())
        opened.append(path.as_uri())
        return driver

    yield open_page
    assert alert_text(driver) is None
    assert [entry["message"] for entry in driver.get_log("browser")] == []
    assert requested(driver) <= set(opened)
    driver.get("about:blank")


def alert_text(driver):
    """What an open alert says, None without one."""
    from selenium.common.exceptions import NoAlertPresentException

    try:
        return driver.switch_to.alert.text
    except NoAlertPresentException:
        return None


def requested(driver):
    """The addresses that the browser asked for since this was last called."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return {
        message["params"]["request"]["url"].partition("#")[0]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    } - {"about:blank"}

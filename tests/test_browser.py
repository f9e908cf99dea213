"""The page in a real Chromium, without a window: Debian's `chromium` and `chromium-driver`, where they are installed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from test_report import EVIL, MODELS, renamed

from onnx_amc.cli import main

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="no Chromium here: apt-get install -y --no-install-recommends chromium chromium-driver",
)

Open = Callable[..., "Chrome"]
CHARTS = {"plan", "sizes", "rewards", "pareto", "times", "errors", "confusion", "recovery"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with every part, of a network whose nodes have hostile names."""
    place = tmp_path_factory.mktemp("browser")
    renamed(place)
    (place / "digits_mlp.npz").write_bytes((MODELS / "digits_mlp.npz").read_bytes())
    command = [
        "compress",
        place / "digits_mlp.onnx",
        "--flops",
        0.5,
        "--episodes",
        4,
        "--recover",
        "--recover-epochs",
        2,
    ]
    assert main([str(c) for c in [*command, "--quiet", "--report", place / "page.html"]]) == 0
    return (place / "page.html").as_uri()


@pytest.fixture
def browse(address: str) -> Iterator[Open]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    opened: list[Chrome] = []

    def browse(*, width: int = 1200, scheme: str = "light", script: bool = True) -> Chrome:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        if not script:
            options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
        driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        opened.append(driver)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(address)
        if script:
            assert until(lambda: driver.execute_script("return document.documentElement.dataset.charts")) == "ready"
        return driver

    yield browse
    for driver in opened:
        driver.quit()


def until(found: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What comes back as soon as something does."""
    end = time.monotonic() + seconds
    while not (value := found()) and time.monotonic() < end:
        time.sleep(0.1)
    return value


def test_charts_are_drawn_without_complaint(browse: Open) -> None:
    driver = browse()
    assert driver.get_log("browser") == []  # type: ignore[no-untyped-call]
    marks = driver.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('.chart')].map(c => "
        "[c.id.slice(6), c.querySelectorAll('svg .mark-rect path, svg .mark-symbol path, svg .mark-line path').length]))"
    )
    assert set(marks) == CHARTS
    assert min(marks.values()) >= 2, marks
    boxes = driver.execute_script(
        "return [...document.querySelectorAll('.chart svg')].map(s => s.getBoundingClientRect().width)"
    )
    assert min(boxes) > 500


def test_pointing_at_a_bar_tells_its_name_as_text(browse: Open) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    driver = browse()
    bar = driver.find_element(By.CSS_SELECTOR, "#chart-plan svg .mark-rect path[aria-label]")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", bar)
    ActionChains(driver).move_to_element(bar).perform()
    shown = until(lambda: driver.find_elements(By.CSS_SELECTOR, "#vg-tooltip-element.visible"))
    assert shown
    assert EVIL in shown[0].text
    assert "kept" in shown[0].text
    box = driver.execute_script("return getComputedStyle(arguments[0]).visibility", shown[0])
    assert box == "visible"


def test_no_name_becomes_code(browse: Open) -> None:
    driver = browse()
    assert driver.execute_script("return document.scripts.length") == 3
    cells = driver.execute_script("return [...document.querySelectorAll('th')].map(c => c.textContent)")
    assert any(cell.startswith(EVIL) for cell in cells)


def test_tables_need_no_script(browse: Open) -> None:
    driver = browse(script=False)
    from selenium.webdriver.common.by import By

    assert not driver.find_elements(By.CSS_SELECTOR, "svg")
    assert len(driver.find_elements(By.CSS_SELECTOR, "table")) >= 6
    assert "delivered" in driver.find_element(By.CSS_SELECTOR, "table").text
    assert "At most 50 % of the MACs." in driver.find_element(By.TAG_NAME, "body").text


@pytest.mark.parametrize("width", [390, 768, 1200])
def test_the_page_fits(browse: Open, width: int) -> None:
    driver = browse(width=width)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    last = "return document.querySelector('table td:last-child').getBoundingClientRect().right"
    assert driver.execute_script(last) <= width, "what is delivered is seen at once"
    assert driver.execute_script("return document.querySelectorAll('.chart svg').length") == len(CHARTS)


def test_dark_and_light(browse: Open) -> None:
    looks = []
    for scheme in ("light", "dark"):
        driver = browse(scheme=scheme)
        looks.append(
            driver.execute_script(
                "const bar = document.querySelector('#chart-plan .mark-rect path[aria-label]');"
                "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(bar).fill]"
            )
        )
    assert looks[0] == ["rgb(255, 255, 255)", "rgb(36, 99, 166)"]
    assert looks[1] == ["rgb(20, 24, 29)", "rgb(110, 168, 229)"]


def test_it_is_printed_whole_and_in_the_colours_of_the_day(browse: Open) -> None:
    driver = browse(width=1200, scheme="dark")
    media = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    size = {"width": 700, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_script("window.addEventListener('resize', e => e.stopImmediatePropagation(), true)")  # as on paper
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    right = "return Math.max(...[...document.querySelectorAll('svg, table')].map(e => e.getBoundingClientRect().right))"
    assert driver.execute_script(right) <= 700
    cell = "return document.querySelector('details:not([open]) td').checkVisibility({contentVisibilityAuto: true})"
    assert driver.execute_script(cell), "paper has nothing to click on"

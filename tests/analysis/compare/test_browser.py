"""The page in a real browser: no error, curves drawn, groups hide, the axis changes, the table sorts."""

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.compare.page import render
from analysis.compare.records import collect
from analysis.compare.summary import compare
from analysis.plots.style import style

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


def open_at(browser: Any, page: Path, width: int) -> None:
    """Opens ``page`` in a window ``width`` pixels wide and waits until Bokeh has drawn it."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    wait(browser, "return window.Bokeh && Bokeh.documents.length && Bokeh.documents.every(d => d.is_idle)")


def wait(browser: Any, script: str, seconds: float = 30.0) -> None:
    """Waits until ``script`` is true in the page."""
    deadline = time.monotonic() + seconds
    while not browser.execute_script(script):
        assert time.monotonic() < deadline, f"still not true: {script}"
        time.sleep(0.05)


def errors(browser: Any) -> list[str]:
    """What the console says that is worse than information."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]


def coloured(browser: Any, chart: Any, colour: str) -> int:
    """Pixels of ``chart`` close to ``colour``, once two pictures in a row are the same."""
    from PIL import Image

    browser.execute_script("arguments[0].scrollIntoView()", chart)
    shots = [chart.screenshot_as_png]
    for _ in range(40):
        time.sleep(0.1)
        shots.append(chart.screenshot_as_png)
        if shots[-1] == shots[-2]:
            break
    pixels = np.asarray(Image.open(io.BytesIO(shots[-1])).convert("RGB"), dtype=int)
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(pixels - wanted).max(axis=-1) < 12).sum())


@pytest.fixture
def page(tmp_path, make_run, fingerprint) -> Path:
    """The page of three groups of two seeds, with a failed run and hostile samples."""
    for seed in (1, 2):
        make_run("rwkv_v4", seed, 1.80 + seed / 1000, speed=20_000.0, sample=HOSTILE, fields={"note": HOSTILE})
        make_run("mha_pro", seed, 2.10 + seed / 1000)
        make_run("rwkv_v1", seed, 1.95 + seed / 1000)
    make_run("rwkv_v1", 3, status="failed", part=0.5, facts={"reason": HOSTILE})
    file = tmp_path / "page.html"
    comparison = compare("study", collect([tmp_path / "runs"], fingerprint))
    file.write_text(render(comparison, "python -m analysis compare runs/study", "today"))
    return file


def charts(browser: Any) -> list[Any]:
    return browser.find_elements("css selector", ".chart")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1366, 390])
def test_it_opens_without_an_error_and_fits(browser, page, width):
    open_at(browser, page, width)
    for index in range(3):
        assert all(coloured(browser, chart, style(index).colour) > 20 for chart in charts(browser)[:3])
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.title == "study: comparison of runs"
    assert errors(browser) == []


@pytest.mark.slow
def test_a_group_hides_and_comes_back(browser, page):
    open_at(browser, page, 1366)
    for chart in charts(browser)[:3]:
        before = coloured(browser, chart, style(1).colour)
        button = browser.find_elements("css selector", ".group")[1]
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        assert coloured(browser, chart, style(1).colour) == 0
        assert coloured(browser, chart, style(0).colour) > 20
        button.click()
        assert coloured(browser, chart, style(1).colour) == before > 20
    browser.find_element("css selector", ".none").click()
    assert coloured(browser, charts(browser)[1], style(0).colour) == 0
    assert errors(browser) == []


@pytest.mark.slow
def test_the_axis_changes(browser, page):
    open_at(browser, page, 1366)
    chart = "const f = Bokeh.documents[0].roots().filter(f => f.tags[0] === 'curves')[0];"
    mean = "const r = f.renderers.find(r => r.tags[0] === 'mean' && r.tags[1] === 0);"
    seen = {}
    for axis, word in (("tokens", "tokens"), ("seconds", "time"), ("flops", "compute")):
        browser.find_element("css selector", f"input[value={axis}]").click()
        label, end, field, tip = browser.execute_script(
            f"{chart}{mean} return [f.below[0].axis_label, f.x_range.end, r.glyph.x.field, "
            "f.toolbar.tools.find(t => t.tooltips).tooltips[1][1]]"
        )
        assert word in label and field == f"x_{axis}" and axis in tip and end > 0
        seen[axis] = charts(browser)[1].screenshot_as_png
        assert coloured(browser, charts(browser)[1], style(0).colour) > 20
    assert len(set(seen.values())) == 3
    assert errors(browser) == []


@pytest.mark.slow
def test_the_table_sorts_both_ways_by_number_and_by_name(browser, page):
    open_at(browser, page, 1366)

    def column(index: int) -> list[str]:
        cells = browser.find_elements("css selector", f"#results table:first-of-type tbody tr > :nth-child({index})")
        return [cell.text.split()[-1] if index == 1 else cell.text for cell in cells][:3]

    def press(index: int) -> str:
        head = browser.find_element("css selector", f"#results thead th:nth-child({index})")
        head.find_element("css selector", "button").click()
        return head.get_attribute("aria-sort")

    assert column(3) == ["1.8015 ± 0.0007", "1.9515 ± 0.0007", "2.1015 ± 0.0007"]
    sorted_by = "return [...document.querySelectorAll('#results thead th')].map(h => h.getAttribute('aria-sort'))"
    assert [place for place, order in enumerate(browser.execute_script(sorted_by), 1) if order == "ascending"] == [3]
    assert press(3) == "descending"
    assert column(3)[0].startswith("2.1015") and column(3)[2].startswith("1.8015")
    assert press(3) == "ascending"
    assert column(3)[0].startswith("1.8015")
    press(1)
    names = [line.text for line in browser.find_elements("css selector", "#results tbody th")][:3]
    assert [name.split()[1] for name in names] == ["mha_pro", "rwkv_v1", "rwkv_v4"]
    assert errors(browser) == []


@pytest.mark.slow
def test_hovering_tells_the_group(browser, page):
    open_at(browser, page, 1366)
    from selenium.webdriver import ActionChains

    chart = charts(browser)[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    x, y = browser.execute_script(
        "const f = Bokeh.documents[0].roots().find(f => f.tags[0] === 'final');"
        "const v = Bokeh.index.find_one(f) ?? Object.values(Bokeh.index)[0];"
        "const r = v.el.getBoundingClientRect(), b = v.frame.bbox;"
        "return [b.left + v.frame.x_scale.compute(1.8015) - v.frame.x_scale.compute(f.x_range.start) - r.width / 2,"
        " b.top + v.frame.y_scale.compute(0) - v.frame.y_scale.compute(f.y_range.end) - r.height / 2]"
    )
    ActionChains(browser).move_to_element_with_offset(chart, int(x), int(y)).perform()
    tip = (
        "function find(root) { for (const e of root.querySelectorAll('*')) {"
        " if (e.classList.contains('bk-Tooltip') || e.classList.contains('bk-tooltip')) return e;"
        " const inner = e.shadowRoot && find(e.shadowRoot); if (inner) return inner; } return null; }"
        "const t = find(document); return t && (t.shadowRoot ?? t).textContent.includes('rwkv_v4')"
    )
    wait(browser, tip, 10)
    assert browser.title == "study: comparison of runs"
    assert errors(browser) == []


@pytest.mark.slow
def test_a_box_zooms_and_the_groups_stay_in_view(browser, page):
    open_at(browser, page, 1366)
    from selenium.webdriver import ActionChains

    chart = charts(browser)[1]
    view = (
        "const f = Bokeh.documents[0].roots().find(f => f.tags[0] === 'curves');"
        "return [f.x_range.start, f.x_range.end, f.y_range.start, f.y_range.end]"
    )
    before = browser.execute_script(view)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    drag = ActionChains(browser).move_to_element_with_offset(chart, -100, -60).click_and_hold()
    drag.move_by_offset(200, 120).release().perform()
    wait(browser, f"const [a, b] = [{before[0]}, {before[1]}]; {view.replace('return', 'const v =')};"
                  " return v[0] > a && v[1] < b")  # fmt: skip
    assert browser.execute_script(view)[3] < before[3]
    browser.execute_script("arguments[0].scrollIntoView({block: 'end'})", charts(browser)[2])
    assert browser.execute_script("return document.querySelector('.controls').getBoundingClientRect().top") == 0
    assert errors(browser) == []

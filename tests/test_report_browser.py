"""Tests the report in a real headless browser.

The console is empty, nothing is loaded, and the page is readable on a phone, in the dark and on paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.artifacts import Dataset, Prediction
from harness.report.page import render
from tests.support.browser import Browser, browser_path
from tests.support.report_run import full_run, manifest, metrics

pytestmark = pytest.mark.skipif(
    browser_path() is None,
    reason="no Chromium on this machine (apt-get install chromium, or HARNESS_TEST_BROWSER=PATH)",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    started = Browser()
    yield started
    started.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run, with everything a run can have."""
    root = tmp_path_factory.mktemp("report")
    run = full_run(root / "pi05_libero_lora-003", "pi05_libero_lora", metrics(400, every=10))
    wave = [[0.1 * i + d for d in range(7)] for i in range(10)]
    question = {
        "episode": 0,
        "frame": 0,
        "task": "open the drawer",
        "action_horizon": 10,
        "sampling_steps": 10,
        "seed": 0,
    }
    answer = {
        "predicted": wave,
        "recorded": wave[::-1],
        "is_pad": [False] * 8 + [True] * 2,
        "mean_absolute_error": [0.5] * 7,
    }
    run.write(Prediction(checkpoint="x", step=1000, dataset="sample", device="cpu", **question, **answer))
    path = root / "one.html"
    path.write_text(render(run))
    return path


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("overlay")
    runs = [full_run(root / f"smoke-{n:03d}", rows=metrics(100 - 30 * n, seed=n)) for n in range(3)]
    path = root / "several.html"
    path.write_text(render(runs[0], runs[1:]))
    return path


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (320, True)])
def test_renders_without_network_and_without_a_word_in_the_console(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.problems.clear()
    browser.requests.clear()
    browser.open(page, width=width, dark=dark)
    drawn = browser.evaluate(
        "[...document.querySelectorAll('.chart svg')].map((svg) => svg.querySelectorAll('path').length)"
    )
    assert browser.problems == []
    assert [url for url in browser.requests if not url.startswith(("data:", "file:"))] == []
    assert len(drawn) == 4
    assert all(drawn)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    outside = (
        "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, svg') &&"
        " e.getBoundingClientRect().right > innerWidth + 1)"
    )
    assert browser.evaluate(f"{outside}.map((e) => e.outerHTML.slice(0, 80))") == []


def test_text_is_readable_on_a_phone(browser: Browser, page: Path) -> None:
    browser.open(page, width=390, height=844)
    small = (
        "[...document.querySelectorAll('main p, main td, main li, main pre')].filter((e) =>"
        " parseFloat(getComputedStyle(e).fontSize) < 11).length"
    )
    assert browser.evaluate(small) == 0
    assert browser.evaluate("visualViewport.scale") == 1


def test_colours_follow_the_dark(browser: Browser, page: Path) -> None:
    found = []
    for dark in (False, True):
        browser.open(page, dark=dark)
        found.append(
            browser.evaluate(
                "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
            )
        )
    light, night = found
    assert light[0] != night[0]
    assert light[1] != night[1]


def test_hover_reads_the_curve_and_a_drag_zooms(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.evaluate("document.querySelector('.chart').scrollIntoView()")
    left, top, width = browser.evaluate(
        "(() => { const b = document.querySelector('.chart svg').getBoundingClientRect(); return [b.left,"
        " b.top, b.width]; })()"
    )
    browser.mouse("mouseMoved", left + width / 2, top + 60)
    told = browser.evaluate("document.querySelector('.chart output').textContent")
    browser.mouse("mouseMoved", left + width / 4, top + 60)
    assert told.startswith("step ")
    assert browser.evaluate("document.querySelector('.chart output').textContent") != told
    assert browser.evaluate("document.querySelectorAll('.chart .cross').length") == 4
    browser.mouse("mousePressed", left + width / 4, top + 60, button="left", clickCount=1)
    browser.mouse("mouseMoved", left + width / 2, top + 60, button="left")
    browser.mouse("mouseReleased", left + width / 2, top + 60, button="left", clickCount=1)
    assert browser.evaluate("document.getElementById('reset').hidden") is False
    browser.evaluate("document.getElementById('reset').click()")
    assert browser.evaluate("document.getElementById('reset').hidden") is True


def test_smoothing_changes_the_line_and_not_the_points(browser: Browser, page: Path) -> None:
    browser.open(page)

    def drawn(name: str) -> str:
        return str(browser.evaluate(f"document.querySelector('.chart .{name}').getAttribute('d')"))

    def smooth(value: float) -> None:
        browser.evaluate(
            f"(() => {{ const s = document.getElementById('smoothing'); s.value = {value};"
            " s.dispatchEvent(new Event('input')); })()"
        )

    smooth(0.5)
    some, raw = drawn("smooth"), drawn("raw")
    smooth(0.96)
    assert drawn("smooth") != some
    assert drawn("raw") == raw
    smooth(0)
    assert browser.evaluate("document.querySelectorAll('.chart .raw').length") == 0


def test_several_runs_lie_over_each_other(browser: Browser, overlay: Path) -> None:
    browser.problems.clear()
    browser.open(overlay)
    assert browser.problems == []
    colours = browser.evaluate(
        "[...document.querySelector('.chart').querySelectorAll('.other')].map((path) =>"
        " getComputedStyle(path).stroke)"
    )
    assert len(set(colours)) == 2
    assert browser.evaluate("document.querySelector('.chart output').textContent").count("·") == 2


def test_prints(browser: Browser, page: Path) -> None:
    browser.open(page)
    printed = browser.pdf()
    assert printed.startswith(b"%PDF")
    assert len(printed) > 50_000
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate("getComputedStyle(document.querySelector('.controls')).display") == "none"
    assert (
        browser.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    browser.call("Emulation.setEmulatedMedia", media="")


def test_page_without_any_step_has_no_script_to_fail(browser: Browser, tmp_path: Path) -> None:
    run = full_run(tmp_path / "smoke-001", rows=[])
    (tmp_path / "page.html").write_text(render(run))
    browser.problems.clear()
    browser.open(tmp_path / "page.html")
    assert browser.problems == []
    assert browser.evaluate("document.querySelectorAll('script').length") == 0


@pytest.mark.parametrize("count", [12, 60, 1500])
def test_one_spike_does_not_flatten_a_curve(browser: Browser, tmp_path: Path, count: int) -> None:
    """The first gradient norm is 200 times the rest: the rest still fills the chart, and an arrow says what
    is left out.
    """
    rows = metrics(count)
    rows[0]["grad_norm"] *= 200
    path = tmp_path / "spike.html"
    path.write_text(render(full_run(tmp_path / "spike", rows=rows)))
    browser.open(path)
    smooth = "document.querySelector('[data-series=grad_norm] .smooth').getBBox().height"
    assert browser.evaluate(smooth) > 80
    arrows = (
        "[...document.querySelectorAll('[data-series=grad_norm] .off title')].map((title) =>"
        " title.textContent)"
    )
    found = browser.evaluate(arrows)
    assert len(found) == 1
    assert found[0].startswith(f"step 0: {rows[0]['grad_norm']:.4g}"[:11])
    assert browser.evaluate("document.querySelectorAll('[data-series=learning_rate] .off').length") == 0


def test_a_spike_of_one_run_does_not_flatten_the_others(browser: Browser, tmp_path: Path) -> None:
    rows = metrics(60, seed=1)
    rows[30]["loss"] *= 1000
    runs = [full_run(tmp_path / "calm"), full_run(tmp_path / "wild", rows=rows)]
    path = tmp_path / "both.html"
    path.write_text(render(runs[0], runs[1:]))
    browser.open(path)
    assert browser.evaluate("document.querySelector('[data-series=loss] .smooth').getBBox().height") > 80
    assert browser.evaluate("document.querySelectorAll('[data-series=loss] .off').length") == 1


def test_curves_without_a_spike_are_shown_whole(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.evaluate("document.querySelectorAll('.chart .off').length") == 0


def test_steps_as_large_as_steps_may_be_are_drawn(browser: Browser, tmp_path: Path) -> None:
    rows = metrics(20)
    for i, row in enumerate(rows):
        row["step"] = 2**53 - 21 + i
    path = tmp_path / "late.html"
    path.write_text(render(full_run(tmp_path / "late", rows=rows)))
    browser.problems.clear()
    browser.open(path)
    assert browser.problems == []
    assert browser.evaluate("document.querySelectorAll('.chart .smooth').length") == 4


@pytest.mark.parametrize("gaps", [0, 2, 3])
def test_every_point_of_a_curve_is_seen(browser: Browser, tmp_path: Path, gaps: int) -> None:
    """Also the only one of a run, and those between losses that are not finite."""
    rows = metrics(40 if gaps else 1)
    for row in rows[::gaps] if gaps else ():
        row["loss"] = math.nan
    path = tmp_path / "points.html"
    path.write_text(render(full_run(tmp_path / "points", rows=rows)))
    browser.open(path)
    drawn = browser.evaluate("document.querySelector('[data-series=loss] .smooth').getAttribute('d')")
    stretches = drawn.split("M")[1:]
    assert len(stretches) >= len(rows) // 3
    assert all("L" in stretch or "h" in stretch for stretch in stretches)
    if not gaps:
        box = browser.evaluate(
            "(() => { const b = document.querySelector('[data-series=loss] svg').getBBox();"
            " const p = document.querySelector('[data-series=loss] .smooth').getBBox();"
            " return [p.x - b.x, b.width]; })()"
        )
        assert 0.3 < box[0] / box[1] < 0.8


@pytest.mark.parametrize("width", [1280, 390])
def test_a_word_of_any_length_widens_no_page(browser: Browser, tmp_path: Path, width: int) -> None:
    run, word = full_run(tmp_path / "words"), "put_the_bowl_" * 40
    question = {"step": 1, "episode": 0, "frame": 0, "task": word, "action_horizon": 2} | {
        "sampling_steps": 1,
        "seed": 0,
    }
    answer = {"predicted": [[0.0]] * 2, "recorded": [[1.0]] * 2, "is_pad": [False] * 2}
    run.write(
        Prediction(
            checkpoint=word, dataset=word, device=word, mean_absolute_error=[1.0], **question, **answer
        )
    )
    dataset = run.read(Dataset)
    assert dataset is not None
    run.write(dataset.model_copy(update={"source": word, "tasks": [word], "format_version": word}))
    made = manifest()
    told = {"cameras": [word, word]}
    plan = made.plan.model_copy(update={"reason": word, "levers": made.plan.levers.model_copy(update=told)})
    run.write(made.model_copy(update={"plan": plan}))
    path = tmp_path / "words.html"
    path.write_text(render(run))
    browser.open(path, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width

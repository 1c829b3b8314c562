"""The pages in a browser: no network, keyboard, phone, dark mode, print."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from ovseg import evaluate
from ovseg.audit.report import report_audit
from ovseg.core.runs import RunFolder

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
PAGES = ("report", "audit", "compare")
PHONE = {"width": 390, "height": 844}

# The least contrast of a text with what is behind it, and that text (WCAG 2.2, 1.4.3).
LEAST_CONTRAST = """
() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = parse(getComputedStyle(e).backgroundColor);
      if (color.length === 3) return color;
    }
    throw new Error("The page has no background.");
  };
  let least = [99, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim();
    const element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const ink = light(parse(element.closest("svg") ? style.fill : style.color));
    const ground = light(behind(element));
    const ratio = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
    if (ratio < least[0]) least = [ratio, text];
  }
  return least;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium, which is not installed")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM)


@pytest.fixture(scope="module")
def pages(make_run, phantom_root, tmp_path_factory, run_command) -> dict[str, Path]:
    """Name -> page of a tiny run and of the phantoms. Not to be changed."""
    folder = tmp_path_factory.mktemp("pages")
    run = make_run(folder / "run")
    for kind in ("losses", "metrics"):
        RunFolder(run).curves(kind, ".csv").write_text(
            "epoch,loss,val_loss\n1,0.9,0.8\n2,0.5,0.6\n"
        )
    RunFolder(run).config.write_text("model: unet\n" * 40)
    evaluate(run, "train", phantom_root, folder / "report", device="cpu", robustness=1)
    report_audit(phantom_root, folder / "audit")
    masks = phantom_root / "test" / "masks"
    command = ["compare", "--runs", run, masks, "--data", phantom_root, "--device", "cpu"]
    assert run_command(*command, "--output", folder / "compare") == 0
    return {name: folder / name / f"{name}.html" for name in PAGES}


@pytest.fixture
def open_page(browser, pages):
    """A function that opens a page by its name, with options of the browser's window."""
    contexts = []

    def open_named(name: str, **options) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.problems = []
        page.on("console", lambda message: page.problems.append(message.text))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda request: page.problems.append(request.url))
        page.goto(pages[name].as_uri())
        return page

    yield open_named
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", PAGES)
def test_page_asks_for_nothing_and_logs_nothing(open_page, pages, name):
    page = open_page(name)
    problems = [problem for problem in page.problems if not problem.startswith("data:")]
    assert problems == [pages[name].as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_texts_have_contrast(open_page, name, scheme):
    page = open_page(name, color_scheme=scheme)
    ratio, text = page.evaluate(LEAST_CONTRAST)
    assert ratio >= 4.5, text


@pytest.mark.parametrize("name", PAGES)
def test_nothing_overflows_on_a_phone(open_page, name):
    page = open_page(name, viewport=PHONE)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"]


def test_texts_of_figures_are_readable_on_a_phone(open_page):
    page = open_page("report", viewport=PHONE)
    heights = page.evaluate(
        "[...document.querySelectorAll('.drawing text')].filter(text => text.checkVisibility())"
        ".map(text => [parseFloat(getComputedStyle(text).fontSize), text.getScreenCTM()])"
        ".map(([size, matrix]) => size * Math.hypot(matrix.a, matrix.b))"
    )
    assert len(heights) > 50
    assert min(heights) >= 9


def test_table_is_sorted_by_click_and_by_keyboard(open_page):
    page = open_page("report")
    table = page.locator("#images + .table table")
    heading = table.get_by_role("button", name="Dice", exact=True)
    values = "cells => cells.map(cell => Number(cell.dataset.value))"

    heading.click()
    rising = table.locator("tbody td:nth-child(3)").evaluate_all(values)
    assert rising == sorted(rising)
    assert rising[0] < rising[-1]
    page.keyboard.press("Enter")  # the heading has the focus
    assert table.locator("tbody td:nth-child(3)").evaluate_all(values) == rising[::-1]
    page.keyboard.press("Space")
    assert table.locator("tbody td:nth-child(3)").evaluate_all(values) == rising
    page.keyboard.press("Space")
    assert table.locator("th[aria-sort=descending]").inner_text().startswith("Dice")


def test_toggles_work_by_keyboard(open_page):
    page = open_page("report")
    for label, outline, before in (
        ("reference", ".reference", True),
        ("prediction", ".prediction", True),
        ("probability of lesion", ".probabilities", False),
    ):
        shown = page.locator(f".case {outline}").first
        assert shown.evaluate("one => getComputedStyle(one).display !== 'none'") == before
        page.get_by_role("checkbox", name=label).focus()
        page.keyboard.press("Space")
        assert shown.evaluate("one => getComputedStyle(one).display !== 'none'") != before


def test_case_opens_and_closes_by_keyboard(open_page):
    page = open_page("report")
    page.get_by_role("checkbox", name="uncertainty").focus()
    page.keyboard.press("Tab")
    opener = page.locator(".case button").first
    assert opener.evaluate("one => one === document.activeElement")
    assert opener.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"

    dialog = page.locator("dialog")
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    assert dialog.locator("path.reference").evaluate("one => getComputedStyle(one).fill") == "none"
    assert "Dice" in dialog.inner_text()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert opener.evaluate("one => one === document.activeElement")

    opener.click()
    assert dialog.is_visible()
    dialog.click()
    assert not dialog.is_visible()


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_sections_and_back(open_page, name):
    page = open_page(name)
    for link in page.locator("nav a, a.top").all():
        assert page.locator(link.get_attribute("href")).count() == 1


@pytest.mark.parametrize("name", PAGES)
def test_print_has_few_pages_and_no_controls(open_page, name):
    page = open_page(name)
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden() and page.locator("a.top").is_hidden()
    printed = page.pdf(prefer_css_page_size=True)
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 12
    assert re.search(rb"/MediaBox\s*\[\s*0 0 59[45]\S* 84[12]", printed)  # A4, points

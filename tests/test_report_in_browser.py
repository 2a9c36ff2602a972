"""Reports in headless Chromium: they draw, say nothing on the console, ask for nothing, and fit phones and paper."""

import itertools
import os
import shutil

import pytest
import runs_on_disk

import esmtune

pytest.importorskip("plotly", reason="the extra report is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("ESMTUNE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no chromium here (apt-get install chromium)", allow_module_level=True)
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The reports of a regression, a classification and a task per residue, and a comparison, with hostile texts."""
    folder = tmp_path_factory.mktemp("runs")
    found = {
        "regression": esmtune.report(runs_on_disk.everything(folder / "regression")),
        "many": esmtune.report(runs_on_disk.everything(folder / "many", count=10_000)),
        "classes": esmtune.report(runs_on_disk.classes(folder / "classes")),
        "residues": esmtune.report(runs_on_disk.residues(folder / "residues")),
    }
    runs_on_disk.everything(folder / "other", seed=1, noise=1.0)
    esmtune.compare(folder / "regression", folder / "other", out=folder / "compared.html")
    return found | {"compared": folder / "compared.html"}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def look(browser):
    """Open a page, and note what it says on the console and asks of a network."""
    contexts = []

    def open_page(path, viewport, **options):
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_function("document.documentElement.dataset.ready === 'true'")
        return page

    yield open_page
    for context in contexts:
        context.close()


def draw_all(page):
    """Scroll to each chart, as a reader would, and wait until it is drawn."""
    for place in range(page.locator("[data-figure]").count()):
        page.locator("[data-figure]").nth(place).scroll_into_view_if_needed()
    page.wait_for_function(
        "[...document.querySelectorAll('[data-figure]')].every(c => c.querySelector('svg.main-svg'))"
    )


@pytest.mark.parametrize("name", ["regression", "many", "classes", "residues", "compared"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_chart_is_drawn_and_nothing_else_happens(pages, look, name, viewport):
    page = look(pages[name], viewport)
    draw_all(page)
    assert page.locator("[data-figure]").count() > 0
    assert page.said == []
    assert page.asked == [pages[name].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    broad = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, .js-plotly-plot')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert broad == []


def test_on_a_phone_no_button_lies_over_a_chart_and_a_finger_scrolls(pages, look):
    page = look(pages["regression"], PHONE, has_touch=True, is_mobile=True)
    draw_all(page)
    assert page.locator(".modebar-btn").count() == 0
    assert page.evaluate("[...document.querySelectorAll('[data-figure]')].every(c => c.layout.dragmode === false)")
    wide = page.evaluate(
        "[...document.querySelectorAll('[data-figure]')].filter(c => "
        "c.querySelector('svg.main-svg').getBoundingClientRect().width > c.clientWidth + 1).length"
    )
    assert wide == 0


def test_a_script_in_the_data_is_text_and_would_not_run(pages, look):
    page = look(pages["regression"], DESKTOP)
    assert "<script>alert(1)</script>" in page.locator("#worst").inner_text()
    # Even one that got into the page is refused by the policy.
    page.evaluate("() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
                  " document.body.append(s); }")  # fmt: skip
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in text for text in page.said)


def test_requests_are_refused_by_the_policy(pages, look):
    page = look(pages["classes"], DESKTOP)
    failed = page.evaluate("fetch('http://127.0.0.1:9/x').then(() => false, () => true)")
    assert failed
    assert any("Content Security Policy" in text for text in page.said)


def test_a_legend_and_an_axis_show_hostile_names_as_text(pages, look):
    page = look(pages["classes"], DESKTOP)
    draw_all(page)
    assert "<script>alert(1)" in page.locator("#classes").inner_text()
    assert page.locator("#classes a").count() == 0


def test_it_is_dark_where_the_reader_is(pages, look):
    light = look(pages["regression"], DESKTOP, color_scheme="light")
    dark = look(pages["regression"], DESKTOP, color_scheme="dark")
    colors = []
    for page in (light, dark):
        draw_all(page)
        colors.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        text = page.locator(".xtitle").first.evaluate("e => getComputedStyle(e).fill")
        colors.append(text)
    assert colors == ["rgb(255, 255, 255)", "rgb(26, 33, 41)", "rgb(18, 22, 27)", "rgb(230, 234, 238)"]


def test_it_prints_every_chart_in_light_on_paper(pages, look, tmp_path):
    page = look(pages["regression"], DESKTOP, color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    page.wait_for_function(
        "[...document.querySelectorAll('[data-figure]')].every(c => c.querySelector('svg.main-svg'))"
    )
    assert page.locator(".xtitle").first.evaluate("e => getComputedStyle(e).fill") == "rgb(26, 33, 41)"
    widths = page.evaluate("[...document.querySelectorAll('svg.main-svg')].map(e => e.getBoundingClientRect().width)")
    assert max(widths) <= 700
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").stat().st_size > 50_000
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.classList.contains('on-paper')") is False


def test_it_can_be_read_without_scripts(pages, browser):
    context = browser.new_context(java_script_enabled=False, viewport=PHONE)
    page = context.new_page()
    page.goto(pages["regression"].as_uri())
    assert "need JavaScript" in page.inner_text("main")
    assert "more than chance" in page.inner_text("#verdict")
    context.close()


def test_charts_have_names_and_headings_are_in_order(pages, look):
    page = look(pages["regression"], DESKTOP)
    assert all(
        page.locator("[data-figure]").evaluate_all("all => all.map(e => e.getAttribute('aria-label').length > 20)")
    )
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(e => +e.tagName[1])")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    links = page.evaluate("[...document.querySelectorAll('a[href^=\"#\"]')].map(e => e.getAttribute('href').slice(1))")
    assert set(links) <= set(ids)

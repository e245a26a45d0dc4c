"""The page in a real browser: it draws, asks for nothing, complains of nothing, and obeys keys, screens and paper."""

import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest

from mlm_pytorch.report import write_report

pytest.importorskip("playwright", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(run, tmp_path_factory) -> Path:
    return write_report([run], tmp_path_factory.mktemp("page") / "page.html")


class Visit:
    """A page opened, with all that it said and asked for."""

    def __init__(self, browser, address: str, **context):
        self.context = browser.new_context(**({"viewport": {"width": 1100, "height": 900}} | context))
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("html[data-ready]", state="attached")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def paper(self) -> str:
        return self.page.evaluate("getComputedStyle(document.body).backgroundColor")


WHITE, DARK = "rgb(255, 255, 255)", "rgb(20, 23, 27)"

# WCAG 2's contrast of every text that can be seen, against the nearest background that is not transparent.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("script, noscript, .quiet, .skip")) continue;
    const style = getComputedStyle(element);
    let behind = element;
    while (behind && rgb(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
    const one = luminance(rgb(element.closest("svg") ? style.fill : style.color));
    const other = luminance(rgb(behind ? getComputedStyle(behind).backgroundColor : "white"));
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) low.push([walker.currentNode.data.trim().slice(0, 30), contrast.toFixed(2)]);
  }
  return low;
}"""


def test_it_draws_and_asks_for_nothing(browser, page_file):
    with Visit(browser, page_file.as_uri()) as visit:
        figures = visit.page.locator("figure.chart")
        assert figures.count() == 9
        for index in range(figures.count()):
            drawn = figures.nth(index).locator("svg path").first
            assert len(drawn.get_attribute("d") or "") > 20
        assert visit.asked == [page_file.as_uri()] and visit.said == []
        assert visit.page.evaluate("window.pwned") is None
        assert visit.page.locator("img").count() == 0
        assert "<img src=x onerror=window.pwned=1>" in visit.page.locator("#learned").inner_text()


def test_it_asks_for_nothing_from_a_server_either(browser, page_file):
    handler = partial(SimpleHTTPRequestHandler, directory=str(page_file.parent))
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/{page_file.name}"
        with Visit(browser, address) as visit:
            assert visit.asked == [address] and visit.said == []
        server.shutdown()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_both_be_read(browser, page_file, scheme):
    with Visit(browser, page_file.as_uri(), color_scheme=scheme) as visit:
        assert visit.paper() == (WHITE if scheme == "light" else DARK)
        assert visit.page.evaluate(CONTRASTS) == []


def test_the_theme_button_goes_round_and_is_remembered(browser, page_file):
    with Visit(browser, page_file.as_uri(), color_scheme="light") as visit:
        button = visit.page.locator("#theme")
        seen = []
        for _ in range(3):
            button.click()
            seen.append((button.inner_text(), visit.paper()))
        assert seen == [("Theme: light", WHITE), ("Theme: dark", DARK), ("Theme: system", WHITE)]
        button.click()
        button.click()
        visit.page.reload()
        assert visit.paper() == DARK


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_sticks_out_of_a_narrow_screen(browser, page_file, width):
    with Visit(browser, page_file.as_uri(), viewport={"width": width, "height": 800}) as visit:
        for details in visit.page.locator("details").all():
            details.evaluate("element => element.open = true")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


def test_paper_is_light_and_has_no_controls(browser, page_file):
    with Visit(browser, page_file.as_uri(), color_scheme="dark") as visit:
        visit.page.locator("#theme").click()
        visit.page.locator("#theme").click()  # dark by choice
        visit.page.emulate_media(media="print", color_scheme="dark")
        assert visit.paper() == WHITE
        assert not visit.page.locator("#controls").is_visible() and not visit.page.locator("#theme").is_visible()
        assert visit.page.locator("figure.chart svg").first.is_visible()
        assert visit.page.pdf(format="A4").startswith(b"%PDF")


def test_axes_and_scales_are_chosen_by_keyboard(browser, page_file):
    with Visit(browser, page_file.as_uri()) as visit:
        line = visit.page.locator('[data-chart="loss"] path.curve').first
        over_tokens = line.get_attribute("d")
        visit.page.locator('[name="axis"][value="tokens"]').focus()
        visit.page.keyboard.press("ArrowRight")
        assert visit.page.locator('[name="axis"][value="seconds"]').is_checked()
        over_time = line.get_attribute("d")
        visit.page.locator('[name="scale"][value="log"]').check()
        assert len({over_tokens, over_time, line.get_attribute("d")}) == 3
        assert visit.said == []


def test_a_chart_is_read_by_keys_and_pointer(browser, page_file):
    with Visit(browser, page_file.as_uri()) as visit:
        plot = visit.page.locator('[data-chart="loss"] .plot')
        said = visit.page.locator('[data-chart="loss"] .said')
        assert "Loss over tokens. training: from" in (plot.get_attribute("aria-label") or "")
        plot.focus()
        visit.page.keyboard.press("Home")
        first = said.inner_text()
        visit.page.keyboard.press("End")
        last = said.inner_text()
        assert first.startswith("tokens ") and "training" in first and "held out" in last and first != last
        visit.page.keyboard.press("Escape")
        assert said.inner_text() == ""
        plot.hover()
        assert "training" in said.inner_text()
        assert visit.page.locator('[data-chart="lr"] .cursor').count() == 1  # all charts point to the same place


def test_everything_is_reached_by_keyboard_and_has_a_name(browser, page_file):
    with Visit(browser, page_file.as_uri()) as visit:
        visit.page.keyboard.press("Tab")
        assert visit.page.evaluate("document.activeElement.className") == "skip"
        reached = set()
        for _ in range(150):
            visit.page.keyboard.press("Tab")
            reached.add(visit.page.evaluate("document.activeElement.tagName + '.' + document.activeElement.className"))
        assert {"BUTTON.", "A.", "INPUT.", "DIV.plot", "SUMMARY."} <= reached
        assert any(name.startswith("BUTTON.w p") for name in reached)
        unnamed = visit.page.evaluate(
            "[...document.querySelectorAll('[tabindex], button, a, input')].filter(e => "
            "!(e.ariaLabel || e.innerText || e.closest('label')?.innerText || e.textContent).trim()).length"
        )
        assert unnamed == 0
        levels = visit.page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(e => Number(e.tagName[1]))")
        assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))


def test_a_masked_word_shows_what_the_model_would_have_put(browser, page_file):
    with Visit(browser, page_file.as_uri()) as visit:
        sample = visit.page.locator(".sample").nth(1)
        word = sample.locator("button.w").first
        panel = sample.locator(".candidates")
        assert not panel.is_visible()
        word.focus()
        visit.page.keyboard.press("Enter")
        assert word.get_attribute("aria-pressed") == "true" and panel.locator("li").count() == 5
        assert word.inner_text() in panel.inner_text() and "%" in panel.inner_text()
        word.click()
        assert not panel.is_visible() and visit.said == []


def test_without_script_the_tables_are_there(browser, page_file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert "switched off" in page.locator("noscript").inner_text()
    page.locator("summary", has_text="Loss as a table").click()
    assert page.locator('[data-chart="loss"] td').count() > 10
    context.close()


def test_runs_are_overlaid_and_can_be_hidden(browser, run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text("model: tiny\n")
    lines = [{"step": i, "loss": 9.0 if i != 40 else float("nan")} for i in range(1, 3000)]  # no tokens and no time
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = write_report([run, other], tmp_path / "both.html", num_tokens=0, num_samples=0)
    with Visit(browser, out.as_uri()) as visit:
        curves = visit.page.locator('[data-chart="loss"] path.curve')
        assert curves.count() == 3
        assert visit.page.locator('[data-chart="loss"] path.band').count() == 0  # its losses are all the same
        assert visit.page.locator('[data-chart="loss"] path.bad').count() == 1
        assert visit.page.locator('[name="axis"][value="step"]').is_checked()  # the one that both know
        visit.page.locator('[name="axis"][value="tokens"]').check()
        assert curves.count() == 2
        visit.page.locator('[name="axis"][value="step"]').check()
        visit.page.locator('[name="run"]').first.uncheck()
        assert curves.count() == 1
        visit.page.locator('[name="run"]').nth(1).uncheck()
        assert curves.count() == 0 and visit.said == []


@pytest.mark.parametrize("lines", ["", '{"loss": 1}', '{"step": 1, "loss": NaN}', '{"step": 0, "loss": 0}'])
def test_a_run_that_has_hardly_begun(browser, tmp_path, lines):
    (tmp_path / "config.yaml").write_text("model: tiny\n")
    (tmp_path / "metrics.jsonl").write_text(lines + "\n")
    with Visit(browser, write_report([tmp_path]).as_uri()) as visit:
        if lines:
            visit.page.locator('[name="scale"][value="log"]').check()
        assert visit.said == []

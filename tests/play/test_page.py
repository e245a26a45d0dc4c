"""The page in a real browser, served by the command in a process of its own."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("no chromium to open the page in", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

HOSTILE = "<img src=x onerror=a()> <b>cat</b> &amp;<script>a()</script>"
CONTRAST = """() => {
  const channel = (v) => (v /= 255, v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const parse = (css) => { const n = css.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (e) => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
  return [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() &&
    [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())).map((e) => {
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.tagName + "." + e.className + " " + e.textContent.slice(0, 20)]; });
}"""
SWATCHES = """() => [0, 1, 2, 3, 4, 5].map((level) => {
  const chip = document.createElement("span"); chip.className = `word heat-${level}`; chip.textContent = "sample";
  document.querySelector(".text").append(chip); return level; })"""


@pytest.fixture(scope="module")
def server(folders):
    """The address of `mlm play` with both models; it must end cleanly when interrupted, whatever the tests did."""
    command = [sys.executable, "-m", "mlm_pytorch", "play", *map(str, folders.values()), "--port", "0"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"NO_PROXY": "*"})
    said = child.stderr.readline()
    found = re.fullmatch(r"play at (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends\)\n", said)
    assert found, said + child.stderr.read()
    yield found[1]
    child.send_signal(signal.SIGINT)
    _, rest = child.communicate(timeout=60)
    assert child.returncode == 0 and rest == "ended\n"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@contextmanager
def opened(browser, server, *, refusals=0, **options):
    """The page; nothing may fail or be asked of anyone else, nor logged save for `refusals` by the browser itself."""
    context = browser.new_context(**options)
    page = context.new_page()
    trouble, asked = [], []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: trouble.append("a dialog"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server)
    expect(page.locator("#model-a")).to_have_value("whole")
    yield page
    context.close()
    assert [each for each in trouble if "status of 422" not in each] == [] and len(trouble) == refusals
    assert asked and all(url.startswith(server) for url in asked)


def chip(page, word, side="a"):
    return page.locator(f".panel.{side} .word").filter(has_text=re.compile(rf"^{word}$")).first


def write(page, text):
    page.fill("#text", text)
    expect(page.locator(".figures").last).not_to_be_empty()


def test_type_click_and_see_the_right_word(browser, server):
    with opened(browser, server) as page:
        page.locator("#text").press_sequentially("the dog sat on the mat")
        expect(page.locator(".panel.a .word")).to_have_count(6)
        chip(page, "dog").click()
        hidden = page.locator(".panel.a .hidden-word.word")
        expect(hidden).to_have_text("cat1")  # what the model learned there
        expect(page.locator(".card .side.a .bars li").first).to_contain_text("cat")
        expect(page.locator(".card .side.a .bars .written")).to_contain_text("dog")
        expect(hidden).to_have_attribute("aria-pressed", "true")
        hidden.click()
        expect(page.locator("#guesses")).to_be_hidden()
        expect(chip(page, "dog")).to_have_attribute("aria-pressed", "false")


def test_a_heat_map_that_finds_the_wrong_word(browser, server):
    with opened(browser, server) as page:
        write(page, "the cat sat on the deep")
        levels = [
            int(re.search(r"heat-(\d)", each.get_attribute("class"))[1])
            for each in page.locator(".panel.a .word").all()
        ]
        assert len(levels) == 6 and max(levels) == levels[5] >= 4 and levels[3] <= 1
        chip(page, "deep").hover()
        expect(page.locator("#about")).to_contain_text("“mat”")
        expect(page.locator(".legend li")).to_have_count(8)
        expect(page.locator(".panel.a .figures")).to_contain_text(re.compile(r"[\d.]+ nats a word, PLL −[\d.]+"))


def test_two_models_are_compared_word_by_word(browser, server):
    with opened(browser, server) as page:
        write(page, "the cat sat on the mat")
        expect(page.locator(".panel .name")).to_have_text(["whole", "parts"])
        expect(page.locator("#count")).to_have_text(re.compile(r"\d+ of 64 tokens · \d+ of 64 tokens"))
        chip(page, "mat", "b").click()
        expect(page.locator(".panel.a .hidden-word")).to_have_text("mat1")
        expect(page.locator(".panel.b .hidden-word")).to_have_count(1)
        expect(page.locator(".card .side")).to_have_count(2)
        assert page.locator(".card .side.b .bars").count() >= page.locator(".card .side.a .bars").count() == 1
        page.select_option(".card select", "2")
        expect(page.locator(".card .side.a .bars")).to_have_count(2)
        expect(page.locator(".card .side.b .bars")).to_have_count(2)
        page.select_option("#model-b", "")
        expect(page.locator(".panel")).to_have_count(1)
        expect(page.locator(".panel.a .hidden-word")).to_have_text(re.compile("1$"))  # still hidden
        page.select_option("#model-a", "parts")
        expect(page.locator(".panel .name")).to_have_text(["parts"])


def test_the_keyboard_is_enough(browser, server):
    with opened(browser, server) as page:
        write(page, "the cat sat on the mat")
        page.locator("#text").focus()
        for _ in range(3):  # the example, then the first word; no more than one stop for a panel
            page.keyboard.press("Tab")
            if page.locator(".word:focus").count():
                break
        expect(page.locator(".panel.a .word").first).to_be_focused()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Space")
        expect(page.locator(".panel.a .hidden-word")).to_have_text("cat1")
        page.keyboard.press("End")
        page.keyboard.press("Enter")
        expect(page.locator(".panel.a .hidden-word")).to_have_text([re.compile("1$"), "mat2"])
        expect(page.locator(".panel.a .word").last).to_be_focused()
        page.get_by_role("button", name="Show cat again").click()
        expect(page.locator(".panel.a .hidden-word")).to_have_text(["mat1"])
        page.get_by_role("button", name="Show all words again").press("Enter")
        expect(page.locator(".hidden-word.word")).to_have_count(0)


def test_hidden_words_stay_hidden_while_the_text_changes(browser, server):
    with opened(browser, server) as page:
        write(page, "the cat sat on the mat")
        chip(page, "sat").click()
        page.locator("#text").press("End")
        page.keyboard.type(", by the sea")
        expect(page.locator(".panel.a .word")).to_have_count(10)
        page.locator("#text").press("Home")
        page.keyboard.type("now ")
        expect(page.locator(".panel.a .word")).to_have_count(11)
        expect(page.locator(".panel.a .hidden-word")).to_have_attribute("aria-label", re.compile("^sat, hidden"))
        page.fill("#text", "now the cat ran")
        expect(page.locator(".panel.a .word")).to_have_count(4)
        expect(page.locator(".hidden-word.word")).to_have_count(0)
        page.fill("#text", "")
        expect(page.locator("#reading")).to_be_hidden()


def test_a_mask_that_is_typed(browser, server):
    with opened(browser, server) as page:
        page.fill("#text", "the [MASK] sat on the mat")
        expect(page.locator(".panel.a .hidden-word")).to_have_text("cat1")
        page.locator(".panel.a .hidden-word").click(force=True)
        expect(page.locator(".panel.a .hidden-word")).to_have_text("cat1")
        expect(page.locator("#about")).to_contain_text("[MASK] is a mask in the text")


def test_a_mask_that_only_one_model_understands(browser, server):
    with opened(browser, server) as page:
        page.route("**/api/words", as_if_text_to_the_second)
        page.fill("#text", "the [MASK] sat on the mat")
        expect(page.locator(".card .side .bars").first).to_be_visible()
        expect(page.locator(".panel.b .hidden-word")).not_to_contain_text("…")


def as_if_text_to_the_second(route):
    answer = route.fetch()
    found = answer.json()
    found["models"][1]["kinds"][1] = "word"
    route.fulfill(response=answer, json=found)


def test_answers_to_older_texts_are_dropped(browser, server):
    with opened(browser, server) as page:
        held = []

        def hold_first(route):
            if held:
                route.continue_()
            else:
                held.append(route)

        page.route("**/api/words", hold_first)
        page.fill("#text", "a dog ran")
        page.wait_for_timeout(500)
        page.fill("#text", "the cat sat on the mat")
        expect(page.locator(".panel.a .word")).to_have_count(6)
        assert held
        page.wait_for_timeout(200)
        expect(page.locator(".panel.a .word")).to_have_count(6)


def test_text_is_text(browser, server):
    with opened(browser, server) as page:
        page.fill("#text", HOSTILE)
        expect(page.locator(".panel.a .word").first).to_have_text("<")
        assert page.locator(".panel.a .text").inner_text() == HOSTILE
        assert page.locator("img, main b:not(#about b), main script").count() == 0
        for each in ("onerror", "script"):
            chip(page, each).click()
        expect(page.locator(".card h3")).to_have_text(["1onerror", "2script"])


def test_what_cannot_be_read_is_said(browser, server):
    with opened(browser, server, refusals=1) as page:
        page.fill("#text", "the cat " * 60)
        expect(page.locator("#problem")).to_contain_text("takes 64; shorten it")
        expect(page.locator("#reading")).to_be_hidden()
        page.fill("#text", "the cat")
        expect(page.locator("#problem")).to_be_hidden()
        expect(page.locator(".panel.a .word")).to_have_count(2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_can_be_read_in_both_schemes_on_any_screen(browser, server, scheme, width):
    size = {"width": width, "height": 800}
    with opened(browser, server, color_scheme=scheme, viewport=size, reduced_motion="reduce") as page:
        write(page, "the cat sat on the deep \u6771 " + "x" * 50)
        chip(page, "cat").click()
        chip(page, "deep").hover()
        expect(page.locator(".card .bars").first).to_be_visible()
        page.evaluate(SWATCHES)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        low = [found for found in page.evaluate(CONTRAST) if found[0] < 4.5]
        assert low == []
        durations = page.evaluate(
            "[...document.querySelectorAll('*')].map(e => getComputedStyle(e).transitionDuration)"
        )
        assert set(durations) == {"0s"}
        unnamed = page.evaluate(
            "[...document.querySelectorAll('button, select, textarea')].filter(e => e.checkVisibility() && "
            "!e.getAttribute('aria-label') && !e.labels?.length && !e.textContent.trim()).map(e => e.outerHTML)"
        )
        assert unnamed == []

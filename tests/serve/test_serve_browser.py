"""The chat page in a real Chromium: type, receive, stop, switch, side by side; keyboard, phone, dark, and no errors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def models(make_model):
    return {
        "pretrain": make_model(context=100_000, pause=0.005),
        "sft": make_model(context=100_000, pause=0.005),
        "ppo": make_model(context=100_000, pause=0.005),
    }


@pytest.fixture
def address(serve_at, models):
    return serve_at(models)


@pytest.fixture
def open_page(browser, address):
    """open_page(**context settings) -> the chat page; an error logged or a request to elsewhere fails the test."""
    problems: list[str] = []
    contexts = []

    def start(**settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.on("request", lambda r: problems.append(r.url) if not r.url.startswith(address) else None)
        page.on("dialog", lambda d: (problems.append(f"dialog {d.message}"), d.dismiss()))
        page.goto(address)
        # The browser moves the focus to the message at its next frame; what is typed before it is lost.
        page.wait_for_function("document.activeElement.id === 'message'")
        return page

    start.problems = problems
    yield start
    for context in contexts:
        context.close()
    assert problems == []


def say(page, text):
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def finished(page, count):
    page.locator(".answer[aria-busy=false]").nth(count - 1).wait_for()
    assert page.locator(".answer").count() == count


def last_answer(page):
    return page.locator(".answer .text").last


def test_type_receive_and_go_on(open_page, models):
    page = open_page()
    assert page.evaluate("document.activeElement.id") == "message"
    say(page, "hello")
    finished(page, 1)
    assert last_answer(page).inner_text() == "HELLO"
    assert page.locator(".answer h2").inner_text() == "ppo"
    assert "tokens" in page.locator(".note").inner_text()
    say(page, "quick fox")
    finished(page, 2)
    assert "hello<|end|>\n<|assistant|>\nHELLO<|end|>" in models["ppo"].engine.prompts[-1]
    assert page.evaluate("document.activeElement.id") == "message"
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".turn").count() == 0
    say(page, "anew")
    finished(page, 1)
    assert "hello" not in models["ppo"].engine.prompts[-1]


def test_the_answer_streams_and_stop_stops_the_work(open_page, models, wait_until):
    page = open_page()
    page.get_by_text("Settings").click()
    page.get_by_label("Max tokens").fill("50000")
    page.keyboard.press("Escape")
    for number, stop in enumerate((
        lambda: page.get_by_role("button", name="Stop").click(),
        lambda: page.keyboard.press("Escape"),
    )):  # fmt: skip
        say(page, "count")
        page.get_by_text(" 9 10 11").nth(number).wait_for()
        assert page.locator(".answer").last.get_attribute("aria-busy") == "true"
        assert not page.get_by_role("button", name="Send").is_visible()
        stop()
        finished(page, number + 1)
        wait_until(models["ppo"].engine.closed.is_set)
        made = models["ppo"].engine.made
        page.wait_for_timeout(200)
        assert models["ppo"].engine.made == made < 50_000
        assert "stopped" in page.locator(".note").last.inner_text()
        assert page.get_by_role("button", name="Send").is_visible()


def test_shift_enter_starts_a_line_and_enter_sends(open_page, models):
    page = open_page()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    before = page.locator("#message").bounding_box()["height"]
    assert page.locator(".turn").count() == 0
    page.keyboard.press("Enter")
    finished(page, 1)
    assert "one\ntwo<|end|>" in models["ppo"].engine.prompts[-1]
    assert page.locator("#message").bounding_box()["height"] < before
    page.keyboard.press("Enter")
    assert page.locator(".turn").count() == 1


def test_switch_the_model_and_ask_two_side_by_side(open_page, models):
    page = open_page()
    page.get_by_label("Model", exact=True).select_option("sft")
    say(page, "hello")
    finished(page, 1)
    assert len(models["sft"].engine.prompts) == 1
    assert not page.get_by_label("Beside it").is_visible()
    page.get_by_label("Side by side").check()
    page.get_by_label("Beside it").select_option("ppo")
    say(page, "both of you")
    finished(page, 3)
    assert page.locator(".turn.two .answer h2").all_inner_texts() == ["sft", "ppo"]
    assert page.locator(".turn.two .text").all_inner_texts() == ["BOTH OF YOU"] * 2
    # The second had no answer of its own yet, and goes on from the first one's.
    assert "HELLO" in models["ppo"].engine.prompts[-1]
    boxes = [box.bounding_box() for box in page.locator(".turn.two .answer").all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def test_a_pretrained_model_continues_the_text(open_page, models):
    page = open_page()
    page.get_by_label("Model", exact=True).select_option("pretrain")
    say(page, "def add")
    finished(page, 1)
    assert models["pretrain"].engine.prompts == ["def add"]
    assert last_answer(page).inner_text() == "DEF ADD"
    page.get_by_text("Settings").click()
    page.get_by_label("Format").select_option("chat")
    page.keyboard.press("Escape")
    say(page, "def add")
    finished(page, 2)
    assert models["pretrain"].engine.prompts[-1].startswith("<|user|>\ndef add<|end|>")


@pytest.mark.parametrize("text", ["<SCRIPT>alert(1)</SCRIPT>", "<IMG SRC=X ONERROR=alert(1)>", "<B>x</B> & &LT; \"'"])
def test_html_is_shown_literally(open_page, text, models):
    page = open_page()
    model = models["ppo"]
    model.engine._tokens = lambda said: iter(model.tokenizer.encode(text))
    say(page, text)
    finished(page, 1)
    assert page.locator(".mine").inner_text() == text
    assert last_answer(page).inner_text() == text.replace("&LT;", "<")
    assert page.locator(".turn script, .turn img, .turn b").count() == 0


def test_markdown_is_rendered_when_finished(open_page, models):
    page = open_page()
    model = models["ppo"]
    text = "**Bold**\n\n```\nx = 1\n```\n\n- one\n- two"
    model.engine._tokens = lambda said: iter(model.tokenizer.encode(text))
    say(page, "x")
    finished(page, 1)
    assert page.locator(".text strong").inner_text() == "Bold"
    assert page.locator(".text pre code").inner_text() == "x = 1\n"
    assert page.locator(".text li").count() == 2


def test_an_error_is_shown_and_the_page_goes_on(open_page):
    page = open_page()
    say(page, "fail")
    finished(page, 1)
    assert "the model failed: RuntimeError" in page.locator(".note.bad").inner_text()
    say(page, "hello")
    finished(page, 2)
    assert last_answer(page).inner_text() == "HELLO"


def test_a_setting_out_of_range_is_pointed_at(open_page):
    page = open_page()
    page.get_by_text("Settings").click()
    page.get_by_label("Temperature").fill("9")
    say(page, "hello")
    assert page.locator(".turn").count() == 0
    assert page.evaluate("document.activeElement.id") == "temperature"


def contrast(page, selector):
    """The contrast ratio of an element's text with what is behind it (WCAG 2.2)."""
    return page.evaluate(
        """selector => {
          const light = c => c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
          const rgba = s => s.match(/[\\d.]+/g).map(Number);
          const text = rgba(getComputedStyle(document.querySelector(selector)).color).slice(0, 3);
          let at = document.querySelector(selector), back = null;
          while (at && !back) {
            const c = rgba(getComputedStyle(at).backgroundColor);
            if (c.length === 3 || c[3] === 1) back = c.slice(0, 3);
            at = at.parentElement;
          }
          const [a, b] = [light(text), light(back)].sort((x, y) => y - x);
          return (a + .05) / (b + .05);
        }""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_and_can_be_read(open_page, scheme, width, tmp_path, request):
    page = open_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.get_by_label("Side by side").check()
    say(page, "the quick brown fox says hello to the quiet world " * 4)
    finished(page, 2)
    for selector in ("h1", ".mine", ".answer .text", ".answer h2", ".note", "#send", "summary", "#clear", ".switch"):
        assert contrast(page, selector) >= 4.5, selector
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for control in page.locator(".choice:not([hidden]) select, header button, summary, #send").all():
        box = control.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["height"] >= 24
    page.get_by_text("Settings").click()
    panel = page.locator(".panel").bounding_box()
    assert panel["x"] >= 0
    assert panel["x"] + panel["width"] <= width
    page.screenshot(path=tmp_path / f"chat-{scheme}-{width}.png")
    page.keyboard.press("Escape")
    assert not page.locator(".panel").is_visible()
    boxes = [box.bounding_box() for box in page.locator(".turn.two .answer").all()]
    stacked = boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"]
    assert stacked == (width < 640)

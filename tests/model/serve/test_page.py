"""The chat page in a real Chromium, driven by playwright."""

import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from model.serve.guard import Access
from model.serve.limits import Limits
from model.tokenizer import ChatTokenizer
from tests.model.serve.running import Running, serving, wait_until
from tests.model.stub_engine import StubEngine

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
SOON = 30_000  # milliseconds after which a test gives up
ATTACK = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page. Afterwards: nothing was asked of another place, and nothing went wrong."""
    context = browser.new_context(viewport={"width": 1100, "height": 700})
    page = context.new_page()
    page.set_default_timeout(SOON)
    expect.set_options(timeout=SOON)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console",
        lambda message: (
            # Chromium's own note on a 401, 400 or 503, which some tests mean to see.
            message.type == "error"
            and not message.text.startswith("Failed to load resource: the server responded")
            and wrong.append(message.text)
        ),
    )
    page.on(
        "request",
        lambda request: request.url.startswith("http://127.0.0.1:") or wrong.append(request.url),
    )
    yield page
    context.close()
    assert wrong == []


def script(prompt: str) -> list[str]:
    last = prompt.rsplit("<|user|>")[-1]
    if "endless" in last:
        return [f"word{number} " for number in range(5_000)]
    if "attack" in last or "onerror" in last:
        return [ATTACK[i : i + 7] for i in range(0, len(ATTACK), 7)]
    return ["Hello", ",\n", "  you", "."]


@pytest.fixture
def stub(tokenizer: ChatTokenizer) -> StubEngine:
    return StubEngine(tokenizer, script, pause=0.01, seq_len=8_000)


@pytest.fixture
def server(stub: StubEngine) -> Iterator[Running]:
    with serving({"stub": stub}, limits=Limits(grace_seconds=0)) as running:
        yield running


def say(page: Page, text: str) -> None:
    expect(page.locator(".pane").first).to_be_visible()  # the page knows the models by then
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")


def replies(page: Page, pane: int = 0) -> list[str]:
    return page.locator(".pane").nth(pane).locator(".assistant .text").all_inner_texts()


def settled(page: Page) -> None:
    """Waits for the end of all replies."""
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_a_conversation(page: Page, server: Running, stub: StubEngine) -> None:
    page.goto(server.url)
    expect(page.get_by_text("Say something to begin.")).to_be_visible()
    expect(page.get_by_label("Message")).to_be_focused()
    say(page, "how are you?")
    settled(page)
    assert replies(page) == ["Hello,\n  you."]
    expect(page.locator(".assistant .meta")).to_have_text(re.compile(r"^4 tokens · \d+ tokens/s$"))
    expect(page.get_by_role("status")).to_have_text("stub: reply complete")
    page.get_by_label("Message").fill("two")
    page.get_by_label("Message").press("Shift+Enter")
    page.get_by_label("Message").press_sequentially("lines")
    page.get_by_role("button", name="Send").click()
    settled(page)
    assert stub.asked[-1][0] == (
        "<|bos|><|user|>how are you?<|end|><|assistant|>Hello,\n  you.<|end|>"
        "<|user|>two\nlines<|end|><|assistant|>"
    )
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_text("Say something to begin.")).to_be_visible()
    say(page, "again")
    settled(page)
    assert stub.asked[-1][0] == "<|bos|><|user|>again<|end|><|assistant|>"


def test_a_reply_is_seen_growing_and_can_be_stopped_and_retried(
    page: Page, server: Running, stub: StubEngine
) -> None:
    page.goto(server.url)
    say(page, "endless")
    reply = page.locator(".assistant .text")
    expect(reply).to_contain_text("word3 ")
    seen = len(replies(page)[0])
    expect(reply).to_contain_text("word30 ")
    assert len(replies(page)[0]) > seen
    assert page.locator(".assistant").get_attribute("aria-busy") == "true"
    page.get_by_role("button", name="Stop").click()
    scheduler = server.models[0].scheduler
    assert wait_until(lambda: scheduler.unfinished == 0) < 1
    settled(page)
    (stopped,) = replies(page)
    assert stopped.startswith("word0 word1 ")
    assert "word4999" not in stopped
    expect(page.locator(".assistant .meta")).to_have_text("stopped")
    # Escape stops too, and what was shown stays.
    page.get_by_role("button", name="Retry").click()
    expect(reply).to_contain_text("word3 ")
    page.keyboard.press("Escape")
    settled(page)
    assert len(replies(page)) == 1
    assert stub.asked[0][0] == stub.asked[1][0]
    say(page, "and now?")
    settled(page)
    assert replies(page)[1] == "Hello,\n  you."
    assert "<|assistant|>word0 word1 " in stub.asked[-1][0]


def test_settings_reach_the_model(page: Page, server: Running, stub: StubEngine) -> None:
    page.goto(server.url)
    page.get_by_label("System prompt").fill("be brief")
    page.get_by_label("Temperature").fill("0.35")
    page.get_by_label("Top-p").fill("0.9")
    page.get_by_label("Longest reply").fill("3")
    page.get_by_label("Seed").fill("42")
    expect(page.locator("#temperature-value")).to_have_text("0.35")
    say(page, "hello")
    settled(page)
    prompt, sampling = stub.asked[-1]
    assert prompt.startswith("<|bos|><|system|>be brief<|end|><|user|>hello")
    assert (sampling.temperature, sampling.top_p) == (0.35, 0.9)
    assert (sampling.max_new_tokens, sampling.seed) == (3, 42)
    expect(page.locator(".assistant .meta")).to_contain_text("longest length reached")
    page.get_by_role("button", name="Retry").click()
    settled(page)
    assert stub.asked[-1][1].seed == 43
    # A wrong number is shown, not sent.
    page.get_by_label("Longest reply").fill("0")
    say(page, "hello")
    assert page.get_by_label("Longest reply").evaluate("input => input.matches(':invalid')")
    assert len(stub.asked) == 2


def test_html_stays_text(page: Page, server: Running) -> None:
    page.goto(server.url)
    page.get_by_label("System prompt").fill(ATTACK)
    say(page, ATTACK)
    settled(page)
    assert replies(page) == [ATTACK]
    assert page.locator(".user .text").all_inner_texts() == [ATTACK]
    assert page.locator(".log img, .log script").count() == 0
    assert page.title() == "Parley"


def test_a_model_s_name_is_text_too(page: Page, stub: StubEngine) -> None:
    with serving({ATTACK: stub}) as running:
        page.goto(running.url)
        say(page, "hello")
        settled(page)
        assert page.locator("select").input_value() == ATTACK
        assert page.locator("main img, main script").count() == 0
        assert page.title() == "Parley"


def test_two_models_side_by_side(page: Page, stub: StubEngine, tokenizer: ChatTokenizer) -> None:
    other = StubEngine(tokenizer, lambda prompt: ["I am", " the other."], seq_len=100)
    with serving({"first": stub, "second": other}) as running:
        page.goto(running.url)
        say(page, "alone")
        settled(page)
        page.get_by_role("button", name="Compare").click()
        expect(page.locator(".pane")).to_have_count(2)
        say(page, "hello")
        settled(page)
        assert replies(page, 0) == ["Hello,\n  you."]
        assert replies(page, 1) == ["I am the other."]
        page.locator(".pane").nth(1).get_by_role("button", name="Retry").click()
        settled(page)
        assert (len(stub.asked), len(other.asked)) == (2, 2)
        # Either side can be any of the models.
        page.get_by_label("Model").nth(1).select_option("first")
        say(page, "hello")
        settled(page)
        assert replies(page, 1) == ["Hello,\n  you."]
        page.get_by_role("button", name="Compare").click()
        expect(page.locator(".pane")).to_have_count(1)


def test_what_no_longer_fits_is_said(page: Page, tokenizer: ChatTokenizer) -> None:
    engine = StubEngine(tokenizer, lambda prompt: ["x" * 50], seq_len=130)
    with serving({"small": engine}) as running:
        page.goto(running.url)
        page.get_by_label("Longest reply").fill("10")
        for number in range(3):
            say(page, f"message {number}")
            settled(page)
        expect(page.locator(".note")).to_have_text(
            "The oldest 2 messages no longer fit the model's context: this reply does without them."
        )
        # A message that can never fit is refused, and the next one is none the worse.
        say(page, "y" * 400)
        settled(page)
        expect(page.locator(".note.bad")).to_contain_text("no room for a reply")
        say(page, "short")
        settled(page)
        assert replies(page)[-1] == "x" * 50
        assert "yyyy" not in engine.asked[-1][0]


def test_a_server_that_fails_is_said(page: Page, server: Running, stub: StubEngine) -> None:
    page.goto(server.url)
    stub.broken = True
    say(page, "hello")
    settled(page)
    expect(page.locator(".note.bad")).to_have_text("The model failed at this reply.")
    stub.broken = False
    page.get_by_role("button", name="Retry").click()
    settled(page)
    assert replies(page) == ["Hello,\n  you."]
    expect(page.locator(".note.bad")).to_have_count(0)


def test_a_server_with_a_key_is_asked_with_it(page: Page, stub: StubEngine) -> None:
    with serving({"stub": stub}, access=Access(key="sk-1")) as running:
        page.goto(running.url)
        for key in ("wrong", "sk-1"):
            expect(page.get_by_role("dialog")).to_be_visible()
            page.get_by_label("Key", exact=True).fill(key)
            page.get_by_role("button", name="Use it").click()
        say(page, "hello")
        settled(page)
        assert replies(page) == ["Hello,\n  you."]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_preferred_colours(
    browser: Browser, server: Running, scheme: str
) -> None:
    context = browser.new_context(
        viewport={"width": 360, "height": 640}, color_scheme=scheme, has_touch=True
    )
    page = context.new_page()
    page.goto(server.url)
    say(page, "hello " * 30)
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert not page.get_by_label("Temperature").is_visible()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.keyboard.press("Escape")
    expect(page.get_by_label("Temperature")).not_to_be_visible()
    back = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (back == "rgb(255, 255, 255)") == (scheme == "light")
    context.close()


def test_every_control_has_a_name(page: Page, server: Running) -> None:
    page.goto(server.url)
    say(page, "hello")
    settled(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea")].filter(
            (e) => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)
        ).length"""
    )
    assert nameless == 0
    log = page.get_by_role("log")
    assert log.get_attribute("aria-label") == "Conversation with stub"

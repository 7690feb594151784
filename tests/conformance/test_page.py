"""The page of `GET /` in a real Chromium, against a real server."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from openai import OpenAI

from metok_vllm.demo import SAMPLE_VIDEO
from metok_vllm.processes.child_server import ChildServer
from tests.conformance.requests import MODEL, messages, metric, video_part
from tests.waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FilePayload, Page, Route

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# With METOK_TEST_BROWSER=1 (set by .ci/run) a missing browser fails these tests.
BROWSER_REQUIRED = os.environ.get("METOK_TEST_BROWSER") == "1"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None and not BROWSER_REQUIRED, reason="no Chromium: apt-get install chromium"
    ),
]

QUESTION = "What is in the black scene?"
TOKENS = 16
HEADINGS = {False: "Without METok", True: "With METok"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None, "METOK_TEST_BROWSER=1 needs Chromium: apt-get install chromium"
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def open_page(browser: Browser, server: ChildServer, **options: Any) -> Page:
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(60_000)
    page.goto(server.url)
    page.locator("#model", has_text=MODEL).wait_for()
    return page


@pytest.fixture
def page(browser: Browser, server: ChildServer) -> Iterator[Page]:
    page = open_page(browser, server)
    mistakes: list[Any] = []
    page.on("pageerror", lambda error: mistakes.append(error))
    yield page
    page.context.close()
    assert not mistakes


def ask(page: Page, mode: str, tokens: int = TOKENS) -> None:
    """Fill in the form with the sample video and press the button."""
    page.set_input_files("#file", SAMPLE_VIDEO)
    page.fill("#question", QUESTION)
    page.check(f"input[value={mode}]")
    if not page.is_visible("#tokens"):
        page.click("summary")
    page.fill("#tokens", str(tokens))
    page.click("#ask")


def answered(page: Page) -> list[Any]:
    """Heading and answer of every card, once all is there."""
    page.wait_for_selector("#stop", state="hidden")
    cards = page.locator("#answers .card").all()
    return [(card.locator("h2").inner_text(), text_of(card, ".answer")) for card in cards]


def text_of(within: Any, selector: str) -> str:
    return str(within.locator(selector).evaluate("node => node.textContent"))


def api_answer(client: OpenAI, enabled: bool) -> Any:
    return client.chat.completions.create(
        model=MODEL,
        messages=messages(QUESTION, video_part()),
        max_tokens=TOKENS,
        temperature=0,
        extra_body={"metok": {"enabled": enabled}},
    )


@pytest.mark.parametrize(
    ("mode", "modes"), [("both", [False, True]), ("on", [True]), ("off", [False])]
)
def test_the_page_shows_what_the_api_answers(
    page: Page, client: OpenAI, mode: str, modes: list[bool]
) -> None:
    answers = {enabled: api_answer(client, enabled) for enabled in modes}
    ask(page, mode)
    expected = [(HEADINGS[e], answers[e].choices[0].message.content) for e in modes]
    assert answered(page) == expected
    assert page.locator("#answers .scale", has_text="first token").count() == len(modes)

    # Events and savings are METok's; without it there is nothing to show.
    assert page.is_visible("#events") == page.is_visible("#savings") == (True in modes)
    if True not in modes:
        return
    metok = answers[True].metok
    bars = page.locator(".event").all()
    titles = [bar.get_attribute("title") or "" for bar in bars]
    assert [title.endswith("key event") for title in titles] == [e["key"] for e in metok["events"]]
    starts = [float(title.split(" ")[0]) for title in titles]
    assert starts == pytest.approx([event["start_s"] for event in metok["events"]], abs=0.051)
    boxes = [bar.bounding_box() for bar in bars]
    assert all(box is not None and box["width"] > 2 for box in boxes)
    row = page.locator("#rows tr").first.locator("td").all_inner_texts()
    encoded = metok["visual_tokens"]["encoded"]
    assert row == [
        "Visual tokens",
        "513",
        f"{encoded:,}",
        f"{1 - encoded / 513:.0%}"[:-1] + " %",
    ]


@pytest.mark.parametrize(("mode", "modes"), [("both", 2), ("on", 1)])
def test_the_next_question_goes_on_with_the_conversation(page: Page, mode: str, modes: int) -> None:
    sent: list[list[Any]] = []

    def note(route: Route) -> None:
        sent.append(json.loads(route.request.post_data or "")["messages"])
        route.continue_()

    page.route("**/v1/chat/completions", note)
    ask(page, mode)
    first = answered(page)
    page.fill("#again", "What is in the white scene?")
    page.click("#next button")
    page.locator("#answers .asked").last.wait_for()
    both = answered(page)
    assert both[:modes] == first
    assert len(both) == len(sent) == 2 * modes
    assert all(text for _, text in both)
    for before, after, (_, text) in zip(sent[:modes], sent[modes:], first, strict=True):
        assert after[:1] == before
        assert after[1] == {"role": "assistant", "content": text}
        question = {"type": "text", "text": "What is in the white scene?"}
        assert after[2] == {"role": "user", "content": [question]}
    assert page.input_value("#again") == ""
    ask(page, mode)
    assert answered(page) == first


def test_a_click_on_an_event_shows_it(page: Page) -> None:
    ask(page, "on")
    answered(page)
    bar = page.locator(".event").nth(3)
    start = float((bar.get_attribute("title") or "").split(" ")[0])
    assert start > 0
    bar.click()
    page.wait_for_function(
        "start => Math.abs(document.querySelector('video').currentTime - start) < 0.1", arg=start
    )


def test_an_error_can_be_read_and_the_next_question_works(page: Page) -> None:
    ask(page, "on")
    answered(page)
    text = b"This is no video. " * 50
    notes: FilePayload = {"name": "notes.mp4", "mimeType": "video/mp4", "buffer": text}
    page.set_input_files("#file", notes)
    page.click("#ask")
    page.locator("#answers .wrong", has_text="not a video").wait_for()
    assert not page.is_visible("#savings")
    assert not page.is_visible("#preview")

    page.set_input_files("#file", [])
    page.click("#ask")
    page.locator("#answers .wrong", has_text="Choose a video").wait_for()

    ask(page, "on")
    assert answered(page)[0][1]
    assert page.is_visible("#preview")
    assert page.locator(".wrong").count() == 0


def talk_on(route: Route) -> None:
    """Let the model go on: it would be done after two words, before anyone could stop it."""
    body = json.loads(route.request.post_data or "")
    least = body["max_completion_tokens"]
    route.continue_(post_data=json.dumps({**body, "min_tokens": least}))


def test_stop_ends_the_request_on_the_server(page: Page, server: ChildServer) -> None:
    page.route("**/v1/chat/completions", talk_on)
    ask(page, "on", tokens=12_000)
    page.wait_for_function("() => document.querySelector('.answer')?.textContent.length > 20")
    assert metric(server, "vllm:num_requests_running") == 1
    page.click("#stop")
    page.locator("#answers .scale", has_text="stopped").wait_for()
    assert len(answered(page)[0][1]) > 20
    wait_until(lambda: metric(server, "vllm:num_requests_running") == 0, 10)


@pytest.mark.parametrize(
    ("width", "scheme"), [(320, "light"), (390, "light"), (1280, "light"), (320, "dark")]
)
def test_nothing_sticks_out(
    browser: Browser, server: ChildServer, width: int, scheme: str, tmp_path: Path
) -> None:
    viewport = {"width": width, "height": 800}
    page = open_page(browser, server, viewport=viewport, color_scheme=scheme)
    ask(page, "both")
    answered(page)
    # On failure pytest keeps the folder: the picture says more than the list.
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    outside = page.evaluate(
        """() => [...document.querySelectorAll("main *")].filter((node) => {
          const card = node.closest(".card");
          const edge = (card ?? document.documentElement).getBoundingClientRect();
          const box = node.getBoundingClientRect();
          return box.width && (box.left < edge.left - 1 || box.right > edge.right + 1);
        }).map((node) => node.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    # Short labels of the switch stay on one line each.
    heights = page.locator("fieldset label").evaluate_all("all => all.map(n => n.offsetHeight)")
    assert len(heights) == 3
    assert max(heights) < 30
    page.context.close()


def test_an_unknown_relevance_is_shown_as_such(page: Page) -> None:
    """The server says null where it cannot say how close an event is to the question."""

    def forget(route: Route) -> None:
        answer = route.fetch()
        lines = []
        for line in answer.text().split("\n"):
            chunk = json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else {}
            if "metok" in chunk:
                for event in chunk["metok"]["events"][1:]:
                    event["relevance"] = None
                line = "data: " + json.dumps(chunk)
            lines.append(line)
        route.fulfill(response=answer, body="\n".join(lines))

    page.route("**/v1/chat/completions", forget)
    ask(page, "on")
    answered(page)
    titles = [bar.get_attribute("title") or "" for bar in page.locator(".event").all()]
    assert len(titles) > 1
    assert "relevance unknown" not in titles[0]
    assert all("relevance unknown" in title for title in titles[1:])
    assert page.is_visible("#savings")


def test_the_page_asks_for_a_key_where_one_is_needed(browser: Browser, server: ChildServer) -> None:
    """The server here has no key; in its place the route refuses what comes without one."""
    page = browser.new_context().new_page()
    seen: list[str | None] = []

    def guarded(route: Route) -> None:
        key = route.request.headers.get("authorization")
        seen.append(key)
        if key == "Bearer right":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"message": "The API key is missing."}})

    page.route("**/v1/**", guarded)
    page.goto(server.url)
    page.locator("#model", has_text="needs an API key").wait_for()
    assert page.locator("#key").evaluate("node => node === document.activeElement")
    assert page.get_attribute("#key", "type") == "password"
    page.fill("#key", "wrong")
    page.press("#key", "Tab")
    page.locator("#model", has_text="This one is wrong").wait_for()
    page.fill("#key", "right")
    page.press("#key", "Tab")
    page.locator("#model", has_text=MODEL).wait_for()
    ask(page, "off")
    assert answered(page)[0][1]
    assert seen[0] is None
    assert seen[-1] == "Bearer right"
    page.context.close()


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_nothing_comes_from_elsewhere_and_nothing_breaks_the_policy(
    browser: Browser, server: ChildServer, path: str
) -> None:
    page = browser.new_context().new_page()
    addresses: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(server.url + path)
    page.locator("#model, .opblock-tag").first.wait_for()
    page.wait_for_load_state("networkidle")
    outside = [url for url in addresses if not url.startswith((server.url, "data:", "blob:"))]
    assert outside == []
    assert [text for text in complaints if "Content Security Policy" in text] == []
    page.context.close()

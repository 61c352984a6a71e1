"""The page in a real browser: headless Chromium through Playwright, against the application on uvicorn, without Ray.

FRUITCNN_SCREENSHOTS=FOLDER keeps a picture of every test for people to look at.
"""

import base64
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fruitcnn.endpoints import BROWSER_RUNTIME
from fruitcnn.serving import ServeConfig
from tests import tiny_bundle
from tests.web_server import serve_without_ray

CHROMIUM = Path("/usr/bin/chromium")
needs_vendor = pytest.mark.skipif(not BROWSER_RUNTIME.exists(), reason="make web has not run")

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs {CHROMIUM}")

PENDING = "[...document.querySelectorAll('#answers h3')].some((each) => each.textContent === '…')"
PUT = """([action, files]) => {
  const transfer = new DataTransfer();
  for (const [name, type, text] of files) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type }));
  }
  const named = action === "paste" ? { clipboardData: transfer } : { dataTransfer: transfer };
  const kind = action === "paste" ? ClipboardEvent : DragEvent;
  document.body.dispatchEvent(new kind(action, { bubbles: true, cancelable: true, ...named }));
}"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = tiny_bundle.write_bundle(tmp_path_factory.mktemp("page") / "model")
    config = ServeConfig(model=model, min_confidence=0.5, max_body_bytes=20_000_000)
    with serve_without_ray(config) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    arguments = ["--disable-gpu", "--disable-quic", "--no-first-run", "--use-fake-device-for-media-stream"]
    arguments += ["--disable-background-networking", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=[*arguments, "--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, url: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """open(**context) -> the loaded page. At the end its console must be empty, and no other address was asked."""
    contexts, complaints, asked = [], [], []

    def open_page(**named: Any) -> Any:
        context = browser.new_context(permissions=["camera"], **named)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda each: asked.append(each.url))
        page.goto(url)
        until(page, "document.getElementById('about').textContent.startsWith('One of 3')")
        return page

    yield open_page
    if folder := os.environ.get("FRUITCNN_SCREENSHOTS"):
        for number, context in enumerate(contexts):
            name = request.node.name.replace("[", "_").replace("]", "")
            context.pages[0].screenshot(path=f"{folder}/{name}{number or ''}.png", full_page=True)
    for context in contexts:
        context.close()
    assert not [each for each in complaints if "ERR_INTERNET_DISCONNECTED" not in each]
    assert not [each for each in asked if not each.startswith((url, "blob:", "data:"))]


def picture(kind: str = "PNG", size: tuple[int, int] = (80, 60), color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()


def give(page: Any, action: str, *files: tuple[str, bytes]) -> None:
    """Drop or paste files onto the page, as the browser's own event."""
    texts = [[name, f"image/{name.rsplit('.')[-1]}", base64.b64encode(data).decode()] for name, data in files]
    page.evaluate(PUT, [action, texts])


def until(page: Any, expression: str) -> None:
    """Wait until JavaScript says true; Playwright's own wait_for_function evaluates text, which the page forbids."""
    deadline = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        time.sleep(0.05)


def titles(page: Any, count: int) -> list[str]:
    """The headings of the answers once all are there, the newest first."""
    until(
        page,
        f"[...document.querySelectorAll('#answers h3')].filter((each) => each.textContent !== '…').length === {count}",
    )
    return page.locator("#answers h3").all_text_contents()


def scores(page: Any, count: int) -> list[dict[str, float]]:
    """Label -> percent of the newest answers."""
    found = []
    for number in range(count):
        texts = page.locator("#answers > li").nth(number).locator(".bars span").all_text_contents()
        found.append(
            {name: float(value.removesuffix(" %")) for name, value in zip(texts[::2], texts[1::2], strict=True)}
        )
    return found


def switch_on(page: Any) -> None:
    page.click("#local")
    page.wait_for_selector("#local[aria-checked=true]")


@pytest.mark.parametrize("action", ["drop", "paste"])
def test_a_picture_dropped_or_pasted_is_answered_with_bars(opened: Callable[..., Any], action: str) -> None:
    page = opened()
    give(page, action, ("apple.png", picture()))
    assert titles(page, 1) == ["red"]
    assert page.locator(".bars li").count() == 3
    name, value = page.locator(".bars li").first.locator("span").all_text_contents()
    assert name == "red"
    assert float(value.removesuffix(" %")) > 99
    assert page.locator("#status").text_content() == "Answer: red"
    assert page.locator(".note").first.text_content() == "apple.png, 80 x 60 px"


def test_unsure_is_said_so(opened: Callable[..., Any]) -> None:
    page = opened()
    give(page, "drop", ("grey.png", picture(color="#808080")))
    assert titles(page, 1) == ["Not sure"]
    assert page.locator(".unsure .bars li").count() == 3


def test_broken_files_are_answered_too(opened: Callable[..., Any]) -> None:
    page = opened()
    give(page, "drop", ("cut.jpeg", picture("JPEG")[:-40]), ("text.png", b"no picture"), ("none.png", b""))
    assert titles(page, 3) == ["Not a picture I can read"] * 3
    notes = " ".join(page.locator(".note").all_text_contents())
    assert all(f"({cause})" in notes for cause in ("truncated", "not-an-image", "empty"))


def test_sixty_megapixels(opened: Callable[..., Any]) -> None:
    page = opened()
    give(page, "drop", ("large.jpeg", picture("JPEG", (9000, 6700), "blue")))
    assert titles(page, 1) == ["blue"]
    assert "9000 x 6700 px" in page.locator(".note").first.text_content()


def test_a_file_too_large_is_not_sent(opened: Callable[..., Any]) -> None:
    page = opened()
    page.evaluate(
        "() => { const transfer = new DataTransfer();"
        "transfer.items.add(new File([new Uint8Array(20000001)], 'a.png'));"
        "document.body.dispatchEvent(new DragEvent('drop', {bubbles: true, dataTransfer: transfer})); }"
    )
    assert titles(page, 1) == ["No answer"]
    assert "larger than the 20 MB" in page.locator(".note").first.text_content()


def test_twenty_at_once(opened: Callable[..., Any]) -> None:
    page = opened()
    colors = ["red", "#0f0", "blue", "#d00"] * 5
    give(page, "drop", *((f"{number}.png", picture(color=color)) for number, color in enumerate(colors)))
    expected = [{"red": "red", "#0f0": "green", "blue": "blue", "#d00": "red"}[color] for color in colors]
    assert titles(page, 20) == expected[::-1]
    until(page, "document.getElementById('status').textContent === '20 pictures done.'")


def chooser_by_enter(page: Any) -> Any:
    """The file chooser that Enter opens. A driven Chromium swallows one now and then: Enter again, then."""
    from playwright.sync_api import TimeoutError as NotOpened

    for _ in range(6):
        page.bring_to_front()  # a page behind others opens no chooser
        try:
            with page.expect_file_chooser(timeout=5_000) as chooser:
                page.keyboard.press("Enter")
        except NotOpened:
            continue
        return chooser.value
    raise AssertionError("Enter opened no file chooser")


def test_by_keyboard_alone(opened: Callable[..., Any]) -> None:
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose"
    chooser_by_enter(page).set_files([{"name": "a.png", "mimeType": "image/png", "buffer": picture(color="blue")}])
    assert titles(page, 1) == ["blue"]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "camera"
    page.keyboard.press("Enter")
    until(page, "document.getElementById('video').videoWidth > 0")
    page.keyboard.press("Escape")
    until(page, "document.getElementById('video').srcObject === null")  # the dialog says that it closed a moment later
    assert page.evaluate("document.activeElement.id") == "camera"


def test_the_camera(opened: Callable[..., Any]) -> None:
    page = opened()
    page.click("#camera")
    until(page, "document.getElementById('video').videoWidth > 0")
    page.click("#shoot")
    assert titles(page, 1)[0] in ("green", "red", "blue", "Not sure")
    assert "camera.png" in page.locator(".note").first.text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(opened: Callable[..., Any], scheme: str) -> None:
    page = opened(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    give(page, "drop", ("a-long-name-" * 20 + ".png", picture()), ("b.png", picture(color="#808080")))
    titles(page, 2)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    heights = page.evaluate("[...document.querySelectorAll('main button')].map((each) => each.offsetHeight)")
    assert min(heights) >= 44, "large enough for a finger"


def test_names_and_roles_for_screen_readers(opened: Callable[..., Any]) -> None:
    page = opened()
    give(page, "drop", ("apple.png", picture()))
    titles(page, 1)
    tree = page.locator("body").aria_snapshot()
    for wanted in ('button "Choose pictures"', "switch", "Answer: red", 'heading "red" [level=3]'):
        assert wanted in tree


@pytest.mark.skipif(BROWSER_RUNTIME.exists(), reason="make web has run")
def test_without_the_files_of_make_web_the_page_says_so(opened: Callable[..., Any]) -> None:
    page = opened()
    page.wait_for_selector("#local:disabled")
    assert "make web" in page.locator("#local-note").text_content()


@needs_vendor
def test_in_the_browser_answers_are_the_same_and_need_no_network(opened: Callable[..., Any]) -> None:
    page = opened()
    noise = np.random.default_rng(5).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    noise[..., 2] //= 2
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=95)
    files = [
        ("noise.jpeg", buffer.getvalue()),
        ("grey.png", picture(color="#808080")),
        ("blue.webp", picture("WEBP", color="blue")),
    ]
    give(page, "drop", *files)
    names, expected = titles(page, 3), scores(page, 3)
    switch_on(page)
    page.context.set_offline(True)
    give(page, "drop", *files)
    assert titles(page, 6) == names * 2
    for here, there in zip(scores(page, 3), expected, strict=True):
        assert here.keys() == there.keys()
        assert max(abs(here[label] - there[label]) for label in here) < 1.0, "percent"
    give(page, "drop", ("cut.jpeg", picture("JPEG")[:100]), ("empty.png", b""))
    assert titles(page, 8)[:2] == ["Not a picture I can read"] * 2


@needs_vendor
def test_sixty_megapixels_in_the_browser(opened: Callable[..., Any]) -> None:
    page = opened()
    switch_on(page)
    give(page, "drop", ("large.jpeg", picture("JPEG", (9000, 6700), "blue")))
    assert titles(page, 1) == ["blue"]


def test_a_lost_network_is_said(opened: Callable[..., Any]) -> None:
    page = opened()
    page.context.set_offline(True)
    give(page, "drop", ("apple.png", picture()))
    assert titles(page, 1) == ["No answer"]
    assert "cannot be reached" in page.locator(".note").first.text_content()


def test_the_description_for_programs(opened: Callable[..., Any]) -> None:
    page = opened()
    page.click("footer a")
    page.wait_for_selector("text=POST /classify")
    assert page.locator("h3", has_text="Answer").count() >= 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

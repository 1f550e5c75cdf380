"""The playground as a person uses it: headless Chromium on a real server."""

import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, Page, expect, sync_playwright

from mlserve import ModelHandler, ModelServer, Upload
from mlserve.testing import Echo, EchoHandler, running

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_S = 15.0

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(90),
    pytest.mark.skipif(
        not CHROMIUM.exists(),
        reason=f"{CHROMIUM} is missing (Debian: apt-get install chromium)",
    ),
]

streamed: list[str] = []
released = threading.Event()
streamed_again = threading.Event()


class Speaker(EchoHandler):
    """Notes what it streams; a text that begins with "hold" waits after its first word."""

    def stream(self, item: Echo) -> Iterator[Echo]:
        streamed.append(item.text)
        if streamed.count("careless") > 1:
            streamed_again.set()
        for number, word in enumerate(item.text.split()):
            if number == 1 and item.text.startswith("hold"):
                released.wait(WAIT_S)
            yield Echo(text=word)


class Picture(Echo):
    image: Upload


class Size(ModelHandler[Picture, str]):
    def infer(self, inputs: list[Picture]) -> list[str]:
        return [f"{item.text}: {len(item.image.content)} bytes" for item in inputs]


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ModelServer(title="Speakers").add("speaker", Speaker).add("size", Size)
    app = FastAPI()
    server.add("speaker", Speaker, version="v2").install(app, "/ml")
    with running(app) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Visit:
    """A page that is open, and what it has complained about and asked for."""

    def __init__(self, page: Page, site: str) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.set_default_timeout(WAIT_S * 1000)
        page.on("console", lambda message: self._heard(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        page.goto(f"{site}/ml/playground")

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def choose(self, model: str) -> None:
        self.page.locator(f'[data-key="{model}"]').click()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def write_json(self, text: str) -> None:
        self.press("Edit as JSON")
        self.page.get_by_label("Request body (JSON)").fill(text)


@pytest.fixture
def visit(browser: Browser, site: str) -> Iterator[Visit]:
    page = browser.new_page()
    visit = Visit(page, site)
    yield visit
    page.close()
    assert visit.hosts <= {urlsplit(site).netloc, ""}  # "" is a data: or blob: address


def test_every_version_of_every_model_is_listed_with_its_state(visit: Visit) -> None:
    buttons = visit.page.locator("#models button")

    expect(buttons).to_contain_text(["size", "speaker", "speaker"])
    assert buttons.all_inner_texts() == [
        "size\nready · v1 · predict",
        "speaker\nready · v2 · predict, stream",
        "speaker\nready · v1 · predict, stream",
    ]
    assert visit.complaints == []


def test_predict_shows_the_answer_its_id_and_its_times(visit: Visit) -> None:
    visit.choose("speaker/v1")
    visit.page.get_by_label("text", exact=True).fill("<b>good</b> morning")

    visit.press("Predict")

    expect(visit.page.locator("#status")).to_have_text("200 OK")
    expect(visit.page.get_by_label("Body", exact=True)).to_have_text(
        '{ "text": "<b>good</b> morning" }'
    )
    expect(visit.page.locator("#facts")).to_contain_text("request id")
    expect(visit.page.get_by_label("Server timing")).to_contain_text("infer")
    assert visit.complaints == []


def test_a_stream_is_shown_as_it_arrives_until_it_is_done(visit: Visit) -> None:
    visit.choose("speaker/v2")
    visit.page.get_by_label("text", exact=True).fill("hold on please")
    shown, status = visit.page.get_by_label("Streamed text"), visit.page.locator("#status")

    visit.press("Stream")

    expect(shown).to_have_text("hold")
    expect(status).to_have_text("200 · streaming")
    released.set()
    expect(status).to_have_text("200 · done")
    expect(shown).to_have_text("holdonplease")
    expect(visit.page.locator("#facts")).to_contain_text("3 chunks")
    assert visit.complaints == []


def test_a_stream_can_be_stopped(visit: Visit) -> None:
    released.clear()
    visit.choose("speaker/v1")
    visit.page.get_by_label("text", exact=True).fill("hold for ever")
    visit.press("Stream")
    expect(visit.page.get_by_label("Streamed text")).to_have_text("hold")

    visit.press("Stop")

    expect(visit.page.locator("#status")).to_have_text("200 · streaming · stopped by you")
    expect(visit.page.get_by_label("Streamed text")).to_have_text("hold")
    released.set()
    assert visit.complaints == []


def test_an_error_is_shown_with_its_code_and_message(visit: Visit) -> None:
    visit.choose("speaker/v1")
    visit.write_json("{nope")

    visit.press("Predict")

    expect(visit.page.locator("#status")).to_have_text("400 Bad Request")
    expect(visit.page.locator("#error")).to_contain_text("invalid_json")
    expect(visit.page.locator("#error")).to_contain_text("The body is not valid JSON")
    [complaint] = visit.complaints  # the browser's own, on every status of an error
    assert "status of 400" in complaint


def test_a_file_can_be_sent(visit: Visit) -> None:
    visit.choose("size/v1")
    visit.page.get_by_label("text", exact=True).fill("dot")
    file = {"name": "dot.gif", "mimeType": "image/gif", "buffer": b"GIF89a"}
    visit.page.get_by_label("image").set_input_files(file)  # type: ignore[arg-type]  # a FilePayload

    visit.press("Predict")

    expect(visit.page.get_by_label("Body", exact=True)).to_have_text('"dot: 6 bytes"')
    assert visit.complaints == []


def test_the_curl_line_quotes_what_a_shell_would_read(visit: Visit, site: str) -> None:
    visit.choose("speaker/v1")

    visit.page.get_by_label("text", exact=True).fill("it's $HOME")

    line = visit.page.locator("#snippets pre").first
    quoted = """curl --json '{"text":"it'\\''s $HOME"}'"""
    expect(line).to_have_text(f"{quoted} '{site}/ml/v1/models/speaker/predict'")


def test_the_event_source_that_is_offered_does_not_connect_again(visit: Visit) -> None:
    """An `EventSource` that is not closed does: it is the clock of this test."""
    visit.choose("speaker/v1")
    visit.page.get_by_label("text", exact=True).fill("careful & calm")
    snippet = visit.page.locator("#snippets pre").last.inner_text()
    assert len(snippet.splitlines()) == 4
    careless = "globalThis.other = new EventSource('/ml/v1/models/speaker/stream?text=careless')"

    visit.page.evaluate(f"() => {{ {snippet}\n globalThis.offered = source; {careless}; }}")

    assert streamed_again.wait(WAIT_S)
    assert visit.page.evaluate("() => offered.readyState === EventSource.CLOSED")
    assert streamed.count("careful & calm") == 1
    visit.page.evaluate("() => other.close()")

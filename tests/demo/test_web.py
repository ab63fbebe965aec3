"""The page in Chromium: images go up, answers stream and stop, and nothing but uploads is read or kept."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from browser import NEEDS_CHROMIUM, chromium, free_port
from clips import write_clip
from conftest import GoldenCase
from typer.testing import CliRunner

from transformers_owl import MINIATURE, MplugOwlForConditionalGeneration
from transformers_owl.cli import app
from transformers_owl.demo.desk import NO_IMAGE, PHOTOGRAPH, About, OwlDesk, about, at_endpoint
from transformers_owl.inference import Chat
from transformers_owl.loading import load


pytestmark = NEEDS_CHROMIUM
IMAGES = Path(__file__).parents[2] / "examples/pictures"
CAT, ASTRONAUT = IMAGES / "cat.jpg", IMAGES / "astronaut.jpg"
TOKEN_SECONDS = 0.05
ABOUT = About("a tiny owl")


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(autouse=True)
def pages_are_closed(browser):
    """A page that is left open asks for its server for ever."""
    yield
    for context in browser.contexts:
        context.close()


@pytest.fixture(scope="module")
def model(llama):
    """Writes without end, some 20 tokens a second; `model.calls` counts them."""
    model = MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint)
    model.generation_config.suppress_tokens = [*model.generation_config.suppress_tokens, 2]
    model.calls = 0

    def slow_down(*_):
        model.calls += 1
        time.sleep(TOKEN_SECONDS)

    model.register_forward_pre_hook(slow_down)
    return model


@contextlib.contextmanager
def served(desk):
    pytest.importorskip("gradio")
    from transformers_owl.demo.web import serving

    port = free_port()
    with serving(desk, "127.0.0.1", port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def site(model, llama_processor):
    """One page at a time: gradio's folder is a setting of the process."""
    with served(OwlDesk(model, llama_processor, ABOUT)) as address:
        yield address


@pytest.fixture(scope="module")
def miniature_desk():
    return OwlDesk(*load(MINIATURE), about(MINIATURE))


@pytest.fixture
def miniature(miniature_desk):
    with served(miniature_desk) as address:
        yield address


def enter(browser, site, **settings):
    view = browser.new_context(**settings).new_page()
    view.goto(site)
    view.get_by_role("button", name="Send").wait_for()
    view.wait_for_timeout(300)  # until what was kept over a reload is there
    return view


def box(view):
    return view.locator("#box textarea")


def attach(view, *images):
    view.locator("#box input[type=file]").first.set_input_files(images)
    view.locator("#box .thumbnail-item").nth(len(images) - 1).wait_for()
    view.wait_for_timeout(300)


def ask(view, question, *images):
    if images:
        attach(view, *images)
    box(view).fill(question)
    box(view).press("Enter")


def set_length(view, tokens):
    from playwright.sync_api import expect

    view.get_by_text("Settings").click()
    field = view.get_by_label("number input for Longest answer")
    view.wait_for_timeout(300)  # gradio sets a field once more after it is shown
    field.fill(str(tokens))
    field.press("Tab")
    expect(view.get_by_label("range slider for Longest answer")).to_have_value(str(tokens))
    view.get_by_text("Settings").click()


def answers(view):
    return [turn.get_attribute("data-text") for turn in view.locator(".owl[data-text]").all()]


def wait_for_answers(view, count):
    """Until that many are there and the page is ready for the next question."""
    view.locator(".owl[data-text]").nth(count - 1).wait_for()
    view.get_by_role("button", name="Send").wait_for()
    return answers(view)


def expected(model, processor, turns, length):
    """What `generate` answers to the last of some turns: `(question, images, answer)`."""
    messages = []
    for question, images, answer in turns:
        content = [*({"type": "image", "path": str(path)} for path in images), {"type": "text", "text": question}]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    inputs = processor.apply_chat_template(
        messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    written = model.generate(**inputs, max_new_tokens=length)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(written, skip_special_tokens=True)


def test_images_go_up_and_answers_stream_over_two_turns(browser, site, model, llama_processor):
    view = enter(browser, site)
    set_length(view, 48)
    ask(view, "What are these?", CAT, ASTRONAUT)
    lengths = set()
    while view.locator(".owl[data-text]").count() == 0:
        lengths.update(len(text) for text in view.locator(".owl").all_inner_texts())
    assert len(lengths) > 3
    turns = [("What are these?", [CAT, ASTRONAUT], "")]
    written = expected(model, llama_processor, turns, 48)
    assert wait_for_answers(view, 1) == [written]
    ask(view, "Sure?")
    turns = [("What are these?", [CAT, ASTRONAUT], written), ("Sure?", [], "")]
    assert wait_for_answers(view, 2) == [written, expected(model, llama_processor, turns, 48)]


def test_a_question_waits_for_its_upload(browser, site):
    view = enter(browser, site)
    set_length(view, 16)
    network = view.context.new_cdp_session(view)
    network.send("Network.enable")
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": CAT.stat().st_size / 2}
    network.send("Network.emulateNetworkConditions", slow)
    view.locator("#box input[type=file]").first.set_input_files(CAT)
    box(view).fill("What is it?")
    box(view).press("Enter")
    wait_for_answers(view, 1)
    assert view.locator(".turn.user img").count() == 1


def test_stop_ends_the_generation_and_the_chat_goes_on(browser, site, model):
    view = enter(browser, site)
    ask(view, "Tell me everything.", CAT)
    view.locator(".owl").wait_for()
    box(view).fill("A draft")
    box(view).press("Enter")  # waits
    view.get_by_role("button", name="Stop").click()
    (stopped,) = wait_for_answers(view, 1)
    assert box(view).input_value() == "A draft"
    view.wait_for_timeout(20 * TOKEN_SECONDS * 1000)
    calls = model.calls
    view.wait_for_timeout(20 * TOKEN_SECONDS * 1000)
    assert model.calls == calls
    assert 0 < len(stopped) < 2000
    view.get_by_text("Stopped.").wait_for()
    set_length(view, 16)
    ask(view, "And now?")
    assert wait_for_answers(view, 2)[0] == stopped


def test_stopped_before_the_first_word_a_question_is_back_in_the_box(browser, site):
    first, second = enter(browser, site), enter(browser, site)
    ask(first, "Tell me everything.")
    first.locator(".owl").wait_for()
    ask(second, "And me?", CAT)
    second.get_by_text(re.compile("queue: 1/1")).wait_for()
    second.get_by_role("button", name="Stop").click()
    second.locator(".turn").first.wait_for(state="detached")
    assert box(second).input_value() == "And me?"
    assert second.locator("#box .thumbnail-item").count() == 1
    first.get_by_role("button", name="Stop").click()
    wait_for_answers(first, 1)


def test_leaving_the_page_ends_the_generation(browser, site, model):
    view = enter(browser, site)
    ask(view, "Tell me everything.")
    view.locator(".owl").wait_for()
    view.close()
    time.sleep(5)
    calls = model.calls
    time.sleep(1)
    assert model.calls == calls


def test_retry_undo_clear_and_examples(browser, site):
    view = enter(browser, site)
    set_length(view, 16)
    view.get_by_role("button", name="What number is written?").click()
    first = wait_for_answers(view, 1)
    assert view.locator(".user img").evaluate("image => image.naturalWidth") > 0
    view.get_by_role("button", name="Retry").click()
    view.get_by_role("button", name="Stop").wait_for()
    assert wait_for_answers(view, 1) == first
    view.get_by_role("button", name="Undo").click()
    view.locator(".user").wait_for(state="detached")
    assert box(view).input_value() == "What number is written?"
    assert view.locator("#box .thumbnail-item").count() == 1
    box(view).press("Enter")
    assert wait_for_answers(view, 1) == first
    for accepts, left in ((False, 1), (True, 0)):
        view.once("dialog", lambda dialog, accepts=accepts: dialog.accept() if accepts else dialog.dismiss())
        view.get_by_role("button", name="Clear").click()
        view.wait_for_timeout(1000)
        assert len(answers(view)) == left


def test_the_miniature_answers_its_examples(browser, miniature):
    view = enter(browser, miniature)
    assert "drawings of a hundred things" in view.inner_text(".title")
    asked = view.get_by_role("group", name="Examples").get_by_role("button")
    count = asked.count()
    assert count >= 6
    view.on("dialog", lambda dialog: dialog.accept())
    said = []
    for number in range(count):
        asked.nth(number).click()
        view.get_by_role("button", name="Stop").wait_for()
        said += wait_for_answers(view, 1)
        assert len(said) == number + 1
        if number == 5:
            assert box(view).input_value() == "What kind of thing is it?"
            box(view).press("Enter")
            assert wait_for_answers(view, 2)[1] == "animal"
    assert said[:6] == ["castle", "two", "47", "Sonnenblume", "the second", "octopus"]
    assert "elephant" in said[6]
    assert view.get_by_text(NO_IMAGE).count() == 0
    view.get_by_role("button", name="Clear").click()
    view.locator(".turn").first.wait_for(state="detached")
    ask(view, "What is this?", CAT)
    view.get_by_text(PHOTOGRAPH).wait_for()


def test_sampling_and_beams(browser, site):
    view = enter(browser, site)
    set_length(view, 16)
    view.get_by_text("Settings").click()
    view.get_by_label("number input for Beams").fill("3")
    ask(view, "What is it?", CAT)
    (beams,) = wait_for_answers(view, 1)
    assert beams
    view.get_by_label("number input for Beams").fill("1")
    view.get_by_label("number input for Temperature").fill("2")
    ask(view, "What is it?")
    second = wait_for_answers(view, 2)[1]
    view.get_by_role("button", name="Retry").click()
    view.get_by_role("button", name="Stop").wait_for()
    assert wait_for_answers(view, 2)[1] != second


@pytest.mark.parametrize("size", [(1280, 800), (390, 844), (844, 390)])
def test_maps_are_whole_on_the_screen_by_the_word_that_is_clicked(browser, miniature, size):
    view = enter(browser, miniature, viewport=dict(zip(("width", "height"), size, strict=True)))
    view.get_by_role("button", name="What is on the left?").click()
    wait_for_answers(view, 1)
    view.locator(".owl .word").first.click()
    dialog = view.locator("dialog[open]")
    dialog.get_by_text("Where it looked when it wrote “castle”").wait_for()
    view.wait_for_function("[...document.querySelectorAll('dialog img')].every((map) => map.naturalWidth)")
    for part in ("img", "figcaption", ".legend"):
        place = dialog.locator(part).bounding_box()
        assert place["x"] >= 0
        assert place["y"] >= 0
        assert place["x"] + place["width"] <= size[0]
        assert place["y"] + place["height"] <= size[1]
    assert "castle" in view.evaluate("document.activeElement.textContent")
    view.keyboard.press("Escape")
    view.get_by_role("button", name="Where it looked").click()
    view.locator("dialog[open]").get_by_text("while it wrote the answer").wait_for()
    view.get_by_role("button", name="Close").click()


def test_a_clip_has_controls_and_a_map_for_each_frame(browser, miniature):
    view = enter(browser, miniature)
    view.get_by_role("button", name="Describe the clip.").click()
    assert "elephant" in wait_for_answers(view, 1)[0]
    clip = view.locator(".user video")
    assert clip.get_attribute("controls") is not None
    assert clip.bounding_box()["width"] >= 280
    view.get_by_role("button", name="Where it looked").click()
    view.locator("dialog[open] figure").nth(5).wait_for()
    assert view.locator("dialog figure").count() == 6


class Saying(OwlDesk):
    """Says what it is asked, piece by piece."""

    def stream(self, turns, options):
        text = turns[-1]["text"]
        for end in range(9, len(text) + 9, 9):
            time.sleep(0.05)
            yield text[:end]


def test_a_question_is_answered_that_is_sent_while_the_page_loads(browser, model, llama_processor, monkeypatch):
    from transformers_owl.demo.web import Page

    resume = Page.resume

    def late(*arguments):
        time.sleep(1.5)
        return resume(*arguments)

    monkeypatch.setattr(Page, "resume", late)
    with served(Saying(model, llama_processor, ABOUT)) as address:
        view = browser.new_context().new_page()
        view.goto(address)
        view.get_by_role("button", name="Send").wait_for()
        ask(view, "Anybody there?")
        assert wait_for_answers(view, 1) == ["Anybody there?"]
        box(view).fill("And now?")
        view.wait_for_timeout(2000)
        assert answers(view) == ["Anybody there?"]
        assert box(view).input_value() == "And now?"


def test_html_is_shown_as_it_was_written_and_nothing_is_fetched(browser, model, llama_processor):
    said = "<b>x</b> <image> **bold** <img src=http://a.example/1.png> ![i](http://a.example/2.png)\n\n- one\n\n`<i>`"
    with served(Saying(model, llama_processor, ABOUT)) as address:
        view = browser.new_context().new_page()
        asked, console = [], []
        view.on("request", lambda request: asked.append(request.url))
        view.on("console", lambda message: console.append(message.text))
        view.goto(address)
        view.get_by_role("button", name="Send").wait_for()
        ask(view, said)
        assert wait_for_answers(view, 1) == [said]
        assert "".join(view.locator(".said").inner_text().split()) == "".join(said.split())
        shown = view.locator(".owl .markdown")
        for part in ("<b>x</b> <image> ", "<img src=http://a.example/1.png>", "<i>"):
            assert part in shown.inner_text()
        assert shown.locator("strong").inner_text() == "bold"
        assert shown.locator("li").inner_text() == "one"
        view.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=http://a.example/3.png>')")
        view.wait_for_timeout(500)
    outside = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert outside in ([], ["http://a.example/3.png"])  # the latter is blocked before it leaves
    assert any("Content Security Policy" in text for text in console)


def test_the_page_is_there_within_3_seconds(browser, miniature):
    """The fastest of three visits by a new browser, since other work may run beside."""
    asked, seconds = [], []
    for _ in range(3):
        view = browser.new_context().new_page()
        view.on("request", lambda request: asked.append(request.url))
        start = time.monotonic()
        view.goto(miniature)
        box(view).wait_for()
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 3
    assert [url for url in asked if not url.startswith((miniature, "data:", "blob:"))] == []


def test_a_reload_keeps_the_conversation(browser, site):
    view = enter(browser, site)
    set_length(view, 16)
    ask(view, "What is it?", CAT)
    before = wait_for_answers(view, 1)
    view.reload()
    assert wait_for_answers(view, 1) == before
    ask(view, "Tell me everything.")
    view.locator(".owl").nth(1).wait_for()
    view.wait_for_timeout(300)
    view.reload()  # in the middle of an answer
    after = wait_for_answers(view, 2)
    assert (after[0], bool(after[1])) == (before[0], True)
    another = enter(browser, site)
    assert answers(another) == []


def test_a_file_dropped_anywhere_is_attached(browser, site):
    view = enter(browser, site)
    view.evaluate(
        """(bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], 'dropped.jpg', { type: 'image/jpeg' }));
            for (const kind of ['dragover', 'drop'])
              document.querySelector('.title').dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",  # noqa: E501
        list(CAT.read_bytes()),
    )
    view.locator("#box .thumbnail-item img").wait_for()
    view.wait_for_timeout(300)
    ask(view, "What is it?")
    view.locator(".user img[alt='dropped.jpg']").wait_for()
    view.get_by_role("button", name="Stop").click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_keeps_anybody_out(browser, miniature, tmp_path, scheme):
    """By axe-core, in every state of the page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    view = enter(browser, miniature, color_scheme=scheme)

    def check(state):
        found = axe.run(view).response["violations"]
        serious = [
            (rule["id"], [node["html"] for node in rule["nodes"]])
            for rule in found
            if rule["impact"] in ("serious", "critical")
        ]
        assert serious == [], state

    check("empty")
    attach(view, CAT)
    check("attached")
    ask(view, "What is it?")
    wait_for_answers(view, 1)
    check("answered")
    view.get_by_role("button", name="Where it looked").click()
    view.locator("dialog[open] img").wait_for()
    check("maps")
    view.keyboard.press("Escape")
    ask(view, " ")
    view.locator(".error").wait_for()
    view.get_by_text("Settings").click()
    view.wait_for_timeout(600)  # until it has opened
    check("error and settings")
    box(view).focus()
    assert view.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_who_waits_sees_the_place_in_the_queue(browser, site):
    views = [enter(browser, site) for _ in range(3)]
    for view in views:
        ask(view, "Tell me everything.")
        view.locator(".turn").first.wait_for()
        view.wait_for_timeout(700)
    for view, place in zip(views[1:], ("1", "2"), strict=True):
        view.get_by_text(re.compile(rf"queue: {place}/")).wait_for()
    for number, view in enumerate(views):
        view.locator(".owl").wait_for()
        view.get_by_role("button", name="Stop").click()
        assert len(wait_for_answers(view, 1)) == 1, number


def test_an_endpoint_answers_side_by_side(browser, tmp_path):
    """That of `transformers-owl serve`; a model with the endpoint's name is found by itself."""
    port, address = free_port(), ""
    command = [sys.executable, "-m", "transformers_owl", "serve", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(240):
                with contextlib.suppress(ConnectionError):
                    desk = at_endpoint(f"http://127.0.0.1:{port}/v1", None)
                    break
                time.sleep(0.5)
            with pytest.raises(ValueError, match="has no model 'other': give --model, one of"):
                at_endpoint(f"http://127.0.0.1:{port}/v1", "other")
            with served(desk) as address:
                views = [enter(browser, address) for _ in range(2)]
                for view in views:
                    view.get_by_role("button", name="What number is written?").click()
                for view in views:
                    assert wait_for_answers(view, 1) == ["47"]
                    assert view.get_by_text("queue:").count() == 0
                    assert view.get_by_role("button", name="Where it looked").count() == 0
        finally:
            process.terminate()


def test_the_page_names_the_model_and_not_its_place(browser):
    port = free_port()
    command = [sys.executable, "-c", "from transformers_owl.cli import app; app()", "web", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            view = browser.new_page()
            for _ in range(120):
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                time.sleep(0.5)
            view.goto(f"http://127.0.0.1:{port}")
            view.get_by_text("It can be confidently wrong").wait_for()
            assert "miniature" in view.inner_text(".title")
            assert MINIATURE not in view.content()
        finally:
            process.terminate()


def test_failures_stand_in_the_conversation_with_a_retry(browser, site, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(CAT.read_bytes()[:300])
    view = enter(browser, site)
    set_length(view, 16)
    ask(view, "What is it?", bad, ASTRONAUT)
    view.locator(".error").get_by_text("bad.png' cannot be read").wait_for()
    view.get_by_role("button", name="Send").wait_for()
    assert view.locator(".turn").count() == 1
    assert box(view).input_value() == "What is it?"
    assert view.locator("#box .thumbnail-item").count() == 2
    assert str(Path(os.environ["GRADIO_TEMP_DIR"])) not in view.inner_text("body")
    view.get_by_role("button", name="Retry").click()
    view.wait_for_timeout(1500)
    assert view.locator(".error").count() == 1
    view.locator("#box .delete-button").first.click()
    view.get_by_role("button", name="Retry").click()
    wait_for_answers(view, 1)
    assert view.locator(".error").count() == 0
    assert view.locator(".user img").get_attribute("alt") == "astronaut.jpg"
    ask(view, " ", CAT)
    view.get_by_text("The question is empty").wait_for()
    assert view.locator("#box .thumbnail-item").count() == 1


def test_too_many_images_are_refused_and_the_chat_goes_on(browser, site):
    view = enter(browser, site)
    set_length(view, 16)
    ask(view, "What are these?", *[CAT] * 17)
    view.get_by_text("takes up to 16 images, not 17").wait_for()


def test_a_port_in_use_is_told_before_the_model_is_loaded():
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["web", "--model", "no-such-model", "--port", str(port)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: Cannot serve at 127.0.0.1:{port}")
    assert "choose another --port" in result.stderr


@pytest.mark.parametrize("settings", [{"color_scheme": "dark"}, {"viewport": {"width": 390, "height": 844}}])
def test_nothing_sticks_out_in_the_dark_or_on_a_phone(browser, site, settings):
    view = enter(browser, site, **settings)
    set_length(view, 16)
    ask(view, "W" * 200, CAT)
    wait_for_answers(view, 1)
    assert view.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    left, right, width = view.evaluate(
        "(({ left, right }) => [left, right, innerWidth])(document.querySelector('main').getBoundingClientRect())"
    )
    assert abs(left - (width - right)) < 20
    if "color_scheme" in settings:
        ground, ink = (
            view.evaluate(f"getComputedStyle(document.querySelector('{part}')).{what}")
            for part, what in (("body", "backgroundColor"), (".title", "color"))
        )
        assert sum(map(int, ground[4:-1].split(", "))) < 120 < 600 < sum(map(int, ink[4:-1].split(", ")))


def status(url, data=None):
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


@pytest.fixture
def bait(tmp_path):
    """A server that must not be asked: its address, and what it was asked."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CAT.read_bytes())

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/cat.jpg", asked
    server.shutdown()


def test_no_path_of_the_server_is_readable(site, tmp_path):
    (tmp_path / "secret.txt").write_text("never told")
    for path in (
        "/etc/passwd",
        str(tmp_path / "secret.txt"),
        str(Path(__file__)),
        "pyproject.toml",
        "../../etc/passwd",
    ):
        code, text = status(f"{site}/gradio_api/file={path}")
        assert code in (403, 404), (path, text[:80])
        assert "root:" not in text
        assert "never told" not in text


def submit(site, index, payload):
    """Calls an event of the page as a stranger would, and what came of it."""
    body = {"data": payload, "fn_index": index, "session_hash": "stranger", "trigger_id": None, "event_data": None}
    code, text = status(f"{site}/gradio_api/queue/join", json.dumps(body).encode())
    if code != 200:
        return text
    with urllib.request.urlopen(f"{site}/gradio_api/queue/data?session_hash=stranger", timeout=20) as stream:
        for line in stream:
            if b"process_completed" in line:
                return line.decode()
    return ""


def test_no_address_is_fetched_for_a_request(site, bait, monkeypatch):
    """Even where gradio's own guard against internal addresses would let one through."""
    import gradio.processing_utils

    url, asked = bait
    monkeypatch.setattr(gradio.processing_utils, "PUBLIC_HOSTNAME_WHITELIST", ["127.0.0.1"])
    for path in (f"file={url}", f"file%3D{url}", f"proxy={url}", f"file={url.replace('//', '/')}"):
        code, _ = status(f"{site}/gradio_api/{path}")
        assert code in (403, 404), path
    config = json.loads(status(f"{site}/config")[1])
    parts = {part["id"]: part["type"] for part in config["components"]}
    evil = {"path": url, "meta": {"_type": "gradio.FileData"}, "orig_name": "cat.jpg"}
    local = {**evil, "path": "/etc/passwd"}
    tried = 0
    for index, event in enumerate(config["dependencies"]):
        types = [parts[number] for number in event["inputs"]]
        if "multimodaltextbox" in types or "textbox" in types:
            for file in (evil, local):
                values = [{"text": "What?", "files": [file]} if kind == "multimodaltextbox" else file for kind in types]
                said = submit(site, event.get("id", index), values)
                assert "Only uploaded files" in said or '"success":false' in said, said[:300]
                tried += 1
    assert tried >= 4
    assert asked == []


def test_uploads_are_limited_and_go_with_the_page(model, llama_processor):
    def upload(content):
        head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        request = urllib.request.Request(
            f"{address}/gradio_api/upload",
            head + content + b"\r\n--edge--\r\n",
            {"Content-Type": "multipart/form-data; boundary=edge"},
        )
        return urllib.request.urlopen(request)

    with served(OwlDesk(model, llama_processor, ABOUT)) as address:
        (path,) = json.loads(upload(CAT.read_bytes()).read())
        assert Path(path).read_bytes() == CAT.read_bytes()
        with pytest.raises(urllib.error.HTTPError) as refused:
            upload(bytes(21 * 10**6))
        assert refused.value.code == 413
    assert not Path(path).exists()


def test_a_video_goes_up_and_is_answered_about_over_two_turns(browser, llama_processor, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", "libx264")
    owl = MplugOwlForConditionalGeneration.from_pretrained(GoldenCase("video-llama").checkpoint)
    chat = Chat(owl, llama_processor)
    content = [{"type": "video", "path": clip}, {"type": "text", "text": "What happens?"}]
    first = chat.ask("What happens?", [clip], max_new_tokens=16)
    history = [{"role": "user", "content": content}, {"role": "assistant", "content": first}]
    second = Chat(owl, llama_processor, history=history).ask("So?", max_new_tokens=16)
    with served(OwlDesk(owl, llama_processor, ABOUT)) as address:
        view = enter(browser, address)
        set_length(view, 16)
        ask(view, "What happens?", clip)
        assert wait_for_answers(view, 1) == [first]
        ask(view, "So?")
        assert wait_for_answers(view, 2) == [first, second]

"""The page in Chromium: pictures go up, answers stream and stop, and nothing but uploads is read or kept."""

import contextlib
import json
import os
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
from transformers_owl.inference import Chat


pytestmark = NEEDS_CHROMIUM
PICTURES = Path(__file__).parents[2] / "examples/pictures"
CAT, ASTRONAUT = PICTURES / "cat.jpg", PICTURES / "astronaut.jpg"
TOKEN_SECONDS = 0.05


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


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


@pytest.fixture(scope="module")
def site(model, llama_processor):
    pytest.importorskip("gradio")
    from transformers_owl.demo.web import serving

    port = free_port()
    with serving(model, llama_processor, "a tiny owl", "127.0.0.1", port):
        yield f"http://127.0.0.1:{port}"


def enter(browser, site, **settings):
    view = browser.new_context(**settings).new_page()
    view.goto(site)
    view.get_by_text("a tiny owl").wait_for()
    return view


def ask(view, question, *pictures, press="Enter"):
    thumbnails = view.locator(".thumbnails img, .thumbnail-item img")
    for _ in range(5):  # after a failure the page empties its box late, with what is in it then
        if thumbnails.count() < len(pictures):
            view.locator("input[type=file]").first.set_input_files(pictures)
            view.wait_for_timeout(3000)
    box = view.get_by_label("Multimedia input field").locator("textarea")
    box.fill(question)
    box.press(press)


def set_length(view, tokens):
    view.get_by_text("Settings").click()
    box = view.get_by_label("number input for Longest answer")
    box.fill(str(tokens))
    box.press("Tab")
    view.wait_for_timeout(500)  # until the page has taken it
    view.get_by_text("Settings").click()


def answers(view):
    return [text.strip() for text in view.locator(".message.bot [data-testid=bot]").all_inner_texts()]


def wait_for_answers(view, count):
    """Until that many are there and the page is ready for the next question."""
    view.locator(".message.bot [data-testid=bot]").nth(count - 1).wait_for()
    view.locator(".submit-button").wait_for()
    return answers(view)


def expected(model, processor, turns, length):
    """What `generate` answers to the last of some turns: `(question, pictures, answer)`."""
    messages = []
    for question, pictures, answer in turns:
        content = [*({"type": "image", "path": str(path)} for path in pictures), {"type": "text", "text": question}]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    inputs = processor.apply_chat_template(
        messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    written = model.generate(**inputs, max_new_tokens=length)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(written, skip_special_tokens=True)


def same(shown, text):
    return " ".join(shown.split()) == " ".join(text.split())


def test_pictures_go_up_and_answers_stream_over_two_turns(browser, site, model, llama_processor):
    view = enter(browser, site)
    set_length(view, 48)
    ask(view, "What are these?", CAT, ASTRONAUT)
    view.locator(".message.bot [data-testid=bot]").wait_for()
    lengths = set()
    while view.locator(".submit-button").count() == 0:
        lengths.update(len(text) for text in answers(view))
    assert len(lengths) > 3
    (first,) = wait_for_answers(view, 1)
    turns = [("What are these?", [CAT, ASTRONAUT], "")]
    written = expected(model, llama_processor, turns, 48)
    assert same(first, written)
    ask(view, "Sure?")
    second = wait_for_answers(view, 2)[1]
    turns = [("What are these?", [CAT, ASTRONAUT], written), ("Sure?", [], "")]
    assert same(second, expected(model, llama_processor, turns, 48))


def test_stop_ends_the_generation_and_the_chat_goes_on(browser, site, model):
    view = enter(browser, site)
    ask(view, "Tell me everything.", CAT)
    view.locator(".message.bot [data-testid=bot]").wait_for()
    view.locator(".stop-button").click()
    view.locator(".submit-button").wait_for()
    view.wait_for_timeout(20 * TOKEN_SECONDS * 1000)
    calls = model.calls
    view.wait_for_timeout(20 * TOKEN_SECONDS * 1000)
    assert model.calls == calls
    (stopped,) = answers(view)
    assert len(stopped) < 2000
    set_length(view, 16)
    ask(view, "And now?")
    assert wait_for_answers(view, 2)[0] == stopped


def test_leaving_the_page_ends_the_generation(browser, site, model):
    view = enter(browser, site)
    ask(view, "Tell me everything.")
    view.locator(".message.bot [data-testid=bot]").wait_for()
    view.close()
    time.sleep(5)
    calls = model.calls
    time.sleep(1)
    assert model.calls == calls


def test_retry_undo_clear_and_examples(browser, site):
    view = enter(browser, site)
    set_length(view, 16)
    view.get_by_text("What number is written?").click()
    (first,) = wait_for_answers(view, 1)
    assert view.locator(".message.user img").count() == 1
    view.locator("button[aria-label=Retry]").click()
    view.locator(".stop-button").wait_for()
    assert wait_for_answers(view, 1) == [first]
    view.locator("button[aria-label=Undo]").click()
    view.locator(".message.user").first.wait_for(state="detached")
    box = view.get_by_label("Multimedia input field")
    assert box.locator("textarea").input_value() == "What number is written?"
    assert box.locator("img").count() == 1


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
    ask_again = wait_for_answers(view, 2)[1]
    view.locator("button[aria-label=Retry]").last.click()
    view.locator(".stop-button").wait_for()
    assert wait_for_answers(view, 2)[1] != ask_again


def test_where_it_looked(browser, site):
    view = enter(browser, site)
    set_length(view, 16)
    view.get_by_text("Where it looked").click()
    view.get_by_role("button", name="Show", exact=True).click()
    view.get_by_text("There is no answer yet").wait_for()
    ask(view, "What are these?", CAT, ASTRONAUT)
    wait_for_answers(view, 1)
    view.get_by_role("button", name="Show", exact=True).click()
    view.get_by_text("% of the attention").nth(1).wait_for()
    view.wait_for_function("[...document.querySelectorAll('.grid-wrap img')].every((map) => map.naturalWidth)")
    sizes = view.evaluate(
        "[...document.querySelectorAll('.grid-wrap img')].map((i) => [i.naturalWidth, i.naturalHeight])"
    )
    assert sizes == [[451, 300], [512, 512]]
    view.get_by_label("A word of the last answer").fill("xylophone")
    view.get_by_role("button", name="Show", exact=True).click()
    view.get_by_text("The answer has no 'xylophone'").wait_for()
    ask(view, "And now?")
    view.get_by_text("% of the attention").first.wait_for(state="detached")


def test_two_people_are_answered_one_after_the_other(browser, site):
    views = [enter(browser, site) for _ in range(2)]
    for view in views:
        set_length(view, 32)
    for view in views:
        ask(view, "Who is first?")
    assert all(wait_for_answers(view, 1)[0] for view in views)


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
            view.get_by_text("It can be wrong with confidence").wait_for()
            assert "miniature" in view.inner_text(".title")
            assert MINIATURE not in view.content()
        finally:
            process.terminate()


def test_failures_are_told_and_do_not_stay(browser, site, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(CAT.read_bytes()[:300])
    view = enter(browser, site)
    set_length(view, 16)
    ask(view, "What is it?", bad)
    view.get_by_text("bad.png cannot be read as a picture").wait_for()
    view.locator(".submit-button").wait_for()
    ask(view, "Then what is this?", CAT)
    assert wait_for_answers(view, 1)[0]
    assert str(Path(os.environ["GRADIO_TEMP_DIR"])) not in view.inner_text("body")
    ask(view, " ", CAT)
    view.get_by_text("There is no question").wait_for()


def test_too_many_pictures_are_refused_and_the_chat_goes_on(browser, site):
    view = enter(browser, site)
    set_length(view, 16)
    ask(view, "What are these?", *[CAT] * 17)
    view.get_by_text("The conversation has 17 images, 16 at most").wait_for()


def test_a_port_in_use_is_told_before_the_model_is_loaded():
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["web", "--model", "no-such-model", "--port", str(port)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: 127.0.0.1:{port} cannot be served at")
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
                assert "Only uploaded images" in said or '"success":false' in said, said[:300]
                tried += 1
    assert tried >= 4
    assert asked == []


def test_uploads_are_limited_and_go_with_the_page(model, llama_processor):
    from transformers_owl.demo.web import serving

    port = free_port()
    site = f"http://127.0.0.1:{port}"

    def upload(content):
        head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        request = urllib.request.Request(
            f"{site}/gradio_api/upload",
            head + content + b"\r\n--edge--\r\n",
            {"Content-Type": "multipart/form-data; boundary=edge"},
        )
        return urllib.request.urlopen(request)

    with serving(model, llama_processor, "another", "127.0.0.1", port):
        (path,) = json.loads(upload(CAT.read_bytes()).read())
        assert Path(path).read_bytes() == CAT.read_bytes()
        with pytest.raises(urllib.error.HTTPError) as refused:
            upload(bytes(21 * 10**6))
        assert refused.value.code == 413
    assert not Path(path).exists()


def test_a_video_goes_up_and_is_answered_about_over_two_turns(browser, llama_processor, tmp_path):
    from transformers_owl.demo.web import serving

    clip = write_clip(tmp_path / "clip.mp4", "libx264")
    owl = MplugOwlForConditionalGeneration.from_pretrained(GoldenCase("video-llama").checkpoint)
    chat = Chat(owl, llama_processor)
    content = [{"type": "video", "path": clip}, {"type": "text", "text": "What happens?"}]
    first = chat.ask("What happens?", [clip], max_new_tokens=16)
    history = [{"role": "user", "content": content}, {"role": "assistant", "content": first}]
    second = Chat(owl, llama_processor, history=history).ask("So?", max_new_tokens=16)
    port = free_port()
    with serving(owl, llama_processor, "a tiny owl", "127.0.0.1", port):
        view = enter(browser, f"http://127.0.0.1:{port}")
        set_length(view, 16)
        view.locator("input[type=file]").first.set_input_files([clip])
        view.locator(".thumbnails .thumbnail-item, .thumbnails video").first.wait_for()
        ask(view, "What happens?")
        assert same(wait_for_answers(view, 1)[0], first)
        ask(view, "So?")
        assert same(wait_for_answers(view, 2)[1], second)

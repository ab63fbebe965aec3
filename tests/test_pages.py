"""The gate before a page: what a browser asks for passes, other requests do not, and no address is fetched for one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import free_port


gr = pytest.importorskip("gradio")
pages = pytest.importorskip("transformers_owl.pages")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A folder of which a page may show `a.txt` alone, and one beside it of which it may show nothing."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("shown", "hidden"):
        (folder / name).mkdir()
        (folder / name / "a.txt").write_text(f"this is {name}")
        (folder / name / "other.txt").write_text("not for others")
    (folder / "shown/link").symlink_to(folder)
    return folder / "shown"


def build(path=None):
    with gr.Blocks(analytics_enabled=False) as page:
        file, said = gr.File(), gr.Textbox()
        gr.File(None if path is None else str(path))
        gr.Button().click(lambda path: Path(path).read_text(), file, said, api_visibility="private")
    return page


@pytest.fixture(scope="module")
def site(shown):
    port = free_port()
    with pages.serving(lambda: build(shown / "a.txt"), "127.0.0.1", port, files=[shown / "a.txt"], takes_uploads=True):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def bait():
    """A server that must not be asked: its address, and what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a.txt", asked
    server.shutdown()


@pytest.fixture(autouse=True)
def no_guard(monkeypatch):
    """Gradio's own guard against internal addresses would let the bait through."""
    monkeypatch.setattr("gradio.processing_utils.PUBLIC_HOSTNAME_WHITELIST", ["127.0.0.1"])


def ask(url, body=None, kind="application/json", method=None):
    request = urllib.request.Request(url, body, {"Content-Type": kind}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def upload(site, content=b"uploaded"):
    head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="b.txt"\r\n\r\n'
    return ask(f"{site}/gradio_api/upload", head + content + b"\r\n--edge--\r\n", "multipart/form-data; boundary=edge")


def call(site, body):
    """What came of an event, and how."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, text = ask(f"{site}/gradio_api/queue/join", body)
    if status != 200:
        return status, text
    with urllib.request.urlopen(f"{site}/gradio_api/queue/data?session_hash=me", timeout=20) as stream:
        (line,) = [line for line in stream if b"process_completed" in line]
    return status, line.decode()


def event(file, **extra):
    return {"data": [file], "fn_index": 0, "session_hash": "me", **extra}


def file_data(path, **extra):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}, **extra}


def test_an_uploaded_file_is_read_and_the_address_beside_it_is_not(site, bait):
    status, text = upload(site)
    assert status == 200
    (path,) = json.loads(text)
    status, said = call(site, event(file_data(path, url=bait[0])))
    assert (status, '"uploaded"' in said) == (200, True)
    assert ask(f"{site}/gradio_api/file={path}") == (200, "uploaded")
    assert bait[1] == []


WRONG_FILES = [
    "{url}", "http:/{rest}", "HTTP://{rest}", " {url}", "//{rest}", "file://{hidden}", "{hidden}",
    "{shown}/../hidden/a.txt", "{shown}evil", "a.txt", "", "{shown}/\0/a.txt", "/etc/passwd", "../../../../etc/passwd",
    "{shown}/a.txt", "{shown}/other.txt", "{shown}/link/hidden/a.txt", "{shown}",
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_other_files_and_addresses_are_refused(site, bait, shown, wrong):
    url, asked = bait
    names = {"url": url, "rest": url.removeprefix("http://"), "shown": shown}
    wrong = wrong.format(**names, hidden=shown.with_name("hidden") / "a.txt")
    good = file_data(json.loads(upload(site)[1])[0])
    deep = {"value": {"files": [good, [{"file": file_data(wrong)}]]}}
    for body in (
        event(file_data(wrong)),
        event(None, event_data=deep),
        event(good, trigger=file_data(wrong, url=None)),
    ):
        for way in ("queue/join", "run/predict"):
            status, text = ask(f"{site}/gradio_api/{way}", json.dumps(body).encode())
            assert (status, "Only uploaded files" in text) == (403, True)
    for written in (wrong, urllib.parse.quote(wrong, safe="")):
        status, text = ask(f"{site}/gradio_api/file={urllib.parse.quote(written)}")
        assert status == 403
    assert asked == []


def test_what_is_shown_can_be_read(site):
    """A copy, whose folder goes with the page."""
    _, config = ask(f"{site}/config")
    values = [part["props"].get("value") for part in json.loads(config)["components"]]
    (path,) = [value["path"] for value in values if isinstance(value, dict)]
    assert ask(f"{site}/gradio_api/file={path}") == (200, "this is shown")


def test_gradio_reads_what_was_checked(site, bait):
    """Of a name that comes twice, two readers might take different ones."""
    (path,) = json.loads(upload(site)[1])
    body = json.dumps(event(file_data("PATH"))).replace('"path": "PATH"', f'"path": "{bait[0]}", "path": "{path}"')
    assert '"uploaded"' in call(site, body.encode())[1]
    assert bait[1] == []


@pytest.mark.parametrize("sent", [100, 10_000, 500_000, 999_999])
def test_an_upload_that_ends_early_leaves_nothing(site, caplog, sent):
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    before = set(folder.rglob("*"))
    head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="c.txt"\r\n\r\n'
    request = b"POST /gradio_api/upload HTTP/1.1\r\nHost: here\r\nContent-Length: 1000000\r\n"
    request += b"Content-Type: multipart/form-data; boundary=edge\r\n\r\n"

    def wait_until_there_are(files):
        end = time.monotonic() + 10
        while len(set(folder.rglob("*")) - before) != files:
            assert time.monotonic() < end
            time.sleep(0.02)

    with socket.create_connection(("127.0.0.1", int(site.rpartition(":")[2]))) as client:
        client.sendall(request + head.ljust(sent, b"a"))
        wait_until_there_are(1)
    wait_until_there_are(0)
    assert not caplog.records
    assert upload(site, b"another")[0] == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"path=http://127.0.0.1/"])
def test_calls_are_json(site, body):
    assert ask(f"{site}/gradio_api/queue/join", body)[0] == 400


def test_a_call_without_end_is_refused(site):
    assert ask(f"{site}/gradio_api/queue/join", json.dumps("a" * (5 * 2**20)).encode())[0] == 413


OTHERS = [
    ("GET", "/gradio_api/proxy={url}"), ("GET", "/gradio_api/info"), ("GET", "/gradio_api/queue/status"),
    ("GET", "/monitoring"), ("GET", "/gradio_api/openapi.json"), ("POST", "/gradio_api/component_server"),
    ("POST", "/gradio_api/call/predict"), ("POST", "/gradio_api/api/predict"), ("POST", "/gradio_api/run/other"),
    ("POST", "/gradio_api/process_recording"), ("POST", "/gradio_api/vibe-edit"), ("GET", "//gradio_api/queue/data"),
    ("PUT", "/gradio_api/queue/join"), ("POST", "/gradio_api/file=/etc/passwd"), ("POST", "/"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), OTHERS)
def test_other_requests_are_refused(site, bait, method, path):
    body = b"{}" if method != "GET" else None
    assert ask(site + path.format(url=bait[0]), body, method=method) == (403, "This request is not allowed here.")
    assert bait[1] == []


def test_previews_of_links_are_the_pages_own_and_it_loads_nothing_from_elsewhere(shown):
    port = free_port()
    with pages.serving(build, "127.0.0.1", port, description='Says "hello" & <more>.'):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as response:
            policy, text = response.headers["Content-Security-Policy"], response.read().decode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Accept-Encoding": "gzip, br"})
        with urllib.request.urlopen(request) as response:
            assert response.read().decode() == text
    assert "default-src 'self'" in policy
    assert "http" not in policy
    said = re.findall(r'<meta\s+(?:property="og|name="twitter):?(\w+)"\s+content="([^"]*)"', text)
    assert said == [
        ("title", "Gradio"),
        ("type", "website"),
        ("description", "Says &quot;hello&quot; &amp; &lt;more&gt;."),
    ]
    assert "header-image" not in text


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"Cannot serve at 127.0.0.1:{port} .* choose another --port"):
            pages.check_port("127.0.0.1", port)
    pages.check_port("127.0.0.1", free_port())


def test_a_page_that_takes_no_files_gets_none_and_its_folder_goes_with_it(shown):
    port = free_port()
    with pages.serving(build, "127.0.0.1", port):
        site, folder = f"http://127.0.0.1:{port}", os.environ["GRADIO_TEMP_DIR"]
        assert upload(site)[0] == 403
        assert ask(f"{site}/gradio_api/file={shown / 'a.txt'}")[0] == 403
        assert ask(f"{site}/config")[0] == 200
        assert os.path.isdir(folder)
    assert not os.path.exists(folder)


PROGRAM = """
import sys
import gradio as gr
from transformers_owl import pages

def build():
    with gr.Blocks(analytics_enabled=False) as page:
        gr.File()
    return page

with pages.serving(build, "127.0.0.1", int(sys.argv[1]), takes_uploads=True) as page:
    print("ready", flush=True)
    page.block_thread()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signals")
def test_uploads_go_with_the_program_however_it_ends(tmp_path, monkeypatch):
    """By a signal at once; what a killed one leaves, at the next start."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def run(end: signal.Signals) -> int:
        port = free_port()
        program = subprocess.Popen([sys.executable, "-c", PROGRAM, str(port)], stdout=subprocess.PIPE, text=True)
        while "ready" not in program.stdout.readline():
            assert program.poll() is None
        status, _ = upload(f"http://127.0.0.1:{port}")
        assert status == 200
        assert list(tmp_path.rglob("b.txt"))
        program.send_signal(end)
        program.wait(timeout=30)
        return len(list(tmp_path.rglob("b.txt")))

    assert run(signal.SIGTERM) == 0
    assert run(signal.SIGHUP) == 0
    assert run(signal.SIGKILL) == 1
    assert run(signal.SIGTERM) == 0

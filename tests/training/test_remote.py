"""Shards at URLs come whole through stalls and breaks, are named when they do not, and no reader waits for ever."""

import contextlib
import http.server
import io
import threading
import time

import pytest

from transformers_owl.training import BadSampleError
from transformers_owl.training import remote as module
from transformers_owl.training.remote import RemoteFile
from transformers_owl.training.sources import Shards


@pytest.fixture
def server(files, monkeypatch):
    """Serves `0.tar`; `faults` says what befalls each request in turn: an HTTP status, or (kind, bytes) after which."""
    monkeypatch.setattr(module, "PAUSE", 0.01)
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    files.shard("0.tar", range(6))
    whole = (files.folder / "0.tar").read_bytes()
    faults: list = []
    asked: list = []

    class Handler(http.server.BaseHTTPRequestHandler):
        takes_ranges = True

        def do_GET(self):
            given = self.headers.get("Range")
            start = int(given.removeprefix("bytes=").removesuffix("-")) if given and self.takes_ranges else 0
            asked.append(given)
            fault = faults.pop(0) if faults else None
            if isinstance(fault, int):
                self.send_error(fault)
                return
            kind, count = fault or ("none", len(whole))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(whole) - start))
            self.end_headers()
            self.wfile.write(whole[start : start + count])
            if kind == "stall":
                self.wfile.flush()
                time.sleep(0.5)

        def log_message(self, *_):
            pass

        def handle(self):
            with contextlib.suppress(ConnectionError):
                super().handle()

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/0.tar", faults, asked, whole, Handler
    running.shutdown()
    running.server_close()


FAULTS = {
    "none": [],
    "not yet": [503, 500, 429],
    "breaks": [("break", 700), ("break", 4000), ("break", 0)],
    "stalls": [("stall", 0), ("stall", 9000)],
    "all of them": [502, ("break", 5000), ("stall", 1)],
}


@pytest.mark.parametrize("takes_ranges", [True, False])
@pytest.mark.parametrize("name", FAULTS)
def test_a_shard_comes_whole_through_faults(server, caplog, name, takes_ranges):
    url, faults, asked, whole, handler = server
    handler.takes_ranges = takes_ranges
    faults += FAULTS[name]
    with io.BufferedReader(RemoteFile(url)) as file:
        assert file.read() == whole
    assert len(asked) == len(FAULTS[name]) + 1
    assert caplog.text.count(f"{url}: ") == len(FAULTS[name])
    faults += FAULTS[name]
    shards = Shards(url)
    texts = [shards.sample(item)["messages"][-1]["content"] for item in shards.read(url)]
    assert texts == [f"grey {number}" for number in range(6)]


@pytest.mark.parametrize(("fault", "tries"), [(404, 1), (403, 1), (500, 5), (("break", 0), 5), (("stall", 0), 5)])
def test_a_shard_that_does_not_come_is_named(server, fault, tries):
    url, faults, asked, *_ = server
    faults += [fault] * 5
    shards = Shards(url)
    (item,) = shards.read(url)
    with pytest.raises(BadSampleError, match=rf"{url}: broken shard: .*\(try {tries} of 5\)"):
        shards.sample(item)
    assert len(asked) == tries

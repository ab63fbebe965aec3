"""`transformers-owl serve` or `web` under load: many clients for minutes, some of which misbehave or disconnect early.

python research/benchmarks/under_load.py [--what serve|web] [--clients 32] [--minutes 10] [--model FOLDER] [--json FILE]

Each client asks one question after the other. Of ten questions, six are good, with or without an image, one is
malformed, one has a damaged image, one is sent byte by byte over two seconds, and one is dropped before its answer. The
page gets the requests of a browser: an upload, the question, the answer as a stream of events, and the end of the turn.
The script prints the replies by kind, and the errors: good questions without an answer, and bad ones that are not
rejected. It also prints the memory of the server at the start and after each quarter of the time, and the 95th
percentile of the latency of good questions, in seconds and divided by the latency of a single question times the
clients.
"""

import argparse
import base64
import collections
import http.client
import itertools
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from machine import write_rows

from transformers_owl import MINIATURE
from transformers_owl.demo.caption import SAMPLES


KINDS = ("image", "image", "image", "text", "text", "text", "malformed", "damaged", "slow", "gone")
GOOD = ("image", "text", "slow")
SLOW_SECONDS = 2
PATIENCE = 300
TOKENS = 16
JSON = "application/json"
Reply = tuple[str, str, float]  # kind, "answer", "refusal" or what went wrong, and seconds


def question(kind: str, choice: random.Random) -> tuple[str, bytes | None]:
    if kind not in ("image", "damaged", "gone"):
        return "What is a cow?", None
    file = choice.choice(SAMPLES).read_bytes()
    return "Describe the picture.", file[: len(file) // 2] if kind == "damaged" else file


def post(
    port: int, path: str, data: bytes, timeout: float, is_slow: bool = False, form: str = JSON
) -> tuple[int, bytes]:
    """Status and body of the reply."""
    connection = http.client.HTTPConnection("localhost", port, timeout=timeout)
    try:
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", form)
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders()
        for piece in np.array_split(np.frombuffer(data, np.uint8), 40 if is_slow else 1):
            connection.send(piece.tobytes())
            time.sleep(SLOW_SECONDS / 40 * is_slow)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


class Serve:
    """The endpoint."""

    command = ("serve",)

    def __init__(self, port: int):
        self.port = port

    def ask(self, kind: str, choice: random.Random, timeout: float) -> str:
        text, file = question(kind, choice)
        content: list[dict] = [{"type": "text", "text": text}]
        if file is not None:
            url = f"data:image/png;base64,{base64.b64encode(file).decode()}"
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        asked = {"messages": [{"role": "user", "content": content}], "max_tokens": TOKENS, "temperature": 0}
        wrong = {"temprature": 1} if kind == "malformed" else {}
        data = json.dumps({**asked, **wrong}).encode()
        status, _ = post(self.port, "/v1/chat/completions", data, timeout, kind == "slow")
        return {200: "answer", 400: "refusal"}.get(status, str(status))


class Web:
    """The page: what its events are called is read from its configuration."""

    command = ("web", "--model")

    def __init__(self, port: int):
        self.port = port
        with urllib.request.urlopen(f"http://localhost:{port}/config") as reply:
            config = json.load(reply)
        (box,) = (each["id"] for each in config["components"] if each["type"] == "multimodaltextbox")
        events = config["dependencies"]
        (self.send,) = (each["id"] for each in events if [box, "submit"] in each["targets"])
        (self.answer,) = (each["id"] for each in events if each.get("trigger_after") == self.send)
        (self.settle,) = (each["id"] for each in events if each.get("trigger_after") == self.answer)

    def call(self, event: int, data: list, session: str, timeout: float, path: str = "run/predict", **options) -> dict:
        asked = json.dumps({"data": data, "fn_index": event, "session_hash": session}).encode()
        status, body = post(self.port, f"/gradio_api/{path}", asked, timeout, **options)
        if status != 200:
            raise http.client.HTTPException(str(status))
        return json.loads(body)

    def upload(self, file: bytes, timeout: float) -> dict:
        head = b'--owl\r\nContent-Disposition: form-data; name="files"; filename="owl.png"\r\n'
        data = head + b"Content-Type: image/png\r\n\r\n" + file + b"\r\n--owl--\r\n"
        status, body = post(self.port, "/gradio_api/upload", data, timeout, form="multipart/form-data; boundary=owl")
        if status != 200:
            raise http.client.HTTPException(str(status))
        return {"path": json.loads(body)[0], "meta": {"_type": "gradio.FileData"}}

    def ask(self, kind: str, choice: random.Random, timeout: float) -> str:
        if kind == "malformed":
            status, _ = post(self.port, "/gradio_api/run/predict", b'{"data": 1', timeout)
            return "refusal" if 400 <= status < 500 else str(status)
        text, file = question(kind, choice)
        session = f"{choice.getrandbits(64):x}"
        files = [] if file is None else [self.upload(file, timeout)]
        nothing = {"text": "", "files": []}
        asked = [{"text": text, "files": files}, {"turns": [], "html": ""}]
        _, log = self.call(self.send, asked, session, timeout, is_slow=kind == "slow")["data"]
        self.call(self.answer, [log, 0, 0.9, 1, TOKENS], session, timeout, "queue/join")
        log, written = self.stream(session, timeout, log)
        _, log, _ = self.call(self.settle, [log, written, nothing], session, timeout)["data"]
        return {"assistant": "answer", "error": "refusal"}[log["turns"][-1]["role"]]

    def stream(self, session: str, timeout: float, log: dict) -> list:
        """The conversation and what was written, at the end of the events of an answer."""
        url = f"http://localhost:{self.port}/gradio_api/queue/data?session_hash={session}"
        with urllib.request.urlopen(url, timeout=timeout) as events:
            for line in events:
                event = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
                if event.get("msg") == "process_completed":
                    if not event["success"]:
                        raise http.client.HTTPException(str(event["output"]))
                    return event["output"]["data"]
        raise http.client.HTTPException("the events ended early")


def ask(server: Serve | Web, kind: str, choice: random.Random) -> Reply:
    start = time.perf_counter()
    try:
        found = server.ask(kind, choice, choice.uniform(0.05, 1) if kind == "gone" else PATIENCE)
    except (OSError, http.client.HTTPException) as error:
        found = f"{type(error).__name__}: {error}"[:200]
    return kind, found, time.perf_counter() - start


def load(server: Serve | Web, clients: int, seconds: float) -> list[Reply]:
    end = time.monotonic() + seconds

    def client(number: int) -> list[Reply]:
        choice, replies = random.Random(number), []
        while time.monotonic() < end:
            replies.append(ask(server, choice.choice(KINDS), choice))
        return replies

    with ThreadPoolExecutor(clients) as pool:
        return list(itertools.chain.from_iterable(pool.map(client, range(clients))))


SERVERS: dict[str, type[Serve] | type[Web]] = {"serve": Serve, "web": Web}


def latencies(replies: list[Reply]) -> list[float]:
    return [seconds for kind, found, seconds in replies if found == "answer" and kind in ("image", "text")]


def errors_of(replies: list[Reply]) -> dict[str, int]:
    wrong = [
        f"{kind}: {found}"
        for kind, found, _ in replies
        if kind != "gone" and found != ("answer" if kind in GOOD else "refusal")
    ]
    return dict(collections.Counter(wrong))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=SERVERS, default="serve")
    parser.add_argument("--model", default=MINIATURE)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        command = [
            sys.executable,
            "-m",
            "transformers_owl",
            *SERVERS[given.what].command,
            given.model,
            "--port",
            str(port),
        ]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                try:
                    socket.create_connection(("localhost", port)).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.5)
            server = SERVERS[given.what](port)
            alone = latencies(load(server, 1, 20))
            memory, replies = [psutil.Process(process.pid).memory_info().rss / 2**20], []
            for _ in range(4):
                replies += load(server, given.clients, given.minutes * 15)
                memory.append(psutil.Process(process.pid).memory_info().rss / 2**20)
            is_alive = process.poll() is None
        finally:
            process.terminate()
            process.wait(timeout=60)
        log.seek(0)
        tracebacks = log.read().decode(errors="replace").split("Traceback")[1:]
    waited = latencies(replies)
    report = {
        "replies": dict(collections.Counter(kind for kind, _, _ in replies)),
        "errors": errors_of(replies),
        "tracebacks": [text[-2000:] for text in tracebacks],
        "alive": is_alive,
        "memory_mib": memory,
        "alone_seconds": float(np.mean(alone)),
        "p95_seconds": float(np.percentile(waited, 95)),
        "p95_over_queue": float(np.percentile(waited, 95) / (np.mean(alone) * given.clients)),
    }
    print(json.dumps(report, indent=1))
    write_rows(given.json, [report])


if __name__ == "__main__":
    main()

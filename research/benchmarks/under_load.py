"""`transformers-owl serve` under load: many clients for minutes, some of them bad, slow, or gone before the answer.

python research/benchmarks/under_load.py [--clients 32] [--minutes 10] [--model FOLDER] [--json FILE]

Each client sends one request after the other. Of ten, six ask about an image or about nothing, one is malformed, one
holds a damaged image, one is sent byte by byte over two seconds, and one is dropped before its answer. It prints the
replies by kind; as errors, replies of another status than 200 to good requests and 400 to bad ones; the memory of the
server at the start and after each quarter of the time; and the 95th percentile of the latency of good requests, also
over the seconds that one takes alone times the clients.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from machine import write_rows

from transformers_owl import MINIATURE
from transformers_owl.demo.caption import SAMPLES


KINDS = ("image", "image", "image", "text", "text", "text", "malformed", "damaged", "slow", "gone")
EXPECTED = {"image": 200, "text": 200, "slow": 200, "malformed": 400, "damaged": 400}
SLOW_SECONDS = 2
PATIENCE = 300
Reply = tuple[str, int, float]


def body_of(kind: str, choice: random.Random) -> dict:
    shows_image = kind in ("image", "damaged", "gone")
    content: list[dict] = [{"type": "text", "text": "Describe the picture." if shows_image else "What is a cow?"}]
    if shows_image:
        file = choice.choice(SAMPLES).read_bytes()
        data = file[: len(file) // 2] if kind == "damaged" else file
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    wrong = {"temprature": 1} if kind == "malformed" else {}
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 16, "temperature": 0, **wrong}


def ask(port: int, kind: str, choice: random.Random) -> Reply:
    """Kind, status (0 without one) and seconds."""
    data = json.dumps(body_of(kind, choice)).encode()
    start = time.perf_counter()
    timeout = choice.uniform(0.05, 1) if kind == "gone" else PATIENCE
    connection = http.client.HTTPConnection("localhost", port, timeout=timeout)
    try:
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders()
        pieces = np.array_split(np.frombuffer(data, np.uint8), 40 if kind == "slow" else 1)
        for piece in pieces:
            connection.send(piece.tobytes())
            time.sleep(SLOW_SECONDS / 40 * (kind == "slow"))
        reply = connection.getresponse()
        reply.read()
        status = reply.status
    except (OSError, http.client.HTTPException):
        status = 0
    finally:
        connection.close()
    return kind, status, time.perf_counter() - start


def load(port: int, clients: int, seconds: float) -> list[Reply]:
    end = time.monotonic() + seconds

    def client(number: int) -> list[Reply]:
        choice, replies = random.Random(number), []
        while time.monotonic() < end:
            replies.append(ask(port, choice.choice(KINDS), choice))
        return replies

    with ThreadPoolExecutor(clients) as pool:
        return list(itertools.chain.from_iterable(pool.map(client, range(clients))))


def latencies(replies: list[Reply]) -> list[float]:
    return [seconds for kind, status, seconds in replies if status == 200 and kind in ("image", "text")]


def errors_of(replies: list[Reply]) -> dict[str, int]:
    wrong = [f"{kind}: {status}" for kind, status, _ in replies if kind != "gone" and status != EXPECTED[kind]]
    return dict(collections.Counter(wrong))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MINIATURE)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "transformers_owl", "serve", given.model, "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                try:
                    socket.create_connection(("localhost", port)).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.5)
            alone = latencies(load(port, 1, 20))
            memory, replies = [psutil.Process(process.pid).memory_info().rss / 2**20], []
            for _ in range(4):
                replies += load(port, given.clients, given.minutes * 15)
                memory.append(psutil.Process(process.pid).memory_info().rss / 2**20)
            is_alive = process.poll() is None
        finally:
            process.terminate()
            process.wait(timeout=60)
        log.seek(0)
        tracebacks = log.read().count(b"Traceback")
    waited = latencies(replies)
    report = {
        "replies": dict(collections.Counter(kind for kind, _, _ in replies)),
        "errors": errors_of(replies),
        "tracebacks": tracebacks,
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

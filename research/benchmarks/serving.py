"""vLLM's OpenAI server under load: many clients at once, with and without images, all on this machine.

.venv-vllm/bin/python research/benchmarks/serving.py [--model FOLDER] [--clients 64] [--requests 8] [--max-tokens 32]
    [--json FILE] [-- OPTIONS OF vllm serve]

Needs the environment of docs/serving.md. A client sends its requests one after the other, every second one with an
image. Each image is a different crop of a drawing of the package, so that no cache answers. Latency is the time to the
whole answer. Memory is the total of the server's processes after one request of each kind, and then after each quarter
of the answers.
"""

import argparse
import asyncio
import base64
import collections
import contextlib
import io
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import openai
import PIL.Image
import psutil

from transformers_owl import MINIATURE
from transformers_owl.demo.caption import SAMPLES


ABOUT_IMAGES = ("Describe the picture.", "What is in the picture?", "What colour is the background?")
ABOUT_NOTHING = ("What is a cow?", "What is a bell?", "Hello!")
PATIENCE = 900  # seconds


@dataclass(frozen=True)
class Reply:
    kind: str  # "image" or "text"
    seconds: float
    tokens: int
    error: str | None


def image_part(image: PIL.Image.Image, choice: random.Random) -> dict:
    left, top = choice.randrange(image.width // 8), choice.randrange(image.height // 8)
    file = io.BytesIO()
    image.crop((left, top, left + image.width * 7 // 8, top + image.height * 7 // 8)).save(file, "png")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def chats(clients: int, requests: int) -> list[list[tuple[str, list[dict]]]]:
    """For each client its requests: kind and messages."""
    choice = random.Random(0)
    images = [PIL.Image.open(path).convert("RGB") for path in SAMPLES]
    found = []
    for client in range(clients):
        mine = []
        for number in range(requests):
            kind = "image" if (client + number) % 2 else "text"
            question = choice.choice(ABOUT_IMAGES if kind == "image" else ABOUT_NOTHING)
            content = [{"type": "text", "text": question}]
            if kind == "image":
                content.insert(0, image_part(choice.choice(images), choice))
            mine.append((kind, [{"role": "user", "content": content}]))
        found.append(mine)
    return found


async def ask(server: openai.AsyncOpenAI, model: str, kind: str, messages: list, max_tokens: int) -> Reply:
    start, tokens, error = time.perf_counter(), 0, None
    try:
        answer = await server.chat.completions.create(
            model=model, messages=messages, max_tokens=max_tokens, temperature=0
        )
        tokens = answer.usage.completion_tokens
    except openai.OpenAIError as failure:
        error = f"{type(failure).__name__}: {failure.__cause__!r}"
    return Reply(kind, time.perf_counter() - start, tokens, error)


async def load(url: str, model: str, work: list, max_tokens: int, at_quarter: Callable[[], None]) -> list[Reply]:
    """All replies; calls back behind each quarter of them."""
    limits = httpx.Limits(max_connections=None)
    quarter = max(1, sum(map(len, work)) // 4)
    replies: list[Reply] = []
    async with openai.AsyncOpenAI(
        base_url=url, api_key="none", max_retries=0, timeout=PATIENCE, http_client=httpx.AsyncClient(limits=limits)
    ) as server:

        async def client(requests: list) -> None:
            for kind, messages in requests:
                replies.append(await ask(server, model, kind, messages, max_tokens))
                if len(replies) % quarter == 0:
                    at_quarter()

        await asyncio.gather(*map(client, work))
    return replies


def resident_mib(process: subprocess.Popen) -> float:
    """Of a process and all that it started."""
    top = psutil.Process(process.pid)
    return sum(part.memory_info().rss for part in [top, *top.children(recursive=True)]) / 2**20


@contextlib.contextmanager
def served(model: str, options: list[str], log: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """A running server and the address of its API."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    # By default a busy server ends a connection 5 seconds after an answer, even if the next request lies there unread.
    environment = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(PATIENCE), **os.environ}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}/health").is_success:
                    break
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"The server does not answer: see {log}.")
            time.sleep(1)
        yield process, f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


def summary(replies: list[Reply], seconds: float) -> dict:
    found: dict = {
        "requests": len(replies),
        "seconds": seconds,
        "requests_per_second": len(replies) / seconds,
        "tokens_per_second": sum(reply.tokens for reply in replies) / seconds,
        "errors": dict(collections.Counter(reply.error for reply in replies if reply.error)),
    }
    for kind in ("image", "text"):
        times = [reply.seconds for reply in replies if reply.kind == kind and reply.error is None]
        p50, p95 = np.percentile(times, (50, 95)) if times else (float("nan"), float("nan"))
        found[kind] = {"answers": len(times), "p50_seconds": p50, "p95_seconds": p95}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MINIATURE)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=8, help="requests per client")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--log", type=Path, default=Path("build/serving.log"), help="log file of the server")
    parser.add_argument("--json", type=Path)
    parser.add_argument("options", nargs="*", help="options of vllm serve, after --")
    given = parser.parse_args()
    given.log.parent.mkdir(parents=True, exist_ok=True)
    with served(given.model, given.options, given.log) as (process, url):
        asyncio.run(load(url, given.model, chats(1, 2), given.max_tokens, lambda: None))
        work = chats(given.clients, given.requests)
        memory = [resident_mib(process)]
        start = time.perf_counter()
        replies = asyncio.run(
            load(url, given.model, work, given.max_tokens, lambda: memory.append(resident_mib(process)))
        )
        report = summary(replies, time.perf_counter() - start)
        report |= {"clients": given.clients, "memory_mib": memory}
    print(json.dumps(report, indent=1))
    if given.json is not None:
        given.json.write_text(json.dumps({"options": given.options, **report}, indent=1) + "\n")


if __name__ == "__main__":
    main()

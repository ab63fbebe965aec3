"""
Gradio pages behind a gate of our own, and the fence of both.

Gradio would fetch a URL that a request names as a file, forward one in the path, and answer many more requests than a
page makes. Here only the requests of a page pass, and the files that they name must be in its folder.
"""

import html
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import psutil
from starlette.datastructures import MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .asgi import TooLargeError, read_json, rewritten


LEANS_ON = {
    "gradio: requests of a page": "what the browser asks for, which passes; a page that asks for more does not work",
    "gradio: files in a request": "an object of JSON with its `path`; the address beside it can be left out",
    "gradio: GRADIO_TEMP_DIR": "where uploads and what a page shows lie",
    "gradio: uploads": "what it has written of an upload is deleted after starlette's `MultiPartException`",
    "gradio.Blocks.launch": "`app_kwargs` takes what stands before gradio's application",
}

READ = {f"/{name}" for name in ("", "config", "theme.css", "favicon.ico")} | {
    f"/gradio_api/{name}" for name in ("queue/data", "upload_progress", "startup-events")
}
READ_BELOW = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
CALLED = {f"/gradio_api/{name}" for name in ("queue/join", "run/predict", "cancel", "reset")}
UPLOAD, FILE = "/gradio_api/upload", "/gradio_api/file="
MAX_CALL = 4 * 2**20  # bytes


# A page loads nothing from elsewhere, whatever stands on it. Gradio makes functions of strings.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "form-action 'self'; base-uri 'self'; object-src 'none'"
)
PREVIEW = re.compile(rb'<meta\s+(?:property="og:|name="twitter:)[^>]*>')  # what gradio tells of itself


class RefusedError(Exception):
    """An HTTP status, and a message for the client."""


class Gate:
    """
    Checks requests before gradio's application gets them.

    Args:
        app (`ASGIApp`): Gradio's application.
        folder (`str`): Absolute path of the only folder whose files may be read, links resolved.
        takes_uploads (`bool`): Whether clients may upload files.
        title, description (`str`): Texts of a link preview.
    """

    def __init__(self, app: ASGIApp, folder: str, takes_uploads: bool, title: str = "", description: str = ""):
        self.app = app
        self.folder = folder
        self.takes_uploads = takes_uploads
        said = {"title": title, "type": "website", "description": description}
        self.preview = "".join(
            f'<meta property="og:{name}" content="{html.escape(text, quote=True)}">' for name, text in said.items()
        ).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close"})
        if scope["type"] == "http":
            try:
                scope, receive = await self.admit(scope, receive)
            except RefusedError as refusal:
                status, word = refusal.args
                return await PlainTextResponse(word, status)(scope, receive, send)
            if scope["path"] == "/":
                return await self.send_page(scope, receive, send)
        return await self.app(scope, receive, send)

    async def send_page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The page itself, with its content security policy and the texts of link previews."""
        started: Message = {}
        body = b""

        async def rewrite(message: Message) -> None:
            nonlocal started, body
            if message["type"] == "http.response.start":
                started = message
            elif message["type"] == "http.response.body":
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    text = PREVIEW.sub(b"", body).replace(b"<head>", b"<head>" + self.preview, 1)
                    headers = MutableHeaders(raw=list(started["headers"]))
                    headers["content-security-policy"] = POLICY
                    if scope["method"] == "GET":
                        headers["content-length"] = str(len(text))
                    await send({**started, "headers": headers.raw})
                    await send({"type": "http.response.body", "body": text if scope["method"] == "GET" else b""})

        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        await self.app({**scope, "headers": plain}, receive, rewrite)

    async def admit(self, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """
        Checks a request, and returns it as gradio gets it.

        Raises:
            RefusedError: for a request that no page makes.
        """
        path, is_read = scope["path"], scope["method"] in ("GET", "HEAD")
        if is_read and path.startswith(FILE):
            self.check_file(path.removeprefix(FILE))
        elif scope["method"] == "POST" and path in CALLED:
            return await self.read_call(scope, receive)
        elif scope["method"] == "POST" and path == UPLOAD and self.takes_uploads:
            return scope, whole(receive)
        elif not (is_read and (path in READ or path.startswith(READ_BELOW))):
            raise RefusedError(403, "This request is not allowed here.")
        return scope, receive

    def check_file(self, path: str) -> None:
        # Of an address no part is a folder: it is not absolute.
        if "\0" in path or not Path(os.path.normpath(path)).is_relative_to(self.folder):
            raise RefusedError(403, "Only uploaded files can be read, no URLs and no other files.")

    async def read_call(self, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """An API call whose files have been checked."""
        try:
            call = await read_json(receive, MAX_CALL)
        except TooLargeError as error:
            raise RefusedError(413, "The conversation is too long: start a new one.") from error
        except ValueError as error:
            raise RefusedError(400, "The request is not JSON.") from error
        self.check_files(call)
        return rewritten(scope, receive, call)

    def check_files(self, data: Any) -> None:
        """Every `path` must be in the folder; the `url` beside it, which only a browser needs, is left out."""
        left = [data]
        while left:
            value = left.pop()
            if isinstance(value, dict):
                if isinstance(value.get("path"), str):
                    self.check_file(value["path"])
                    value.pop("url", None)
                left += value.values()
            elif isinstance(value, list):
                left += value


def whole(receive: Receive) -> Receive:
    """The channel of an upload that is an error if it ends early, so that its beginning is deleted."""
    is_open = True

    async def receive_whole() -> Message:
        nonlocal is_open
        message = await receive()
        if is_open and message["type"] == "http.disconnect":
            raise MultiPartException("The upload ended early.")
        is_open = message.get("more_body", False)
        return message

    return receive_whole


UPLOADS = "transformers-owl-uploads-"


def delete_leftovers() -> None:
    """Deletes upload folders whose process has ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{UPLOADS}*-*"):
        process = folder.name.removeprefix(UPLOADS).partition("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """Turns signals that would end the program at once into `sys.exit`, so that it can clean up."""
    ends = [signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__]
    if threading.current_thread() is not threading.main_thread():
        ends = []  # only the main thread may handle signals
    before = {end: signal.signal(end, lambda number, _: sys.exit(128 + number)) for end in ends}
    try:
        yield
    finally:
        for end, handler in before.items():
            signal.signal(end, handler)


def check_port(host: str, port: int) -> None:
    """Raises a ValueError if the port cannot be used."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(f"Cannot serve at {host}:{port} ({error.strerror}): choose another --port.") from error


@contextmanager
def serving(
    build: Callable[[], gr.Blocks],
    host: str,
    port: int,
    files: Sequence[Path] = (),
    takes_uploads: bool = False,
    description: str = "",
    **options: Any,
) -> Iterator[gr.Blocks]:
    """
    Serves a page at `http://HOST:PORT`. Uploads and copies of the files that it shows are in a folder that is deleted
    at the end, also after SIGTERM and SIGHUP. The next start deletes what a killed process left.

    Args:
        build (`Callable`): Builds the page.
        files (`Sequence[Path]`): Further files that the page may show; they are copied into that folder.
        takes_uploads (`bool`): Whether clients may upload files.
        description (`str`): Text of link previews, below the title.
        options: Further options of `Blocks.launch`.
    """
    delete_leftovers()
    with ending_by_signals(), tempfile.TemporaryDirectory(prefix=f"{UPLOADS}{os.getpid()}-") as made:
        folder = os.environ["GRADIO_TEMP_DIR"] = os.path.realpath(made)
        page = build()
        gate: dict[str, Any] = {
            "folder": folder,
            "takes_uploads": takes_uploads,
            "title": page.title,
            "description": description,
        }
        page.launch(
            server_name=host,
            server_port=port,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            allowed_paths=[os.path.abspath(file) for file in files],
            app_kwargs={"middleware": [Middleware(Gate, **gate)]},
            quiet=True,
            prevent_thread_lock=True,
            **options,
        )
        try:
            yield page
        finally:
            page.close()
            os.environ.pop("GRADIO_TEMP_DIR", None)

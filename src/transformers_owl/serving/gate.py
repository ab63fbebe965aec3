"""
The gate before the server of OpenAI-style requests. It trusts nobody: a request holds only fields of the chat API that
this model supports, names no file of this machine, and comes from no other site's page. Anything else is answered with
status 400 and a sentence.
"""

import ipaddress
import os
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..asgi import TooLargeError, read_json, rewritten
from ..mplug_owl.configuration_mplug_owl import check_names, expect


PATHS = {("GET", "/health"), ("GET", "/v1/models"), ("POST", "/v1/chat/completions")}
MAX_BODY = 64 * 2**20  # bytes
MAX_TOKENS = 2**20
MAX_SEED = 2**63 - 1


def _number(least: float, most: float, kind: Any = (int, float)) -> tuple[Callable, str]:
    def fits(value) -> bool:
        return isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most

    return fits, f"{'an integer' if kind is int else 'a number'} from {least} to {most}"


# The check of each field, and what a message says that it must be.
FIELDS: dict[str, tuple[Callable, str]] = {
    "model": (lambda value: isinstance(value, str), "the name of the model"),
    "messages": (lambda value: isinstance(value, list) and value, "a non-empty list of messages"),
    "stream": (lambda value: isinstance(value, bool), "true or false"),
    "max_tokens": _number(1, MAX_TOKENS, int),
    "max_completion_tokens": _number(1, MAX_TOKENS, int),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "seed": _number(0, MAX_SEED, int),
}
# Fields that change no answer; unsupported fields, with the values that have no effect.
WITHOUT_EFFECT = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "stream_options",
    "prompt_cache_key",
    "safety_identifier",
}
NOT_DONE: dict[str, tuple] = {
    "stop": ([], ""), "n": (1,), "logprobs": (False,), "top_logprobs": (0,), "logit_bias": ({},),
    "presence_penalty": (0,), "frequency_penalty": (0,), "response_format": ({"type": "text"},),
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False), "modalities": (["text"],), "audio": (), "prediction": (),
    "reasoning_effort": (), "web_search_options": (), "generation_config": (), "chat_template_kwargs": ({},),
}  # fmt: skip
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
VISUALS = {"image_url": "data:image/", "video_url": "data:video/"}


@dataclass
class Allowed:
    """
    What the gate allows besides its own host.

    Args:
        host (`str`): The host to serve at.
        hosts (`Sequence[str]`): Further host names that requests may have.
        origins (`Sequence[str]`): Sites whose pages may send requests, such as "https://chat.example.com"; "*" is all.
        files (`Sequence[Path]`): Folders whose files may be named instead of a URL.
    """

    host: str
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    files: Sequence[Path] = ()


class Gate:
    """
    Checks requests before the server's application gets them.

    Args:
        app (`ASGIApp`): The server's application.
        model (`str`): The model's name in requests.
        sees_videos (`bool`): Whether the model takes videos.
        allowed ([`Allowed`]): What is allowed.
    """

    def __init__(self, app: ASGIApp, model: str, sees_videos: bool, allowed: Allowed):
        self.app = app
        self.model = model
        self.sees_videos = sees_videos
        self.allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close"})
        if scope["type"] == "http":
            try:
                self.check_caller(scope)
                if scope["path"] == "/v1/models":
                    row = {"id": self.model, "object": "model", "created": 0, "owned_by": "transformers-owl"}
                    return await JSONResponse({"object": "list", "data": [row]})(scope, receive, send)
                if scope["method"] == "POST":
                    scope, receive = await self.read(scope, receive)
            except ValueError as error:
                return await refusal(error)(scope, receive, send)
        return await self.app(scope, receive, send)

    def check_caller(self, scope: Scope) -> None:
        if (scope["method"], scope["path"]) not in PATHS:
            places = ", ".join(f"{method} {path}" for method, path in sorted(PATHS))
            raise ValueError(f"{scope['method']} {scope['path']!r:.80} is not served here: use {places}.")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        if not (_is_address(name) or name in {"localhost", self.allowed.host, *self.allowed.hosts}):
            raise ValueError(f"The host {host!r:.80} is not allowed: allow it by --allow-host at the start.")
        own = {f"http://{host}", f"https://{host}", *self.allowed.origins}
        if origin is not None and origin not in own and "*" not in self.allowed.origins:
            raise ValueError(f"Pages of {origin!r:.80} are not allowed: allow them by --allow-origin at the start.")

    async def read(self, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """A request whose body has been checked."""
        try:
            asked = await read_json(receive, MAX_BODY)
        except TooLargeError as error:
            raise ValueError(f"{error} Send smaller or fewer images.") from error
        return rewritten(scope, receive, self.checked(asked))

    def checked(self, asked: Any) -> dict[str, Any]:
        """
        The request as the server takes it.

        Raises:
            ValueError: for a request that the server would not answer as asked.
        """
        expect(isinstance(asked, dict), "The request", asked, "an object")
        asked = {name: value for name, value in asked.items() if value is not None and name not in WITHOUT_EFFECT}
        for name, value in asked.items():
            if name in FIELDS:
                expect(FIELDS[name][0](value), f"`{name}`", value, FIELDS[name][1])
            elif name not in NOT_DONE:
                check_names([name], FIELDS, "field")
            elif value not in NOT_DONE[name]:
                raise ValueError(f"`{name}` is {value!r:.80}, which this server does not support: leave it out.")
        if "messages" not in asked:
            raise ValueError("`messages` is missing: pass a non-empty list of messages.")
        if asked.get("model", self.model) != self.model:
            raise ValueError(f"`model` is {asked['model']!r:.80}, but this server only has {self.model!r}.")
        kept = {name: value for name, value in asked.items() if name in FIELDS}
        if "max_completion_tokens" in kept:
            kept["max_tokens"] = kept.pop("max_completion_tokens")
        messages = [self.message(number, message) for number, message in enumerate(asked["messages"], 1)]
        return {**kept, "model": self.model, "messages": messages}

    def message(self, number: int, message: Any) -> dict[str, Any]:
        where = f"message {number}"
        expect(isinstance(message, dict), where, message, "an object")
        if message.get("tool_calls") or message.get("function_call"):
            raise ValueError(f"{where} calls tools, which this model does not support: leave it out.")
        role, content = message.get("role"), message.get("content")
        expect(isinstance(role, str) and role in ROLES, f"`role` of {where}", role, f"one of {', '.join(ROLES)}")
        expect(isinstance(content, (str, list)), f"`content` of {where}", content, "a string or a list of parts")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        else:
            content = [self.part(f"part {place} of {where}", part) for place, part in enumerate(content, 1)]
        return {"role": ROLES[role], "content": content}

    def part(self, where: str, part: Any) -> dict[str, Any]:
        expect(isinstance(part, dict), where, part, "an object")
        kinds = ["text", "image_url", *(["video_url"] if self.sees_videos else [])]
        kind = part.get("type")
        expect(kind in kinds, f"`type` of {where}", kind, f"one of {', '.join(kinds)}")
        if kind == "text":
            expect(isinstance(part.get("text"), str), f"`text` of {where}", part.get("text"), "a string")
            return {"type": "text", "text": part["text"]}
        named = part.get(kind)
        url = named.get("url") if isinstance(named, dict) else None
        expect(isinstance(url, str), f"`{kind}` of {where}", named, 'an object with a "url"')
        assert isinstance(url, str)
        self.check_url(where, url, VISUALS[kind])
        return {"type": kind, kind: {"url": url}}

    def check_url(self, where: str, url: str, data: str) -> None:
        if url.startswith((data, "http://", "https://")):
            return
        folders = [os.path.realpath(folder) for folder in self.allowed.files]
        if "\0" not in url and any(Path(os.path.realpath(url)).is_relative_to(folder) for folder in folders):
            return
        raise ValueError(
            f"{where} names {url!r:.80}, but must name a URL that begins with {data}, http:// or https://. To read "
            "files of the server, allow their folder by --allow-files at the start."
        )


def refusal(error: Exception) -> JSONResponse:
    """The API's response to an invalid request."""
    text = str(error).encode(errors="backslashreplace").decode()
    return JSONResponse({"error": {"message": text, "type": "invalid_request_error"}}, 400)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

"""Requests whose body a gate reads and replaces, so that the application gets exactly what was checked."""

import json
from typing import Any

from starlette.types import Message, Receive, Scope


class TooLargeError(ValueError):
    """The body of a request is over the limit."""


async def read_json(receive: Receive, limit: int) -> Any:
    """
    Reads the JSON body of a request.

    Args:
        receive (`Receive`): The ASGI channel of the request.
        limit (`int`): Maximum size in bytes.

    Raises:
        TooLargeError: for a body of more than `limit` bytes.
        ValueError: for a body that is not JSON.
    """
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            raise TooLargeError(f"The request is larger than {limit // 2**20} MiB.")
        if not message.get("more_body", False):
            break
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The request is not JSON: {error}") from error


def rewritten(scope: Scope, receive: Receive, data: Any) -> tuple[Scope, Receive]:
    """The request with `data` as its body."""
    body = json.dumps(data).encode()
    headers = {b"content-type": b"application/json", b"content-length": str(len(body)).encode()}
    kept = [(name, value) for name, value in scope["headers"] if name not in headers]
    rest = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive_data() -> Message:
        return next(rest, None) or await receive()

    return {**scope, "headers": [*kept, *headers.items()]}, receive_data

"""Rows of the common file formats, one form out: messages with pictures by path.

A reader takes one row of a file and the folder that its pictures lie in.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..mplug_owl.processing_mplug_owl import SYSTEM_SENTENCE
from ..mplug_owl.tokenization_mplug_owl import IMAGE_TOKEN


Messages = list[dict[str, Any]]
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant"}


def read_captions(row: dict, folder: Path) -> Messages:
    """`file_name` and `text`: a picture and its caption."""
    return caption({"type": "image", "path": str(folder / row["file_name"])}, row["text"])


def read_alpaca(row: dict, folder: Path) -> Messages:
    """`instruction`, `input` (may be empty), `output`."""
    question = row["instruction"] + ("\n" + row["input"] if row.get("input") else "")
    return [_user(question), _assistant(row["output"])]


def read_sharegpt(row: dict, folder: Path) -> Messages:
    """`conversations` of `from` and `value` (Vicuna, ShareGPT); what stands before the first question is left out."""
    turns = [(SPEAKERS.get(turn["from"]), turn["value"]) for turn in row["conversations"]]
    while turns and turns[0][0] != "user":
        turns.pop(0)
    if any(speaker is None for speaker, _ in turns):
        raise ValueError(f"the speakers must be among {', '.join(SPEAKERS)}")
    return [_user(text) if speaker == "user" else _assistant(text) for speaker, text in turns]


def read_baize(row: dict, folder: Path) -> Messages:
    """`input`: one text with [|Human|] and [|AI|] before the turns."""
    parts = re.split(r"\[\|(Human|AI)\|\]", row["input"])[1:]
    turns = [(speaker, text.strip()) for speaker, text in zip(parts[::2], parts[1::2], strict=True)]
    return [_user(text) if speaker == "Human" else _assistant(text) for speaker, text in turns if text]


def read_llava(row: dict, folder: Path) -> Messages:
    """`conversations` as in ShareGPT, `image` one path or several; `<image>` in a question says where."""
    given = row.get("image") or []
    images = iter([given] if isinstance(given, str) else given)
    messages = read_sharegpt(row, folder)
    for message in messages:
        if message["role"] == "user":
            message["content"] = _with_pictures(message["content"][0]["text"], images, folder, strip="\n ")
    _all_used(images)
    return messages


def read_original(row: dict, folder: Path) -> Messages:
    """`text`, a whole conversation as the original wrote it, and `image`, a list of paths."""
    images = iter(row.get("image") or [])
    system, *parts = re.split(r"\n(Human|AI): ", row["text"].rstrip("\n"))
    messages: Messages = [] if system == SYSTEM_SENTENCE else [{"role": "system", "content": system}]
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        if speaker == "AI":
            messages.append(_assistant(text))
        elif messages and messages[-1]["role"] == "user":
            messages[-1]["content"] += _with_pictures(text, images, folder)
        else:
            messages.append({"role": "user", "content": _with_pictures(text, images, folder)})
    _all_used(images)
    return messages


def read_messages(row: dict, folder: Path) -> Messages:
    """`messages`, the library's chat form; pictures by `path` lie in the folder."""
    messages = []
    for message in row["messages"]:
        content = message["content"]
        if not isinstance(content, str):
            content = [{**part, "path": str(folder / part["path"])} if "path" in part else part for part in content]
        messages.append({"role": message["role"], "content": content})
    return messages


READERS: dict[str, Callable[[dict, Path], Messages]] = {
    "captions": read_captions,
    "alpaca": read_alpaca,
    "sharegpt": read_sharegpt,
    "baize": read_baize,
    "llava": read_llava,
    "original": read_original,
    "messages": read_messages,
}


def caption(picture: dict[str, Any], text: str) -> Messages:
    """A picture without a question, and its caption as the answer."""
    return [{"role": "user", "content": [picture]}, _assistant(text.strip())]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _with_pictures(text: str, images: Iterator[str], folder: Path, strip: str = "") -> list[dict[str, Any]]:
    """Parts of a question: the text between placeholders, and a picture for each of these."""
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(text.split(IMAGE_TOKEN)):
        if number > 0:
            name = next(images, None)
            if name is None:
                raise ValueError(f"there are more {IMAGE_TOKEN} than pictures")
            parts.append({"type": "image", "path": str(folder / name)})
        piece = piece.strip(strip) if strip else piece
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _all_used(images: Iterator[str]) -> None:
    if (name := next(images, None)) is not None:
        raise ValueError(f"no {IMAGE_TOKEN} is left for the picture {name}")

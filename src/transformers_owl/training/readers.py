"""Rows of the common file formats, one form out: messages with pictures and videos by path.

A reader takes one row of a file and the folder that its pictures and videos lie in.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..mplug_owl.processing_mplug_owl import SYSTEM_SENTENCE
from ..mplug_owl.tokenization_mplug_owl import IMAGE_TOKEN, VIDEO_TOKEN
from ..mplug_owl.video_processing_mplug_owl import media_type


Messages = list[dict[str, Any]]
NAMES = {"image": "picture", "video": "video"}
VIDEO_PLACEHOLDERS = (VIDEO_TOKEN, "<video>")  # ours and the original's, and that of LLaVA-style files
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant"}


def read_captions(row: dict, folder: Path) -> Messages:
    """`file_name` and `text`: a picture, or a video by the file's suffix, and its caption."""
    kind = "video" if media_type(row["file_name"]).startswith("video/") else "image"
    return caption({"type": kind, "path": str(folder / row["file_name"])}, row["text"])


def read_webvid(row: dict, folder: Path) -> Messages:
    """`videoid` and `name`, its caption: the file is `page_dir`/`videoid`.mp4, the folder if the row has one."""
    file = folder / (row.get("page_dir") or "") / f"{row['videoid']}.mp4"
    return caption({"type": "video", "path": str(file)}, row["name"])


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
    """
    `conversations` as in ShareGPT, `image` and `video` one path or several; `<image>` and `<video>` in a question say
    where. In a row with videos alone `<image>` stands for these.
    """
    visuals = _visuals(row, folder)
    messages = read_sharegpt(row, folder)
    for message in messages:
        if message["role"] == "user":
            message["content"] = _with_visuals(message["content"][0]["text"], visuals, strip="\n ")
    _all_used(visuals)
    return messages


def read_original(row: dict, folder: Path) -> Messages:
    """`text`, a whole conversation as the original wrote it, and `image` and `video`, lists of paths."""
    visuals = _visuals(row, folder)
    system, *parts = re.split(r"\n(Human|AI): ", row["text"].rstrip("\n"))
    messages: Messages = [] if system == SYSTEM_SENTENCE else [{"role": "system", "content": system}]
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        if speaker == "AI":
            messages.append(_assistant(text))
        elif messages and messages[-1]["role"] == "user":
            messages[-1]["content"] += _with_visuals(text, visuals)
        else:
            messages.append({"role": "user", "content": _with_visuals(text, visuals)})
    _all_used(visuals)
    return messages


def read_messages(row: dict, folder: Path) -> Messages:
    """`messages`, the library's chat form; pictures and videos by `path` lie in the folder."""
    messages = []
    for message in row["messages"]:
        content = message["content"]
        if not isinstance(content, str):
            content = [{**part, "path": str(folder / part["path"])} if "path" in part else part for part in content]
        messages.append({"role": message["role"], "content": content})
    return messages


READERS: dict[str, Callable[[dict, Path], Messages]] = {
    "captions": read_captions,
    "webvid": read_webvid,
    "alpaca": read_alpaca,
    "sharegpt": read_sharegpt,
    "baize": read_baize,
    "llava": read_llava,
    "original": read_original,
    "messages": read_messages,
}


def caption(visual: dict[str, Any], text: str) -> Messages:
    """A picture or video without a question, and its caption as the answer."""
    return [{"role": "user", "content": [visual]}, _assistant(text.strip())]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _visuals(row: dict, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The pictures and videos of a row, by the placeholders that stand for them."""
    parts = {}
    for kind in ("image", "video"):
        names = row.get(kind) or []
        names = [names] if isinstance(names, str) else names
        parts[kind] = [{"type": kind, "path": str(folder / name)} for name in names]
    if not parts["video"]:
        return {IMAGE_TOKEN: parts["image"]}
    return {IMAGE_TOKEN: parts["image"] or parts["video"], **dict.fromkeys(VIDEO_PLACEHOLDERS, parts["video"])}


def _with_visuals(text: str, visuals: dict[str, list], strip: str = "") -> list[dict[str, Any]]:
    """Parts of a question: the text between placeholders, and what stands there, which is taken off `visuals`."""
    parts: list[dict[str, Any]] = []
    for piece in re.split(f"({'|'.join(map(re.escape, visuals))})", text):
        if piece in visuals:
            if not visuals[piece]:
                raise ValueError(f"there are more {piece} than pictures and videos for them")
            parts.append(visuals[piece].pop(0))
            continue
        piece = piece.strip(strip) if strip else piece
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _all_used(visuals: dict[str, list]) -> None:
    for placeholder, left in visuals.items():
        if left:
            raise ValueError(f"no {placeholder} is left for the {NAMES[left[0]['type']]} {Path(left[0]['path']).name}")

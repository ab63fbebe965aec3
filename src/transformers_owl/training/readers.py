"""Readers of common file formats, which give one format: messages with images and videos by path or URL.

A reader takes one row of a file, and the folder of its images and videos.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import PIL.Image

from ..mplug_owl.image_processing_mplug_owl import read_image
from ..mplug_owl.processing_mplug_owl import SOURCES, SYSTEM_SENTENCE
from ..mplug_owl.tokenization_mplug_owl import IMAGE_TOKEN, VIDEO_TOKEN
from ..mplug_owl.video_processing_mplug_owl import media_type


Messages = list[dict[str, Any]]
VIDEO_PLACEHOLDERS = (VIDEO_TOKEN, "<video>")  # ours and the original's, and that of LLaVA-style files
SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "system": "system",
}  # fmt: skip
# The fields of a row that hold its images and videos.
FIELDS = {"image": ("image", "images"), "video": ("video", "videos")}
VISUAL_FIELDS = (*FIELDS["image"], *FIELDS["video"])
# The fields that each format reads. What else may hold images or videos must not be passed over in silence.
READ = {
    "captions": ("file_name", "text"),
    "webvid": ("videoid", "name", "page_dir"),
    "alpaca": ("instruction", "input", "output", "system", "history", *VISUAL_FIELDS),
    "sharegpt": ("conversations", "system", *VISUAL_FIELDS),
    "baize": ("input",),
    "llava": ("conversations", "system", *VISUAL_FIELDS),
    "original": ("text", *VISUAL_FIELDS),
    "messages": ("messages", *VISUAL_FIELDS),
}
BREAKS = "\n "  # what stands between a placeholder and words, and is left out
SEEN = re.compile(r"image|img|picture|photo|video|frame|visual|media", re.IGNORECASE)


def read_captions(row: dict, folder: Path) -> Messages:
    """`file_name` and `text`: an image, or a video by its suffix, and its caption."""
    kind = "video" if media_type(row["file_name"]).startswith("video/") else "image"
    return caption({"type": kind, "path": str(folder / row["file_name"])}, row["text"])


def read_webvid(row: dict, folder: Path) -> Messages:
    """`videoid` and `name`, its caption: the file is `page_dir`/`videoid`.mp4 with an optional `page_dir`."""
    file = folder / (row.get("page_dir") or "") / f"{row['videoid']}.mp4"
    return caption({"type": "video", "path": str(file)}, row["name"])


def read_alpaca(row: dict, folder: Path) -> Messages:
    """`instruction`, `input` (may be empty), `output`, and optionally `system`, `history` and `images`."""
    question = row["instruction"] + ("\n" + row["input"] if row.get("input") else "")
    turns = [turn for pair in row.get("history") or [] for turn in zip(("user", "assistant"), pair, strict=True)]
    return _conversation([*turns, ("user", question), ("assistant", row["output"])], row, folder)


def read_sharegpt(row: dict, folder: Path) -> Messages:
    """
    `conversations` of `from` and `value` (Vicuna, ShareGPT), and optionally `system` and `images`. An answer before the
    first question is left out.
    """
    for turn in row["conversations"]:
        check_read(turn, ("from", "value"), "turn")
    turns = [(SPEAKERS.get(turn["from"]), turn["value"]) for turn in row["conversations"]]
    if any(speaker is None for speaker, _ in turns):
        raise ValueError(f"the speakers must be some of {', '.join(SPEAKERS)}")
    first = next((number for number, (speaker, _) in enumerate(turns) if speaker == "user"), len(turns))
    turns = [turn for number, turn in enumerate(turns) if number >= first or turn[0] == "system"]
    return _conversation(turns, row, folder)


def read_baize(row: dict, folder: Path) -> Messages:
    """`input`: one text with [|Human|] or [|AI|] before each turn."""
    parts = re.split(r"\[\|(Human|AI)\|\]", row["input"])[1:]
    turns = [(speaker, text.strip()) for speaker, text in zip(parts[::2], parts[1::2], strict=True)]
    return [_user(text) if speaker == "Human" else _assistant(text) for speaker, text in turns if text]


def read_llava(row: dict, folder: Path) -> Messages:
    """
    `conversations` as in ShareGPT, `image` and `video` with one path or several, at the placeholders `<image>` and
    `<video>` in questions. In a row with only videos `<image>` marks these.
    """
    turns = [
        turn if SPEAKERS.get(turn["from"]) != "user" else {**turn, "value": turn["value"].strip(BREAKS)}
        for turn in row["conversations"]
    ]
    return read_sharegpt({**row, "conversations": turns}, folder)


def read_original(row: dict, folder: Path) -> Messages:
    """`text`, a whole conversation in the original's format, and `image` and `video`, lists of paths."""
    visuals = _visuals(row, folder)
    system, *parts = re.split(r"\n(Human|AI): ", row["text"].rstrip("\n"))
    messages: Messages = [] if system == SYSTEM_SENTENCE else [{"role": "system", "content": system}]
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        if speaker == "AI":
            messages.append(_assistant(text))
            continue
        line = _with_visuals(text, visuals, strip="")
        # The original's ids of a line that holds an image among its words are those of one line.
        line = [line[0], *({**part, "same_line": True} for part in line[1:])] if line else []
        if messages and messages[-1]["role"] == "user":
            messages[-1]["content"] += line
        else:
            messages.append({"role": "user", "content": line})
    _all_used(visuals)
    return messages


def read_messages(row: dict, folder: Path) -> Messages:
    """
    `messages` in the library's chat format, with images and videos by path or URL. Alternatively the row lists them in
    `images` and `videos`, and a part without a source, or a placeholder in a question, marks each position.
    """
    visuals = _visuals(row, folder)
    messages = []
    for message in row["messages"]:
        check_read(message, ("role", "content"), "message")
        content = message["content"]
        if message["role"] == "user":
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            placed = [new for part in parts for new in _placed(part, visuals, folder)]
            content = content if isinstance(content, str) and placed == parts else placed
        messages.append({"role": message["role"], "content": content})
    _all_used(visuals)
    return messages


def _placed(part: dict[str, Any], visuals: dict[str, list], folder: Path) -> list[dict[str, Any]]:
    """Expands a part of a question: text with its images, or an image with its source."""
    kind = {"image_url": "image", "video_url": "video"}.get(part["type"], part["type"])
    if kind == "text":
        check_read(part, ("type", "text"), "part of a message")
        return _with_visuals(part["text"], visuals)
    names = tuple(dict.fromkeys((*SOURCES[kind], f"{kind}_url"))) if kind in SOURCES else ()
    check_read(part, ("type", *names), "part of a message")
    given = [part[name] for name in names if part.get(name) is not None]
    if len(given) > 1:
        raise ValueError(f"a part of type {kind} has {len(given)} sources: give only one")
    if part.get("base64") is not None:
        return [{"type": kind, "base64": part["base64"]}]
    token = {"image": IMAGE_TOKEN, "video": VIDEO_TOKEN}.get(kind)
    return [_visual(kind, given[0], folder)] if given else _with_visuals(token or "", visuals) if token else [part]


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
    """Messages of an image or video without a question, with its caption as the answer."""
    return [{"role": "user", "content": [visual]}, _assistant(text.strip())]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def check_read(row: dict[str, Any], read: Iterable[str], what: str = "row") -> None:
    """
    Raises:
        ValueError: for a field with an image or a video that is not read.
    """
    for name, value in row.items():
        if name not in read and (name in VISUAL_FIELDS or SEEN.search(name)) and _shows(value, name in VISUAL_FIELDS):
            raise ValueError(
                f"the {what} has images or videos in {name!r}, which is not read ({', '.join(read)} are). Map the "
                f"field by `columns`, choose another format, or remove it"
            )


def _shows(value: Any, is_named: bool) -> bool:
    """Whether a value is an image or a video, or the name of one; in fields with such a name, any value is."""
    if isinstance(value, (list, tuple)):
        return any(_shows(each, is_named) for each in value)
    if isinstance(value, dict):
        return any(value.get(name) is not None for name in ("bytes", "path", "url", *SOURCES["image"], "video"))
    if is_named or not isinstance(value, str):
        return is_named and bool(value)
    return value.startswith("data:") or media_type(value).startswith(("image/", "video/"))


def _conversation(turns: list[tuple[Any, str]], row: dict, folder: Path) -> Messages:
    """Messages of turns (role, text), with the images of the row at their placeholders."""
    visuals = _visuals(row, folder)
    if row.get("system"):
        turns = [("system", row["system"]), *turns]
    messages = [
        {"role": role, "content": _with_visuals(text, visuals) if role == "user" else text} for role, text in turns
    ]
    _all_used(visuals)
    return messages


def _visual(kind: str, value: Any, folder: Path) -> dict[str, Any]:
    """The part of an image or a video, by path in the folder, by URL, or with its contents."""
    if isinstance(value, dict):
        given = [value[name] for name in ("bytes", "url", "path") if value.get(name) is not None]
        if not given:
            raise ValueError(f"the {kind} {value!r:.80} has neither bytes, nor url, nor path")
        value = given[0]
    if isinstance(value, str):
        if value[:8].lower().startswith(("http://", "https://")) or value.startswith("data:"):
            return {"type": kind, "url": value}
        if not value.strip() or "\0" in value:
            raise ValueError(f"{value!r:.80} is not a valid path of a {kind} file")
        return {"type": kind, "path": str(folder / value.removeprefix("file://"))}
    if isinstance(value, (bytes, PIL.Image.Image)):
        return {"type": kind, kind: value if kind == "video" or not isinstance(value, bytes) else read_image(value)}
    raise ValueError(f"{value!r:.80} is not a path or URL of the {kind}")


def _visuals(row: dict, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The images and videos of a row, by their placeholders."""
    parts: dict[str, list] = {}
    for kind, names in FIELDS.items():
        given = [row[name] for name in names if row.get(name)]
        if len(given) > 1:
            raise ValueError(f"both {' and '.join(names)} are given: give only one")
        values = given[0] if given else []
        parts[kind] = [
            _visual(kind, value, folder) for value in (values if isinstance(values, (list, tuple)) else [values])
        ]
    if not parts["video"]:
        return {IMAGE_TOKEN: parts["image"], VIDEO_TOKEN: []}
    return {IMAGE_TOKEN: parts["image"] or parts["video"], **dict.fromkeys(VIDEO_PLACEHOLDERS, parts["video"])}


def _with_visuals(text: str, visuals: dict[str, list], strip: str = BREAKS) -> list[dict[str, Any]]:
    """Parts of a question: the text, and at placeholders the images and videos, which are taken from `visuals`."""
    pieces = re.split(f"({'|'.join(map(re.escape, visuals))})", text)
    parts: list[dict[str, Any]] = []
    for piece in pieces:
        if piece in visuals:
            if not visuals[piece]:
                raise ValueError(f"there are more {piece} than images and videos")
            parts.append(visuals[piece].pop(0))
            continue
        piece = piece.strip(strip) if strip and len(pieces) > 1 else piece
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _all_used(visuals: dict[str, list]) -> None:
    for placeholder, left in visuals.items():
        if left:
            source = str(left[0].get("path", left[0].get("url", "given as bytes")))
            raise ValueError(f"there is no {placeholder} for the {left[0]['type']} {source.rpartition('/')[2]:.80}")

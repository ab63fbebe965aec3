"""
The conversation on the page. The page shows exactly what the model reads: both are made from the same turns.

A turn is JSON, since it is sent between page and server: its `role` ("user", "assistant", or "error" for text that the
model does not read), its `text`, for a user's turn its `files` (`{"path": ...}`) and optionally a question to suggest
`next`, and for an answer optionally a `note`. A box is the text box's content: `{"text": ..., "files": [path, ...]}`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


Turn = dict[str, Any]
Box = dict[str, Any]
EMPTY: Box = {"text": "", "files": []}


def is_pending(turns: Sequence[Turn]) -> bool:
    """Whether the last question has no answer yet."""
    return bool(turns) and turns[-1]["role"] == "user"


def send(turns: Sequence[Turn], box: Box) -> tuple[list[Turn], Box]:
    """Moves the question from the box to the conversation; an empty one stays in the box, with an error."""
    kept = [turn for turn in turns if turn["role"] != "error"]
    if not box["text"].strip():
        what = "Write a question about the image." if box["files"] else "Write a question."
        return [*kept, {"role": "error", "text": f"The question is empty. {what}"}], box
    files = [{"path": path} for path in box["files"]]
    more = {"next": box["next"]} if "next" in box else {}
    return [*kept, {"role": "user", "text": box["text"], "files": files, **more}], EMPTY


def settle(turns: Sequence[Turn], written: str, box: Box) -> tuple[list[Turn], Box]:
    """
    The conversation after an answer has ended. A stopped question keeps the `written` part of its answer; without any,
    and after an error, the question goes back to the box.
    """
    kept, after = list(turns), []
    if kept and kept[-1]["role"] == "error":
        after = [kept.pop()]
    if is_pending(kept):
        if written and not after:
            return [*kept, {"role": "assistant", "text": written, "note": "Stopped."}], box
        return [*kept[:-1], *after], _give_back(kept[-1], box)
    if len(kept) > 1 and "next" in kept[-2] and box == EMPTY:
        box = {**EMPTY, "text": kept[-2].pop("next")}
    return [*kept, *after], box


def undo(turns: Sequence[Turn], box: Box) -> tuple[list[Turn], Box]:
    """Removes the last answer, and moves its question back to the box."""
    kept = [turn for turn in turns if turn["role"] != "error"]
    return (kept[:-2], _give_back(kept[-2], box)) if len(kept) > 1 else (kept, box)


def retry(turns: Sequence[Turn], box: Box) -> tuple[list[Turn], Box]:
    """Asks the last question again; after an error it is in the box."""
    if turns and turns[-1]["role"] == "error":
        return send(turns, box)
    return (list(turns[:-1]), box) if turns else ([], box)


def _give_back(question: Turn, box: Box) -> Box:
    """The box with the question put before its present content."""
    text = "\n".join(filter(None, (question["text"], box["text"])))
    return {"text": text, "files": [*(file["path"] for file in question["files"]), *box["files"]]}


def messages(turns: Sequence[Turn], read: Callable[[Path], dict[str, Any]]) -> list[dict[str, Any]]:
    """
    The conversation in the processor's format.

    Args:
        turns (`Sequence[Turn]`): Questions and answers; errors are left out.
        read (`Callable`): Makes a message part from a file.
    """
    made: list[dict[str, Any]] = []
    for turn in turns:
        if turn["role"] == "user":
            seen = [read(Path(file["path"])) for file in turn["files"]]
            made.append({"role": "user", "content": [*seen, {"type": "text", "text": turn["text"]}]})
        elif turn["role"] == "assistant":
            made.append({"role": "assistant", "content": turn["text"]})
    return made


def files(turns: Sequence[Turn]) -> list[Path]:
    """The files of all questions."""
    return [Path(file["path"]) for turn in turns for file in turn.get("files", ())]

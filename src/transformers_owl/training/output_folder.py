"""Files of an output folder: checks of checkpoints, files of earlier runs, and logs cut off by an interruption."""

import json
import logging
from pathlib import Path
from typing import Any

from ..journal import aside


SIZES_FILE = "sizes.json"  # of the files of a checkpoint


def read_json(checkpoint: Path, name: str) -> Any:
    """
    Raises:
        ValueError: for a missing or damaged file of a checkpoint.
    """
    try:
        return json.loads((checkpoint / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{damaged(checkpoint, name)} ({error})") from error


def damaged(checkpoint: Path, what: str) -> str:
    """The message about an unusable checkpoint, which suggests the one before."""
    earlier = [folder for folder in checkpoint.parent.glob("checkpoint-*") if _step(folder) < _step(checkpoint)]
    if earlier:
        hint = f"Remove it to resume from {max(earlier, key=_step).name}"
    else:
        hint = "No earlier one exists: start again with `--resume_from_checkpoint false`"
    return f"The checkpoint {checkpoint} is incomplete: {what} is missing or damaged. {hint}."


def sizes(checkpoint: Path) -> dict[str, int]:
    """Size of each file in bytes, except those that a later start may change."""
    changing = (SIZES_FILE, "trainer_state.json")
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name not in changing)
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}


def check_files(checkpoint: Path) -> None:
    """
    Raises:
        ValueError: for a checkpoint with a missing file, or one of another size than written.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"The checkpoint {checkpoint} does not exist: give OUTPUT_DIR/checkpoint-STEP.")
    if (checkpoint / SIZES_FILE).exists():
        found = sizes(checkpoint)
        for name, size in read_json(checkpoint, SIZES_FILE).items():
            if found.get(name) != size:
                raise ValueError(damaged(checkpoint, name))


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def set_aside(output: Path) -> None:
    """Moves the files of an earlier run to `_earlier-1`, `_earlier-2`, ..., from which no run resumes."""
    # Pushes to the Hub leave out what begins with an underscore.
    left = [path for name in ("checkpoint-*", "skipped-*", "answers.jsonl", "run.json") for path in output.glob(name)]
    if left:
        number = 1 + len(list(output.glob("_earlier-*")))
        folder = output / f"_earlier-{number}"
        folder.mkdir()
        for path in left:
            path.rename(folder / path.name)


def shorten(path: Path, step: int) -> None:
    """Removes rows after an optimizer step, and incomplete lines, from a JSON Lines file."""
    if not path.exists():
        return
    kept, lost = [], 0
    for line in path.read_bytes().split(b"\n"):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError):
            lost += bool(line.strip())
    if lost:
        logging.getLogger(__name__).warning(f"{path}: removed {lost} incomplete lines.")
    with aside(path) as file:
        file.write(b"".join(kept))

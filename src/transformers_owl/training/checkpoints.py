"""Files of an output folder: whole checkpoints, what an earlier run left, and logs that an interruption cut off."""

import json
import logging
from pathlib import Path
from typing import Any


SIZES_FILE = "sizes.json"  # of the files of a checkpoint


def read_json(checkpoint: Path, name: str) -> Any:
    """
    Raises:
        ValueError: for a file of a checkpoint that is missing or damaged.
    """
    try:
        return json.loads((checkpoint / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{damaged(checkpoint, name)} ({error})") from error


def damaged(checkpoint: Path, what: str) -> str:
    """A sentence about a checkpoint that cannot be used, which offers the one before."""
    earlier = [folder for folder in checkpoint.parent.glob("checkpoint-*") if _step(folder) < _step(checkpoint)]
    if earlier:
        hint = f"Remove it, and the run goes on from {max(earlier, key=_step).name}"
    else:
        hint = "There is none before it: begin anew with `--resume_from_checkpoint false`"
    return f"The checkpoint {checkpoint} is not whole: {what} is missing or damaged. {hint}."


def sizes(checkpoint: Path) -> dict[str, int]:
    """Bytes of each file, but for those that a later start may change."""
    changing = (SIZES_FILE, "trainer_state.json")
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name not in changing)
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}


def check_files(checkpoint: Path) -> None:
    """
    Raises:
        ValueError: for a checkpoint with a file that is missing, or not as long as it was written.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"There is no checkpoint {checkpoint}: name a folder `checkpoint-STEP` of an output folder.")
    if (checkpoint / SIZES_FILE).exists():
        found = sizes(checkpoint)
        for name, size in read_json(checkpoint, SIZES_FILE).items():
            if found.get(name) != size:
                raise ValueError(damaged(checkpoint, name))


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def set_aside(output: Path) -> None:
    """Moves what an earlier run left in its folder into `_earlier-1`, `_earlier-2`, ...: no later start takes it up."""
    # Pushes to the Hub leave out what begins with an underscore.
    left = [path for name in ("checkpoint-*", "skipped-*", "answers.jsonl", "run.json") for path in output.glob(name)]
    if left:
        number = 1 + len(list(output.glob("_earlier-*")))
        folder = output / f"_earlier-{number}"
        folder.mkdir()
        for path in left:
            path.rename(folder / path.name)


def shorten(path: Path, step: int) -> None:
    """Removes from a JSON Lines file what was written after an optimizer step, and lines that are not whole."""
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
        logging.getLogger(__name__).warning(f"{path}: {lost} lines that were not written whole are left out.")
    aside = path.with_name(path.name + ".partial")
    aside.write_bytes(b"".join(kept))
    aside.replace(path)

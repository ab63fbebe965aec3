"""The drawings that come with the package, and files that are missing."""

from collections.abc import Sequence
from pathlib import Path


SAMPLES = [
    Path(__file__).with_name("pictures") / f"{name}.png"
    for name in ("castle-and-octopus", "elephant", "helicopters", "number", "sunflower")
]


def samples() -> list[str]:
    """
    The drawings that come with the package.

    Raises:
        FileNotFoundError: if one is missing, with its path.
    """
    missing = [str(path) for path in SAMPLES if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{', '.join(missing)}: missing, though part of transformers_owl. Install it again, or name other images."
        )
    return [str(path) for path in SAMPLES]


def check_files(names: Sequence[str]) -> None:
    """
    Raises:
        FileNotFoundError: for names that are neither URLs nor files, all of them.
    """
    missing = [name for name in names if "://" not in name and not name.startswith("data:") and not Path(name).exists()]
    if missing:
        raise FileNotFoundError(f"No such file: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}")

"""Sample images of the package, and a check for missing files."""

from collections.abc import Sequence
from pathlib import Path


SAMPLES = [
    Path(__file__).with_name("pictures") / f"{name}.png"
    for name in ("castle-and-octopus", "elephant", "helicopters", "number", "sunflower")
]


def samples() -> list[str]:
    """
    Paths of the sample images, relative where they are in the working directory.

    Raises:
        FileNotFoundError: if one is missing, with its path.
    """
    missing = [str(path) for path in SAMPLES if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{', '.join(missing)} of transformers_owl is missing: install the package again, or name other images."
        )
    here = Path.cwd()
    return [str(path.relative_to(here) if path.is_relative_to(here) else path) for path in SAMPLES]


def check_files(names: Sequence[str]) -> None:
    """
    Raises:
        FileNotFoundError: for names that are neither URLs nor files.
    """
    missing = [name for name in names if "://" not in name and not name.startswith("data:") and not Path(name).exists()]
    if missing:
        raise FileNotFoundError(f"No such file: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}")

"""The source files that tests read, and the words in them that have plainer ones."""

import re
from collections.abc import Iterable
from pathlib import Path


ROOT = Path(__file__).parent.parent


def python_files(*folders: str) -> list[Path]:
    """The Python files of some folders, without the copies beside the miniature's weights."""
    copies = ROOT / "src/transformers_owl/miniature"
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if path.parent != copies]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def stumbles(path: Path, lines: Iterable[tuple[int, str]], instead: dict[str, str]) -> list[str]:
    """Words of numbered lines that match a pattern, each with the plainer one."""
    return [
        f"{path.name}:{number}: {match[0]!r}, say {plainer!r}"
        for number, line in lines
        for pattern, plainer in instead.items()
        if (match := re.search(pattern, line))
    ]

"""Pages and help texts use the field's words: each pattern here has a plainer one."""

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "src/transformers_owl_cli").glob("*.py")),
]  # fmt: skip
INSTEAD = {
    r"\bpictures?\b": "image",
    r"\banew\b": "again",
    r"\btold (?:otherwise|by)\b": "by default; logs a warning",
    r"\bis no name of\b": "unknown",
    r"\bof one's own\b": "your own",
    r"\bat hand\b": "here, available",
    r"\bgoes on where\b": "resumes",
    r"\blooks? at (?:images|videos|frames)\b": "encodes, samples",
    r"\bwhat helps\b": "fix",
    r"\bequally many\b": "the same number of",
    r"\bin the mean\b": "on average",
    r"\bare a ValueError\b": "raise a ValueError",
    r"\bbehind (?:`max_length`|the placeholders|its end|the end|the last|it\b|them\b)": "after",
    r"\bof (?:the )?registries\b": "public packages",
    r"\bgoes? on (?:from|at|by)\b": "resumes, continues",
    r"\bgive(?:s)? a hint\b": "logs a warning",
    r"\bstands? in (?:its|a|the) (?:own )?(?:line|page|table)\b": "is on, is in",
}


def prose(page: Path) -> list[tuple[int, str]]:
    """Lines without code, names in backquotes and targets of links."""
    if page.suffix == ".py":
        text = page.read_text(encoding="utf-8")
        return [(0, found) for found in re.findall(r'(?:help=|""")"?([^"]+)"', text)]
    lines, is_code = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        is_code ^= line.lstrip().startswith("```")
        if not is_code:
            lines.append((number, re.sub(r"`[^`]*`|\]\([^)]*\)|\"[^\"]*\"", "", line)))
    return lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_no_word_that_has_a_plainer_one(page):
    found = [
        f"{page.name}:{number}: {match[0]!r}, say {plainer!r}"
        for number, line in prose(page)
        for pattern, plainer in INSTEAD.items()
        if (match := re.search(pattern, line))
    ]
    assert not found, "\n".join(found)

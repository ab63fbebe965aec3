"""Pages and help texts use the field's words: each pattern here has a plainer one."""

import ast
import json
import re
from pathlib import Path

import pytest
from sources import ROOT, name_of, stumbles


PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "model_cards").iterdir()),
    *sorted((ROOT / "research").glob("*/README.md")), *sorted((ROOT / "examples").glob("*/README.md")),
    *sorted((ROOT / "examples").glob("*.ipynb")), *sorted((ROOT / "research/benchmarks").glob("*.py")),
    *sorted((ROOT / "src/transformers_owl_cli").glob("*.py")),
    ROOT / "src/transformers_owl/demo/pictures/README.md",
]  # fmt: skip
INSTEAD = {
    r"(?<!--)\bpictures?\b": "image",
    r"\banew\b": "again",
    r"\btold (?:otherwise|by)\b": "by default; logs a warning",
    r"\bis no name of\b": "unknown",
    r"\bof one's own\b": "your own",
    r"\bin place of\b": "instead of",
    r"\bat hand\b": "here, available",
    r"\bgo(?:es)? on\b": "resumes, continues",
    r"\blooks? at (?:images|videos|frames)\b": "encodes, samples",
    r"\bwhat helps\b": "fix",
    r"\bequally many\b": "the same number of",
    r"\bin the mean\b": "on average",
    r"\b(?:is|are) an? (?:Value)?[Ee]rror\b": "raises an error",
    r"\bbehind (?:`max_length`|the placeholders|its end|the end|the last|it\b|them\b)": "after",
    r"\bof (?:the )?registries\b": "public packages",
    r"\bgive(?:s)? a hint\b": "logs a warning",
    r"\bstands? in (?:its|a|the) (?:own )?(?:line|page|table)\b": "is on, is in",
    r"\b[Dd]ata sets?\b": "dataset",
    r"\b(?:images|rows|questions|requests|MB) an? (?:second|image|row|step|file|ability|million|conversation)\b": "per",
    r"\b(?:libraries|processors|models|parts) of today\b|\btoday's parts\b": "today's, modern",
    r"\bby heart\b": "memorises",
    r"\beyes\b": "vision model",
    r"\b[Ff]rom nothing\b": "from scratch",
    r"\b[Nn]othing but\b": "only",
    r"\b(?:model|models|those) that sees? (?:images|videos|them|it)\b": "vision-language model, video model",
    r"\bmade-up\b": "synthetic",
    r"\bdouble logarithmic\b": "log-log",
    r"\bis no (?:[a-z]+ )?(?:model|address|mPLUG-Owl|image|video|file|number|folder)\b": "is not a",
    r"\b(?:at equal|in as many) steps\b": "for the same number of steps",
    r"\b(?:its|each|other|own) rooms?\b": "package, folder",
    r"\b[Aa] gate\b": "request checks",
    r"\bknows no\b": "does not support",
    r"\b[Ss]ome seconds\b": "a few seconds",
    r"\bstates? wrong\b": "makes mistakes",
    r"\bprocessor seconds\b": "CPU seconds",
    r"\b(?:is|was) broken off\b|\bcut off\b": "truncated",
}


def docstrings_and_help_texts(source: str) -> list[str]:
    nodes = list(ast.walk(ast.parse(source)))
    documented = [node for node in nodes if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    helps = [node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "help"]
    return [
        *(ast.get_docstring(node) or "" for node in documented),
        *(node.value for node in helps if isinstance(node, ast.Constant)),
    ]


def prose(page: Path) -> list[tuple[int, str]]:
    """Lines without code, names in backquotes and targets of links."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".py":
        return [(0, re.sub(r"`[^`]*`", "", found)) for found in docstrings_and_help_texts(text)]
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    lines, is_code = [], False
    for number, line in enumerate(text.splitlines(), start=1):
        is_code ^= line.lstrip().startswith("```")
        if not is_code:
            lines.append((number, re.sub(r"`[^`]*`|\]\([^)]*\)|\"[^\"]*\"", "", line)))
    return lines


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_has_no_word_that_has_a_plainer_one(page):
    found = stumbles(page, prose(page), INSTEAD)
    assert not found, "\n".join(found)

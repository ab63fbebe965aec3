"""One word for one thing: in the messages of errors, in names, in modules and in helpers."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest
from sources import ROOT, name_of, python_files, stumbles


SOURCES = python_files("src", "conversion")
FILES = [*SOURCES, *python_files("research", "tests")]
# What a message says in other words.
INSTEAD = {
    r"\b(?:was|were) (?:expected|asked for)\b": "but must be",
    r"(?<![Tt]here) \b(?:is|are|be) no (?!longer)\w": "is not a",
    r"\bThere (?:is|are) no \w+ [{'\"]": "unknown; does not exist",
    r"\banew\b": "again",
    r"\bgo(?:es)? on\b": "resume, continue",
    r"\bcut off\b": "truncated",
    r"\bin place of\b": "instead of",
    r"\bpictures?\b": "image",
    r"\bnobody\b": "unknown",
    r"\bout of \d": "outside",
}
# What the same base name means in each room: the fence, the package, the entry points.
SHARED = {"__init__", "__main__", "library", "cli"}


def text_of(node: ast.AST) -> str:
    """The text of strings in an expression; what is computed is `{}`."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def messages(path: Path) -> list[tuple[int, str]]:
    """The strings of errors, warnings, checks and help texts of a file, by line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = node.exc if isinstance(node, ast.Raise) else node
        name = getattr(called.func, "attr", getattr(called.func, "id", "")) if isinstance(called, ast.Call) else ""
        if isinstance(node, ast.Raise) or name in ("warning", "warning_once", "warn", "expect", "_refusal", "Option"):
            strings = [text_of(each) for each in ast.walk(called)] if called is not None else []
            found += [(node.lineno, string) for string in strings if " " in string]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_message_has_the_words_of_the_others(path):
    found = stumbles(path, messages(path), INSTEAD)
    assert not found, "\n".join(found)


def names(tree: ast.AST) -> set[str]:
    """All that a file defines, assigns, takes as an argument or passes by name."""
    found = set()
    for node in ast.walk(tree):
        found |= {getattr(node, field) for field in ("name", "id", "arg", "attr") if hasattr(node, field)}
    return {name for name in found if isinstance(name, str)}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_names_say_image(path):
    assert not [name for name in names(ast.parse(path.read_text(encoding="utf-8"))) if "picture" in name.lower()]


def test_no_two_rooms_have_a_module_of_the_same_name():
    rooms = defaultdict(set)
    for path in SOURCES:
        if path.stem not in SHARED and path.is_relative_to(ROOT / "src"):
            rooms[path.stem].add(path.parent.name)
    assert not {name: folders for name, folders in rooms.items() if len(folders) > 1}


def test_a_helper_is_written_once():
    """Functions of three statements and more have a body of their own, whatever their names."""
    bodies = defaultdict(set)
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if sum(isinstance(each, ast.stmt) for part in body for each in ast.walk(part)) >= 3:
                    bodies["\n".join(map(ast.unparse, body))].add(f"{path.relative_to(ROOT)}: {node.name}")
    assert not [places for places in bodies.values() if len(places) > 1]


@pytest.mark.parametrize("name", ["check_names", "expect", "choose_device", "aside", "partial_of", "ABILITIES"])
def test_there_is_one_of_each(name):
    places = [
        path
        for path in SOURCES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if (isinstance(node, ast.FunctionDef) and node.name.lstrip("_") == name)
        or (isinstance(node, ast.Assign) and name in [getattr(target, "id", "") for target in node.targets])
    ]
    assert len(places) == 1, places

"""Docstrings name the arguments that there are."""

import ast
import re

import pytest
from sources import name_of, python_files


FILES = python_files("src/transformers_owl", "research")
NAMED = re.compile(r"^    (\w+(?:, \w+)*)(?: \(|: )", re.MULTILINE)


def arguments(node: ast.FunctionDef) -> set[str]:
    return {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}


def allowed(node: ast.FunctionDef | ast.ClassDef) -> set[str] | None:
    """Arguments that a docstring may name; `None` where they are not all written there."""
    if isinstance(node, ast.FunctionDef):
        return None if node.args.kwarg else arguments(node)
    made = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
    if made is not None:
        return None if made.args.kwarg else arguments(made)
    is_plain = not node.bases and any("dataclass" in ast.unparse(each) for each in node.decorator_list)
    return {each.target.id for each in node.body if isinstance(each, ast.AnnAssign)} if is_plain else None


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_documented_arguments_exist(path):
    strange = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or (known := allowed(node)) is None:
            continue
        _, _, rest = (ast.get_docstring(node) or "").partition("Args:\n")
        block = re.match(r"(?:    .*\n?|\n)*", rest)[0]
        named = [name for found in NAMED.findall(block) for name in found.split(", ")]
        strange += [f"{node.name}: {name}" for name in named if name not in known]
    assert not strange

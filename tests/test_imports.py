"""Imports run downward only, the Hub folder stands alone, and no function is longer than a screen and a half."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import transformers_owl


PACKAGE = Path(transformers_owl.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if not path.is_symlink())
SCRIPTS = sorted((Path(__file__).parent.parent / "conversion").glob("*.py"))
HUB_FILES = sorted((PACKAGE / "mplug_owl").glob("*.py"))
# What a Hub file may import: the standard library, transformers and what transformers itself needs, siblings, and PyAV
# where a video file is opened.
HUB_IMPORTS = {
    "av", "base64", "bisect", "collections", "contextlib", "copy", "dataclasses", "difflib", "functools", "http",
    "inspect", "io", "ipaddress", "json", "math", "mimetypes", "os", "socket", "ssl", "string", "struct", "time",
    "typing", "urllib", "zlib", "PIL", "huggingface_hub", "jinja2", "numpy", "tokenizers", "torch", "transformers",
}  # fmt: skip
# A room may import those below it.
ROOMS = ["mplug_owl", "fresh", "serving", "inference", "evaluation", "training", "demo", "cli"]


def imports(path: Path) -> list[tuple[int, str]]:
    """`(level, module)` of every import; level 0 is absolute."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.name)
def test_hub_files_import_siblings_flat_and_nothing_else(path):
    siblings = {file.stem for file in HUB_FILES}
    for level, module in imports(path):
        assert level in (0, 1), module
        if level == 1:
            assert module in siblings
        else:
            assert module.partition(".")[0] in HUB_IMPORTS


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", [file for file in FILES if room(file) in ROOMS], ids=lambda path: path.name)
def test_imports_run_downward(path):
    depth = len(path.relative_to(PACKAGE).parts)
    for level, module in imports(path):
        target = module.removeprefix("transformers_owl.") if module.startswith("transformers_owl.") else module
        if level == depth or module.startswith("transformers_owl."):
            below = target.partition(".")[0]
            if below in ROOMS and below != room(path):
                assert ROOMS.index(below) < ROOMS.index(room(path)), f"{path} imports {module}"


@pytest.mark.parametrize("script", ["convert_original_to_hf", "build_from_pretrained", "export_to_original"])
def test_scripts_for_little_memory_leave_out_what_training_needs(script):
    """The Trainer and `datasets` alone take a gigabyte of address space."""
    code = f"import sys, {script}; print({{'transformers.trainer', 'datasets', 'peft'}} & set(sys.modules))"
    run = [sys.executable, "-c", code]
    assert subprocess.check_output(run, cwd=SCRIPTS[0].parent, text=True) == "set()\n"


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_function_is_longer_than_75_lines(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 75, node.name

"""Imports run downward only, the Hub folder stands alone, help needs no torch, no function exceeds 75 lines."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import transformers_owl
import transformers_owl_cli.commands


PACKAGE = Path(transformers_owl.__file__).parent
COMMAND = Path(transformers_owl_cli.__file__).parent
COMMANDS = sorted(typer.main.get_command(transformers_owl_cli.commands.app).commands)
FILES = sorted(
    path for folder in (PACKAGE, COMMAND) for path in folder.rglob("*.py") if path.parent.name != "miniature"
)
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
ROOMS = ["mplug_owl", "fresh", "serving", "inference", "conversion", "evaluation", "training", "demo", "cli"]


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
    """The room of a file; the package of the command is above all."""
    if path.is_relative_to(COMMAND) or path.name == "__main__.py":
        return "cli"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", [file for file in FILES if room(file) in ROOMS], ids=lambda path: path.name)
def test_imports_run_downward(path):
    above = COMMAND.parent if room(path) == "cli" else PACKAGE
    depth = len(path.relative_to(above).parts)
    for level, module in imports(path):
        target = module.removeprefix("transformers_owl.") if module.startswith("transformers_owl.") else module
        if module.startswith("transformers_owl_cli"):
            assert room(path) == "cli", f"{path} imports {module}"
        if level == depth or module.startswith("transformers_owl."):
            below = target.partition(".")[0]
            if below in ROOMS and below != room(path):
                assert ROOMS.index(below) < ROOMS.index(room(path)), f"{path} imports {module}"


@pytest.mark.parametrize("name", ["convert", "build", "export"])
def test_commands_for_little_memory_leave_out_what_training_needs(name):
    """The Trainer and `datasets` alone take a gigabyte of address space."""
    code = (
        f"import sys, transformers_owl.conversion.{name}; "
        "print({'transformers.trainer', 'datasets', 'peft'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_help_and_a_mistyped_name_import_neither_torch_nor_transformers():
    asked = [[name, "--help"] for name in COMMANDS] + [["--help"], [], ["captoin"]]
    code = f"""
import sys
from transformers_owl_cli.commands import app
for words in {asked}:
    try:
        app(words, prog_name="transformers-owl")
    except SystemExit:
        print(words, {{"torch", "transformers", "transformers_owl"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for words in asked:
        assert f"{words} set()\n" in done.stdout
        assert words == ["captoin"] or f"Usage: {' '.join(['transformers-owl', *words[:-1]])} " in done.stdout
    assert "No such command 'captoin'. Did you mean 'caption'?" in done.stderr


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_function_is_longer_than_75_lines(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 75, node.name

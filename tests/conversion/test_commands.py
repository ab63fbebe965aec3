"""The pages' commands are understood; a script is a command, and both have the arguments of the library's function."""

import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest
import typer

from transformers_owl.conversion.quantize import METHODS
from transformers_owl_cli import conversion
from transformers_owl_cli.commands import app


ROOT = Path(__file__).parent.parent.parent
SCRIPTS = {path.name: path.read_text() for path in (ROOT / "conversion").glob("*.py")}
PAGES = {page: (ROOT / page).read_text() for page in ("README.md", "docs/conversion.md")} | SCRIPTS
NAMES = ("convert", "verify", "build", "merge", "quantize", "export", "push")


def lines(pattern: str) -> list[list[str]]:
    texts = (page.replace("\\\\\n", "").replace("\\\n", "") for page in PAGES.values())
    return [shlex.split(line) for text in texts for line in re.findall(rf"^{pattern} .*$", text, re.MULTILINE)]


def command(script: str):
    """What a script runs."""
    return getattr(conversion, re.search(r"^    run\((\w+)\)$", SCRIPTS[script], re.MULTILINE)[1])


@pytest.mark.parametrize("words", lines(r"python conversion/\w+\.py"), ids=" ".join)
def test_a_script_understands_what_the_pages_say(words):
    script = Path(words[1]).name
    alone = typer.Typer()
    alone.command()(command(script))
    assert typer.main.get_command(alone).make_context(script, words[2:]).params


@pytest.mark.parametrize("words", lines(f"transformers-owl (?:{'|'.join(NAMES)})"), ids=" ".join)
def test_a_command_understands_what_the_pages_say(words):
    group = typer.main.get_command(app)
    assert group.commands[words[1]].make_context(words[1], words[2:]).params


def test_every_command_and_script_is_named_and_every_named_script_exists():
    page = PAGES["docs/conversion.md"]
    assert {words[1] for words in lines("transformers-owl") if words[1] in NAMES} == set(NAMES)
    assert set(re.findall(r"(?:`| conversion/)(\w+\.py)\b", page)) - {"SCRIPT.py"} == SCRIPTS.keys()
    assert {command(script).__name__ for script in SCRIPTS} == {*NAMES, "card"}


@pytest.mark.parametrize("name", ["convert", "build", "merge", "quantize", "export", "push"])
def test_a_command_has_the_arguments_of_its_function_with_the_same_defaults(name):
    function = getattr(importlib.import_module(f"transformers_owl.conversion.{name}"), name)
    of_the_library = inspect.signature(function).parameters
    of_the_command = inspect.signature(getattr(conversion, name)).parameters
    more = {"push_to_hub", "private", "create_pr"} if name == "convert" else set()
    assert of_the_command.keys() - more == of_the_library.keys()
    for argument, parameter in of_the_library.items():
        assert str(parameter.default).removeprefix("torch.") == str(of_the_command[argument].default)


def test_the_help_of_quantize_names_all_methods():
    text = inspect.signature(conversion.quantize).parameters["method"].annotation.__metadata__[0].help
    assert text == f"One of {', '.join(METHODS)}."

"""The commands that the pages and the scripts' first lines name are understood by the scripts."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer


ROOT = Path(__file__).parent.parent.parent
PAGES = ["README.md", "docs/conversion.md", *(f"conversion/{path.name}" for path in (ROOT / "conversion").glob("*.py"))]


def commands(page: str) -> list[str]:
    text = (ROOT / page).read_text().replace("\\\\\n", "").replace("\\\n", "")
    return re.findall(r"^python conversion/\w+\.py .*$", text, re.MULTILINE)


@pytest.mark.parametrize(("page", "command"), [(page, command) for page in PAGES for command in commands(page)])
def test_a_command_is_understood(page, command):
    _, script, *arguments = shlex.split(command)
    app = typer.Typer()
    app.command()(importlib.import_module(Path(script).stem).main)
    assert typer.main.get_command(app).make_context(script, arguments).params


def test_every_script_is_named_and_every_named_script_exists():
    page = (ROOT / "docs/conversion.md").read_text()
    scripts = {path.name for path in (ROOT / "conversion").glob("*.py")} - {"checkpoints.py", "command.py"}
    assert set(re.findall(r"\b\w+\.py\b", page)) - {"conversion.py", "quantised.py", "SCRIPT.py"} == scripts

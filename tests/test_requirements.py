"""What is imported is declared."""

import ast
import re
import sys
import tomllib
from pathlib import Path


ROOT = Path(__file__).parent.parent
OURS = {path.name for path in (ROOT / "src").iterdir()}
HOSTS = {"lmms_eval", "vllm"}  # find us by an entry point, and import us
PACKAGES = {"markdown_it": "markdown-it-py", "PIL": "pillow", "yaml": "pyyaml"}  # of another name than their modules


def imported() -> set[str]:
    """Top-level modules that our code imports, anywhere in its files."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.partition(".")[0])
    return found - OURS - HOSTS - set(sys.stdlib_module_names)


def normalized(name: str) -> str:
    return name.lower().replace("_", "-")


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = sum(project["optional-dependencies"].values(), project["dependencies"])
    declared = {normalized(re.match(r"[\w.-]+", requirement).group()) for requirement in requirements}
    wanted = {normalized(PACKAGES.get(module, module)) for module in imported()}
    assert wanted - declared == set()
    assert {"torch", "pillow", "av"} <= wanted  # neither modules nor files are passed over


def test_a_test_that_is_skipped_without_a_package_runs_somewhere():
    """A command of the Makefile installs the package, or CONTRIBUTING.md says that it is up to the reader."""
    file = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, developers = file["project"], file["dependency-groups"]["dev"]
    installed = sum(project["optional-dependencies"].values(), [*project["dependencies"], *developers])
    for name in ("Makefile", "CONTRIBUTING.md"):
        installed += (ROOT / name).read_text(encoding="utf-8").replace("`", " ").replace('"', " ").split()
    known = {normalized(found.group()) for each in installed if (found := re.match(r"[\w.-]*\w", each))}
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    asked = {normalized(module) for module in re.findall(r'importorskip\("(?!transformers_owl)(\w+)', text)}
    assert asked - known == set()
    assert {"gradio", "hatchling", "vllm"} <= asked

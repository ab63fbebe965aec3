"""A resolver finds one set of versions for this package and for each neighbour in the README's table."""

import re
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = re.search(r'^echo "NAME>=RELEASE" \| (uv pip compile .+)$', README, re.MULTILINE)[1]
# Name, release, extras of ours, transformers chosen.
ROWS = re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \| ([^|]+) \| ([\d.]+) \|$", README, re.MULTILINE)


def release(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def test_the_table_is_read():
    assert len(ROWS) == 10


@pytest.mark.slow
@pytest.mark.parametrize(("name", "version", "extras", "transformers"), ROWS, ids=lambda value: value)
def test_versions_suit_both(name, version, extras, transformers):
    from uv import find_uv_bin

    command = [find_uv_bin(), *COMMAND.split()[1:]]
    if extras == "none":
        command.remove("--all-extras")
    asked = f"{name}>={version}\n"
    run = subprocess.run(command, cwd=ROOT, input=asked, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    chosen = dict(re.findall(r"^([\w-]+)==([\d.]+)", run.stdout, re.MULTILINE))
    assert release(chosen[name]) >= release(version)
    assert release(chosen["transformers"]) >= release(transformers)

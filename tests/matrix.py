"""Tests agreement with the original in an environment for each row of a table of versions.

python tests/matrix.py [ROW ...]    all rows where none is named

What a row leaves open is the newest; torch is what the variable TORCH says. Rows with a torch or a Python of their own
run where `UV_TORCH_BACKEND=cpu` lets uv fetch torch's builds for CPUs, which are far smaller than those of PyPI.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from uv import find_uv_bin


ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".venv-matrix"
TESTS = (
    "tests/test_parity.py",
    "tests/test_auto_classes.py",
    "tests/test_batches.py",
    "tests/test_contracts.py",
    "tests/test_generation_options.py",
    "tests/mplug_owl/test_adapters.py",
    "tests/mplug_owl/test_image_processing_mplug_owl.py",
    "tests/mplug_owl/test_processing_mplug_owl.py",
)
TOOLS = ("hypothesis", "pytest", "pytest-xdist")
PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "-n", "auto", "--maxprocesses", "4", "--dist", "loadfile")


@dataclass
class Row:
    """`options` are uv's; no `python` is the one at work."""

    requirements: str = ""
    options: str = ""
    torch: str = ""
    python: str = ""


ROWS = {
    "oldest": Row(options="--resolution lowest-direct"),
    "between": Row("transformers==5.22.* huggingface_hub==1.* pillow==12.* sentencepiece==0.2.1 protobuf==6.*"),
    "newest": Row(),
    "prerelease": Row(options="--prerelease allow"),
    **{f"transformers-5.{minor}": Row(f"transformers==5.{minor}.*") for minor in range(16, 25)},
    "pillow-10.1": Row("pillow==10.1.*"),
    "pillow-12.3": Row("pillow==12.3.*"),
    "protobuf-3.20": Row("sentencepiece==0.2.0 protobuf==3.20.*"),
    "protobuf-5": Row("sentencepiece==0.2.1 protobuf==5.*"),
    "protobuf-6": Row("sentencepiece==0.2.2 protobuf==6.*"),
    "axolotl-0.19": Row("transformers==5.16.1 huggingface_hub==1.17.0 accelerate==1.13.0 peft==0.20.0 datasets==4.8.4"),
    "axolotl-0.21": Row("transformers==5.20.1 accelerate==1.15.0 peft==0.21.2 datasets==5.0.1 typer==0.25.1"),
    "unsloth": Row("transformers==5.17.0 datasets==4.8.5"),
    "torch-2.6": Row(torch="torch==2.6.*"),
    **{f"python-3.{minor}": Row(python=f"3.{minor}") for minor in (12, 13, 14)},
}


def find_links() -> str:
    """Where pip is told to look for wheels beside an index; uv does not read pip's settings."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def run(row: Row, folder: Path, log) -> bool:
    """Whether the row's environment could be made and its tests passed."""
    uv, python = find_uv_bin(), str(folder / "bin/python")
    install = [uv, "pip", "install", "--python", python]
    commands = [
        [uv, "venv", "--clear", "--python", row.python or sys.executable, str(folder)],
        [*install, row.torch or os.environ.get("TORCH", "torch"), *TOOLS],
        [*install, *row.options.split(), "-e", f"{ROOT}[train,video]", *row.requirements.split()],
        [uv, "pip", "list", "--python", python],
        [python, *PYTEST, *TESTS],
    ]
    env = {"UV_FIND_LINKS": find_links(), **os.environ}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # a new environment's modules would be compiled in every process
    return all(
        subprocess.run(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT).returncode == 0
        for command in commands
    )


def main(*names: str) -> int:
    if unknown := [name for name in names if name not in ROWS]:
        sys.exit(f"No such row: {', '.join(unknown)}. Rows are {', '.join(ROWS)}.")
    failed = []
    FOLDER.mkdir(exist_ok=True)
    for name in names or ROWS:
        row, path, begin = ROWS[name], FOLDER / f"{name}.log", time.monotonic()
        if (row.torch or row.python) and not names and "UV_TORCH_BACKEND" not in os.environ:
            print(f"{name:<20} left out: needs UV_TORCH_BACKEND=cpu", flush=True)
            continue
        with path.open("w") as log:
            passed = run(row, FOLDER / name, log)
        print(f"{name:<20} {'pass' if passed else 'FAIL'} {time.monotonic() - begin:6.0f} s", flush=True)
        if not passed:
            failed.append(name)
            print("\n".join(path.read_text().splitlines()[-40:]), f"all of it: {path}", sep="\n", flush=True)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

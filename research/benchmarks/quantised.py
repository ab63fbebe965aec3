"""How quantisation changes answers: the miniature and its quantised copies on the miniature's own test, on CPU.

python research/benchmarks/quantised.py [--model FOLDER] [--questions 200] [--json FILE]

A row gives the bytes of the weights, the share of right answers over all abilities, and the shares of answers that
became wrong and that became right. `pip install -e ".[miniature,quantize]"` installs the requirements.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import write_rows


ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))
from research.miniature.scenes import world  # noqa: E402
from research.miniature.score import ASKED, SPLITS, Answerer, marks, questions  # noqa: E402
from transformers_owl import MINIATURE  # noqa: E402
from transformers_owl.conversion.quantize import METHODS  # noqa: E402


def answers(folder: str, asked: dict[str, list]) -> dict[str, np.ndarray]:
    answerer = Answerer(folder, dtype="auto")
    return {ability: marks(answerer, found) for ability, found in asked.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MINIATURE)
    parser.add_argument("--questions", type=int, default=200, help="questions per ability")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    here = world(*SPLITS["seen styles"])
    asked = {ability: list(questions(here, ability, arguments.questions)) for ability in ASKED}
    whole = answers(arguments.model, asked)
    rows, script = [], ROOT / "conversion/quantize.py"
    print(f"{'':20}{'MB':>8}{'right':>8}{'lost':>8}{'won':>8}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for method in ("", *METHODS):
            folder = arguments.model
            if method:
                folder = str(Path(scratch, method))
                words = ["--checkpoint", arguments.model, "--method", method, "--output", folder]
                subprocess.run([sys.executable, script, *words], check=True, capture_output=True)
            found = answers(folder, asked) if method else whole
            before, after = (np.concatenate(list(side.values())) for side in (whole, found))
            row = {
                "method": method or "as it is",
                "bytes": sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")),
                "right": after.mean(),
                "lost": (before > after).mean(),
                "won": (after > before).mean(),
                "abilities": {ability: marks.mean() for ability, marks in found.items()},
            }
            shares = "".join(f"{row[name]:8.1%}" for name in ("right", "lost", "won"))
            print(f"{row['method']:20}{row['bytes'] / 1e6:8.1f}{shares}", flush=True)
            rows.append(row)
    write_rows(arguments.json, rows)


if __name__ == "__main__":
    main()

"""Runs the main benchmarks, which measure in pairs.

python research/benchmarks/run.py [--full] [--output build/benchmarks]

Prints each table when it is ready, and writes `results.json` and a plot, `results.png`, to the folder. The short run
takes a few minutes on two cores. The full one takes an hour or more, and 45 GB of disk for the conversion of a
checkpoint at full size.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure


HERE = Path(__file__).parent
# The scripts of each run, and what they are given.
SHORT = {
    "inference": ["inference.py", "--pairs", "1", "--batch", "1", "--images", "1", "--dtype", "float32"],
    "video": ["video.py", "--pairs", "1", "--batch", "1", "--dtype", "float32"],
    "training": ["training.py", "--pairs", "1"],
    "packing": ["packing.py", "--pairs", "1"],
    "start": ["start.py", "--pairs", "3"],
}
INFERENCE = ["inference.py", "--pairs", "3"]
BRIEFLY = ["--row-seconds", "30"]
FASTER = [*INFERENCE, "--images", "1", "--batch", "1", "8"]
FULL = {
    "inference": [*INFERENCE, *BRIEFLY, "--images", "1"],
    "inference, 4 images": [*INFERENCE, *BRIEFLY, "--images", "4", "--batch", "1"],
    "inference, Q-Formers": [*INFERENCE, *BRIEFLY, "--batch", "1", "8", "--beside", "blip2", "instructblip"],
    "inference, oneDNN": [*FASTER, "--dtype", "float32", "--by", "onednn"],
    "inference, compiled": [*FASTER, "--by", "compiled"],
    "video": ["video.py", "--pairs", "3", *BRIEFLY, "--batch", "1"],
    "training": ["training.py", "--pairs", "3"],
    "packing": ["packing.py", "--pairs", "3"],
    "start": ["start.py", "--pairs", "3"],
    "conversion": ["conversion.py", "--folder", "build/bench", "--form", "shards", "--pairs", "1"],
}


def plot(rows: list[dict], file: Path) -> None:
    """The ratios: left of the line we are faster."""
    figure = Figure((9, 1 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    labels = ["{name}, batch {batch}, {images} images, {dtype} / {beside}".format(**row) for row in rows]
    places = range(len(rows))
    axes.barh(
        places, [row["ratio"] for row in rows], color=["#0072B2" if row["ratio"] <= 1 else "#E69F00" for row in rows]
    )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(
        yticks=places,
        yticklabels=labels,
        xlabel="time, ours / other (below 1: ours is faster)",
        ylim=(len(rows) - 0.5, -0.5),
    )
    axes.tick_params(axis="y", labelsize="x-small")
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, (script, *options) in (FULL if arguments.full else SHORT).items():
        file = arguments.output / f"{name}.json"
        print(f"\n{script} {' '.join(options)}", flush=True)
        subprocess.run([sys.executable, HERE / script, *options, "--json", file], check=True)
        results[name] = json.loads(file.read_text())
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    plot([row for result in results.values() for row in result["rows"]], arguments.output / "results.png")


if __name__ == "__main__":
    main()

"""Puts a finished miniature into the package, with its results in the card.

python -m research.miniature.ship

It needs what `miniature/make.py` and `miniature/score.py` leave in build/miniature. The code of the repository is not
copied: a wheel takes the package's own (hatch_build.py).
"""

import json
import shutil

import typer

from transformers_owl.conversion.card import render

from .drawings import STYLES
from .make import HERE, made
from .packages import PACKAGES


PACKAGE = HERE.parents[1] / "src/transformers_owl"
NAME = "miniature-owl"


def results(scores: dict) -> str:
    """A table of the share of right answers, in per cent: 95 % intervals and a control for the first split."""
    splits = scores["splits"]
    first, *others = splits
    rows = [
        f"Exact answers in per cent, {scores['questions']} questions per ability, by `{scores['command']}`.",
        "The control asks the same questions with the images of other questions; for clips, with shuffled frames.",
        "",
        "| | " + " | ".join([first, "95 % interval", "control", *others]) + " |",
        "|---|" + "---|" * (3 + len(others)),
    ]
    for ability, row in splits[first].items():
        found = [f"{100 * splits[split][ability]['right']:.1f}" for split in others]
        interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        control = "" if ability == "text only" else f"{100 * row['control']:.1f}"
        rows.append(f"| {ability} | " + " | ".join([f"{100 * row['right']:.1f}", interval, control, *found]) + " |")
    return "\n".join(rows)


def credits() -> str:
    """Whose drawings it was trained on."""
    used = (PACKAGES[style] for style in STYLES)
    return "\n".join(f"- {package.credit}: {package.licence} ({package.name})" for package in used)


def main() -> None:
    """Replace the package's miniature by the one in build/miniature."""
    scores = json.loads(made("score.json").read_text())
    target = PACKAGE / "miniature"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for file in sorted(made(NAME).iterdir()):
        if file.suffix != ".py" and file.name != "README.md":
            shutil.copyfile(file, target / file.name)
    card = render(NAME, f"OWNER/{NAME}", results=results(scores), credits=credits())
    (target / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

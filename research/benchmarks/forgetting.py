"""How much the miniature forgets when it learns new names in stage 2, on CPU.

python research/benchmarks/forgetting.py [--seeds 3] [--steps 80] [--json FILE]

The new questions ask, on new scenes, for the names of the eleven things that no training image of the miniature showed.
The old questions cover its abilities with and without images. "Kept" is the share of its right answers to old questions
that stay right. Old rows are mixed in as a group with a weight. "0.5 of the change" means weights half-way from before
to after, for LoRA and abstractor. "Mean of the checkpoints" averages the checkpoints of every twenty steps. Each row
gives the mean over the seeds, and the lowest and highest. With `--json`, the same command resumes an interrupted run.
`pip install -e ".[miniature]"` installs the requirements; the drawings come from the npm registry.
"""

import argparse
import itertools
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForImageTextToText


ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))
from research.miniature.data import messages, png, write_rows  # noqa: E402
from research.miniature.scenes import Scene, World, draw, world  # noqa: E402
from research.miniature.score import SINGLE, Answerer, Question, marks, questions  # noqa: E402
from research.miniature.talk import Exchange, about_pair, dialogue, text_only  # noqa: E402
from transformers_owl import MINIATURE  # noqa: E402
from transformers_owl.training.train import train  # noqa: E402


NEW, OLD = "name", (*SINGLE, "two pictures", "text only")
NEW_ROWS, OLD_ROWS = 240, 400
NEW_QUESTIONS, OLD_QUESTIONS = 96, 10  # of these for each ability
REHEARSED = (0, 10, 25, 50)  # old rows, per cent
SCALES = (0.75, 0.5, 0.25)  # of the change; the last for new rows alone
BATCH, EVERY, TURNS = 10, 20, 2
TRAINED = 41  # the first number of a seed: no scene is shared with the miniature's training and score

State = dict[str, torch.Tensor]


def write_data(folder: Path, new: World, old: World, seed: int) -> None:
    """`new.jsonl`, `old.jsonl` and their images."""
    folder.mkdir()
    asked = list(questions(new, NEW, NEW_ROWS, TRAINED + seed))
    write_group(folder, "new", [(question.images, [question.exchange]) for question in asked])
    numbers = (np.random.default_rng([TRAINED, number, seed]) for number in range(OLD_ROWS))
    drawn = [conversation(old, random) for random in numbers]
    shown = [([draw(scene, old.drawings) for scene in scenes], exchanges) for scenes, exchanges in drawn]
    write_group(folder, "old", shown)


def conversation(here: World, random: np.random.Generator) -> tuple[list[Scene], list[Exchange]]:
    """As in stage 2 of the miniature: a quarter without an image, one in eight about two of them."""
    kind = random.integers(8)
    if kind < 2:
        return [], text_only(random)[:3]
    if kind == 2:
        scenes, found = about_pair(here, random)
        return scenes, [found[place] for place in random.permutation(len(found))[:3]]
    scene = here.scene(random)
    return [scene], dialogue(scene, random, TURNS)


def write_group(folder: Path, name: str, rows: list[tuple[list, list[Exchange]]]) -> None:
    def written() -> Iterator[dict]:
        for number, (images, exchanges) in enumerate(rows):
            names = [f"{name}-{number}-{place}.png" for place in range(len(images))]
            for file, image in zip(names, images, strict=True):
                (folder / file).write_bytes(png(image))
            yield messages(names, exchanges)

    write_rows(folder / f"{name}.jsonl", written())


def recipe(data: Path, output: Path, rehearsed: int, steps: int, seed: int) -> dict[str, Any]:
    """Stage 2 with so many per cent of old rows in every step."""
    weights = {"new": 100 - rehearsed, "old": rehearsed}
    return {
        "base": str(ROOT / "configs/instruct.yaml"),
        "model": MINIATURE,
        "data": {
            name: {"weight": weight, "sources": [{"format": "messages", "path": str(data / f"{name}.jsonl")}]}
            for name, weight in weights.items()
            if weight
        },
        "output_dir": str(output),
        "max_steps": steps,
        "learning_rate": 1e-3,
        "warmup_steps": steps // 10,
        "global_batch_size": BATCH,
        "per_device_train_batch_size": BATCH,
        "crop": [1, 1],
        "seed": seed,
        "save_steps": EVERY,
        "save_total_limit": max(1, steps // EVERY),
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "disable_tqdm": True,
    }


def tune(values: dict[str, Any]) -> Path:
    """The folder of the adapter."""
    output = Path(values["output_dir"])
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(values))
    train(file, [])
    return output


def merged(adapter: Path) -> State:
    """All weights with an adapter in them."""
    base = AutoModelForImageTextToText.from_pretrained(MINIATURE, dtype=torch.float32)
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().state_dict()


def mixed(states: list[State], shares: list[float]) -> State:
    """The weighted sum of weights."""
    return {name: sum(share * state[name] for share, state in zip(shares, states, strict=True)) for name in states[0]}


def ways(folder: Path, before: State, rehearsed: int, steps: int, seed: int) -> dict[str, State]:
    """The weights after a run, and what can be made of them and of its checkpoints."""
    name = f"{rehearsed} % old rows" if rehearsed else "new rows alone"
    output = tune(recipe(folder / "data", folder / f"old-{rehearsed}", rehearsed, steps, seed))
    after = merged(output)
    found = {name: after}
    for scale in SCALES[: 2 if rehearsed else None]:
        found[f"{name}, {scale} of the change"] = mixed([before, after], [1 - scale, scale])
    if not rehearsed:
        checkpoints = [merged(path) for path in sorted(output.glob("checkpoint-*"))]
        found[f"{name}, mean of the checkpoints"] = mixed(checkpoints, [1 / len(checkpoints)] * len(checkpoints))
    return found


def answers(answerer: Answerer, weights: State, asked: dict[str, list[Question]]) -> dict[str, np.ndarray]:
    answerer.model.load_state_dict(weights)
    return {ability: marks(answerer, found) for ability, found in asked.items()}


def kept(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> float:
    """The share of the right answers that are still right."""
    first, second = (np.concatenate(list(side.values())) for side in (before, after))
    return float(second[first == 1].mean())


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds, in per cent, with the lowest and highest."""
    lines = [f"{'':42}{'old kept':>18}{'new learned':>18}"]
    for way in dict.fromkeys(row["way"] for row in rows):
        cells = []
        for name in ("kept", "learned"):
            found = 100 * np.array([row[name] for row in rows if row["way"] == way])
            cells.append(f"{f'{found.mean():.0f} ({found.min():.0f} to {found.max():.0f})':>18}")
        lines.append(f"{way:42}{''.join(cells)}")
    return "\n".join(lines)


class Asked:
    """The questions, and what was right before."""

    def __init__(self, new: World, old: World):
        self.old = {ability: list(questions(old, ability, OLD_QUESTIONS)) for ability in OLD}
        self.new = {NEW: list(questions(new, NEW, NEW_QUESTIONS))}
        self.answerer = Answerer(MINIATURE)
        self.start = {name: weight.clone() for name, weight in self.answerer.model.state_dict().items()}
        self.before = answers(self.answerer, self.start, self.old)
        known = answers(self.answerer, self.start, self.new)[NEW].mean()
        right = sum(int(found.sum()) for found in self.before.values())
        print(f"before: {right} of {len(OLD) * OLD_QUESTIONS} old answers right, {known:.0%} of the new", flush=True)

    def row(self, weights: State) -> dict[str, Any]:
        after = answers(self.answerer, weights, self.old)
        return {
            "kept": kept(self.before, after),
            "learned": float(answers(self.answerer, weights, self.new)[NEW].mean()),
            "right": {name: float(found.mean()) for name, found in after.items()},
        }


def measure(asked: Asked, new: World, old: World, rehearsed: int, steps: int, seed: int) -> list[dict[str, Any]]:
    """The rows of one run."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_data(folder / "data", new, old, seed)
        found = ways(folder, asked.start, rehearsed, steps, seed)
    rows = [{"way": way, "seed": seed, **asked.row(weights)} for way, weights in found.items()]
    for row in rows:
        print(f"seed {seed}: {row['way']:42}{row['kept']:8.1%}{row['learned']:8.1%}", flush=True)
    return [{**row, "run": [rehearsed, steps, seed], "seconds": round(time.perf_counter() - began)} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    file, rows = arguments.json, []
    if file is not None and file.exists():
        rows = json.loads(file.read_text())["rows"]
    new, old = world(shown=False), world()
    asked = Asked(new, old)
    for seed, rehearsed in itertools.product(range(arguments.seeds), REHEARSED):
        if [rehearsed, arguments.steps, seed] in (row["run"] for row in rows):
            continue
        rows += measure(asked, new, old, rehearsed, arguments.steps, seed)
        if file is not None:
            partial = file.with_name(f"{file.name}.partial")
            partial.write_text(
                json.dumps({"command": shlex.join(["python", *sys.argv]), "rows": rows}, indent=1) + "\n"
            )
            partial.replace(file)
    print(table(rows))
    seconds = sum({tuple(row["run"]): row["seconds"] for row in rows}.values())
    print(f"{seconds} s")


if __name__ == "__main__":
    main()

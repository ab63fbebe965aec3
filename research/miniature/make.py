"""Makes the miniature Owl from nothing but packages of registries, by the two stages of the paper.

python -m research.miniature.make

Everything lies in build/miniature. An interrupted run resumes. `--scale 4` trains four times
as long; `--start FOLDER --seed 1` trains an earlier miniature further, on new scenes.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionModel,
    LlamaForCausalLM,
    set_seed,
)

import transformers_owl  # noqa: F401  (registers the Auto classes)
from transformers_owl import MplugOwlImageProcessor, MplugOwlProcessor, MplugOwlVideoProcessor
from transformers_owl.training import build_owl
from transformers_owl.training.train import train

from .clips import train_on_clips
from .data import write_captions, write_clips, write_conversations
from .events import MOMENTS
from .parts import of_machine, train_language_model, train_tokenizer, train_vision
from .scenes import world


HERE = Path(__file__).parent
FOLDER = Path("build/miniature")
QUERIES, ABSTRACTOR_LAYERS = 16, 2
STEPS = {"language_model": 600, "vision": 1100, "watching": 180, "pretrain": 600, "instruct": 260}
FURTHER = {"watching": 200, "pretrain": 700, "instruct": 500}  # of an earlier miniature
SCENES = {"captions": 24_000, "dialogues": 9_000, "pairs": 2_000, "text": 5_000, "clips": 4_000}


def main(
    scale: Annotated[float, typer.Option(min=0.001, help="Factor for steps and data.")] = 1.0,
    start: Annotated[str | None, typer.Option(help="Earlier miniature to train further.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of scenes and new weights.")] = 0,
) -> None:
    """Make the miniature Owl, or resume an interrupted run."""
    steps = {name: max(2, round(count * scale)) for name, count in (FURTHER if start else STEPS).items()}
    scenes = {name: max(64, round(count * scale)) for name, count in SCENES.items()}
    every, shown = world(shown=None), world()
    part = FOLDER.joinpath
    words, scratch = part("tokenizer"), part("scratch")
    if start is None:
        make(words, lambda to: train_tokenizer(every, to))
        make(
            part("language_model"),
            lambda to: train_language_model(every, words, scratch / "text", to, steps["language_model"], seed),
        )
        make(part("vision"), lambda to: train_vision(shown, scratch / "vision", to, steps["vision"], seed))
        make(part("fresh"), lambda to: build_fresh(to, seed))
    else:
        make(part("fresh"), lambda to: copy(start, to, "float32"))
    make(part("captions"), lambda to: write_captions(to, scenes["captions"], seed))
    make(
        part("conversations"),
        lambda to: write_conversations(to, scenes["dialogues"], scenes["pairs"], scenes["text"], seed),
    )
    make(part("clips"), lambda to: write_clips(to, scenes["clips"], seed))
    make(
        part("watching"),
        lambda to: train_on_clips(shown, part("fresh"), scratch / "watching", to, steps["watching"], seed),
    )
    run_stage("pretrain", part("pretrain"), steps["pretrain"])
    run_stage("instruct", part("instruct"), steps["instruct"])
    make(part("merged"), merge)
    make(part("miniature-owl"), lambda to: copy(str(part("merged")), to, "bfloat16"))


def made(name: str) -> Path:
    """A part that a run of `make` leaves."""
    path = FOLDER / name
    if not path.exists():
        command = f"score {FOLDER}/miniature-owl --output {path}" if name == "score.json" else "make"
        sys.exit(f"{path} is missing: run `python -m research.miniature.{command}` first.")
    return path


def make(folder: Path, work: Callable[[Path], None]) -> None:
    """Does the work in a folder of another name, which gets its own when all is done; notes the time it took."""
    if folder.exists():
        return
    Console(stderr=True).rule(folder.name)
    start = time.monotonic()
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    work(unfinished)
    unfinished.rename(folder)
    note_time(folder, time.monotonic() - start)


def run_stage(name: str, folder: Path, steps: int) -> None:
    """A stage by the package's own training, after the recipe `NAME.yaml`."""
    finished = folder / "trainer_state.json"
    if finished.exists():
        return
    Console(stderr=True).rule(name)
    start = time.monotonic()
    settings = {"max_steps": steps, **of_machine()}
    train(HERE / f"{name}.yaml", [str(word) for name, value in settings.items() for word in (f"--{name}", value)])
    note_time(folder, time.monotonic() - start)


def note_time(folder: Path, seconds: float) -> None:
    """Adds to `times.json` beside the folder. Of a step that was interrupted it is the time since it went on."""
    file = folder.with_name("times.json")
    times = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**times, folder.name: round(seconds, 1)}, indent=2) + "\n")


def build_fresh(folder: Path, seed: int) -> None:
    """Both parts, and a new abstractor between them."""
    set_seed(seed)
    vision = CLIPVisionModel.from_pretrained(FOLDER / "vision")
    language_model = LlamaForCausalLM.from_pretrained(FOLDER / "language_model", dtype="float32")
    images = MplugOwlImageProcessor.from_pretrained(FOLDER / "vision")
    processor = MplugOwlProcessor(
        images,
        AutoTokenizer.from_pretrained(FOLDER / "tokenizer"),
        MplugOwlVideoProcessor(size=images.size, num_frames=MOMENTS),
        num_query_tokens=QUERIES,
    )
    ids = {"image_token_id": processor.image_token_id, "video_token_id": processor.video_token_id}
    model: Any = build_owl(vision, language_model, QUERIES, ABSTRACTOR_LAYERS, use_temporal=True, **ids)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def merge(folder: Path) -> None:
    """The adapter of stage 2 in the weights of stage 1."""
    folder.rmdir()
    script = HERE.parents[1] / "conversion/merge_adapter.py"
    options = {"adapter": FOLDER / "instruct", "base": FOLDER / "pretrain", "output": folder, "dtype": "float32"}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    subprocess.run([sys.executable, str(script), *words], check=True)


def copy(source: str, folder: Path, dtype: str) -> None:
    """A complete repository from another one, with its weights in a type."""
    model: Any = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(source).save_pretrained(folder)


if __name__ == "__main__":
    typer.run(main)

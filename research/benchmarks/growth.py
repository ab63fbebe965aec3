"""How time and memory grow: with images, batch, turns, positions, patches, crops, frames, rows, shards, checkpoints.

python research/benchmarks/growth.py [--only images rows ...] [--large] [--json FILE]

Each line gives the seconds at every size, as the minimum of three runs, and two slopes in a log-log plot: that of the
seconds and that of the peak memory of the call. 1 is linear, 2 is quadratic, 0 means no growth. Slopes are those of the
three largest sizes, next to the largest allowed slope. Models are small, with random weights; the chat uses the
miniature. Measure memory with `MALLOC_MMAP_THRESHOLD_=65536`, so that glibc returns what is freed; times are longer
then. `--large` goes up to a million rows and a checkpoint of 14 GB (22 GB of disk, 16 GB of memory).
"""

import argparse
import itertools
import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import psutil
import torch
from machine import write_rows

from transformers_owl import MINIATURE, MplugOwlConfig, MplugOwlForConditionalGeneration, MplugOwlProcessor
from transformers_owl.demo.caption import SAMPLES
from transformers_owl.inference import Chat
from transformers_owl.training import ConversationCollator, Mixture
from transformers_owl.training.mixture import Group, MixtureLoader


REPEATS = 3
WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
Case = tuple[Callable[[], Any], Callable[[], Any] | None]  # what is timed, and what comes before each time
Series = Iterator[tuple[int, Case]]


def small(side: int = 56, queries: int = 64, crops: int = 1, **vision: Any) -> MplugOwlForConditionalGeneration:
    config = MplugOwlConfig(
        text_config={"model_type": "llama", **WIDE, "vocab_size": 1000, "max_position_embeddings": 4096},
        vision_config={**WIDE, "image_size": side, **vision},
        visual_abstractor_config={**WIDE, "encoder_hidden_size": 128, "max_crops": crops},
        num_query_tokens=queries,
    )
    torch.manual_seed(0)
    return MplugOwlForConditionalGeneration(config).eval()


def prompt(model: MplugOwlForConditionalGeneration, rows: int, images: int) -> dict[str, torch.Tensor]:
    """Rows of so many images and 16 tokens of text each."""
    config = model.config
    visual = config.num_query_tokens + 1
    one = torch.cat([torch.full((visual,), config.image_token_id), torch.randint(3, 900, (16,))])
    side = config.vision_config.image_size
    return {"input_ids": one.repeat(images).expand(rows, -1), "pixel_values": torch.randn(rows * images, 3, side, side)}


def images(folder: Path, large: bool) -> Series:
    model = small()
    for count in (1, 2, 4, 8, 16, 32):
        given = prompt(model, 1, count)
        yield count, (lambda given=given: model(**given, logits_to_keep=1), None)


def batch(folder: Path, large: bool) -> Series:
    model = small()
    for rows in (1, 2, 4, 8, 16, 32, 64):
        given = prompt(model, rows, 1)
        yield rows, (lambda given=given: model(**given, logits_to_keep=1), None)


def turns(folder: Path, large: bool) -> Series:
    """One more turn of a chat; those before it are in its cache."""
    model = MplugOwlForConditionalGeneration.from_pretrained(MINIATURE)
    processor = MplugOwlProcessor.from_pretrained(MINIATURE)
    for count in (1, 2, 5, 10, 20, 40):
        chats = []

        def begin(count=count, chats=chats) -> None:
            chats[:] = [Chat(model, processor)]
            chats[0].ask("What is it?", [str(SAMPLES[0])], max_new_tokens=2)
            for _ in range(count - 1):
                chats[0].ask("And now?", max_new_tokens=2)

        yield count, (lambda chats=chats: chats[0].ask("And now?", max_new_tokens=2), begin)


def positions(folder: Path, large: bool) -> Series:
    """A prompt of one image that takes so many positions."""
    for queries in (64, 128, 256):
        model = small(queries=queries)
        given = prompt(model, 1, 1)
        yield queries + 1, (lambda model=model, given=given: model(**given, logits_to_keep=1), None)


def patches(folder: Path, large: bool) -> Series:
    """Patches of an image, by its side: attention of the vision model is quadratic in them, the rest linear."""
    for side in (112, 224, 336, 448):
        model, pixels = small(side), torch.randn(1, 3, side, side)
        yield (side // 14) ** 2, (lambda model=model, pixels=pixels: model.get_image_features(pixels), None)


def crops(folder: Path, large: bool) -> Series:
    """A prompt of one image that is seen as a whole and in so many cells, each with positions of its own."""
    model = small(crops=20)
    for views in (1, 3, 7, 11, 21):
        given = prompt(model, 1, views)
        given["crop_positions"] = torch.tensor([[0, 0], *([1, column] for column in range(1, views))])
        yield views, (lambda given=given: model(**given, logits_to_keep=1), None)


def frames(folder: Path, large: bool) -> Series:
    model = small(use_temporal=True)
    for count in (2, 4, 8, 16, 32, 64):
        pixels = torch.randn(1, count, 3, 56, 56)
        yield count, (lambda pixels=pixels: model.get_video_features(pixels), None)


def files_of_rows(folder: Path, suffix: str, counts: list[int]) -> Iterator[tuple[int, Path]]:
    """Conversations in the form of LLaVA, all about one image."""
    PIL.Image.new("RGB", (56, 56)).save(folder / "owl.png")
    turns = [
        {"from": "human", "value": "<image>\n" + "What is it? " * 4},
        {"from": "gpt", "value": "It is an owl. " * 25},
    ]
    begin, between, end = ("[", ",\n", "]") if suffix == "json" else ("", "\n", "\n")
    for count in counts:
        path = folder / f"{count}.{suffix}"
        with path.open("w") as file:
            for number in range(count):
                row = {"id": number, "image": "owl.png", "conversations": turns}
                file.write((between if number else begin) + json.dumps(row))
            file.write(end)
        yield count, path


def counts_of_rows(large: bool) -> list[int]:
    return [1_000, 10_000, 100_000, *([1_000_000] if large else [])]


def opening(suffix: str, folder: Path, large: bool) -> Series:
    for count, path in files_of_rows(folder, suffix, counts_of_rows(large)):
        yield count, (lambda path=path: group_of("llava", path), None)


def group_of(kind: str, path: Path | str) -> Group:
    return Group.from_dict({"sources": [{"format": kind, "path": str(path)}]})


def mixture_of(group: Group) -> Mixture:
    processor = MplugOwlProcessor.from_pretrained(MINIATURE)
    return Mixture({"rows": group}, ConversationCollator(processor, 256), 4)


def batches(mixture: Mixture, workers: int = 0, count: int = 1) -> None:
    list(itertools.islice(MixtureLoader(mixture, workers), count))


def shuffling(folder: Path, large: bool) -> Series:
    """The first batch of rows that are open."""
    for count, path in files_of_rows(folder, "jsonl", counts_of_rows(large)):
        group = group_of("llava", path)
        yield count, (lambda group=group: batches(mixture_of(group)), None)


def resuming(folder: Path, large: bool) -> Series:
    """The first batch at the middle of an epoch."""
    for count, path in files_of_rows(folder, "jsonl", counts_of_rows(large)):
        group = group_of("llava", path)

        def resume(group=group, count=count) -> None:
            mixture = mixture_of(group)
            mixture.cursors = {0: {"rows": [count // 2]}}
            batches(mixture)

        yield count, (resume, None)


def shards(folder: Path, large: bool) -> Series:
    """Opening so many tar files."""
    for count in (10, 100, 1_000, 10_000):
        path = f"{folder}/{{00000..{count - 1:05}}}.tar"
        yield count, (lambda path=path: group_of("webdataset", path), None)


def checkpoint(folder: Path, large: bool) -> Series:
    """Loading, by megabytes of the file of weights."""
    for layers in (4, 16, 64, *([256, 832] if large else [])):
        wide = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
        text = {"model_type": "llama", **wide, "num_hidden_layers": layers, "vocab_size": 1000}
        place = folder / f"{layers}"
        config = MplugOwlConfig(
            text_config=text, vision_config=WIDE, visual_abstractor_config={**WIDE, "encoder_hidden_size": 128}
        )
        MplugOwlForConditionalGeneration(config).save_pretrained(place)
        size = round(sum(file.stat().st_size for file in place.glob("*.safetensors")) / 1e6)
        yield size, (lambda place=place: MplugOwlForConditionalGeneration.from_pretrained(place), None)


def workers(folder: Path, large: bool) -> Series:
    """40 batches by so many processes."""
    _, path = next(files_of_rows(folder, "jsonl", [1_000]))
    group = group_of("llava", path)
    for number in (0, 1, 2):
        yield number, (lambda number=number: batches(mixture_of(group), number, 40), None)


# What is measured, and the largest slope that is right.
SERIES: dict[str, tuple[Callable[[Path, bool], Series], float]] = {
    "images": (images, 1.2),
    "batch": (batch, 1),
    "turns": (turns, 0.5),
    "positions": (positions, 1),
    "patches": (patches, 1.3),
    "crops": (crops, 1),
    "frames": (frames, 1.2),
    "rows, JSON": (partial(opening, "json"), 1),
    "rows, lines": (partial(opening, "jsonl"), 1),
    "shuffling": (shuffling, 1),
    "resuming": (resuming, 1),
    "shards": (shards, 1),
    "checkpoint": (checkpoint, 1),
    "workers": (workers, 0),
}


def measure(case: Case) -> tuple[float, float]:
    """The least seconds, and the most bytes that this process took on top of what it had."""
    run, before = case
    seconds, process = [], psutil.Process()
    for _ in range(REPEATS):
        if before is not None:
            before()
        base, most, done = process.memory_info().rss, [0], threading.Event()

        def watch(base=base, most=most, done=done) -> None:
            while not done.wait(0.005):
                most[0] = max(most[0], process.memory_info().rss - base)

        thread = threading.Thread(target=watch)
        thread.start()
        start = time.perf_counter()
        with torch.no_grad():
            run()
        seconds.append(time.perf_counter() - start)
        done.set()
        thread.join()
    return min(seconds), float(most[0])


def slope(sizes: list[int], values: list[float], least: float) -> float:
    """Of the three largest sizes above 0; 0 where all values are below `least`, which is noise."""
    if max(values) < least:
        return 0.0
    pairs = [pair for pair in zip(sizes, values, strict=True) if pair[0]][-3:]
    points = [(math.log(size), math.log(max(value, least / 10))) for size, value in pairs]
    return float(np.polyfit(*zip(*points, strict=True), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SERIES, default=[*SERIES])
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.only:
        series, expected = SERIES[name]
        sizes, times, memory = [], [], []
        with tempfile.TemporaryDirectory() as folder:
            for size, case in series(Path(folder), arguments.large):
                seconds, most = measure(case)
                sizes.append(size)
                times.append(seconds)
                memory.append(most)
        row = {
            "what": name,
            "seconds": dict(zip(sizes, times, strict=True)),
            "mb": dict(zip(sizes, (most / 1e6 for most in memory), strict=True)),
            "slope": slope(sizes, times, 1e-3),
            "memory_slope": slope(sizes, memory, 8e6),
            "expected": expected,
        }
        rows.append(row)
        shown = ", ".join(f"{size}: {seconds:.3g}" for size, seconds in row["seconds"].items())
        print(
            f"{name:12} slope {row['slope']:.2f} (at most {expected}), memory {row['memory_slope']:.2f} "
            f"({max(memory) / 1e6:.0f} MB); s at {shown}",
            flush=True,
        )
        write_rows(arguments.json, rows)


if __name__ == "__main__":
    main()

"""Files for both stages: tar shards of images with captions, and conversations with images beside them."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from rich.progress import track

from .events import clip, mp4
from .scenes import SIZE, Scene, World, draw, world
from .talk import Exchange, about_clip, about_pair, caption, clip_caption, dialogue, sentence, text_only


SHARDS = 24
WORKERS = os.cpu_count() or 1
# The first number of a seed: no two kinds of data share scenes.
CAPTIONS, DIALOGUES, PAIRS, TEXT, CLIPS = 11, 12, 13, 14, 15


def write_captions(folder: Path, scenes: int, seed: int) -> None:
    """`SHARDS` tar files in img2dataset's layout."""
    borders = [scenes * number // SHARDS for number in range(SHARDS + 1)]
    shards = [(folder / f"{number:05d}.tar", *borders[number : number + 2], seed) for number in range(SHARDS)]
    in_processes(write_shard, shards, "Drawing images with captions")


def write_shard(job: tuple[Path, int, int, int]) -> None:
    file, first, last, seed = job
    with tarfile.open(file, "w") as tar:
        for number in range(first, last):
            scene = WORLD.scene(np.random.default_rng([CAPTIONS, number, seed]))
            for suffix, data in (("png", png(shown(scene, number))), ("txt", sentence(caption(scene)).encode())):
                entry = tarfile.TarInfo(f"{number:09d}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def write_conversations(folder: Path, scenes: int, pairs: int, text: int, seed: int) -> None:
    """`multimodal.jsonl`, `text.jsonl` and the images."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    kinds = ((DIALOGUES, scenes), (PAIRS, pairs))
    blocks = [(folder, kind, first, min(first + 1000, last), seed) for kind, last in kinds
              for first in range(0, last, 1000)]  # fmt: skip
    rows = in_processes(draw_conversations, blocks, "Drawing conversations")
    write_rows(folder / "multimodal.jsonl", (row for block in rows for row in block))
    randoms = (np.random.default_rng([TEXT, number, seed]) for number in range(text))
    write_rows(folder / "text.jsonl", (messages([], text_only(random)[:3]) for random in randoms))


def draw_conversations(job: tuple[Path, int, int, int, int]) -> list[dict]:
    folder, kind, first, last, seed = job
    rows = []
    for number in range(first, last):
        random = np.random.default_rng([kind, number, seed])
        if kind == PAIRS:
            scenes, found = about_pair(WORLD, random)
            exchanges = [found[place] for place in random.permutation(len(found))[:3]]
        else:
            scenes = [WORLD.scene(random)]
            exchanges = dialogue(scenes[0], random)
        names = [f"images/{kind}-{number}-{place}.png" for place in range(len(scenes))]
        for name, scene in zip(names, scenes, strict=True):
            (folder / name).write_bytes(png(shown(scene, number)))
        rows.append(messages(names, exchanges))
    return rows


def write_clips(folder: Path, clips: int, seed: int) -> None:
    """`captions.jsonl`, `dialogues.jsonl` and the files of the videos."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    blocks = [(folder, first, min(first + 1000, clips), seed) for first in range(0, clips, 1000)]
    rows = in_processes(draw_clips, blocks, "Drawing videos")
    for place, name in enumerate(("captions", "dialogues")):
        write_rows(folder / f"{name}.jsonl", (row[place] for block in rows for row in block))


def draw_clips(job: tuple[Path, int, int, int]) -> list[tuple[dict, dict]]:
    folder, first, last, seed = job
    rows = []
    for number in range(first, last):
        random = np.random.default_rng([CLIPS, number, seed])
        shown = clip(WORLD, random)
        name = f"clips/{number}.mp4"
        (folder / name).write_bytes(mp4(shown.frames(WORLD.drawings)))
        first_of_all, *others = about_clip(shown, random)
        also = [others[place] for place in random.permutation(len(others))[:1]]
        exchanges = [first_of_all, *also] if random.random() < 0.5 else [*also, first_of_all]
        captioned = {"file_name": name, "text": sentence(clip_caption(shown))}
        rows.append((captioned, messages([name], exchanges, "video")))
    return rows


def messages(images: list[str], exchanges: list[Exchange], kind: str = "image") -> dict[str, Any]:
    """A row of the library's chat form: images or videos first, then questions and answers in turn."""
    turns: list[dict[str, Any]] = []
    for exchange in exchanges:
        seen = [] if turns else [{"type": kind, "path": name} for name in images]
        turns.append({"role": "user", "content": [*seen, {"type": "text", "text": exchange.question}]})
        turns.append({"role": "assistant", "content": exchange.answer})
    return {"messages": turns}


def write_rows(file: Path, rows: Iterator[dict]) -> None:
    with file.open("w", encoding="utf-8") as opened:
        opened.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def shown(scene: Scene, number: int) -> PIL.Image.Image:
    """The image of a scene; every second one is drawn larger and then resized, as photographs are."""
    if number % 2:
        return draw(scene, WORLD.drawings)
    return draw(scene, WORLD.drawings, 2 * SIZE).resize((SIZE, SIZE), PIL.Image.Resampling.BICUBIC)


def png(image: PIL.Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "png", compress_level=1)
    return data.getvalue()


WORLD: World


def start_worker() -> None:
    global WORLD
    WORLD = world(size=SIZE)


def in_processes(work: Callable, jobs: list, title: str) -> list:
    with get_context("spawn").Pool(WORKERS, start_worker) as pool:
        return list(track(pool.imap(work, jobs), title, total=len(jobs), transient=True))

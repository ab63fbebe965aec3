"""Code shared by the comparisons with the library's models: sizes, alternating runs, tables and JSON files."""

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import write_rows
from transformers import Cache


TEXT = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 8192,
}
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
TEXT_TOKENS = 60
NEW_TOKENS = 16


def ready(models: dict[str, torch.nn.Module], dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    """The models in a type, writing as many tokens as they are asked for."""
    for model in models.values():
        model.generation_config.update(eos_token_id=None, pad_token_id=0, suppress_tokens=None, max_new_tokens=None)
    return {name: model.to(dtype).eval() for name, model in models.items()}


def around(visual: torch.Tensor) -> torch.Tensor:
    """Ids with 60 tokens of text a row, half of them on either side of the visual ones (rows, positions)."""
    text = torch.randint(3, 31000, (len(visual), TEXT_TOKENS))
    return torch.cat([text[:, :30], visual, text[:, 30:]], dim=1)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def decode_seconds(model, prompt: dict[str, torch.Tensor], cache: Cache | None = None, step: Any = None) -> float:
    """Of a token behind a prompt, mean of some, into a cache of the library's choice or this one, by `step`."""
    if cache is not None:
        cache.reset()
    cache = model(**prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
    token, step = torch.full((len(prompt["input_ids"]), 1), 5), step or model

    def steps() -> None:
        for _ in range(NEW_TOKENS):
            step(input_ids=token, past_key_values=cache, use_cache=True)

    return seconds(steps) / NEW_TOKENS


def alternate(
    pairs: int,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    warm_up: bool = True,
    row_seconds: float = math.inf,
    limit: Callable[[], list[float]] = list,
) -> dict[str, float]:
    """
    Medians in milliseconds, and the median of the ratios. No pair starts after so many seconds. A first one, to warm
    up, does not count, unless it is the only one. With `limit`, what our work would take at the machine's limit by
    each of several ways, every pair measures that, too, and "limit" is the median share that ours reached of the way of
    which it reached least.
    """
    times: list[tuple[float, float, list[float]]] = []
    start = time.perf_counter()
    while len(times) < pairs + warm_up and (not times or time.perf_counter() - start < row_seconds):
        times.append((ours(), theirs(), limit()))
    times = times[warm_up:] or times
    row = {
        "ours_ms": statistics.median(pair[0] for pair in times) * 1e3,
        "other_ms": statistics.median(pair[1] for pair in times) * 1e3,
        "ratio": statistics.median(pair[0] / pair[1] for pair in times),
        "pairs": len(times),
    }
    shares = zip(*([least / pair[0] for least in pair[2]] for pair in times), strict=True)
    medians = [statistics.median(of_way) for of_way in shares]
    return {**row, "limit": min(medians)} if medians else row


class Report:
    """
    Prints rows as they come and keeps them. A row has `beside`, the other side's name; `ours_ms`, `other_ms` and
    `ratio` of so many `pairs`; and, where there is one, `limit`, the share of the machine's limit that ours reached.
    """

    def __init__(self):
        self.rows: list[dict] = []
        self.notes: list[str] = []
        print(f"{'':34}{'batch':>6}{'images':>9}  {'beside':14}{'owl ms':>10}{'other ms':>10}{'ratio':>7}{'limit':>7}")

    def note(self, text: str) -> None:
        print(text, flush=True)
        self.notes.append(text)

    def add(self, name: str, batch: int, dtype: torch.dtype, row: dict) -> None:
        limit = f"{row['limit']:7.0%}" if "limit" in row else " " * 7
        times = f"{row['ours_ms']:10.1f}{row['other_ms']:10.1f}{row['ratio']:7.2f}"
        kind = str(dtype).removeprefix("torch.")
        print(f"{name:34}{batch:6}{row['images']:9}  {row['beside']:14}{times}{limit}  {kind}", flush=True)
        self.rows.append({"name": name, "batch": batch, "dtype": kind, **row})

    def write(self, file: Path) -> None:
        threads = torch.get_num_threads()
        write_rows(file, self.rows, threads=threads, notes=self.notes)

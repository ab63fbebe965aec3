"""The limits of the machine: the rate of matrix products, and of reading memory."""

import copy
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from transformers_owl.inference import use_onednn


SHAPES = ((4096, 4096, 4096), (2056, 1024, 4096), (2056, 4096, 1024), (2056, 1024, 1024))
READ_BYTES = 2**30
WAY_SECONDS = 0.2
# bfloat16 is slower than float32 where the processor has no instructions for it.
DTYPES = ["float32", "bfloat16"] if torch.cpu.get_capabilities().get("avx512_bf16") else ["float32"]


@dataclass
class Limit:
    """Ways to keep the machine as busy as it can be: calls, and how many operations or bytes each of them has."""

    ways: list[tuple[Callable[[], object], int]]

    @torch.no_grad()
    def rates(self) -> list[float]:
        """Operations or bytes a second just now, by each way. Each repeats for a while, as a model does."""
        return [sustained(run) * amount for run, amount in self.ways]


def sustained(run: Callable[[], object]) -> float:
    """Calls a second."""
    calls, start, passed = 0, time.perf_counter(), 0.0
    while passed < WAY_SECONDS:
        run()
        calls, passed = calls + 1, time.perf_counter() - start
    return calls / passed


def products(dtype: torch.dtype) -> Limit:
    """Products of matrices, of some shapes, by MKL and by oneDNN."""
    ways: list[tuple[Callable[[], object], int]] = []
    for rows, inner, columns in SHAPES:
        matrix = torch.randn(rows, inner).to(dtype)
        linear = torch.nn.Linear(inner, columns, bias=False, dtype=dtype)
        for layer in (linear, use_onednn(copy.deepcopy(linear))):
            ways.append((lambda layer=layer, matrix=matrix: layer(matrix), 2 * rows * inner * columns))
    return Limit(ways)


def reads(dtype: torch.dtype) -> Limit:
    """Reading memory, by a sum and by a matrix times a vector."""
    matrix = torch.ones(READ_BYTES // dtype.itemsize // 4096, 4096, dtype=dtype)  # zeros would take no memory
    vector = torch.ones(4096, dtype=dtype)
    return Limit([(matrix.sum, READ_BYTES), (lambda: matrix @ vector, READ_BYTES)])


def operations(run) -> int:
    """Of the products of matrices in a call; attention must be the eager one, which consists of such."""
    eager = torch.compiler.set_stance("force_eager")
    # The counter's hooks need gradients.
    with eager, torch.enable_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def write_rows(file: Path | None, rows: list[dict], **more) -> None:
    """Rows of a table with the command that made them, as JSON, if a file for them was named."""
    if file is not None:
        command = shlex.join(["python", *sys.argv])
        file.write_text(json.dumps({"command": command, **more, "rows": rows}, indent=1) + "\n")

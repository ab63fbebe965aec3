"""What the machine can do at most: products of matrices, and reading memory."""

import copy

import torch
from side_by_side import seconds
from torch.utils.flop_counter import FlopCounterMode

from transformers_owl.inference import use_onednn


SHAPES = ((4096, 4096, 4096), (2056, 1024, 4096), (2056, 4096, 1024), (2056, 1024, 1024))
READ_BYTES = 2**30
REPEATS = 5
# Those that are not slower than float32 here.
DTYPES = ["float32", "bfloat16"] if "AVX512" in torch.backends.cpu.get_cpu_capability() else ["float32"]


@torch.no_grad()
def matrix_rate(dtype: torch.dtype) -> float:
    """Operations a second of a product of matrices, the best of some shapes, of MKL and oneDNN, and of repeats."""
    rates = []
    for rows, inner, columns in SHAPES:
        matrix = torch.randn(rows, inner).to(dtype)
        linear = torch.nn.Linear(inner, columns, bias=False, dtype=dtype)
        for layer in (linear, use_onednn(copy.deepcopy(linear))):
            best = min(seconds(lambda layer=layer, matrix=matrix: layer(matrix)) for _ in range(REPEATS))
            rates.append(2 * rows * inner * columns / best)
    return max(rates)


def bandwidth(dtype: torch.dtype) -> float:
    """Bytes a second that are read from memory, the best of a sum and of a matrix times a vector."""
    matrix = torch.ones(READ_BYTES // dtype.itemsize // 4096, 4096, dtype=dtype)  # zeros would take no memory
    vector = torch.ones(4096, dtype=dtype)
    reads = (matrix.sum, lambda: matrix @ vector)
    return READ_BYTES / min(seconds(read) for read in reads for _ in range(REPEATS))


def operations(run) -> int:
    """Of the products of matrices in a call; attention must be the eager one, which consists of such."""
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:  # the counter's hooks need gradients
        run()
    return counter.get_total_flops()

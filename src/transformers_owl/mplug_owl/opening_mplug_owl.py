# SPDX-License-Identifier: Apache-2.0
"""Checks weights files from strangers before they are opened: none may run code, fill the memory or name other files.

The safetensors library checks its files itself. `torch.save` writes pickles, in ZIP archives since torch 1.6.
"""

import functools
import json
import math
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open


# What torch and safetensors raise for damaged files, besides unpickling errors.
DAMAGE = (
    ValueError, RuntimeError, EOFError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError,
    struct.error, zipfile.BadZipFile, SafetensorError,
)  # fmt: skip
ADAPTER_NAMES = ("adapter_model.safetensors", "adapter_model.bin")  # in the order that PEFT looks for them
ZIP = b"PK\x03\x04"
PICKLES = 4  # at the start of a file that is no archive: three about the file, one with the weights
# What pickled weights name. Of the rest that torch allows, some make gigabytes out of a few bytes.
NAMED = re.compile(r"(collections|torch(\.\w+)*) \w+")
MOST_NAMES = 4  # of one weight, such as a tied one


@contextmanager
def named_damage(file: str) -> Iterator[None]:
    """Turns errors at opening a weights file into a ValueError that names it."""
    try:
        yield
    except pickle.UnpicklingError as error:
        if (code := re.search(r"GLOBAL (\S+)", str(error))) is not None:
            raise ValueError(
                f"{file} holds code, which was not run: {code[1]}. Save only `model.state_dict()`; if the file comes "
                "from others, do not trust it."
            ) from error
        raise ValueError(
            f"{file} is not a weights file, or holds code, which was not run. Download it again; if that does not "
            f"help, do not trust its source. ({str(error).splitlines()[0].partition('. ')[0]})"
        ) from error
    except DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} is truncated or damaged: download it again. ({reason})") from error


def check_weights(file: str) -> None:
    """
    Checks a weights file by its metadata, without reading the weights.

    Args:
        file (`str`): A file written by safetensors or `torch.save`.

    Raises:
        ValueError: for a file that is damaged, holds code, or would take far more memory than its size.
        OSError: if it cannot be read.
    """
    found = os.stat(file)
    _check_weights(file, found.st_size, found.st_mtime_ns)


@functools.lru_cache  # loading looks at a file several times
def _check_weights(file: str, size: int, changed: int) -> None:
    with named_damage(file):
        if file.endswith(".safetensors"):
            with safe_open(file, framework="pt"):
                return
        with open(file, "rb") as opened:
            is_archive = opened.read(len(ZIP)) == ZIP
            opened.seek(0)
            taken = _check_archive(opened) if is_archive else _check_pickles(opened, PICKLES)
        if taken <= size:
            weights = _without_values(file, is_archive)
            taken = sum(weight.nbytes for weight in _tensors(weights)) / MOST_NAMES
    if taken > size:
        raise ValueError(
            f"{file} has {size:,} bytes but would take far more memory, unlike any file that `torch.save` writes: do "
            "not trust its source."
        )
    if not isinstance(weights, dict):
        raise ValueError(
            f"{file} holds a {type(weights).__name__}, but must hold weights by name: save `model.state_dict()`, and "
            "give that file."
        )


def _check_archive(opened: BinaryIO) -> float:
    """Checks the pickles in an archive. Returns the size of its parts in bytes, infinite if one is compressed."""
    parts = zipfile.ZipFile(opened).infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        return math.inf
    for part in parts:
        if part.filename.endswith("data.pkl"):
            opened.seek(part.header_offset + 26)
            opened.seek(sum(struct.unpack("<HH", opened.read(4))), os.SEEK_CUR)
            _check_pickles(opened, 1)
    return sum(part.file_size for part in parts)


def _check_pickles(opened: BinaryIO, count: int) -> float:
    try:
        for _ in range(count):
            named = [str(argument) for code, argument, _ in pickletools.genops(opened) if code.name == "GLOBAL"]
            strange = [name.replace(" ", ".") for name in dict.fromkeys(named) if not NAMED.fullmatch(name)]
            if strange:
                raise pickle.UnpicklingError(f"GLOBAL {','.join(strange)}")
    except (ValueError, MemoryError) as error:
        raise pickle.UnpicklingError(repr(error)) from error
    return 0


def _without_values(file: str, is_archive: bool) -> Any:
    """The contents of a file, with tensors on the meta device."""
    if is_archive:
        return torch.load(file, map_location="meta", weights_only=True)
    with torch.serialization.skip_data():
        return torch.load(file, map_location="cpu", weights_only=True)


def _tensors(held: Any) -> Iterator[torch.Tensor]:
    """All tensors, however nested, also in structures that contain themselves."""
    left, seen = [held], set()
    while left:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, dict) else value


def read_index(file: str) -> dict[str, str]:
    """
    Reads the shard of each weight from an index file.

    Raises:
        ValueError: if the file is not an index, or names a file in another folder.
    """
    with open(file, encoding="utf-8") as opened:
        try:
            index = json.load(opened)
        except (ValueError, RecursionError):
            index = None
    shard_of = index.get("weight_map") if isinstance(index, dict) and "metadata" in index else None
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise ValueError(
            f"{file} is not an index of weights: it must be a JSON object with `metadata` and `weight_map`, the file "
            "of each weight."
        )
    strange = sorted({shard for shard in shard_of.values() if re.search(r"[/\\:]|^\.", shard)})
    if strange:
        raise ValueError(f"{file} names {strange[0]!r}, but weights must be in the folder of their index.")
    return shard_of

"""Checkpoints tensor by tensor: opened lazily, renamed by the key table, written whole or not at all."""

import copy
import json
import os
import shutil
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate.utils import convert_file_size_to_int
from transformers import AutoConfig, PreTrainedModel

from .. import MplugOwlConfig, MplugOwlForConditionalGeneration, MplugOwlProcessor, __version__
from ..journal import log_resumed
from ..mplug_owl.weights_mplug_owl import open_weights, weight_files
from ..progress import BYTES, Bar
from .library import (
    SAFE_WEIGHTS_NAME,
    WEIGHTS_NAME,
    WeightConverter,
    WeightRenaming,
    apply_converters,
    apply_renamings,
    get_model_conversion_mapping,
    rename_source_key,
    str_to_torch_dtype,
)


DTYPE_NAMES = {dtype: name for name, dtype in str_to_torch_dtype.items()}
PLAN = "plan.json"
READERS = 2  # tensors read while one is written
# Where trainers put the weights in what they save: PyTorch Lightning, plain loops, DeepSpeed, LAVIS.
NESTS = ("state_dict", "model_state_dict", "model", "module")
MOST_NESTS = 3
MOST_SHOWN = 8  # of what a file holds in place of weights


@dataclass(frozen=True)
class Piece:
    """
    Tensors that are made together, such as the three of a fused weight.

    Args:
        tensors (`dict[str, torch.Tensor]`): Tensors by name, on the meta device.
        make (`Callable`): Reads and makes the tensors, under the same names.
    """

    tensors: dict[str, torch.Tensor]
    make: Callable[[], dict[str, torch.Tensor]]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def map(self, change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> "Piece":
        """The piece with `change` applied to each name and tensor."""

        def changed(tensors):
            return dict(change(name, tensor) for name, tensor in tensors.items())

        return Piece(changed(self.tensors), lambda: changed(self.make()))


@dataclass(frozen=True)
class Checkpoint:
    """
    A folder, a weights file, or a repository on the Hub at a revision.

    Args:
        path (`str`): `FOLDER`, `FILE`, `REPO` or `REPO@REVISION`.
        revision (`str`, defaults to `"main"`): Branch, tag or commit.
    """

    path: str
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        if Path(text).exists():
            return cls(text)
        if text.endswith(".pth"):
            raise ValueError(f"{text} does not exist. The .pth files of the original are of its first code (v0): {V0}")
        path, _, revision = text.partition("@")
        return cls(path, revision or "main")

    @property
    def name(self) -> str:
        return Path(self.path).resolve().name if Path(self.path).exists() else self.path.rpartition("/")[2]

    def files(self) -> list[str]:
        """The weights files in the library's order of preference, downloaded if needed."""
        if Path(self.path).is_file():
            return [self.path]
        if files := weight_files(self.path, revision=self.revision):
            return files
        hints = [hint.format(self.path) for pattern, hint in HINTS.items() if list(Path(self.path).glob(pattern))]
        raise ValueError(
            f"{self.path} has no weights: it must hold {SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME}. {' '.join(hints)}".strip()
        )

    def open(self) -> dict[str, Piece]:
        """All tensors by name, mapped into memory without reading them."""
        tensors = {name: piece for file in self.files() for name, piece in open_file(file).items()}
        if any(name.endswith(".bias_k") for name in tensors):
            raise ValueError(f"{self.path} is a checkpoint of the first code (v0): {V0}")
        return tensors

    def is_nested(self) -> bool:
        """Whether a trainer saved the weights nested among other things, where the library does not find them."""
        return any(read_file(file)[1] for file in self.files())

    def fingerprint(self) -> list:
        """Names, sizes and times of the files, to tell whether they have changed."""
        files = [self.path] if self.path.endswith(".gguf") else self.files()
        return [[file, os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in files]


V0 = (
    "another architecture (8 heads, a learned key and value per layer), which this package does not support. Use a "
    "later release, such as MAGAer13/mplug-owl-llama-7b."
)
# What to do with other files in a folder without weights.
HINTS = {
    "*.pth": f"Give the path of a fine-tune's .pth file itself; pretrained.pth and instruction_tuned.pth are of the "
    f"first code (v0): {V0}",
    "global_step*": "It holds shards of DeepSpeed: merge them by `cd {} && python zero_to_fp32.py . pytorch_model.bin` "
    "(DeepSpeed saves the script with them), and give that file.",
    "pytorch_model_fsdp_*": "It holds shards of FSDP: merge them by `accelerate merge-weights {}/pytorch_model_fsdp_0 "
    "MERGED`, and give the folder MERGED.",
    "*.distcp": "It holds shards of FSDP: merge them by `accelerate merge-weights {} MERGED`, and give the folder "
    "MERGED.",
}


def open_file(file: str) -> dict[str, Piece]:
    return {name: piece for piece in held(read_file(file)[0]) for name in piece.tensors}


def read_file(file: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """
    The weights of a file by name, mapped into memory, and the keys under which a trainer nested them.

    Raises:
        ValueError: if the file holds no weights, or it is not clear where they are.
    """
    found: Any = open_weights(file)
    keys: list[str] = []
    while not is_weights(found):
        inner = [key for key in NESTS if isinstance(found, dict) and isinstance(found.get(key), dict)]
        if len(inner) != 1 or len(keys) == MOST_NESTS:
            where = f" under {'.'.join(keys)}" if keys else ""
            raise ValueError(
                f"{file} holds{where} {described(found)}, but must hold weights by name, directly or under one of "
                f"{', '.join(NESTS)}: save `model.state_dict()`, and give that file."
            )
        found, keys = found[inner[0]], [*keys, inner[0]]
    return found, keys


def is_weights(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and len(found) > 0
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items())
    )


def described(found: Any) -> str:
    """The contents of a file without weights, such as "epoch (int), model (dict)"."""
    if not isinstance(found, dict):
        return f"a {type(found).__name__}"
    if not found:
        return "nothing"
    others = [f"{key!s:.40} ({type(value).__name__})" for key, value in found.items() if not is_weights({key: value})]
    count = len(found) - len(others)
    more = f" and {len(others) - MOST_SHOWN} more" if len(others) > MOST_SHOWN else ""
    return ", ".join(others[:MOST_SHOWN]) + more + (f" beside {count} tensors" if count else "")


def open_owl(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None
) -> tuple[MplugOwlForConditionalGeneration, list[Piece]]:
    """
    Opens an original release or a checkpoint of ours: the model on the meta device, and its weights under our names.

    Args:
        checkpoint (`Checkpoint`): The checkpoint.
        dtype (`torch.dtype`, *optional*): Dtype of the floating-point weights; by default unchanged.

    Raises:
        ValueError: if names or shapes of the weights do not match the model, or tied weights differ.
    """
    checkpoint.open()  # damaged files are named here, which the library would not do
    config = AutoConfig.from_pretrained(checkpoint.path, revision=checkpoint.revision)
    if not isinstance(config, MplugOwlConfig):
        raise ValueError(f"{checkpoint.path} is a model of type {config.model_type}, but must be mplug-owl.")
    if "quantization_config" in config.to_dict():
        raise ValueError(f"{checkpoint.path} is already quantised: give the checkpoint that it was made from.")
    model, info = MplugOwlForConditionalGeneration.from_pretrained(
        checkpoint.path,
        revision=checkpoint.revision,
        dtype=dtype or "auto",
        device_map="meta",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    check_loading(checkpoint, info)
    pieces = without_tied(model, convert(model, checkpoint.open()))
    return model, pieces if dtype is None else cast(pieces, dtype)


def check_loading(checkpoint: Checkpoint, info: dict) -> None:
    """Raises a ValueError if `from_pretrained` found missing, unexpected or mismatched weights."""
    problems = {
        "lacks weights (is a file missing?)": info["missing_keys"],
        "has weights that the model does not have": info["unexpected_keys"],
        "has weights whose shapes do not match config.json": info["mismatched_keys"],
    }
    for problem, names in problems.items():
        if names:
            examples = ", ".join(map(str, sorted(names)[:3]))
            raise ValueError(f"{checkpoint.path} {problem}: {len(names)}, such as {examples}.")


def convert(model: PreTrainedModel, tensors: dict[str, Piece], reverse: bool = False) -> list[Piece]:
    """
    Weights of a checkpoint under the model's own names, by the conversions registered for it.

    Args:
        model (`PreTrainedModel`): The model on the meta device.
        tensors (`dict[str, Piece]`): Tensors of the checkpoint; with `reverse`, of the model.
        reverse (`bool`, defaults to `False`): Whether to convert from the model's names to the checkpoint's.
    """
    transforms = get_model_conversion_mapping(model, add_legacy=not reverse)
    if reverse:
        transforms = [transform.reverse_transform() for transform in reversed(transforms)]
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    own = model.state_dict()
    groups: dict[str, list[tuple[str, str | None]]] = {}
    for name in tensors:
        if reverse:
            target, pattern = apply_converters(name, converters)
        else:
            target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, own)
        if target in own or reverse:  # what the library ignores when it loads the model is left out
            groups.setdefault(target, []).append((name, pattern))

    def run(target: str, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        patterns = {name: pattern for name, pattern in groups[target] if pattern is not None}
        if not patterns:
            made = dict.fromkeys([target], *values.values())
        else:
            converter: Any = copy.deepcopy(by_pattern[next(iter(patterns.values()))])
            for name, pattern in patterns.items():
                converter.add_tensor(target, name, pattern, values[name])
            made = converter.convert(target, model=model, config=model.config)
            made = {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
        return {apply_renamings(name, renamings) if reverse else name: value for name, value in made.items()}

    def piece(target: str) -> Piece:
        sources = [tensors[name] for name, _ in groups[target]]
        shapes = {name: tensor for source in sources for name, tensor in source.tensors.items()}
        return Piece(
            run(target, shapes),
            lambda: run(target, {name: value for source in sources for name, value in source.make().items()}),
        )

    return [piece(target) for target in groups]


def homeless(model: PreTrainedModel, names: Iterable[str]) -> set[str]:
    """Names in a checkpoint that the model does not have, except computed buffers that the original stored."""
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    own = model.state_dict()
    found = {
        name: rename_source_key(name, renamings, converters, model.base_model_prefix, own)[0] in own for name in names
    }
    return {name for name, has_place in found.items() if not has_place and not name.endswith("rotary_emb.inv_freq")}


def without_tied(model: PreTrainedModel, pieces: list[Piece]) -> list[Piece]:
    """The pieces without the second name of tied weights, which must be equal."""
    found = {name: piece for piece in pieces for name in piece.tensors}
    tied = {name: kept for name, kept in model.all_tied_weights_keys.items() if name in found and kept in found}
    for name, kept in tied.items():
        if not torch.equal(found[name].make()[name], found[kept].make()[kept]):
            raise ValueError(f"config.json says that {name} and {kept} are tied, but the checkpoint has two values.")
    return [piece for piece in pieces if tied.keys().isdisjoint(piece.tensors)]


def held(weights: dict[str, torch.Tensor]) -> list[Piece]:
    """Pieces of weights in memory."""

    def piece(name: str, value: torch.Tensor) -> Piece:
        return Piece({name: torch.empty_like(value, device="meta")}, lambda: {name: value})

    return [piece(name, value) for name, value in weights.items()]


def cast(pieces: list[Piece], dtype: torch.dtype) -> list[Piece]:
    """The pieces with their floating-point tensors in another dtype."""

    def to_dtype(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
        return name, tensor.to(dtype) if tensor.is_floating_point() else tensor

    return [piece.map(to_dtype) for piece in pieces]


@contextmanager
def unfinished(output: Path, plan: list | None = None) -> Iterator[Path]:
    """
    A folder beside `output` that is renamed to `output` at the end, so that `output` is complete or does not exist.

    Files of an interrupted run with the same `plan` are kept; without a plan none are.
    """
    if output.exists():
        raise ValueError(f"{output} already exists: delete it, or choose another --output.")
    folder = output.with_name(output.name + ".unfinished")
    text = json.dumps([__version__, plan])
    if plan is None or not (folder / PLAN).exists() or (folder / PLAN).read_text() != text:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / PLAN).write_text(text)
    yield folder
    (folder / PLAN).unlink()
    folder.rename(output)


def write_weights(pieces: list[Piece], folder: Path, max_shard_size: str, save: "Save", name: str) -> None:
    """
    Writes weights as one file or as shards with an index. Existing shards are kept.

    Args:
        pieces (`list[Piece]`): The weights, in order.
        folder (`Path`): Folder to write into.
        max_shard_size (`str`): Maximum size of a file, such as "5GB".
        save (`Save`): Writes one shard.
        name (`str`): File name of unsharded weights.
    """
    shards = split(pieces, convert_file_size_to_int(max_shard_size))
    total = sum(piece.nbytes for piece in pieces)
    stem, suffix = name.rsplit(".", 1)
    files = [f"{stem}-{number:05}-of-{len(shards):05}.{suffix}" for number in range(1, len(shards) + 1)]
    files = [name] if len(shards) == 1 else files
    there = [file for file in files if (folder / file).exists()]
    log_resumed(len(there), "files")
    written = sum((folder / file).stat().st_size for file in there)
    free = shutil.disk_usage(folder).free
    if total - written > free:
        raise OSError(f"{folder} has {free / 1e9:.1f} GB free, but needs {(total - written) / 1e9:.1f} GB: free space.")
    with ThreadPoolExecutor(1) as closer, Bar(*BYTES, unit="GB", size=1e9) as bar:
        task = bar.add_task("writing", total=total)
        closed = []
        for file, shard in zip(files, shards, strict=True):
            if not (folder / file).exists():
                save(shard, folder / f"{file}.part", lambda size: bar.advance(task, size))
                closed.append(closer.submit(close, folder / f"{file}.part", folder / file))
        for future in closed:
            future.result()
    if len(shards) > 1:
        weight_map = {key: file for file, shard in zip(files, shards, strict=True) for p in shard for key in p.tensors}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{name}.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def close(part: Path, file: Path) -> None:
    """Renames a file once it is synced to the disk."""
    with open(part, "rb") as written:
        os.fsync(written.fileno())
    part.rename(file)


Save = Callable[[list[Piece], Path, Callable[[int], None]], None]


def split(pieces: list[Piece], max_bytes: int) -> list[list[Piece]]:
    shards: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        if shards[-1] and size + piece.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size += piece.nbytes
    return shards


def save_safetensors(
    pieces: list[Piece], file: Path, advance: Callable[[int], None], metadata: dict[str, str] | None = None
) -> None:
    """
    Writes a safetensors file piece by piece while the next ones are made; the library's own writer needs all at once.

    Raises:
        ValueError: for values that are not finite.
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    starts, end = {}, 0
    tensors = [item for piece in pieces for item in piece.tensors.items()]
    for name, tensor in sorted(tensors, key=lambda item: -item[1].itemsize):  # so that each stands at a multiple of it
        starts[name] = end
        offsets = [end, end := end + tensor.nbytes]
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out, ThreadPoolExecutor(READERS) as readers:
        out.write(struct.pack("<Q", len(text)) + text)
        for made in ahead(
            readers, checked, sorted(pieces, key=lambda piece: min(starts[name] for name in piece.tensors))
        ):
            for name, tensor in made.items():
                assert list(tensor.shape) == header[name]["shape"], name
                out.seek(8 + len(text) + starts[name])
                out.write(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))
                advance(tensor.nbytes)


def ahead(pool: ThreadPoolExecutor, make: Callable, items: Iterable) -> Iterator:
    """Like `map`, but computes only the next `READERS` results in advance."""
    made: deque[Future] = deque()
    try:
        for item in items:
            made.append(pool.submit(make, item))
            if len(made) > READERS:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()
    finally:
        for future in made:
            future.cancel()


def save_pickle(pieces: list[Piece], file: Path, advance: Callable[[int], None]) -> None:
    """Writes a pickle file, which the original code reads."""
    weights: dict[str, torch.Tensor] = {}
    for piece in pieces:
        weights |= checked(piece)
    torch.save(weights, file)
    advance(sum(piece.nbytes for piece in pieces))


def checked(piece: Piece) -> dict[str, torch.Tensor]:
    made = piece.make()
    for name, tensor in made.items():
        if tensor.is_floating_point() and tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
            raise ValueError(f"{name} has values that are not finite (NaN or infinite): the checkpoint is damaged.")
    return made


def write_rest(model: MplugOwlForConditionalGeneration, processor: MplugOwlProcessor, folder: Path, card: str) -> None:
    """Writes everything of a repository except the weights: processor, card, code, settings."""
    processor.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    with TemporaryDirectory() as aside:  # where the library saves a model it removes other shards
        model.save_pretrained(aside, state_dict={})
        shutil.copytree(aside, folder, dirs_exist_ok=True)

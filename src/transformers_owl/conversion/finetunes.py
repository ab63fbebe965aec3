"""
Fine-tunes of the original code, as its Trainer and `torch.save` saved them: whole models under PEFT's names, or only
the trained weights, with or without a configuration beside them.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoConfig

from .. import MplugOwlConfig, MplugOwlForConditionalGeneration, MplugOwlProcessor
from ..mplug_owl.weights_mplug_owl import OUR_WIDTHS, WIDTH, WRAPPER, original_fields, read_original
from ..progress import track
from .card import render
from .checkpoints import (
    Checkpoint,
    Piece,
    cast,
    convert,
    homeless,
    open_owl,
    save_safetensors,
    unfinished,
    without_tied,
    write_weights,
)
from .export import tied
from .packed_weights import write_repository


ALPHA = 32  # of the original's script; its files do not hold it
LORA = re.compile(r"^(.+)\.lora_([AB])(?:\.default)?\.weight$")
# What Lightning, torch.compile and DataParallel put before the names of a model, in any order.
WRAPPERS = ("module.", "model.", "_orig_mod.", "_forward_module.")
GIVE_A_BASE = "give the release that it was trained from by --base, such as MAGAer13/mplug-owl-llama-7b"


@dataclass(frozen=True)
class FineTune:
    """
    The contents of a fine-tune's file, without PEFT's names.

    Args:
        weights (`dict[str, Piece]`): Weights of the model, by the original's names.
        lora (`dict[str, tuple[Piece, Piece]]`): LoRA's two weights, (r, in) and (out, r), by the adapted weight's name.
    """

    weights: dict[str, Piece]
    lora: dict[str, tuple[Piece, Piece]]


def is_fine_tune(source: Checkpoint) -> bool:
    """Whether weights have the names of PEFT or a wrapper, or are nested as a trainer saves them."""
    names = source.open()
    return (
        any(name.startswith(WRAPPER) or LORA.match(name) for name in names)
        or wrapper(names) not in ("", "model.")  # ours begin with the latter
        or source.is_nested()
    )


def wrapper(names) -> str:
    """The prefix of a wrapper, if all names have one."""
    prefix = ""
    while found := [each for each in WRAPPERS if all(name.startswith(prefix + each) for name in names)]:
        prefix += found[0]
    return prefix


def renamed(piece: Piece, name: str) -> Piece:
    """A piece of one tensor under another name."""
    return piece.map(lambda _, tensor: (name, tensor))


def value(piece: Piece) -> torch.Tensor:
    (tensor,) = piece.make().values()
    return tensor


def shape(piece: Piece) -> tuple[int, ...]:
    (tensor,) = piece.tensors.values()
    return tuple(tensor.shape)


def read(source: Checkpoint) -> FineTune:
    """
    Sorts the contents of a file; a fully trained module replaces its original copy.

    Raises:
        ValueError: for adapters other than LoRA of linear layers.
    """
    weights: dict[str, Piece] = {}
    sides: dict[str, dict[str, Piece]] = {}
    pieces = source.open()
    before = wrapper(pieces)
    for key, piece in pieces.items():
        name = key.removeprefix(before).removeprefix(WRAPPER)
        if (match := LORA.match(name)) is not None:
            sides.setdefault(f"{match[1]}.weight", {})[match[2]] = piece
        elif "lora_" in name:
            raise ValueError(f"{source.path} holds {key}, but only LoRA of linear layers can be merged.")
        elif ".original_module." not in name:
            name = name.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")
            weights[name] = renamed(piece, name)
    lone = [name for name, found in sides.items() if len(found) < 2]
    if lone:
        raise ValueError(f"{source.path} holds only one of LoRA's two weights of {lone[0]}: is a file missing?")
    return FineTune(weights, {name: (found["A"], found["B"]) for name, found in sides.items()})


def read_alpha(source: Checkpoint, lora_alpha: float | None) -> float:
    """Alpha of LoRA: as given, from `adapter_config.json` beside the weights, or the original's."""
    if lora_alpha is not None:
        return lora_alpha
    settings = Path(source.files()[0]).with_name("adapter_config.json")
    if settings.is_file():
        return json.loads(settings.read_text(encoding="utf-8"))["lora_alpha"]
    Console(stderr=True).print(
        f"{source.path} does not say LoRA's alpha: using the original's {ALPHA} (set another by --lora-alpha)."
    )
    return ALPHA


def original_weights(base: Checkpoint) -> dict[str, Piece]:
    """The weights of a base under the original's names, which may have ours."""
    weights = base.open()
    if "query_tokens" in weights:
        return weights
    model, pieces = open_owl(base)
    ours = {name: piece for piece in pieces for name in piece.tensors}
    theirs = convert(model, {**ours, **tied(model, ours)}, reverse=True)
    return {name: piece for piece in theirs for name in piece.tensors}


def open_model(source: Checkpoint, fine_tune: FineTune, settings: Checkpoint) -> MplugOwlForConditionalGeneration:
    """The model on the meta device, by the configuration of `settings`, corrected by the weights."""
    config = AutoConfig.from_pretrained(settings.path, revision=settings.revision)
    if not isinstance(config, MplugOwlConfig):
        raise ValueError(f"{settings.path} is a model of type {config.model_type}, but must be mplug-owl.")
    widths = [name for name in (WIDTH, *OUR_WIDTHS) if name in fine_tune.weights]
    if widths:
        fields = original_fields(fine_tune.weights, shape(fine_tune.weights[widths[0]])[0])
    else:
        fields = {} if settings == source else read_original(settings.path, revision=settings.revision)
    for part in ("vision_config", "visual_abstractor_config"):
        getattr(config, part).update(fields.get(part, {}))
    with torch.device("meta"):
        return MplugOwlForConditionalGeneration(config)


def lacking(model: MplugOwlForConditionalGeneration, weights: dict[str, Piece]) -> list[str]:
    found = {name for piece in convert(model, weights) for name in piece.tensors}
    tied_to = model.all_tied_weights_keys
    return sorted(name for name in model.state_dict() if name not in found and tied_to.get(name) not in found)


def completed(
    source: Checkpoint, fine_tune: FineTune, model: MplugOwlForConditionalGeneration, base: str | None
) -> dict[str, Piece]:
    """
    All weights of the model before LoRA, by the original's names: the file's, completed by the base's.

    Raises:
        ValueError: for unexpected weights, other shapes, and missing weights.
    """
    strange = sorted(homeless(model, [*fine_tune.weights, *fine_tune.lora]))
    if strange:
        raise ValueError(f"{source.path} has {len(strange)} weights that the model has not, such as {strange[:3]}.")
    weights = fine_tune.weights
    if lacking(model, weights) and base is not None:
        weights = {**original_weights(Checkpoint.parse(base)), **weights}
    if missing := lacking(model, weights):
        raise ValueError(
            f"{source.path} lacks weights of the model: {len(missing)}, such as {', '.join(missing[:3])}. If it holds "
            f"only the trained weights, {GIVE_A_BASE}."
        )
    own = model.state_dict()
    for piece in convert(model, weights):
        for name, tensor in piece.tensors.items():
            if tensor.shape != own[name].shape:
                raise ValueError(
                    f"{source.path} has weights whose shapes do not match the configuration: {name} is "
                    f"{tuple(tensor.shape)}, but must be {tuple(own[name].shape)}. Is --base another model?"
                )
    return weights


def merged(name: str, weight: Piece, lora: tuple[Piece, Piece], alpha: float) -> Piece:
    """A weight with LoRA's product added, computed in float32."""
    (rank, columns), (rows, _) = map(shape, lora)
    if (rows, columns) != shape(weight) or shape(lora[1])[1] != rank:
        raise ValueError(
            f"LoRA's weights of {name} are {shape(lora[0])} and {shape(lora[1])}, which do not match {shape(weight)}."
        )

    def make() -> dict[str, torch.Tensor]:
        before, (down, up) = value(weight), (value(piece).float() for piece in lora)
        return {name: torch.addmm(before.float(), up, down, alpha=alpha / rank).to(before.dtype)}

    return Piece(renamed(weight, name).tensors, make)


def convert_fine_tune(
    source: Checkpoint,
    output: Path,
    dtype: torch.dtype | None,
    max_shard_size: str,
    base: str | None,
    lora_alpha: float | None,
    keep_adapter: bool,
    quantize: str | None,
) -> None:
    """
    Converts a fine-tune to a repository with LoRA merged, or with `keep_adapter` to an adapter of current PEFT.

    Raises:
        ValueError: for files that are not a fine-tune of this model, or that need a base.
        OSError: if a file cannot be read or `output` cannot be written.
    """
    if keep_adapter and quantize is not None:
        raise ValueError("An adapter cannot be quantised: leave out --quantize or --keep-adapter.")
    fine_tune = read(source)
    has_config = (Path(source.path) / "config.json").is_file()
    if base is None and (keep_adapter or not has_config):
        raise ValueError(f"{source.path} is a fine-tune{'' if has_config else ' without config.json'}: {GIVE_A_BASE}.")
    settings = source if base is None else Checkpoint.parse(base)
    model = open_model(source, fine_tune, settings)
    processor = MplugOwlProcessor.from_pretrained(settings.path, revision=settings.revision)
    model.config.image_token_id, model.config.video_token_id = processor.image_token_id, processor.video_token_id
    alpha = read_alpha(source, lora_alpha) if fine_tune.lora else 0.0
    if keep_adapter:
        pieces = adapter_pieces(source, fine_tune, model, settings)
        settings_of_lora = lora_settings(pieces, alpha, settings)
        with unfinished(output) as folder:
            pieces = pieces if dtype is None else cast(pieces, dtype)
            write_weights(pieces, folder, max_shard_size, save_safetensors, "adapter_model.safetensors")
            settings_of_lora.save_pretrained(str(folder))
            processor.save_pretrained(folder)
        return
    weights = completed(source, fine_tune, model, base)
    for name, lora in fine_tune.lora.items():
        weights = {**weights, name: merged(name, weights[name], lora, alpha)}
    dtype = dtype or main_dtype(weights)
    torch.nn.Module.to(model, dtype)  # which is what its configuration will say
    made = f"The fine-tune {source.name}, over {settings.name}."
    if fine_tune.lora:
        made += f" LoRA was merged with alpha {alpha:g}."
    pieces = cast(without_tied(model, convert(model, weights)), dtype)
    plan = [source.fingerprint(), settings.fingerprint(), alpha, str(dtype), max_shard_size, quantize]
    card = render(output.name, output.name, made)
    write_repository(model, pieces, processor, output, plan, max_shard_size, quantize, card)


def main_dtype(weights: dict[str, Piece]) -> torch.dtype:
    """The dtype of most bytes."""
    sizes: Counter[torch.dtype] = Counter()
    for piece in weights.values():
        for tensor in piece.tensors.values():
            sizes[tensor.dtype] += tensor.nbytes
    return sizes.most_common(1)[0][0]


def adapter_pieces(
    source: Checkpoint, fine_tune: FineTune, model: MplugOwlForConditionalGeneration, base: Checkpoint
) -> list[Piece]:
    """
    LoRA's weights under PEFT's names in our model.

    Raises:
        ValueError: if an adapter cannot hold what was trained: other weights, fused layers, several ranks.
    """
    before = original_weights(base)
    weights = track(fine_tune.weights.items(), "comparing", len(fine_tune.weights), "tensors")
    changed = [name for name, piece in weights if name in before and not is_same(value(piece), value(before[name]))]
    strange = sorted(fine_tune.lora.keys() - before.keys())
    adapted = {} if strange else {name: convert(model, {name: before[name]})[0].tensors for name in fine_tune.lora}
    problems = {
        "holds no LoRA": not fine_tune.lora,
        f"has LoRA of weights that the base does not have, such as {strange[:2]}": bool(strange),
        f"changed {len(changed)} weights besides LoRA, such as {changed[:2]}": bool(changed),
        "has LoRA of several ranks": len({shape(down)[0] for down, _ in fine_tune.lora.values()}) > 1,
        "has LoRA of fused layers, which are separate here": any(len(names) > 1 for names in adapted.values()),
    }
    for problem, is_there in problems.items():
        if is_there:
            raise ValueError(f"{source.path} {problem}: leave out --keep-adapter to merge it.")
    return [
        renamed(piece, f"{WRAPPER}{ours.removesuffix('.weight')}.lora_{side}.weight")
        for name, (ours,) in adapted.items()
        for side, piece in zip("AB", fine_tune.lora[name], strict=True)
    ]


def lora_settings(pieces: list[Piece], alpha: float, base: Checkpoint):
    """The PEFT configuration of an adapter with these weights."""
    from peft import LoraConfig

    downs = {name: piece for piece in pieces for name in piece.tensors if name.endswith(".lora_A.weight")}
    return LoraConfig(
        r=shape(next(iter(downs.values())))[0],
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # type: ignore[arg-type]
        target_modules=[name.removeprefix(WRAPPER).removesuffix(".lora_A.weight") for name in downs],
        base_model_name_or_path=str(Path(base.path).resolve()) if Path(base.path).exists() else base.path,
        revision=None if Path(base.path).exists() else base.revision,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )


def is_same(trained: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether two tensors are equal in the dtype of either, since saved weights may have been cast."""
    return trained.shape == before.shape and (
        torch.equal(trained, before.to(trained.dtype)) or torch.equal(trained.to(before.dtype), before)
    )

"""Exports a checkpoint to the layout of the original release, for the original code."""

import json
import shutil
from pathlib import Path

import torch

from .. import MplugOwlConfig, MplugOwlForConditionalGeneration, MplugOwlVisionConfig
from .checkpoints import Checkpoint, Piece, convert, held, open_owl, save_pickle, unfinished, write_weights
from .library import WEIGHTS_NAME, LlamaRotaryEmbedding, cached_file


# The original's tokenizer and settings are not ours: they come from a release.
SMALL_FILES = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "preprocessor_config.json", "generation_config.json",
)  # fmt: skip


def their_config(config: MplugOwlConfig) -> dict:
    """`config.json` in the fields of the original code (transformers 4.28)."""
    if not isinstance(config.vision_config, MplugOwlVisionConfig):
        raise ValueError(
            f"The original code has only its own ViT, but this Owl's vision model is "
            f"`{config.vision_config.model_type}`: it cannot be exported."
        )
    if config.visual_abstractor_config.max_crops > 1:
        raise ValueError(
            "The original code takes whole images only, but this Owl also cuts them into cells (max_crops "
            f"{config.visual_abstractor_config.max_crops}): it cannot be exported."
        )
    ours = config.to_dict()
    sections = {name: ours[name] for name in ("vision_config", "visual_abstractor_config", "text_config")}
    sections["vision_config"].pop("use_temporal")
    for name in ("use_temporal", "max_crops"):
        sections["visual_abstractor_config"].pop(name)
    return {
        "architectures": ["MplugOwlForConditionalGeneration"],
        "model_type": "mplug-owl",
        "num_query_tokens": config.num_query_tokens,
        "torch_dtype": str(config.dtype).removeprefix("torch."),
        "tie_word_embeddings": config.tie_word_embeddings,
        **sections,
    }


def computed(model: MplugOwlForConditionalGeneration, dtype: torch.dtype) -> list[Piece]:
    """Computed buffers that the original stored: LLaMA's inverse frequencies, once per layer."""
    text = model.config.text_config
    if text.model_type != "llama":
        return []
    values = LlamaRotaryEmbedding(text).inv_freq.to(dtype)
    names = [f"language_model.model.layers.{n}.self_attn.rotary_emb.inv_freq" for n in range(text.num_hidden_layers)]
    return held(dict.fromkeys(names, values))


def tied(model: MplugOwlForConditionalGeneration, pieces: dict[str, Piece]) -> dict[str, Piece]:
    """The second names of tied weights, which our files leave out."""

    def renamed(name: str, kept: str) -> Piece:
        return pieces[kept].map(lambda _, tensor: (name, tensor))

    return {name: renamed(name, kept) for name, kept in model.all_tied_weights_keys.items() if name not in pieces}


def small_files(release: Checkpoint) -> list[str]:
    options = {"revision": release.revision, "_raise_exceptions_for_missing_entries": False}
    found = [cached_file(release.path, name, **options) for name in SMALL_FILES]
    return [file for file in found if file is not None]


def export(checkpoint: str, release: str, output: Path, max_shard_size: str = "1GB") -> None:
    """
    Writes a checkpoint in the original's layout. An interrupted run resumes.

    Args:
        checkpoint (`str`): Folder, REPO or REPO@REVISION.
        release (`str`): Original release whose tokenizer and settings are copied.
        output (`Path`): Folder to create.
        max_shard_size (`str`, defaults to `"1GB"`): Maximum size of a weights file.

    Raises:
        ValueError: for a checkpoint that is damaged or of another model, and if `output` exists.
        OSError: if the checkpoint cannot be read or `output` cannot be written.
    """
    source = Checkpoint.parse(checkpoint)
    model, pieces = open_owl(source)
    ours = {name: piece for piece in pieces for name in piece.tensors}
    theirs = convert(model, {**ours, **tied(model, ours)}, reverse=True)
    with unfinished(output, [source.fingerprint(), max_shard_size]) as folder:
        write_weights([*theirs, *computed(model, model.dtype)], folder, max_shard_size, save_pickle, WEIGHTS_NAME)
        for file in small_files(Checkpoint.parse(release)):
            shutil.copy(file, folder)
        (folder / "config.json").write_text(json.dumps(their_config(model.config), indent=2) + "\n")

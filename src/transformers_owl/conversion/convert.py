"""A repository of the Hub from a checkpoint of the original release, tensor by tensor."""

from pathlib import Path

import torch

from .. import MplugOwlProcessor
from .card import render
from .checkpoints import Checkpoint, open_owl, save_safetensors, unfinished, write_rest, write_weights
from .library import SAFE_WEIGHTS_NAME


def convert(checkpoint: str, output: Path, dtype: torch.dtype | None = None, max_shard_size: str = "5GB") -> None:
    """
    Makes a Hub repository of a release. An interrupted run goes on where it stopped.

    Args:
        checkpoint (`str`): Folder, REPO or REPO@REVISION of a release.
        output (`Path`): Folder to make.
        dtype (`torch.dtype`, *optional*): Of the weights; as they are by default.
        max_shard_size (`str`, defaults to `"5GB"`): Largest file of weights.

    Raises:
        ValueError: for a checkpoint that is damaged or of another model, and an `output` that exists.
        OSError: if it cannot be read, or `output` not be written.
    """
    source = Checkpoint.parse(checkpoint)
    model, pieces = open_owl(source, dtype)
    processor = MplugOwlProcessor.from_pretrained(source.path, revision=source.revision)
    with unfinished(output, [source.fingerprint(), str(dtype), max_shard_size]) as folder:
        write_weights(pieces, folder, max_shard_size, save_safetensors, SAFE_WEIGHTS_NAME)
        write_rest(model, processor, folder, render(source.name, output.name))

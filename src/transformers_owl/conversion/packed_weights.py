"""Quantises weights tensor by tensor, to files that the library loads by itself."""

import functools
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import BitsAndBytesConfig

from .. import MplugOwlForConditionalGeneration, MplugOwlProcessor
from ..mplug_owl.configuration_mplug_owl import check_names
from ..mplug_owl.loading_mplug_owl import spare_visual_parts
from .checkpoints import Piece, save_safetensors, unfinished, write_rest, write_weights
from .library import SAFE_WEIGHTS_NAME, flatten_torchao
from .quantize import torchao_int8


LAYER = "layer"  # stands for the name of any layer
LANGUAGE_MODEL = "model.language_model."
ONE_AT_A_TIME = threading.Lock()  # a weight takes several times its size while it is packed


def pack_int8(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    rows, columns = weight.shape
    layer = torch.nn.Linear(columns, rows, bias=False, device="meta")
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    quantize_(layer, Int8WeightOnlyConfig())
    found = flatten_torchao({f"{LAYER}.weight": layer.weight})
    del layer.weight  # torchao ties the layer into a cycle, which would keep the weight for a while
    return found


def pack_int4(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from bitsandbytes.nn import Linear4bit, Params4bit

    rows, columns = weight.shape
    layer = Linear4bit(columns, rows, bias=False, device="meta")
    # Statistics that are quantised too would take a number of bytes that depends on the values.
    unpacked = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=False)
    layer.weight = unpacked.to("cpu")  # type: ignore[misc]
    return layer.state_dict(prefix=f"{LAYER}."), {}


@dataclass(frozen=True)
class Scheme:
    """
    A quantisation method.

    Args:
        settings (`Callable`): Makes the quantisation configuration with which the library loads the weights.
        pack (`Callable`): Gives the tensors of a quantised weight and their metadata, for a layer named `LAYER`.
    """

    settings: Callable
    pack: Callable[[torch.Tensor], tuple[dict[str, torch.Tensor], dict[str, str]]]


SCHEMES = {
    "int8": Scheme(torchao_int8, pack_int8),
    "int4": Scheme(
        lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16),
        pack_int4,
    ),
}


def check_scheme(name: str | None) -> None:
    check_names([] if name is None else [name], SCHEMES, "quantisation")


def packed(
    model: MplugOwlForConditionalGeneration, pieces: list[Piece], name: str
) -> tuple[list[Piece], dict[str, str]]:
    """
    The pieces with the weights of the language model's linear layers quantised on demand.

    Args:
        model (`MplugOwlForConditionalGeneration`): The model on the meta device; its configuration is updated.
        pieces (`list[Piece]`): All weights of the model.
        name (`str`): A name in `SCHEMES`.

    Returns:
        `tuple[list[Piece], dict[str, str]]`: The pieces, and the metadata of each file.
    """
    scheme = SCHEMES[name]
    model.config.quantization_config = spare_visual_parts(scheme.settings())
    layers = {
        f"{path}.weight"
        for path, module in model.named_modules()
        if path.startswith(LANGUAGE_MODEL) and isinstance(module, torch.nn.Linear)
    }

    @functools.cache
    def layout(shape: torch.Size, dtype: torch.dtype):
        tensors, said = scheme.pack(torch.zeros(shape, dtype=dtype))
        return {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}, said

    said: dict[str, str] = {}

    def pack(piece: Piece) -> Piece:
        ((weight, like),) = piece.tensors.items()
        prefix = weight.removesuffix(".weight")

        def placed(found: dict) -> dict:
            return {prefix + key.removeprefix(LAYER): value for key, value in found.items() if key.startswith(LAYER)}

        def make() -> dict[str, torch.Tensor]:
            (value,) = piece.make().values()
            with ONE_AT_A_TIME:
                return placed(scheme.pack(value)[0])

        tensors, of_the_layer = layout(like.shape, like.dtype)
        said.update(placed(of_the_layer))
        return Piece(placed(tensors), make)

    found = [pack(piece) if layers & piece.tensors.keys() else piece for piece in pieces]
    return found, {**said, "tensor_names": json.dumps(list(said))} if said else {}


def write_repository(
    model: MplugOwlForConditionalGeneration,
    pieces: list[Piece],
    processor: MplugOwlProcessor,
    output: Path,
    plan: list,
    max_shard_size: str,
    quantize: str | None,
    card: str,
) -> None:
    """Writes a repository, quantised by a name in `SCHEMES` if one is given."""
    metadata: dict[str, str] = {}
    if quantize is not None:
        pieces, metadata = packed(model, pieces, quantize)
    with unfinished(output, plan) as folder:
        save = functools.partial(save_safetensors, metadata=metadata)
        write_weights(pieces, folder, max_shard_size, save, SAFE_WEIGHTS_NAME)
        write_rest(model, processor, folder, card)

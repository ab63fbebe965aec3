"""
A fresh Owl, where stage 1 starts, from a vision model and a causal language model, tensor by tensor.

The language model may be a `.gguf` file, whose weights are dequantised.
"""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
)

from .. import MplugOwlForConditionalGeneration, MplugOwlImageProcessor, MplugOwlProcessor
from ..fresh import fresh_config, rename_text, rename_vision
from ..mplug_owl.opening_mplug_owl import named_damage
from ..mplug_owl.processing_mplug_owl import read_template
from ..mplug_owl.vision_mplug_owl import image_side, tokens_and_idle_weights
from .card import render
from .checkpoints import (
    Checkpoint,
    Piece,
    cast,
    check_loading,
    convert,
    held,
    save_safetensors,
    unfinished,
    without_tied,
    write_rest,
    write_weights,
)
from .library import (
    SAFE_WEIGHTS_NAME,
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)


ON_META: dict[str, Any] = {"device_map": "meta", "ignore_mismatched_sizes": True, "output_loading_info": True}


def open_vision(source: Checkpoint) -> tuple[PreTrainedModel, list[Piece]]:
    """A vision model on the meta device, and its weights, also from a model of images and text."""
    config: Any = AutoConfig.from_pretrained(source.path, revision=source.revision)
    if "vision_config" in config.sub_configs:
        config = config.vision_config
    try:
        kind: Any = MODEL_MAPPING[type(config)]
    except KeyError:
        problem = f"{source.path} is of type `{config.model_type}`, for which the library has no vision model"
        raise ValueError(f"{problem}: choose a ViT such as CLIP, SigLIP or DINOv2.") from None
    tokens_and_idle_weights(config)
    source.open()
    loaded = kind.from_pretrained(source.path, config=config, revision=source.revision, **ON_META)
    model, info = loaded
    check_loading(source, {**info, "unexpected_keys": set()})
    return model, convert(model, source.open())


def open_language(source: Checkpoint) -> tuple[PreTrainedModel, list[Piece]]:
    """A causal language model on the meta device, and its weights."""
    if source.path.endswith(".gguf"):
        return open_gguf(Path(source.path))
    source.open()
    loaded: Any = AutoModelForCausalLM.from_pretrained(source.path, revision=source.revision, **ON_META)
    model, info = loaded
    check_loading(source, info)
    return model, without_tied(model, convert(model, source.open()))


def open_gguf(file: Path) -> tuple[PreTrainedModel, list[Piece]]:
    """A causal language model from a GGUF file, and its weights, each dequantised to float32 on demand."""
    from gguf import GGUFReader, dequantize

    with named_damage(str(file)):
        reader = GGUFReader(file)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    settings = load_gguf_checkpoint(str(file))["config"]
    architecture = reader.fields["general.architecture"].contents()
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=settings)
    names = get_gguf_hf_weights_map(model, processor)
    own = model.state_dict()

    def piece(tensor) -> Piece:
        name = names[tensor.name]

        def make() -> dict[str, torch.Tensor]:
            values = processor.process(dequantize(tensor.data, tensor.tensor_type), tensor.name).weights
            return {name: torch.from_numpy(values.copy()).reshape(own[name].shape)}

        return Piece({name: torch.empty_like(own[name], dtype=torch.float32)}, make)

    pieces = [piece(tensor) for tensor in reader.tensors if tensor.name in names]
    missing = own.keys() - {name for piece in pieces for name in piece.tensors} - model.all_tied_weights_keys.keys()
    if missing:
        raise ValueError(f"{file} lacks {len(missing)} weights of {config.model_type}, such as {sorted(missing)[:3]}.")
    return model, without_tied(model, pieces)


def fresh_abstractor(model: MplugOwlForConditionalGeneration, seed: int) -> list[Piece]:
    """Weights of a new abstractor, in memory."""
    torch.manual_seed(seed)
    weights = type(model.model.abstractor)(model.config.visual_abstractor_config).state_dict()
    return held({f"model.abstractor.{name}": value for name, value in weights.items()})


def build(
    vision: str,
    language: str,
    output: Path,
    dtype: torch.dtype = torch.bfloat16,
    num_query_tokens: int = 64,
    num_abstractor_layers: int = 6,
    seed: int = 0,
    max_shard_size: str = "5GB",
    chat_template: str = "original",
    image_size: int | None = None,
    max_crops: int = 1,
) -> None:
    """
    Builds a fresh Owl, whose abstractor is untrained. An interrupted run resumes.

    Args:
        vision (`str`): Folder, REPO or REPO@REVISION of a vision model, alone or in a model of images and text: CLIP,
            SigLIP, DINOv2 and others that give the patches of an image.
        language (`str`): Folder, REPO or REPO@REVISION of a causal language model, or a `.gguf` file.
        output (`Path`): Folder to create.
        dtype (`torch.dtype`, defaults to `torch.bfloat16`): Dtype of the weights.
        num_query_tokens (`int`, defaults to 64): Number of queries of the abstractor.
        num_abstractor_layers (`int`, defaults to 6): Number of layers of the abstractor.
        seed (`int`, defaults to 0): Seed of the abstractor's weights.
        max_shard_size (`str`, defaults to `"5GB"`): Maximum size of a weights file.
        chat_template (`str`, defaults to `"original"`): "original", "language_model" for the language model's own, or a
            Jinja file.
        image_size (`int`, *optional*): Side of the images in pixels; by default the vision model's.
        max_crops (`int`, defaults to 1): Maximum number of cells that an image is also cut into; 1 cuts none.

    Raises:
        ValueError: for unsupported models, and if `output` exists.
        OSError: if a model cannot be read or `output` cannot be written.
    """
    sources = Checkpoint.parse(vision), Checkpoint.parse(language)
    eyes, vision_pieces = open_vision(sources[0])
    text, text_pieces = open_language(sources[1])
    tokenizer = read_tokenizer(sources[1])
    template = read_template(chat_template, tokenizer)
    ids = MplugOwlProcessor(MplugOwlImageProcessor(), tokenizer)
    config = fresh_config(
        eyes.config,
        text.config,
        visual_abstractor_config={"num_hidden_layers": num_abstractor_layers},
        image_size=image_size,
        max_crops=max_crops,
        num_query_tokens=num_query_tokens,
        image_token_id=ids.image_token_id,
        video_token_id=ids.video_token_id,
        dtype=dtype,
    )
    images = read_image_processor(sources[0], image_side(config.vision_config), max_crops)
    processor = MplugOwlProcessor(images, tokenizer, chat_template=template, num_query_tokens=num_query_tokens)
    with torch.device("meta"):
        model = MplugOwlForConditionalGeneration(config)
    pieces = [
        *(piece.map(rename_vision(eyes.config, config)) for piece in vision_pieces),
        *fresh_abstractor(model, seed),
        *(piece.map(rename_text(text, model)) for piece in text_pieces),
    ]
    options = [
        str(dtype),
        num_query_tokens,
        num_abstractor_layers,
        seed,
        max_shard_size,
        template,
        image_size,
        max_crops,
    ]
    made = f"A fresh start for stage 1, from {sources[0].name} and {sources[1].name}: the abstractor is untrained."
    with unfinished(output, [*(source.fingerprint() for source in sources), *options]) as folder:
        write_weights(cast(pieces, dtype), folder, max_shard_size, save_safetensors, SAFE_WEIGHTS_NAME)
        write_rest(model, processor, folder, render(output.name, output.name, made))


def read_image_processor(source: Checkpoint, side: int, max_crops: int) -> MplugOwlImageProcessor:
    """An image processor with the settings of the vision model's, but without its centre crop."""
    theirs: Any = AutoImageProcessor.from_pretrained(source.path, revision=source.revision, backend="pil")
    if not (theirs.do_normalize and theirs.do_rescale and math.isclose(theirs.rescale_factor, 1 / 255)):
        raise ValueError(f"The image processor of {source.path} does not scale to 0..1 and normalise, as an Owl does.")
    names = ("image_mean", "image_std", "resample")
    fields = {name: getattr(theirs, name) for name in names}
    return MplugOwlImageProcessor(**fields, size={"height": side, "width": side}, max_crops=max_crops)


def read_tokenizer(source: Checkpoint):
    if source.path.endswith(".gguf"):
        file = Path(source.path)
        return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return AutoTokenizer.from_pretrained(source.path, revision=source.revision)

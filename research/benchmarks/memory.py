"""
Memory per GPU in training, as a Markdown table in GiB: `python research/benchmarks/memory.py`, and with `--modern`
that of configs/modern-*.yaml.

Nothing is allocated: the model is built on the meta device, and hooks record which tensors the backward pass would
need. Computation is in bfloat16, with the recipes' micro-batches. Each row is full and has one image, in as many views
as the recipe's `max_crops` allows. The columns are:

- weights: 4 bytes for each trained weight, 2 for each frozen one, 0.52 in the layers that QLoRA packs
- gradients: 4 bytes for each trained weight, and with DDP 4 more for its buckets
- optimizer: 8 bytes for each trained weight (AdamW)
- sharded over N GPUs (FSDP2, ZeRO-3): an N-th of all these
- copies: 2 bytes for each trained weight (autocast keeps them through a forward pass); if sharded, the two largest
  layers gathered in bfloat16, and the gradient of one
- activations: the tensors that the forward pass keeps, with PyTorch's attention and a mask; with checkpointing, the
  inputs of all layers, the tensors outside of layers, and those of the largest layer

The table leaves out the CUDA context (about 0.5 GiB), gaps of the allocator, and the largest temporary tensor.
"""

from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, Qwen3Config, SiglipVisionConfig
from transformers.initialization import no_init_weights
from transformers.modeling_layers import GradientCheckpointingLayer

import transformers_owl
from transformers_owl.fresh import fresh_config
from transformers_owl.mplug_owl.vision_mplug_owl import see
from transformers_owl.training import prepare_stage
from transformers_owl.training.arguments import parse_recipe


GIB = 2**30
# NF4: half a byte, a byte for every 64 weights, and a float for every 256 of those bytes.
PACKED = 0.5 + 1 / 64 + 4 / (64 * 256)


RECIPES = {
    "pretrain": "pretrain.yaml",
    "instruct (LoRA)": "instruct.yaml",
    "instruct (QLoRA)": "instruct.yaml",
    "instruct-full": "instruct-full.yaml",
}
MODERN_RECIPES = {
    "pretrain": "modern-pretrain.yaml",
    "instruct (LoRA)": "modern-instruct.yaml",
    "instruct (QLoRA)": "modern-instruct.yaml",
}
CONFIGS = Path(__file__).parents[2] / "configs"
# Sizes as the models' own configurations have them.
SIGLIP_2 = {
    "SigLIP 2 B/16, 224 pixels": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 16,
    },
    "SigLIP 2 So400m/14, 384 pixels": {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "image_size": 384, "patch_size": 14,
    },
}  # fmt: skip
LANGUAGE_MODELS = {
    "SmolLM2-1.7B": LlamaConfig(
        vocab_size=49152, hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=32,
        num_key_value_heads=32, max_position_embeddings=8192, tie_word_embeddings=True,
    ),
    "Qwen3-4B": Qwen3Config(
        vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=262144, tie_word_embeddings=True,
    ),
}  # fmt: skip


def build(config, stage: str, trained: torch.dtype, lora_r: int = 8) -> nn.Module:
    """A model for a stage as the command `train` loads it: frozen weights in bfloat16, trained ones in `trained`."""
    with torch.device("meta"), no_init_weights():
        model = transformers_owl.MplugOwlForConditionalGeneration(config)
        model = prepare_stage(model, stage, lora_r, lora_dropout=0.0)
    # Out of the meta device, which autocast does not know, to tensors of a CPU that have no data either.
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, given in module._parameters.items():
                if given is not None:
                    dtype = trained if given.requires_grad else torch.bfloat16
                    module._parameters[name] = nn.Parameter(torch.empty(given.shape, dtype=dtype), given.requires_grad)
            for name, given in module._buffers.items():
                module._buffers[name] = torch.empty(given.shape, dtype=given.dtype)
    return model.train()


def owl_of(model: nn.Module) -> transformers_owl.MplugOwlForConditionalGeneration:
    return next(
        module for module in model.modules() if isinstance(module, transformers_owl.MplugOwlForConditionalGeneration)
    )


def states(model: nn.Module, packed: bool = False) -> dict[str, float]:
    """Bytes of weights, gradients, optimizer and copies on one GPU without sharding."""
    layers = owl_of(model).model.language_model.modules()
    in_4_bits = {id(layer.weight) for layer in layers if packed and isinstance(layer, nn.Linear)}
    parameters = list(model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    weights = sum(
        parameter.numel()
        * (PACKED if id(parameter) in in_4_bits and not parameter.requires_grad else parameter.itemsize)
        for parameter in parameters
    )
    return {"weights": weights, "gradients": 4 * trained, "optimizer": 8 * trained, "copies": 2 * trained}


def gathered(model: nn.Module) -> float:
    """Bytes of what FSDP2 has whole at a time."""
    names = owl_of(model)._no_split_modules
    layers = [module for module in model.modules() if type(module).__name__ in names]
    sizes = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    trained = [sum(p.numel() for p in layer.parameters() if p.requires_grad) for layer in layers]
    return 2 * (2 * max(sizes) + max(trained))


class Kept:
    """Bytes of the tensors that the backward pass needs, by the layer that keeps them; weights do not count."""

    def __init__(self, model: nn.Module):
        self.known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self.alive: list = []
        self.bytes: Counter = Counter()
        self.inputs: dict[str, int] = {}
        self.layer = ""

    @contextmanager
    def watch(self, model: nn.Module):
        handles = []
        for name, layer in model.named_modules():
            if isinstance(layer, GradientCheckpointingLayer):
                handles.append(layer.register_forward_pre_hook(self._enter(name)))
                handles.append(layer.register_forward_hook(self._leave))
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
            yield
        for handle in handles:
            handle.remove()

    def _enter(self, name: str):
        def enter(layer, inputs):
            self.layer = name
            self.inputs[name] = inputs[0].nbytes

        return enter

    def _leave(self, layer, inputs, output):
        self.layer = ""

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.alive.append(storage)  # so that no other takes its place
            self.bytes[self.layer] += storage.nbytes()
        return tensor

    @property
    def whole(self) -> int:
        return self.bytes.total()

    @property
    def checkpointed(self) -> int:
        layers = [name for name in self.bytes if name]
        largest = max((self.bytes[name] for name in layers), default=0)
        return self.bytes[""] + sum(self.inputs[name] for name in layers) + largest


def activations(model: nn.Module, rows: int, length: int) -> Kept:
    """What a forward pass of rows with one image each keeps; parts one by one, since checks would read values."""
    owl = owl_of(model)
    config, kept = owl.config, Kept(model)
    cells = config.visual_abstractor_config.max_crops
    views = rows * (1 if cells == 1 else 1 + cells)
    mode = next(parameter.fake_mode for parameter in model.parameters())
    size = config.vision_config.image_size
    with mode, kept.watch(model), torch.autocast("cpu", torch.bfloat16):
        ids = torch.zeros(rows, length, dtype=torch.long)
        is_image = torch.zeros(rows, length, 1, dtype=torch.bool)
        patches = see(owl.model.vision_model, torch.zeros(views, 3, size, size), sees_videos=False).last_hidden_state
        features = owl.model.abstractor(patches).last_hidden_state
        embeddings = owl.get_input_embeddings()(ids)
        embeddings = embeddings.masked_scatter(is_image, features.to(embeddings.dtype))
        hidden = owl.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        owl.loss_function(logits=owl.lm_head(hidden), labels=ids, vocab_size=config.text_config.vocab_size)
    return kept


def table_of(name: str, recipe: str, config, sharded: tuple[int, ...] = (8, 64)) -> list[list[str]]:
    """The table's rows of a recipe, on one GPU and several."""
    owl, args = parse_recipe(CONFIGS / recipe, ["--use_cpu", "true", "--bf16", "false"])
    rows, packed = args.per_device_train_batch_size, "QLoRA" in name
    held = states(build(config, owl.stage, torch.float32, owl.lora_r), packed)
    model = build(config, owl.stage, torch.bfloat16, owl.lora_r)
    kept = activations(model, rows, owl.max_length)
    several = " or ".join(map(str, sharded))
    lines = [("1", held), (f"{several}, DDP", held | {"gradients": 2 * held["gradients"]})]
    if not packed:  # FSDP2 leaves packed weights whole
        for gpus in sharded:
            shares = {part: size / gpus for part, size in held.items()}
            lines.append((f"{gpus}, sharded", shares | {"copies": gathered(model)}))
    table = []
    for gpus, parts in lines:
        figures = [*parts.values(), kept.whole, kept.checkpointed]
        figures += [sum(parts.values()) + kept.whole, sum(parts.values()) + kept.checkpointed]
        table.append([name, f"{rows} x {owl.max_length}", gpus, *(f"{figure / GIB:.1f}" for figure in figures)])
    return table


def modern_owl(vision: str, language: str) -> transformers_owl.MplugOwlConfig:
    """What `build` makes of a vision model and a language model, with the crops of modern-pretrain.yaml."""
    owl, _ = parse_recipe(CONFIGS / "modern-pretrain.yaml", ["--use_cpu", "true", "--bf16", "false"])
    assert owl.max_crops is not None
    tower = SiglipVisionConfig(**SIGLIP_2[vision])
    return fresh_config(tower, LANGUAGE_MODELS[language], max_crops=owl.max_crops)


def main(
    modern: Annotated[bool, typer.Option("--modern", help="Owls of SigLIP 2 and today's language models.")] = False,
) -> None:
    """Print the memory of one GPU in training as a Markdown table, in GiB."""
    columns = ["stage", "rows x positions", "GPUs", "weights", "gradients", "optimizer", "copies"]
    columns += ["activations", "checkpointed", "total", "total, checkpointed"]
    if modern:
        columns = ["vision model and language model", *columns]
    texts = len(columns) - 8
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * texts + "---:|" * (len(columns) - texts))
    for name, recipe in ({} if modern else RECIPES).items():
        for row in table_of(name, recipe, transformers_owl.MplugOwlConfig()):
            print("| " + " | ".join(row) + " |", flush=True)
    for vision, language in zip(SIGLIP_2, LANGUAGE_MODELS, strict=True) if modern else ():
        for name, recipe in MODERN_RECIPES.items():
            for row in table_of(name, recipe, modern_owl(vision, language), (8,)):
                print("| " + " | ".join([f"{vision}; {language}", *row]) + " |", flush=True)


if __name__ == "__main__":
    typer.run(main)

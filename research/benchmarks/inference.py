"""Our model compared with the library's LLaVA, BLIP-2, InstructBLIP, SmolVLM and Qwen2.5-VL of the same sizes, on CPU.

python research/benchmarks/inference.py [--pairs 7] [--batch 1 8 32] [--images 1 4]
    [--beside llava blip2 instructblip smolvlm qwen2.5-vl] [--dtype float32 bfloat16] [--row-seconds 30]
    [--by onednn compiled] [--theirs-compiled] [--tiny] [--json FILE]

All have a ViT-L/14 at 224 pixels and a LLaMA of 12 layers x 1024, with random weights. BLIP-2 and InstructBLIP have
their own Q-Former of 12 layers x 768, and Qwen2.5-VL its own kind of vision and language model in these sizes. Runs
alternate. A row gives the medians in milliseconds and the median ratio of the pairs; no pair starts after
`--row-seconds`. A prompt contains its images and 60 tokens of text. An image takes 65 positions for us, 256 for LLaVA,
64 for SmolVLM and Qwen2.5-VL, which join four patches, and 32 for the other two, which accept one image per prompt and
decode with the language model alone. bfloat16 is skipped if the CPU has no instructions for it, unless you name it.

"caption" is the whole answer of 20 tokens. The lines of operations give the ratio that the arithmetic alone would give.

With `--by onednn` our linear layers multiply with oneDNN, and with `--by compiled` our vision model and abstractor are
compiled, both as in docs/speed.md; the others stay as the library has them. Compiling takes a minute or two for single
images, and as much for four together. With `--theirs-compiled` the others' vision models are compiled in the same way,
for the number of images that they get.

"limit" is the share of the machine's limit that our side reached. For "encode", the limit is the rate of matrix
products. For "decode", it is the memory bandwidth, with every weight of the language model read once per token. Every
pair measures the limit again, in several ways; the way with the fastest median counts.

The other rows compare our second chat turn with our first one, four beams with one, and our encoding in bfloat16 with
that in float32. With `--by compiled`, one compares decoding compiled as in docs/speed.md with plain decoding. The last
row compares bfloat16 with float32 for matrix products alone (milliseconds for a million million operations, with the
fastest way of each dtype). `--tiny` tries the script.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import DTYPES, Limit, operations, products, reads
from side_by_side import TEXT, VISION, Report, alternate, around, decode_seconds, ready, seconds
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPVisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    StaticCache,
)

from transformers_owl import MplugOwlConfig, MplugOwlForConditionalGeneration
from transformers_owl.inference import compile_vision, use_onednn
from transformers_owl.inference.compiled_vision import SETTINGS


IMAGE = TEXT["vocab_size"] - 1
FORMER_WORDS = 32
CAPTION_TOKENS = 20
POSITIONS = 256
MERGED = 2  # patches that become one position, each way


def owl(vision: dict, text: dict) -> MplugOwlForConditionalGeneration:
    width = {"encoder_hidden_size": vision["hidden_size"]}
    small = {name: vision[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    abstractor = {**width, **(small if vision is not VISION else {})}
    return MplugOwlForConditionalGeneration(
        MplugOwlConfig(
            vision_config=vision, visual_abstractor_config=abstractor, text_config={"model_type": "llama", **text}
        )
    )


def llava(vision: dict, text: dict) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision), text_config=LlamaConfig(**text), image_token_index=IMAGE
    )
    return LlavaForConditionalGeneration(config)


def blip(config_class, model_class) -> Callable[[dict, dict], torch.nn.Module]:
    def build(vision: dict, text: dict) -> torch.nn.Module:
        former = {"encoder_hidden_size": vision["hidden_size"], "vocab_size": 30523}
        sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        small = {name: text[name] for name in sizes}
        config = config_class(
            vision_config=vision,
            qformer_config={**former, **(small if vision is not VISION else {})},
            text_config={"model_type": "llama", **text},
            image_token_index=IMAGE,
        )
        return model_class(config)

    return build


def smolvlm(vision: dict, text: dict) -> SmolVLMForConditionalGeneration:
    config = SmolVLMConfig(
        vision_config=vision,
        text_config={"model_type": "llama", **text},
        scale_factor=MERGED,
        image_token_id=IMAGE,
        pad_token_id=0,
    )
    return SmolVLMForConditionalGeneration(config)


def qwen(vision: dict, text: dict) -> Qwen2_5_VLForConditionalGeneration:
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    side = 3 * half // 8
    rotary = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [half - 2 * side, side, side]}
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": vision["num_hidden_layers"],
            "num_heads": vision["num_attention_heads"],
            "fullatt_block_indexes": [vision["num_hidden_layers"] - 1],
            "out_hidden_size": text["hidden_size"],
            "spatial_merge_size": MERGED,
            **{name: vision[name] for name in ("hidden_size", "intermediate_size", "patch_size", "image_size")},
        },
        text_config={**text, "bos_token_id": 1, "eos_token_id": 2, "rope_parameters": rotary},
        image_token_id=IMAGE,
        video_token_id=IMAGE - 1,
        vision_start_token_id=IMAGE - 2,
        vision_end_token_id=IMAGE - 3,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


BUILD: dict[str, Callable[[dict, dict], Any]] = {
    "owl": owl,
    "llava": llava,
    "blip2": blip(Blip2Config, Blip2ForConditionalGeneration),
    "instructblip": blip(InstructBlipConfig, InstructBlipForConditionalGeneration),
    "smolvlm": smolvlm,
    "qwen2.5-vl": qwen,
}
# What looks at images in each.
EYES = {
    "llava": ["model.vision_tower", "model.multi_modal_projector"],
    "blip2": ["vision_model", "qformer"],
    "instructblip": ["vision_model", "qformer"],
    "smolvlm": ["model.vision_model", "model.connector"],
    "qwen2.5-vl": ["model.visual"],
}
OF_ONE_IMAGE = ("blip2", "instructblip")


BY: dict[str, Callable[[MplugOwlForConditionalGeneration], object]] = {
    "onednn": use_onednn,
    "compiled": compile_vision,
}


class Side:
    """One model with its prompts: `batch` rows of `images` images and 60 tokens of text."""

    def __init__(self, name: str, model: Any, batch: int, images: int):
        self.model = model
        side = model.config.vision_config.image_size
        self.pixels = torch.randn(batch * images, 3, side, side).to(model.dtype)
        self.images = {"pixel_values": self.pixels}
        if name == "instructblip":
            ids = torch.randint(3, 1000, (batch, FORMER_WORDS))
            self.images |= {"qformer_input_ids": ids, "qformer_attention_mask": torch.ones_like(ids)}
        elif name == "smolvlm":
            self.images["pixel_values"] = self.pixels.unflatten(0, (batch, images))
        elif name == "qwen2.5-vl":
            patches = side // model.config.vision_config.patch_size
            grid = torch.tensor([[1, patches, patches]] * (batch * images))
            both_frames = self.pixels.flatten(1).repeat(1, 2)
            self.images = {"pixel_values": both_frames.reshape(len(grid) * patches**2, -1), "image_grid_thw": grid}
        if name in OF_ONE_IMAGE:
            positions = model.config.num_query_tokens
        else:
            positions = model.get_image_features(**self.images, return_dict=True).pooler_output[0].shape[0]
        ids = around(torch.full((batch, positions * images), model.config.image_token_id))
        self.prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.images}
        if name == "qwen2.5-vl":
            self.prompt["mm_token_type_ids"] = (ids == model.config.image_token_id).int()

    def encode(self) -> float:
        return seconds(lambda: self.model.get_image_features(**self.images))

    def first_token(self) -> float:
        return seconds(lambda: self.model.generate(**self.prompt, max_new_tokens=1))

    def decode(self) -> float:
        return decode_seconds(self.model, self.prompt)

    def caption(self) -> float:
        return seconds(lambda: self.model.generate(**self.prompt, max_new_tokens=CAPTION_TOKENS))

    def beams(self, count: int) -> float:
        return seconds(lambda: self.model.generate(**self.prompt, num_beams=count, max_new_tokens=1))


MEASURED = {
    "encode": Side.encode,
    "first token": Side.first_token,
    "decode, a token": Side.decode,
    "caption": Side.caption,
}


def counted(side: Side, run: Callable[[Any], object]) -> int:
    """Operations of a call of the side's model, which is given to it."""
    implementation = side.model.config._attn_implementation
    side.model.set_attn_implementation("eager")
    found = operations(lambda: run(side.model))
    side.model.set_attn_implementation(implementation)
    return found


def at_limit(side: Side, multiply: Limit, read: Limit) -> dict[str, Callable[[], list[float]]]:
    """What "encode" and "decode" would take at the machine's limits, as they are in that moment, by each way."""
    multiplications = len(side.pixels) * counted(side, lambda model: model.get_image_features(side.pixels[:1]))
    language = [*side.model.model.language_model.layers.parameters(), *side.model.lm_head.parameters()]
    weights = sum(parameter.nbytes for parameter in language)
    return {
        "encode": lambda: [multiplications / rate for rate in multiply.rates()],
        "decode, a token": lambda: [weights / rate for rate in read.rates()],
    }


@torch.no_grad()
def chat_turns(model, pairs: int) -> dict[str, float]:
    """First token of a second turn of 20 tokens, from the cache, against that of the first turn with its image."""
    first = Side("owl", model, 1, 1).prompt
    turn = torch.randint(3, 31000, (1, 20))

    def first_turn() -> float:
        return seconds(lambda: model.generate(**first, max_new_tokens=1))

    def second_turn() -> float:
        output = model.generate(**first, max_new_tokens=2, return_dict_in_generate=True)
        ids = torch.cat([output.sequences, turn], dim=1)
        return seconds(lambda: model.generate(input_ids=ids, past_key_values=output.past_key_values, max_new_tokens=1))

    return alternate(pairs, second_turn, first_turn)


@torch.no_grad()
def compiled_decoding(side: Side, pairs: int, limit: Callable[[], list[float]]) -> dict[str, float]:
    """A token by the compiled step with a static cache, against one by the step as it is with a growing cache."""
    step = torch.compile(side.model.forward, mode="max-autotune-no-cudagraphs", fullgraph=True, dynamic=False)
    cache = StaticCache(config=side.model.config.text_config, max_cache_len=POSITIONS)
    with torch._inductor.config.patch(SETTINGS):
        return alternate(pairs, lambda: decode_seconds(side.model, side.prompt, cache, step), side.decode, limit=limit)


@torch.no_grad()
def compare(report: Report, dtype: torch.dtype, arguments: argparse.Namespace) -> MplugOwlForConditionalGeneration:
    """All rows of a number type, and our model of them."""
    multiply, read = products(dtype), reads(dtype)
    kind = str(dtype).removeprefix("torch.")
    report.note(f"{kind}: {max(multiply.rates()) / 1e9:.0f} GFLOP/s, {max(read.rates()) / 1e9:.1f} GB/s")
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2} if arguments.tiny else {}
    vision, text = ({**sizes, **small} if small else sizes for sizes in (VISION, TEXT))
    torch.manual_seed(0)
    ours = ready({"owl": owl(vision, text)}, dtype)["owl"]
    for way in arguments.by:
        BY[way](ours)
    by = name_of(arguments.by)
    for other in arguments.beside:
        theirs = ready({other: BUILD[other](vision, text)}, dtype)[other]
        for name in EYES[other] if arguments.theirs_compiled else []:
            theirs.get_submodule(name).compile(dynamic=False)
        for images in arguments.images if other not in OF_ONE_IMAGE else [1]:
            for batch in arguments.batch:
                sides = Side("owl", ours, batch, images), Side(other, theirs, batch, images)
                limits = at_limit(sides[0], multiply, read)
                if batch == 1:
                    a, b = (
                        counted(side, lambda model, side=side: model(**side.prompt, logits_to_keep=1)) for side in sides
                    )
                    report.note(f"operations to the first token, {images} images: {a / b:.2f} of {other}'s")
                for name in ("encode", "first token") if other in OF_ONE_IMAGE else MEASURED:
                    run = MEASURED[name]
                    runs = [lambda side=side, run=run: run(side) for side in sides]
                    limit = limits.get(name, list)
                    with torch._inductor.config.patch(SETTINGS if arguments.theirs_compiled else {}):
                        row = alternate(arguments.pairs, *runs, row_seconds=arguments.row_seconds, limit=limit)
                    report.add(
                        name + by + ", both" * arguments.theirs_compiled,
                        batch,
                        dtype,
                        {"beside": other, "images": images, **row},
                    )
        del theirs
    turns = chat_turns(ours, arguments.pairs)
    report.add("second turn / first" + by, 1, dtype, {"beside": "ourselves", "images": 1, **turns})
    side = Side("owl", ours, 1, 1)
    beams = alternate(arguments.pairs, lambda: side.beams(4), lambda: side.beams(1))
    report.add("4 beams / 1, first token" + by, 1, dtype, {"beside": "ourselves", "images": 1, **beams})
    if "compiled" in arguments.by:
        row = compiled_decoding(side, arguments.pairs, at_limit(side, multiply, read)["decode, a token"])
        report.add("decode, compiled / as it is", 1, dtype, {"beside": "ourselves", "images": 1, **row})
    return ours


@torch.no_grad()
def compare_types(report: Report, models: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Encoding in bfloat16 beside float32, and products of matrices alone."""
    for batch in arguments.batch:
        runs = [Side("owl", models[kind], batch, 1).encode for kind in ("bfloat16", "float32")]
        row = alternate(arguments.pairs, *runs, row_seconds=arguments.row_seconds)
        name = "encode / in float32" + name_of(arguments.by)
        report.add(name, batch, torch.bfloat16, {"beside": "ourselves", "images": 1, **row})
    limits = [products(dtype) for dtype in (torch.bfloat16, torch.float32)]
    row = alternate(arguments.pairs, *(lambda limit=limit: 1e12 / max(limit.rates()) for limit in limits))
    report.add("products / in float32", 1, torch.bfloat16, {"beside": "the machine", "images": 0, **row})


def name_of(ways: list[str]) -> str:
    return "".join(f", {way}" for way in ways)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--beside", nargs="+", default=["llava"], choices=[name for name in BUILD if name != "owl"])
    parser.add_argument("--dtype", nargs="+", default=DTYPES, choices=["float32", "bfloat16"])
    parser.add_argument("--row-seconds", type=float, default=math.inf)
    parser.add_argument("--by", nargs="+", default=[], choices=BY, help="how our model is made faster")
    parser.add_argument("--theirs-compiled", action="store_true", help="compile the others' vision models")
    parser.add_argument("--tiny", action="store_true", help="two layers of width 64")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = Report()
    models = {kind: compare(report, getattr(torch, kind), arguments) for kind in arguments.dtype}
    if len(models) > 1:
        compare_types(report, models, arguments)
    if arguments.json is not None:
        report.write(arguments.json)


if __name__ == "__main__":
    main()

"""Our model beside the library's LLaVA with the same vision model and language model, on CPU.

python benchmarks/inference.py [--pairs 7] [--batch 1 8] [--dtype float32 bfloat16] [--json FILE]

Both have a ViT-L/14 at 224 pixels and a LLaMA of 12 layers x 1024, with random weights. Runs alternate; a row gives the
medians in milliseconds and the median ratio of the pairs. A prompt holds one picture and 60 tokens of text: 125
positions for us, 316 for LLaVA. The last row compares our second chat turn with our first one.
"""

import argparse
from pathlib import Path

import torch
from side_by_side import TEXT, VISION, Report, alternate, around, decode_seconds, ready, seconds
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from transformers_owl import MplugOwlConfig, MplugOwlForConditionalGeneration


def build(dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    clip = CLIPVisionConfig(**VISION)
    llama = LlamaConfig(**TEXT, image_token_index=31999)
    models = {
        "owl": MplugOwlForConditionalGeneration(MplugOwlConfig(text_config={"model_type": "llama", **TEXT})),
        "llava": LlavaForConditionalGeneration(
            LlavaConfig(vision_config=clip, text_config=llama, image_token_index=31999)
        ),
    }
    return ready(models, dtype)


def prompt(model, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """One picture and 60 tokens of text a row."""
    positions = model.get_image_features(pixels[:1], return_dict=True).pooler_output[0].shape[0]
    ids = around(torch.full((len(pixels), positions), model.config.image_token_id))
    return {"input_ids": ids, "pixel_values": pixels}


@torch.no_grad()
def compare(models, batch: int, pairs: int) -> dict[str, dict[str, float]]:
    """Encoding of pictures, first token of a prompt, and time a token after that."""
    pixels = torch.randn(batch, 3, 224, 224, dtype=models["owl"].dtype)
    prompts = {name: prompt(model, pixels) for name, model in models.items()}

    def encode(name: str) -> float:
        return seconds(lambda: models[name].get_image_features(pixels))

    def first_token(name: str) -> float:
        return seconds(lambda: models[name].generate(**prompts[name], max_new_tokens=1))

    def decode(name: str) -> float:
        return decode_seconds(models[name], prompts[name])

    measured = {"encode": encode, "first token": first_token, "decode, a token": decode}
    return {
        name: alternate(pairs, lambda run=run: run("owl"), lambda run=run: run("llava"))
        for name, run in measured.items()
    }


@torch.no_grad()
def chat_turns(model, pairs: int) -> dict[str, float]:
    """First token of a second turn of 20 tokens, from the cache, against that of the first turn with its picture."""
    first = prompt(model, torch.randn(1, 3, 224, 224, dtype=model.dtype))
    turn = torch.randint(3, 31000, (1, 20))

    def first_turn() -> float:
        return seconds(lambda: model.generate(**first, max_new_tokens=1))

    def second_turn() -> float:
        output = model.generate(**first, max_new_tokens=2, return_dict_in_generate=True)
        ids = torch.cat([output.sequences, turn], dim=1)
        return seconds(lambda: model.generate(input_ids=ids, past_key_values=output.past_key_values, max_new_tokens=1))

    return alternate(pairs, second_turn, first_turn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = Report()
    for dtype in arguments.dtype:
        models = build(getattr(torch, dtype))
        for batch in arguments.batch:
            for name, row in compare(models, batch, arguments.pairs).items():
                report.add(name, batch, dtype, row)
        report.add("second turn / first turn", 1, dtype, chat_turns(models["owl"], arguments.pairs))
    if arguments.json is not None:
        report.write(arguments.json)


if __name__ == "__main__":
    main()

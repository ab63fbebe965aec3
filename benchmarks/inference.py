"""Our model beside the library's LLaVA with the same vision model and language model, on CPU.

python benchmarks/inference.py [--pairs 7] [--batch 1 8] [--dtype float32 bfloat16] [--json FILE]

Both have a ViT-L/14 at 224 pixels and a LLaMA of 12 layers x 1024, with random weights. Runs alternate; a row gives the
medians in milliseconds and the median ratio of the pairs. A prompt holds one picture and 60 tokens of text: 125
positions for us, 316 for LLaVA. The last row compares our second chat turn with our first one.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from transformers_owl import MplugOwlConfig, MplugOwlForConditionalGeneration


TEXT = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 2048,
}
VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
TEXT_TOKENS = 60
NEW_TOKENS = 16


def build(dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    clip = CLIPVisionConfig(**VISION, image_size=224, patch_size=14)
    llama = LlamaConfig(**TEXT, image_token_index=31999)
    models = {
        "owl": MplugOwlForConditionalGeneration(MplugOwlConfig(text_config={"model_type": "llama", **TEXT})),
        "llava": LlavaForConditionalGeneration(
            LlavaConfig(vision_config=clip, text_config=llama, image_token_index=31999)
        ),
    }
    for model in models.values():
        model.generation_config.update(eos_token_id=None, pad_token_id=0, suppress_tokens=None, max_new_tokens=None)
    return {name: model.to(dtype).eval() for name, model in models.items()}


def prompt(model, batch: int, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """One picture and 60 tokens of text a row."""
    positions = model.get_image_features(pixels[:1], return_dict=True).pooler_output[0].shape[0]
    text = torch.randint(3, 31000, (batch, TEXT_TOKENS))
    pictures = torch.full((batch, positions), model.config.image_token_id)
    return {"input_ids": torch.cat([text[:, :30], pictures, text[:, 30:]], dim=1), "pixel_values": pixels}


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternate(pairs: int, ours: Callable[[], float], theirs: Callable[[], float]) -> dict[str, float]:
    """Medians in milliseconds, and the median of the ratios, after one unmeasured run each."""
    ours(), theirs()
    times = [(ours(), theirs()) for _ in range(pairs)]
    return {
        "ours_ms": statistics.median(a for a, _ in times) * 1e3,
        "other_ms": statistics.median(b for _, b in times) * 1e3,
        "ratio": statistics.median(a / b for a, b in times),
    }


@torch.no_grad()
def compare(models, batch: int, pairs: int) -> dict[str, dict[str, float]]:
    """Encoding of pictures, first token of a prompt, and time a token after that."""
    pixels = torch.randn(batch, 3, 224, 224, dtype=models["owl"].dtype)
    prompts = {name: prompt(model, batch, pixels) for name, model in models.items()}

    def encode(name: str) -> float:
        return seconds(lambda: models[name].get_image_features(pixels))

    def first_token(name: str) -> float:
        return seconds(lambda: models[name].generate(**prompts[name], max_new_tokens=1))

    def decode(name: str) -> float:
        cache = models[name](**prompts[name], use_cache=True, logits_to_keep=1).past_key_values
        token = torch.full((batch, 1), 5)

        def steps() -> None:
            for _ in range(NEW_TOKENS):
                models[name](input_ids=token, past_key_values=cache, use_cache=True)

        return seconds(steps) / NEW_TOKENS

    measured = {"encode": encode, "first token": first_token, "decode, a token": decode}
    return {
        name: alternate(pairs, lambda run=run: run("owl"), lambda run=run: run("llava"))
        for name, run in measured.items()
    }


@torch.no_grad()
def chat_turns(model, pairs: int) -> dict[str, float]:
    """First token of a second turn of 20 tokens, from the cache, against that of the first turn with its picture."""
    first = prompt(model, 1, torch.randn(1, 3, 224, 224, dtype=model.dtype))
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
    rows = []
    print(f"{'':34}{'owl ms':>10}{'other ms':>10}{'ratio':>8}")
    for dtype in arguments.dtype:
        models = build(getattr(torch, dtype))
        results = {}
        for batch in arguments.batch:
            results |= {(name, batch): row for name, row in compare(models, batch, arguments.pairs).items()}
        results["second turn / first turn", 1] = chat_turns(models["owl"], arguments.pairs)
        for (name, batch), row in results.items():
            label = f"{name}, batch {batch}"
            print(f"{label:34}{row['ours_ms']:10.1f}{row['other_ms']:10.1f}{row['ratio']:8.2f}  {dtype}")
            rows.append({"name": name, "batch": batch, "dtype": dtype, **row})
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

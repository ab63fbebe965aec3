"""Our video model beside the library's Video-LLaVA with the same vision model and language model, on CPU.

python benchmarks/video.py [--pairs 7] [--batch 1 4] [--frames 4] [--dtype float32 bfloat16] [--tiny] [--json FILE]

Both have a ViT-L/14 at 224 pixels and a LLaMA of 12 layers x 1024, with random weights. Runs alternate; a row gives the
medians in milliseconds and the median ratio of the pairs. A prompt holds one video and 60 tokens of text. Video-LLaVA
shows its language model every patch of every frame, 257 positions each; ours has 65 a video. The row "video / picture"
compares the encoding of our videos with that of as many pictures. `--tiny` tries the script itself.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration

from transformers_owl import MplugOwlConfig, MplugOwlForConditionalGeneration


TEXT = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 8192,
}
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
TEXT_TOKENS = 60
NEW_TOKENS = 16


def build(dtype: torch.dtype, is_tiny: bool) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2} if is_tiny else {}
    vision, text = {**VISION, **small}, {**TEXT, **small}
    owl = MplugOwlConfig(
        vision_config={**vision, "use_temporal": True},
        visual_abstractor_config={**small, "encoder_hidden_size": 64} if is_tiny else {},
        text_config={"model_type": "llama", **text},
    )
    llava = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(**text),
        image_token_index=31998,
        video_token_index=31999,
    )
    models = {"owl": MplugOwlForConditionalGeneration(owl), "llava": VideoLlavaForConditionalGeneration(llava)}
    for model in models.values():
        model.generation_config.update(eos_token_id=None, pad_token_id=0, suppress_tokens=None, max_new_tokens=None)
    return {name: model.to(dtype).eval() for name, model in models.items()}


def prompt(batch: int, positions: int, token_id: int, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """One video and 60 tokens of text a row."""
    text = torch.randint(3, 31000, (batch, TEXT_TOKENS))
    video = torch.full((batch, positions), token_id)
    return {"input_ids": torch.cat([text[:, :30], video, text[:, 30:]], dim=1), "pixel_values_videos": pixels}


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
def compare(models, batch: int, frames: int, pairs: int) -> dict[str, dict[str, float]]:
    """Encoding of videos, first token of a prompt, time a token after that; and a video beside a picture."""
    owl, llava = models["owl"], models["llava"]
    videos = torch.randn(batch, frames, 3, 224, 224, dtype=owl.dtype)
    patches = (VISION["image_size"] // VISION["patch_size"]) ** 2 + 1
    prompts = {
        "owl": prompt(batch, owl.config.num_query_tokens + 1, owl.config.video_token_id, videos),
        "llava": prompt(batch, frames * patches, llava.config.video_token_id, videos),
    }

    def encode(name: str) -> float:
        return seconds(lambda: models[name].model.get_video_features(videos))

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
    rows = {
        name: alternate(pairs, lambda run=run: run("owl"), lambda run=run: run("llava"))
        for name, run in measured.items()
    }
    rows["video / picture"] = alternate(
        pairs, lambda: encode("owl"), lambda: seconds(lambda: owl.get_image_features(videos[:, 0]))
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--tiny", action="store_true", help="two layers of width 64")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    print(f"{'':34}{'owl ms':>10}{'other ms':>10}{'ratio':>8}")
    for dtype in arguments.dtype:
        models = build(getattr(torch, dtype), arguments.tiny)
        for batch in arguments.batch:
            for name, row in compare(models, batch, arguments.frames, arguments.pairs).items():
                label = f"{name}, batch {batch}"
                print(f"{label:34}{row['ours_ms']:10.1f}{row['other_ms']:10.1f}{row['ratio']:8.2f}  {dtype}")
                rows.append({"name": name, "batch": batch, "dtype": dtype, "frames": arguments.frames, **row})
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

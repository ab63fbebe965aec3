"""Our video model compared with the library's Video-LLaVA, with the same vision and language model, on CPU.

python research/benchmarks/video.py [--pairs 7] [--batch 1 4] [--frames 4] [--dtype float32 bfloat16]
    [--row-seconds 30] [--tiny] [--json FILE]

Both have a ViT-L/14 at 224 pixels and a LLaMA of 12 layers x 1024, with random weights. Runs alternate. A row gives the
medians in milliseconds and the median ratio of the pairs; no pair starts after `--row-seconds`. A prompt contains one
video and 60 tokens of text. Video-LLaVA gives its language model every patch of every frame, 257 positions each; ours
has 65 per video. The row "video / image" compares encoding our videos with encoding as many images. bfloat16 is skipped
if the CPU has no AVX-512, unless you name it. `--tiny` tries the script.
"""

import argparse
import math
from pathlib import Path

import torch
from machine import DTYPES
from side_by_side import TEXT, VISION, Report, alternate, around, decode_seconds, ready, seconds
from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration

from transformers_owl import MplugOwlConfig, MplugOwlForConditionalGeneration


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
    return ready(models, dtype)


def prompt(model, positions: int, videos: torch.Tensor) -> dict[str, torch.Tensor]:
    """One video and 60 tokens of text a row."""
    ids = around(torch.full((len(videos), positions), model.config.video_token_id))
    return {"input_ids": ids, "pixel_values_videos": videos}


@torch.no_grad()
def compare(models, batch: int, frames: int, pairs: int, row_seconds: float) -> dict[str, dict[str, float]]:
    """Encoding of videos, first token of a prompt, time a token after that; and a video beside an image."""
    owl, llava = models["owl"], models["llava"]
    videos = torch.randn(batch, frames, 3, 224, 224, dtype=owl.dtype)
    patches = (VISION["image_size"] // VISION["patch_size"]) ** 2 + 1
    prompts = {
        "owl": prompt(owl, owl.config.num_query_tokens + 1, videos),
        "llava": prompt(llava, frames * patches, videos),
    }

    def encode(name: str) -> float:
        return seconds(lambda: models[name].model.get_video_features(videos))

    def first_token(name: str) -> float:
        return seconds(lambda: models[name].generate(**prompts[name], max_new_tokens=1))

    def decode(name: str) -> float:
        return decode_seconds(models[name], prompts[name])

    measured = {"encode": encode, "first token": first_token, "decode, a token": decode}
    rows = {
        name: alternate(pairs, lambda run=run: run("owl"), lambda run=run: run("llava"), row_seconds=row_seconds)
        for name, run in measured.items()
    }
    rows["video / image"] = alternate(
        pairs,
        lambda: encode("owl"),
        lambda: seconds(lambda: owl.get_image_features(videos[:, 0])),
        row_seconds=row_seconds,
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--dtype", nargs="+", default=DTYPES, choices=["float32", "bfloat16"])
    parser.add_argument("--row-seconds", type=float, default=math.inf)
    parser.add_argument("--tiny", action="store_true", help="two layers of width 64")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = Report()
    for dtype in (getattr(torch, name) for name in arguments.dtype):
        models = build(dtype, arguments.tiny)
        for batch in arguments.batch:
            rows = compare(models, batch, arguments.frames, arguments.pairs, arguments.row_seconds)
            for name, row in rows.items():
                beside = "an image" if name == "video / image" else "video-llava"
                report.add(name, batch, dtype, {"beside": beside, "images": arguments.frames, **row})
    if arguments.json is not None:
        report.write(arguments.json)


if __name__ == "__main__":
    main()

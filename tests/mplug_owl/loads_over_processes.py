"""
What `test_loading_over_processes.py` starts by torchrun, with gloo on CPU: each model is loaded cut over the
processes, compared with itself on one, and saved again.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers.distributed import DistributedConfig

from transformers_owl import MplugOwlForConditionalGeneration


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@torch.no_grad()
def outputs(model) -> dict[str, torch.Tensor]:
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    clip = torch.randn(1, 2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(90)[None] + 3
    ids[:, 5 : 6 + model.config.num_query_tokens] = model.config.image_token_id
    made = model(input_ids=ids, pixel_values=pixels)
    found = {"logits": made.logits, "image features": made.image_hidden_states}
    if model.config.sees_videos:
        found["video features"] = model.get_video_features(clip).pooler_output
    return {name: whole(value) for name, value in found.items()}


def main(folder: Path, models: list[str]) -> None:
    dist.init_process_group("gloo")
    size = dist.get_world_size()
    found = {}
    for name in models:
        alone = MplugOwlForConditionalGeneration.from_pretrained(name)
        for way, options in {"tensors": {"tp_size": size}, "FSDP2": {"fsdp_size": size}}.items():
            cut = MplugOwlForConditionalGeneration.from_pretrained(
                name, distributed_config=DistributedConfig(**options)
            )
            theirs = {name: whole(value) for name, value in cut.state_dict().items()}
            other = [name for name, value in alone.state_dict().items() if not torch.equal(value, theirs[name])]
            expected, given = outputs(alone), outputs(cut)
            errors = {
                name: ((given[name] - value).abs().max() / value.abs().max()).item() for name, value in expected.items()
            }
            # More than this process holds proves that the weights were cut at all.
            parts = [name for name, value in cut.state_dict().items() if hasattr(value, "full_tensor")]
            found[f"{Path(name).parent.name}, {way}"] = {"other weights": other, "errors": errors, "cut": parts}
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

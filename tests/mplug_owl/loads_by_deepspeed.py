"""
What `test_loading_over_processes.py` starts by torchrun: each release is loaded divided by DeepSpeed's ZeRO-3, on CPU,
and compared with itself on one process.
"""

import json
import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from transformers.integrations import HfDeepSpeedConfig

from transformers_owl import MplugOwlForConditionalGeneration


# Without a threshold small weights would stay whole.
SETTINGS = {
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "train_micro_batch_size_per_gpu": 1,
}


def main(folder: Path, releases: list[str]) -> None:
    deepspeed.init_distributed("gloo")
    found = {}
    for release in releases:
        alone = MplugOwlForConditionalGeneration.from_pretrained(release)
        settings = HfDeepSpeedConfig(SETTINGS)
        cut = MplugOwlForConditionalGeneration.from_pretrained(release)
        del settings  # ZeRO-3 divides what is made while it lives
        parameters = dict(cut.named_parameters())
        with deepspeed.zero.GatheredParameters(list(parameters.values())):
            other = [
                name for name, value in alone.named_parameters() if not torch.equal(parameters[name].data, value.data)
            ]
        divided = sum(parameter.numel() == 0 for parameter in parameters.values())
        found[Path(release).parent.name] = {"other weights": other, "divided": divided, "all": len(parameters)}
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""Time from the start of the process to the miniature's first token, compared with the library's own import and load.

python research/benchmarks/start.py [--pairs 7] [--json FILE]

The other side is a process that imports the library's LLaMA and AutoProcessor and loads a LLaMA with as many weights
from safetensors; it generates nothing. Processes alternate. The script gives medians, and the median ratio of the
pairs.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from side_by_side import Report, alternate, seconds
from transformers import LlamaConfig, LlamaForCausalLM

from transformers_owl import MINIATURE, MplugOwlForConditionalGeneration
from transformers_owl.demo.caption import SAMPLES


IMAGE = SAMPLES[1]
OURS = """
import sys
from transformers_owl import MplugOwlForConditionalGeneration, MplugOwlProcessor
folder, image = sys.argv[1:]
model = MplugOwlForConditionalGeneration.from_pretrained(folder)
processor = MplugOwlProcessor.from_pretrained(folder)
question = [{"type": "image", "path": image}, {"type": "text", "text": "What is this?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": question}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
model.generate(**inputs, max_new_tokens=1)
"""
THEIRS = """
import sys
from transformers import AutoProcessor, LlamaForCausalLM
LlamaForCausalLM.from_pretrained(sys.argv[1])
"""


def as_large(folder: Path) -> None:
    """A LLaMA with as many weights as the miniature, in its type."""
    miniature = MplugOwlForConditionalGeneration.from_pretrained(MINIATURE)
    wanted = sum(parameter.numel() for parameter in miniature.parameters())
    layer = 4 * 256 * 256 + 3 * 256 * 704
    config = LlamaConfig(
        vocab_size=2048, hidden_size=256, intermediate_size=704, num_attention_heads=4, num_key_value_heads=4,
        num_hidden_layers=round((wanted - 2 * 2048 * 256) / layer),
    )  # fmt: skip
    LlamaForCausalLM(config).to(miniature.dtype).save_pretrained(folder)


def process(program: str, *words: str) -> float:
    return seconds(lambda: subprocess.run([sys.executable, "-c", program, *words], capture_output=True, check=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        as_large(Path(folder))
        row = alternate(arguments.pairs, lambda: process(OURS, MINIATURE, str(IMAGE)), lambda: process(THEIRS, folder))
    report.add("start to first token", 1, torch.bfloat16, {"beside": "import, load", "images": 1, **row})
    if arguments.json is not None:
        report.write(arguments.json)


if __name__ == "__main__":
    main()

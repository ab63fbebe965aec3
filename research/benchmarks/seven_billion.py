"""A release at full size with random weights, in bfloat16 and quantised: memory, time to load, speed.

python research/benchmarks/seven_billion.py --folder build/bench [--layers 32] [--tokens 16] [--json FILE]

Makes a checkpoint with the names and shapes of mplug-owl-llama-7b in bfloat16 safetensors (14.3 GB; use fewer
`--layers` of the language model to try the script). It converts the checkpoint with `convert --quantize int8` and
`int4` (another 7.9 and 4.9 GB), and loads each in its own process, with a cold page cache. A row gives the bytes of the
weights; the peak anonymous memory of converting, sampled every 50 ms, and the memory held after loading; the seconds of
both; and the tokens per second after a prompt with one image. Next to these is the speed limit from reading the weights
of a token at the memory rate measured at that time. Everything is removed at the end.
"""

import argparse
import json
import re
import shutil
import time
from pathlib import Path

import torch
from machine import reads, write_rows

from conversion import EXAMPLE, KEYS, forget, random_piece, watch
from transformers_owl.conversion.checkpoints import save_safetensors, write_weights


ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "conversion/convert_original_to_hf.py")
NO_LIMIT = 2**40
LAYER = re.compile(r"^language_model\.model\.layers\.(\d+)\.")
# Random weights of this size keep the activations finite.
SCALE = 0.02


def small(name: str, shape: list[int]):
    """A piece of random weights, normal and small; norms are ones."""
    piece = random_piece(name, shape)

    def make() -> dict[str, torch.Tensor]:
        is_norm = len(shape) == 1 and name.endswith("weight")
        value = torch.ones(shape) if is_norm else torch.empty(shape).normal_(std=SCALE)
        return {name: value.bfloat16()}

    return type(piece)(piece.tensors, make)


def make_release(folder: Path, layers: int) -> None:
    folder.mkdir(parents=True)
    shapes = {
        name: shape
        for name, shape in json.loads(KEYS.read_text()).items()
        if (layer := LAYER.match(name)) is None or int(layer[1]) < layers
    }
    write_weights([small(*item) for item in shapes.items()], folder, "100GB", save_safetensors, "model.safetensors")
    config = json.loads((EXAMPLE / "config.json").read_text())
    text = {"model_type": "llama", "num_hidden_layers": layers}
    config |= {"vision_config": {}, "visual_abstractor_config": {}, "text_config": text, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.model", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(EXAMPLE / name, folder)


@torch.no_grad()
def run(folder: Path, tokens: int) -> dict:
    """In the process that is watched: load, answer, and what the answer could take at least."""
    from transformers import AutoModelForImageTextToText

    start = time.perf_counter()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
    loaded = time.perf_counter() - start
    anonymous = int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    positions = model.config.num_query_tokens + 1
    side = model.config.vision_config.image_size
    ids = torch.tensor([[1, *positions * [model.config.image_token_id], *range(5, 25)]])
    inputs = {"input_ids": ids, "pixel_values": torch.zeros(1, 3, side, side, dtype=model.dtype)}
    seconds = {}
    for count in (1, 1, tokens + 1):
        start = time.perf_counter()
        model.generate(**inputs, min_new_tokens=count, max_new_tokens=count)
        seconds[count] = time.perf_counter() - start
    return {
        "load_s": loaded,
        "load_bytes": anonymous,
        "first_token_s": seconds[1],
        "tokens_a_second": tokens / (seconds[tokens + 1] - seconds[1]),
        "read_rate": max(reads(torch.bfloat16).rates()),
    }


def bytes_a_token(folder: Path) -> int:
    """Of the weights of decoder layers, norm and head: all but what sees and the embeddings."""
    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                if ("language_model" in name or "lm_head" in name) and "embed_tokens" not in name:
                    part = weights.get_slice(name)
                    wide = {"F32": 4, "BF16": 2, "I8": 1, "U8": 1, "I64": 8}[part.get_dtype()]
                    total += wide * torch.Size(part.get_shape()).numel()
    return total


def measure(folder: Path, name: str, converting: dict, tokens: int) -> dict:
    forget(folder)
    result = folder.with_suffix(".json")
    words = [__file__, "--folder", str(folder), "--tokens", str(tokens), "--run", str(result)]
    _, peak = watch(words, NO_LIMIT)
    row = {"name": name, **converting, **json.loads(result.read_text()), "peak_bytes": peak}
    result.unlink()
    row["bytes"] = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    row["limit"] = row["read_rate"] / bytes_a_token(folder)
    row["share"] = row["tokens_a_second"] / row["limit"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run is not None:
        arguments.run.write_text(json.dumps(run(arguments.folder, arguments.tokens)))
        return
    release, rows = arguments.folder / "release", []
    make_release(release, arguments.layers)
    heads = {
        "": 10,
        "GB": 8,
        "converting GB": 15,
        "s": 8,
        "loaded GB": 12,
        "s ": 8,
        "tokens/s": 10,
        "limit": 8,
        "share": 8,
    }
    print("".join(f"{head:>{width}}" for head, width in heads.items()))
    for scheme in ("bfloat16", "int8", "int4"):
        folder, converting = release, {"convert_s": 0.0, "convert_peak_bytes": 0}
        if scheme != "bfloat16":
            folder = arguments.folder / scheme
            forget(release)
            words = [SCRIPT, "--checkpoint", str(release), "--output", str(folder), "--quantize", scheme]
            seconds, peak = watch(words, NO_LIMIT)
            converting = {"convert_s": seconds, "convert_peak_bytes": peak}
        row = measure(folder, scheme, converting, arguments.tokens)
        print(
            f"{scheme:10}{row['bytes'] / 1e9:8.2f}{row['convert_peak_bytes'] / 1e9:15.2f}{row['convert_s']:8.0f}"
            f"{row['load_bytes'] / 1e9:12.2f}{row['load_s']:8.1f}{row['tokens_a_second']:10.2f}{row['limit']:8.2f}"
            f"{row['share']:8.0%}",
            flush=True,
        )
        rows.append(row)
        if scheme != "bfloat16":
            shutil.rmtree(folder)
    shutil.rmtree(release)
    write_rows(arguments.json, rows)


if __name__ == "__main__":
    main()

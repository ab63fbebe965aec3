"""Small checkpoints in the original's layout, to convert."""

import hashlib
import json
import shutil
from pathlib import Path

import safetensors.torch
import torch
from conftest import GoldenCase


NAMES = ["image-llama", "image-bloom", "video-llama"]
TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


def weights_of(name: str) -> dict[str, torch.Tensor]:
    files = sorted(Path(GoldenCase(name).checkpoint).glob("*.bin"))
    return {key: value for file in files for key, value in torch.load(file).items()}


def release(name: str, folder: Path, form: str = "bin", weights: dict[str, torch.Tensor] | None = None) -> Path:
    """A golden checkpoint with a tokenizer, in a file form of choice: bin, bin shards, or safetensors."""
    folder.mkdir()
    for file in Path(GoldenCase(name).checkpoint).glob("*.json"):
        if not file.name.endswith("index.json"):
            shutil.copy(file, folder)
    for file in TOKENIZER:
        shutil.copy(Path(GoldenCase("image-llama").checkpoint) / file, folder)
    weights = weights_of(name) if weights is None else weights
    if form == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    elif form == "safetensors":
        held = {key: value.clone() for key, value in weights.items()}
        safetensors.torch.save_file(held, folder / "model.safetensors")
    else:
        halves = {"1": list(weights)[::2], "2": list(weights)[1::2]}
        shard_of = {key: f"pytorch_model-0000{half}-of-00002.bin" for half, keys in halves.items() for key in keys}
        for half, keys in halves.items():
            torch.save({key: weights[key] for key in keys}, folder / f"pytorch_model-0000{half}-of-00002.bin")
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    return folder


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha1(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}

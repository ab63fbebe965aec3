"""Memory and time of converting a release at full size, compared with copying the same bytes.

python research/benchmarks/conversion.py --folder build/bench [--form shards safetensors bin build]
    [--pairs 2] [--json FILE]

Makes a random checkpoint with the names and shapes of mplug-owl-llama-7b in bfloat16 (14.3 GB, and three times that on
disk during the run). It then converts and copies it in turn, each time with a cold page cache, and prints the peak
RssAnon of the converting process (anonymous memory, sampled every 50 ms) and the median ratio of the times. Both times
include the sync to disk. The converting process has a limit on its private memory (`ulimit -d`): the mapped files, the
largest tensor and 1.5 GB. The form `build` makes a fresh Owl from a random CLIP ViT-L/14 and a random LLaMA-7B in
safetensors instead.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from side_by_side import Report, alternate
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaTokenizer

from transformers_owl.conversion.checkpoints import Piece, open_file, save_pickle, save_safetensors, write_weights


ROOT = Path(__file__).parents[2]
KEYS = ROOT / "tests/golden/keys/mplug-owl-llama-7b.json"
EXAMPLE = ROOT / "tests/golden/image-llama/original_checkpoint"
ALLOWED = 1.5e9
FORMS = ["shards", "safetensors", "bin", "build"]


def random_piece(name: str, shape: list[int]) -> Piece:
    like = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    bits = {"size": tuple(shape), "low": -(2**15), "high": 2**15, "dtype": torch.int16}
    # Without the highest bit of the exponent every pattern of bits is a finite number.
    return Piece({name: like}, lambda: {name: (torch.randint(**bits) & ~0x4000).view(torch.bfloat16)})


def make_parts(folder: Path) -> int:
    """Writes a CLIP vision model and a language model, and returns the bytes of the largest tensor."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    clip = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=224, patch_size=14)).bfloat16()
    clip.save_pretrained(folder / "clip")
    shutil.copy(EXAMPLE / "preprocessor_config.json", folder / "clip")
    shapes = {name.removeprefix("language_model."): shape for name, shape in json.loads(KEYS.read_text()).items()}
    names = [name for name in shapes if name.startswith(("model.", "lm_head.")) and "inv_freq" not in name]
    pieces = [random_piece(name, shapes[name]) for name in names]
    LlamaConfig(architectures=["LlamaForCausalLM"], dtype="bfloat16").save_pretrained(folder / "llama")
    LlamaTokenizer.from_pretrained(EXAMPLE).save_pretrained(folder / "llama")
    write_weights(pieces, folder / "llama", "100GB", save_safetensors, "model.safetensors")
    return max(piece.nbytes for piece in pieces)


def make_checkpoint(folder: Path, form: str) -> int:
    """Writes the checkpoint and returns the bytes of its largest tensor."""
    folder.mkdir(parents=True)
    if form == "build":
        return make_parts(folder)
    pieces = [random_piece(name, shape) for name, shape in json.loads(KEYS.read_text()).items()]
    config = json.loads((EXAMPLE / "config.json").read_text())
    config |= {"vision_config": {}, "visual_abstractor_config": {}, "text_config": {"model_type": "llama"}}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.model", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(EXAMPLE / name, folder)
    if form == "shards":
        write_weights(pieces, folder, "10GB", save_pickle, "pytorch_model.bin")
    else:
        write_weights(pieces, folder, "100GB", save_safetensors, "model.safetensors")
    if form == "bin":
        mapped = list(open_file(str(folder / "model.safetensors")).values())
        write_weights(mapped, folder, "100GB", save_pickle, "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return max(piece.nbytes for piece in pieces)


def script(source: Path, form: str) -> list[str]:
    scripts = ROOT / "conversion"
    if form == "build":
        parts = ["--vision", str(source / "clip"), "--language", str(source / "llama")]
        return [str(scripts / "build_from_pretrained.py"), *parts]
    return [str(scripts / "convert_original_to_hf.py"), "--checkpoint", str(source)]


def forget(folder: Path) -> None:
    """Drops the folder's files from the page cache."""
    os.sync()
    for path in folder.rglob("*.*"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def watch(arguments: list[str], limit: int) -> tuple[float, float]:
    """Runs a script; seconds, and the largest RssAnon in bytes."""
    command = [sys.executable, *arguments]
    start = time.perf_counter()
    process = subprocess.Popen(command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = max([peak, *(int(size) * 1024 for size in re.findall(r"RssAnon:\s+(\d+)", status))])
        time.sleep(0.05)
    os.sync()
    assert process.returncode == 0
    return time.perf_counter() - start, peak


def copy(source: Path, output: Path) -> float:
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source, output], check=True)
    os.sync()
    return time.perf_counter() - start


def measure(report: Report, folder: Path, form: str, pairs: int) -> None:
    source = folder / form
    largest = make_checkpoint(source, form)
    size = sum(path.stat().st_size for path in source.rglob("*.*"))
    limit = int(size + largest + ALLOWED)
    report.note(f"{form}: {size / 1e9:.2f} GB, largest tensor {largest / 1e9:.2f} GB, ulimit -d {limit / 1e9:.2f} GB")

    def convert() -> float:
        forget(source)
        seconds, peak = watch([*script(source, form), "--output", str(folder / "converted")], limit)
        shutil.rmtree(folder / "converted")
        report.note(f"  converted in {seconds:.1f} s, RssAnon {peak / 1e9:.2f} GB")
        return seconds

    def copy_it() -> float:
        forget(source)
        seconds = copy(source, folder / "copied")
        shutil.rmtree(folder / "copied")
        report.note(f"  copied in {seconds:.1f} s")
        return seconds

    row = alternate(pairs, convert, copy_it, warm_up=False)
    report.add(f"conversion, {form}", 1, torch.bfloat16, {"beside": "cp, sync", "images": 0, **row})
    shutil.rmtree(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--form", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = Report()
    for form in arguments.form:
        measure(report, arguments.folder, form, arguments.pairs)
    if arguments.json is not None:
        report.write(arguments.json)


if __name__ == "__main__":
    main()

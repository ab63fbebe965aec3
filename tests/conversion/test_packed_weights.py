"""`convert --quantize`: weights as the library quantises them itself, in little memory, and what sees in bfloat16."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, relative_error, tiny_config
from releases import NAMES, TOKENIZER, release, weights_of
from safetensors import safe_open
from test_finetunes import in_pefts_names, lora_of
from torchao.quantization import Int8Tensor
from transformers import AutoModel, AutoProcessor

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.conversion.checkpoints import Piece, checked
from transformers_owl.conversion.convert import convert
from transformers_owl.conversion.packed_weights import SCHEMES, packed
from transformers_owl.conversion.verify import fixed_logits


BOUNDS = {"int8": 0.05, "int4": 0.5}


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wide") / "wide"
    torch.manual_seed(0)
    config = tiny_config({"vocab_size": 1000, "hidden_size": 128, "intermediate_size": 256})
    MplugOwlForConditionalGeneration(config).save_pretrained(folder)
    for file in (*TOKENIZER, "preprocessor_config.json"):
        shutil.copy(GOLDEN / "image-llama/original_checkpoint" / file, folder)
    return folder


def dense(value: torch.Tensor) -> torch.Tensor:
    return value.dequantize() if isinstance(value, Int8Tensor) else value


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_are_those_that_the_library_makes_when_it_loads(wide, scheme, tmp_path):
    convert(str(wide), tmp_path / "out", quantize=scheme, max_shard_size="200KB")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    copy, info = AutoModel.from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not any(info.values())
    settings = SCHEMES[scheme].settings()
    expected = AutoModel.from_pretrained(wide, dtype=torch.bfloat16, quantization_config=settings)
    found = copy.state_dict()
    for name, value in expected.state_dict().items():
        assert torch.equal(dense(found[name]), dense(value)), name
    plain = AutoModel.from_pretrained(wide, dtype=torch.bfloat16).eval()
    for part in ("vision_model", "abstractor"):
        assert {value.dtype for value in copy.model.get_submodule(part).parameters()} == {torch.bfloat16}
    assert 0 < relative_error(fixed_logits(copy.eval()), fixed_logits(plain)) < BOUNDS[scheme]
    written = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert "vision_model" in (written.get("modules_to_not_convert") or written["llm_int8_skip_modules"])
    assert AutoProcessor.from_pretrained(tmp_path / "out").image_token_id == copy.config.image_token_id


@pytest.mark.parametrize("name", NAMES)
def test_a_release_keeps_what_sees(name, tmp_path):
    folder = release(name, tmp_path / "release")
    convert(str(folder), tmp_path / "out", quantize="int8")
    copy = AutoModel.from_pretrained(tmp_path / "out", dtype="auto").eval()
    plain = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    found, expected = copy.state_dict(), plain.state_dict()
    linear = {f"{path}.weight" for path, module in plain.named_modules() if isinstance(module, torch.nn.Linear)}
    packed_names = {name for name in linear if name.startswith("model.language_model.")}
    assert packed_names
    for key, value in expected.items():
        assert key in packed_names or torch.equal(found[key], value), key
    assert 0 < relative_error(fixed_logits(copy), fixed_logits(plain)) < BOUNDS["int8"]


def test_every_file_says_how_all_weights_are_packed(wide, tmp_path):
    """The library joins what the files say, and keeps the last one's list of names."""
    convert(str(wide), tmp_path / "out", quantize="int8", max_shard_size="200KB")
    said = []
    for file in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            said.append(opened.metadata())
    assert all(each == said[0] for each in said)
    assert len(json.loads(said[0]["tensor_names"])) == 2 * 7


def test_a_fine_tune_is_merged_and_quantised(tmp_path):
    base = release(NAMES[0], tmp_path / "base")
    weights = weights_of(NAMES[0])
    torch.save(in_pefts_names({}, lora_of(weights), "0.3"), tmp_path / "tuned.bin")
    convert(str(tmp_path / "tuned.bin"), tmp_path / "plain", base=str(base))
    convert(str(tmp_path / "tuned.bin"), tmp_path / "out", base=str(base), quantize="int8")
    logits = {
        name: fixed_logits(AutoModel.from_pretrained(tmp_path / name).eval()) for name in ("plain", "out", "base")
    }
    assert 0 < relative_error(logits["out"], logits["plain"]) < 0.1 < relative_error(logits["base"], logits["plain"])
    with pytest.raises(ValueError, match="leave out --quantize or --keep-adapter"):
        convert(str(tmp_path / "tuned.bin"), tmp_path / "adapter", base=str(base), keep_adapter=True, quantize="int8")


def test_a_run_that_quantises_otherwise_begins_anew(wide, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers_owl.conversion.packed_weights.write_rest", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(str(wide), tmp_path / "out", quantize="int4")
    monkeypatch.undo()
    convert(str(wide), tmp_path / "out", quantize="int8")
    assert "torchao" in (tmp_path / "out/config.json").read_text()
    AutoModel.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_that_are_not_finite_are_refused(scheme):
    torch.manual_seed(0)
    model = MplugOwlForConditionalGeneration(tiny_config({"hidden_size": 64, "intermediate_size": 128})).bfloat16()
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    value = torch.full((128, 64), float("nan"), dtype=torch.bfloat16)
    (piece,), _ = packed(model, [Piece({name: value.to("meta")}, lambda: {name: value})], scheme)
    with pytest.raises(ValueError, match="not finite"):
        checked(piece)


def test_unknown_and_quantised_are_refused(wide, tmp_path):
    with pytest.raises(ValueError, match=r"Unknown quantisation: 'int3'.*Choose one of int8, int4"):
        convert(str(wide), tmp_path / "out", quantize="int3")
    convert(str(wide), tmp_path / "int8", quantize="int8")
    with pytest.raises(ValueError, match="is already quantised"):
        convert(str(tmp_path / "int8"), tmp_path / "out", quantize="int4")


MEMORY = """
import re, threading
from pathlib import Path
import torch
from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.conversion.convert import convert
from transformers_owl.conversion.packed_weights import SCHEMES
{setup}

def anonymous():
    with open("/proc/self/status") as file:
        return int(re.search(r"RssAnon:\\s+(\\d+)", file.read())[1]) * 1024

peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())

before = anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
kept = {call}
done.set()
watcher.join()
print(peak - before)
"""
WARM_UP = "[scheme.pack(torch.zeros(64, 64, dtype=torch.bfloat16)) for scheme in SCHEMES.values()]"


def peak_of(call: str) -> int:
    code = MEMORY.format(setup=WARM_UP, call=call)
    # glibc would keep freed weights below 32 MB, more or fewer from run to run.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return int(re.findall(r"^\d+$", done.stdout, re.MULTILINE)[-1])


def large(folder: Path, layers: int) -> int:
    """Makes a checkpoint in bfloat16, whose largest weight has 8 MB, and returns its bytes."""
    text = {"vocab_size": 1000, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": layers}
    config = tiny_config({**text, "num_attention_heads": 8, "num_key_value_heads": 8})
    MplugOwlForConditionalGeneration(config).bfloat16().save_pretrained(folder)
    for file in (*TOKENIZER, "preprocessor_config.json"):
        shutil.copy(GOLDEN / "image-llama/original_checkpoint" / file, folder)
    return weights_bytes(folder)


def weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_neither_converting_nor_loading_holds_the_weights(scheme, tmp_path):
    """Converting takes hardly more for three times the layers, loading no more than what is kept."""
    sizes, peaks = {}, {}
    for layers in (4, 12):
        source, out = tmp_path / str(layers), tmp_path / f"out-{layers}"
        sizes[layers] = large(source, layers)
        peaks[layers] = peak_of(f"convert({str(source)!r}, Path({str(out)!r}), quantize={scheme!r})")
    assert peaks[12] - peaks[4] < (sizes[12] - sizes[4]) / 4
    loading = peak_of(f"MplugOwlForConditionalGeneration.from_pretrained({str(out)!r}, dtype='auto')")
    assert loading < weights_bytes(out) + sizes[12] / 8 < 0.7 * sizes[12]

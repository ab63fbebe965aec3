"""A release becomes a repository that is the same model, whole or not at all; what is wrong with one is said."""

import json
import os
import resource
import sys
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, image_logits, relative_error
from releases import NAMES, digest, release, weights_of
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, LlamaConfig, LlamaForCausalLM

from transformers_owl import MplugOwlConfig, MplugOwlForConditionalGeneration
from transformers_owl.conversion.checkpoints import Piece, convert, save_safetensors, unfinished, write_weights
from transformers_owl.conversion.convert import convert as main
from transformers_owl_cli import conversion
from transformers_owl_cli.shared import run


FORMS = ["shards", "safetensors", "bin"]
FUSED = "vision_model.encoder.layers.0.self_attn.query_key_value.weight"


@pytest.mark.parametrize(("name", "form"), [*zip(NAMES, FORMS, strict=True), ("image-llama", "safetensors")])
def test_a_release_is_converted_bit_by_bit(name, form, tmp_path):
    source = release(name, tmp_path / "source", form)
    before = digest(source)
    main(str(source), tmp_path / "out", max_shard_size="200KB")
    assert digest(source) == before
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    expected = AutoModel.from_pretrained(source)
    assert model.config.to_dict() == {**expected.config.to_dict(), "_name_or_path": model.config._name_or_path} | {
        key: model.config.to_dict()[key] for key in ("auto_map", "custom_pipelines")
    }
    assert model.generation_config.to_dict() == expected.generation_config.to_dict()
    for key, value in expected.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_the_repository_is_complete_and_answers_as_the_original(llama, tmp_path):
    main(llama.checkpoint, tmp_path / "mplug-owl-llama-7b")
    names = {path.name for path in (tmp_path / "mplug-owl-llama-7b").iterdir()}
    assert names >= {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "modeling_mplug_owl.py", "processing_mplug_owl.py", "pipeline_mplug_owl.py", "processor_config.json",
        "tokenizer.json",
    }  # fmt: skip
    assert "plan.json" not in names
    model = AutoModel.from_pretrained(tmp_path / "mplug-owl-llama-7b")
    processor = AutoProcessor.from_pretrained(tmp_path / "mplug-owl-llama-7b")
    inputs = processor(text=[llama.prompts["one_image"]["text"]], images=llama.images("one_image"), return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=24)[:, inputs["input_ids"].shape[1] :]
    assert written.tolist() == llama.expected["one_image/greedy_new_tokens"].tolist()


@pytest.mark.parametrize("keys", sorted((GOLDEN / "keys").glob("*.json")), ids=lambda path: path.stem)
def test_names_and_shapes_of_the_full_size_releases_have_their_place(keys):
    shapes = json.loads(keys.read_text())
    is_bloom, is_video = "bloomz" in keys.stem, "temporal_query_tokens" in shapes
    sizes = {"hidden_size": 4096, "n_layer": 30, "n_head": 32, "vocab_size": 250880}
    text = {"model_type": "bloom", **sizes} if is_bloom else {"model_type": "llama"}
    config = MplugOwlConfig(text_config=text, vision_config={"use_temporal": is_video})
    with torch.device("meta"):
        model = MplugOwlForConditionalGeneration(config)
        given = {name: torch.empty(shape) for name, shape in shapes.items()}
    pieces = convert(model, {name: Piece({name: value}, dict) for name, value in given.items()})
    found = {name: value.shape for piece in pieces for name, value in piece.tensors.items()}
    assert found == {name: value.shape for name, value in model.state_dict().items()}


def test_another_type_is_written_rounded_once(tmp_path):
    source = release("video-llama", tmp_path / "source")
    main(str(source), tmp_path / "out", dtype=torch.bfloat16)
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert model.dtype == model.config.dtype == torch.bfloat16
    for key, value in AutoModel.from_pretrained(source).state_dict().items():
        assert torch.equal(value.bfloat16(), model.state_dict()[key]), key


def test_our_writer_makes_what_the_library_reads(tmp_path):
    """Mixed types, an empty tensor, one without dimensions, and one that is not contiguous."""
    tensors = {
        "a": torch.arange(5, dtype=torch.bfloat16), "b": torch.randn(3, 4).t(), "c": torch.tensor(7),
        "d": torch.empty(0, 3), "e": torch.tensor([True, False, True]), "f": torch.randn(2).half(),
    }  # fmt: skip
    pieces = [Piece({name: value.to("meta")}, lambda n=name, v=value: {n: v}) for name, value in tensors.items()]
    save_safetensors(pieces, tmp_path / "x.safetensors", lambda size: None)
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype, name
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_an_interrupted_run_leaves_nothing_that_loads_and_goes_on(tmp_path):
    made = []

    def piece(number: int) -> Piece:
        def make():
            made.append(number)
            if number == 3 and made.count(3) == 1:
                raise KeyboardInterrupt
            return {f"t{number}": torch.full((100,), float(number))}

        return Piece({f"t{number}": torch.empty(100, device="meta")}, make)

    def write(plan):
        with unfinished(tmp_path / "out", plan) as folder:
            write_weights([piece(n) for n in range(5)], folder, "0.8KB", save_safetensors, "model.safetensors")

    with pytest.raises(KeyboardInterrupt):
        write(["a plan"])
    assert not (tmp_path / "out").exists()
    left = {path.name for path in (tmp_path / "out.unfinished").iterdir()}
    assert left == {"plan.json", "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors.part"}
    with pytest.raises((OSError, ValueError)):
        AutoModel.from_pretrained(tmp_path / "out.unfinished")
    write(["a plan"])
    assert made[made.index(3) + 1 :].count(0) == 0
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())["weight_map"]
    for number in range(5):
        value = load_file(tmp_path / "out" / index[f"t{number}"])[f"t{number}"]
        assert value.tolist() == [number] * 100
    assert not (tmp_path / "out.unfinished").exists()


def test_what_another_plan_left_is_not_used(tmp_path):
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished/model.safetensors").write_text("of another run")
    source = release("image-llama", tmp_path / "source")
    main(str(source), tmp_path / "out")
    AutoModel.from_pretrained(tmp_path / "out")


def test_without_a_plan_nothing_is_kept(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError), unfinished(tmp_path / "out") as folder:
            assert [path.name for path in folder.iterdir()] == ["plan.json"]
            (folder / "model.safetensors").write_text("of another adapter")
            raise RuntimeError


class Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["TARGET"],)


def truncated_bin(source: Path) -> None:
    file = source / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:100_000])


def truncated_safetensors(source: Path) -> None:
    (source / "pytorch_model.bin").unlink()
    weights = {key: value.clone() for key, value in weights_of("image-llama").items()}
    from safetensors.torch import save

    (source / "model.safetensors").write_bytes(save(weights)[:-1000])


def missing_shard(source: Path) -> None:
    (source / "pytorch_model.bin").unlink()
    other = release("image-llama", source.parent / "shards", "shards")
    for file in (*other.glob("*00001*"), *other.glob("*index*")):
        file.rename(source / file.name)


def changed(**changes: torch.Tensor | None):
    def change(source: Path) -> None:
        weights = {**weights_of("image-llama"), **changes}
        kept = {key: value for key, value in weights.items() if value is not None}
        torch.save(kept, source / "pytorch_model.bin")

    return change


def with_one(value: str) -> torch.Tensor:
    queries = torch.zeros(1, 64, 32)
    queries[0, 3, 5] = float(value)
    return queries


def other_model(source: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=10, **sizes)).save_pretrained(source)


def of_the_first_code(source: Path) -> None:
    (source / "pytorch_model.bin").rename(source / "instruction_tuned.pth")


PROBLEMS = {
    "a truncated .bin": (truncated_bin, "pytorch_model.bin is truncated or damaged"),
    "truncated safetensors": (truncated_safetensors, "model.safetensors is truncated or damaged"),
    "a missing shard": (missing_shard, "pytorch_model-00002-of-00002.bin"),
    "a wrong shape": (changed(query_tokens=torch.zeros(1, 63, 32)), "shapes do not match config.json.*query_tokens"),
    "an unknown name": (changed(stranger=torch.zeros(2)), "has weights that the model does not have: 1, .*stranger"),
    "a missing name": (changed(**{FUSED: None}), "lacks weights .*layers.0.self_attn.k_proj"),
    "not a number": (
        changed(query_tokens=with_one("nan")),
        "query_tokens has values that are not",
    ),
    "infinity": (changed(query_tokens=with_one("inf")), "query_tokens has values that are not"),
    "a malicious pickle": (changed(query_tokens=Malicious()), "holds code, which was not run"),
    "another model": (other_model, "a model of type llama, but must be mplug-owl"),
    "the first code": (of_the_first_code, r"first code \(v0\).*Use a later release"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_bad_checkpoint_is_refused(problem, tmp_path, monkeypatch):
    monkeypatch.setenv("TARGET", str(tmp_path / "ran"))
    spoil, message = PROBLEMS[problem]
    source = release("image-llama", tmp_path / "source")
    spoil(source)
    before = digest(source)
    with pytest.raises((OSError, ValueError), match=f"(?s){message}"):
        main(str(source), tmp_path / "out")
    assert digest(source) == before
    assert not (tmp_path / "out").exists() and not (tmp_path / "ran").exists()


def test_tied_weights_must_be_equal(tmp_path):
    weights = weights_of("image-bloom")
    weights["language_model.lm_head.weight"] = weights["language_model.lm_head.weight"] + 1
    source = release("image-bloom", tmp_path / "source", weights=weights)
    with pytest.raises(ValueError, match=r"lm_head.weight and .* are tied, but the checkpoint has two values"):
        main(str(source), tmp_path / "out")


def test_v0_files_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="first code"):
        main("pretrained.pth", tmp_path / "out")


def test_a_folder_that_exists_is_left_alone(llama, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="already exists: delete it"):
        main(llama.checkpoint, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_target_that_cannot_be_written_is_an_error(llama):
    with pytest.raises(OSError):
        main(llama.checkpoint, Path("/sys/owl/out"))


def test_a_disk_that_is_full_is_told_before_and_while_writing(llama, tmp_path):
    huge = Piece({"a": torch.empty(2**50, device="meta")}, dict)
    with pytest.raises(OSError, match=r"GB free, but needs 4503599.6 GB"):
        write_weights([huge], tmp_path, "5GB", save_safetensors, "model.safetensors")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            main(llama.checkpoint, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "out").exists()
    main(llama.checkpoint, tmp_path / "out")
    model = AutoModel.from_pretrained(tmp_path / "out")
    expected = AutoModel.from_pretrained(llama.checkpoint)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert relative_error(model(input_ids=ids).logits, expected(input_ids=ids).logits) == 0


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [(["--output", "."], 1, "Error: . already exists"), (["--output", "o", "--shard", "1"], 2, "No such option")],
)
def test_the_command_line_says_errors_in_a_line_and_knows_its_flags(llama, flags, code, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convert_original_to_hf.py", "--checkpoint", llama.checkpoint, *flags])
    with pytest.raises(SystemExit) as exit_info:
        run(conversion.convert)
    assert exit_info.value.code == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_with_both_files_takes_the_converted_one(name, tmp_path):
    """As the library does; the original's file has other values here, so that they would tell."""
    expected = image_logits(AutoModel.from_pretrained(release(name, tmp_path / "release")))
    main(str(tmp_path / "release"), tmp_path / "out")
    torch.save({key: value + 1 for key, value in weights_of(name).items()}, tmp_path / "out/pytorch_model.bin")
    assert relative_error(image_logits(AutoModel.from_pretrained(tmp_path / "out")), expected) == 0

"""Fine-tunes that the original's Trainer and `torch.save` left come home: their logits are those of a plain sum."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import image_logits, relative_error
from peft import PeftModel
from releases import NAMES, release, weights_of
from transformers import AutoModel, AutoProcessor

from transformers_owl.conversion.convert import convert


RANK = 8
LORA_NAMES = {"0.2": ".lora_{}.weight", "0.3": ".lora_{}.default.weight"}  # of PEFT
TARGETS = ("self_attn.q_proj.weight", "self_attn.v_proj.weight", "self_attention.query_key_value.weight")


def is_adapted(name: str) -> bool:
    return name.startswith("language_model.") and name.endswith(TARGETS)


def lora_of(weights: dict[str, torch.Tensor], rank: int = RANK) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return {
        name: (torch.randn(rank, value.shape[1], generator=generator) / 4, torch.randn(value.shape[0], rank) / 4)
        for name, value in weights.items()
        if is_adapted(name)
    }


def expected_logits(name: str, weights, lora, alpha: float, folder: Path) -> torch.Tensor:
    """By a release with the sum written out."""
    plain = {
        key: value.double() + alpha / len(lora[key][0]) * lora[key][1].double() @ lora[key][0].double()
        if key in lora
        else value.double()
        for key, value in weights.items()
    }
    release(name, folder, weights={key: value.float() for key, value in plain.items()})
    return image_logits(AutoModel.from_pretrained(folder))


def in_pefts_names(weights, lora, version: str) -> dict[str, torch.Tensor]:
    state = {f"base_model.model.{key}": value for key, value in weights.items()}
    for key, sides in lora.items():
        for side, value in zip("AB", sides, strict=True):
            state[f"base_model.model.{key.removesuffix('.weight')}{LORA_NAMES[version].format(side)}"] = value
    return state


@pytest.fixture(params=NAMES)
def tuned(request, tmp_path):
    """A base and its weights, LoRA of it, and an abstractor that was trained too."""
    torch.manual_seed(0)
    base = release(request.param, tmp_path / "base")
    weights = weights_of(request.param)
    return request.param, base, weights, lora_of(weights)


FORMS = {"folder": "checkpoint-500/pytorch_model.bin", "bin": "tuned.bin", "pth": "tuned.pth"}


# Every two of form, version and extent meet, over all releases.
CASES = [
    (NAMES[0], "folder", "0.2", False),
    (NAMES[1], "folder", "0.3", True),
    (NAMES[2], "bin", "0.2", True),
    (NAMES[0], "bin", "0.3", False),
    (NAMES[1], "pth", "0.2", False),
    (NAMES[2], "pth", "0.3", True),
]


@pytest.mark.parametrize(("tuned", "form", "version", "alone"), CASES, indirect=["tuned"])
def test_lora_is_merged_from_every_form(tuned, form, version, alone, tmp_path, capsys):
    name, base, weights, lora = tuned
    trained = dict(weights)
    vit_eos = next(key for key in weights if key.endswith("vit_eos"))
    trained[vit_eos] = weights[vit_eos] + 1
    inside = {vit_eos: trained[vit_eos]} if alone else trained
    file = tmp_path / FORMS[form]
    file.parent.mkdir(exist_ok=True)
    torch.save(in_pefts_names(inside, lora, version), file)
    convert(str(file.parent if form == "folder" else file), tmp_path / "out", base=str(base))
    assert "does not say LoRA's alpha: using the original's 32" in " ".join(capsys.readouterr().err.split())
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    expected = expected_logits(name, trained, lora, 32, tmp_path / "plain")
    assert relative_error(image_logits(model), expected) <= 1e-5
    assert relative_error(image_logits(AutoModel.from_pretrained(base)), expected) > 1e-3
    assert AutoProcessor.from_pretrained(tmp_path / "out").image_token_id == model.config.image_token_id
    assert "merged with alpha 32" in " ".join((tmp_path / "out/README.md").read_text().split())


@pytest.mark.parametrize("given", ["option", "beside"])
@pytest.mark.parametrize("tuned", NAMES[:1], indirect=True)
def test_alpha_is_taken_from_the_option_or_from_beside(tuned, given, tmp_path):
    name, base, weights, lora = tuned
    torch.save(in_pefts_names({}, lora, "0.2"), tmp_path / "tuned.bin")
    if given == "beside":
        (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 5}))
    convert(str(tmp_path / "tuned.bin"), tmp_path / "out", base=str(base), lora_alpha=5 if given == "option" else None)
    expected = expected_logits(name, weights, lora, 5, tmp_path / "plain")
    assert relative_error(image_logits(AutoModel.from_pretrained(tmp_path / "out")), expected) <= 1e-5


@pytest.mark.parametrize("converted", [False, True], ids=["over a release", "over a converted release"])
def test_an_adapter_is_kept_for_peft_of_today(tuned, converted, tmp_path):
    name, base, weights, lora = tuned
    if converted:
        convert(str(base), tmp_path / "converted")
        base = tmp_path / "converted"
    torch.save(in_pefts_names(weights, lora, "0.3"), tmp_path / "tuned.bin")
    convert(str(tmp_path / "tuned.bin"), tmp_path / "adapter", base=str(base), keep_adapter=True)
    expected = expected_logits(name, weights, lora, 32, tmp_path / "plain")
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), tmp_path / "adapter")
    assert relative_error(image_logits(model), expected) <= 1e-5
    assert relative_error(image_logits(AutoModel.from_pretrained(str(tmp_path / "adapter"))), expected) <= 1e-5


@pytest.mark.parametrize(
    ("tuned", "dtype", "prefix"),
    [
        (NAMES[0], torch.float16, ""),
        (NAMES[0], torch.float32, "module."),
        (NAMES[1], torch.float32, ""),
        (NAMES[2], torch.bfloat16, ""),
    ],
    indirect=["tuned"],
)
def test_a_state_dict_without_a_folder_takes_the_rest_from_its_base(tuned, dtype, prefix, tmp_path):
    """As `torch.save(model.state_dict(), FILE)` writes it, of a model in a wrapper too."""
    name, base, weights, _ = tuned
    trained = {f"{prefix}{key}": value.to(dtype) for key, value in weights.items()}
    torch.save(trained, tmp_path / "tuned.bin")
    convert(str(tmp_path / "tuned.bin"), tmp_path / "out", base=str(base))
    model = AutoModel.from_pretrained(tmp_path / "out")
    release(name, tmp_path / "plain", weights={key: value.to(dtype) for key, value in weights.items()})
    assert model.dtype == dtype
    expected = AutoModel.from_pretrained(tmp_path / "plain", dtype=dtype).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("tuned", NAMES[1:2], indirect=True)
def test_modules_that_were_trained_whole_take_their_place(tuned, tmp_path):
    name, base, weights, lora = tuned
    state = in_pefts_names({}, lora, "0.3")
    trained = dict(weights)
    for key in [key for key in weights if key.startswith("abstractor.")]:
        trained[key] = weights[key] + 0.01
        inner = key.removeprefix("abstractor.")
        state[f"base_model.model.abstractor.original_module.{inner}"] = weights[key]
        state[f"base_model.model.abstractor.modules_to_save.default.{inner}"] = trained[key]
    torch.save(state, tmp_path / "tuned.bin")
    convert(str(tmp_path / "tuned.bin"), tmp_path / "out", base=str(base))
    expected = expected_logits(name, trained, lora, 32, tmp_path / "plain")
    assert relative_error(image_logits(AutoModel.from_pretrained(tmp_path / "out")), expected) <= 1e-5


@pytest.mark.parametrize("tuned", NAMES[:1], indirect=True)
def test_a_folder_with_a_configuration_needs_no_base(tuned, tmp_path):
    name, base, weights, lora = tuned
    torch.save(in_pefts_names(weights, lora, "0.3"), base / "pytorch_model.bin")
    convert(str(base), tmp_path / "out")
    expected = expected_logits(name, weights, lora, 32, tmp_path / "plain")
    assert relative_error(image_logits(AutoModel.from_pretrained(tmp_path / "out")), expected) <= 1e-5


LORA_A = "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
STATES = {
    "a shape of another base": ({"base_model.model.query_tokens": torch.zeros(1, 3, 32)}, "shapes do not .*--base"),
    "a stranger": (
        {"base_model.model.stranger.weight": torch.zeros(3)},
        "has 1 weights that the model has not, .*stranger",
    ),
    "LoRA of a stranger": ({LORA_A.replace("layers.0", "layers.9"): torch.zeros(8, 48)}, "one of LoRA's two weights"),
    "LoRA of another width": ({LORA_A: torch.zeros(8, 47)}, "do not match"),
    "LoRA of embeddings": ({"base_model.model.x.lora_embedding_A": torch.zeros(8, 4)}, "only LoRA of linear layers"),
    "what a Trainer keeps": ({"epoch": 3}, r"holds epoch \(int\) beside \d+ tensors, but must hold weights by name"),
    "the first code": ({"abstractor.x.bias_k": torch.zeros(3)}, "first code"),
}


@pytest.mark.parametrize("problem", STATES)
@pytest.mark.parametrize("tuned", NAMES[:1], indirect=True)
def test_what_does_not_fit_is_refused(tuned, problem, tmp_path):
    _, base, weights, lora = tuned
    change, message = STATES[problem]
    torch.save(in_pefts_names(weights, lora, "0.3") | change, tmp_path / "tuned.pth")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        convert(str(tmp_path / "tuned.pth"), tmp_path / "out", base=str(base))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tuned", NAMES[:1], indirect=True)
def test_an_adapter_that_could_not_say_all_is_refused(tuned, tmp_path):
    _, base, weights, lora = tuned
    torch.save(in_pefts_names(weights | {"query_tokens": weights["query_tokens"] + 1}, lora, "0.3"), tmp_path / "a.bin")
    torch.save(weights, tmp_path / "b.bin")
    for file, message in {
        "a.bin": r"changed 1 weights besides LoRA, such as \['query_tokens'\]",
        "b.bin": "no LoRA",
    }.items():
        with pytest.raises(ValueError, match=f"{message}.*leave out --keep-adapter"):
            convert(str(tmp_path / file), tmp_path / "out", base=str(base), keep_adapter=True)


@pytest.mark.parametrize("tuned", NAMES[:1], indirect=True)
def test_a_file_alone_asks_for_its_base(tuned, tmp_path):
    _, base, _, lora = tuned
    torch.save(in_pefts_names({}, lora, "0.3"), tmp_path / "tuned.bin")
    with pytest.raises(ValueError, match=r"without config.json: give the release .* by --base"):
        convert(str(tmp_path / "tuned.bin"), tmp_path / "out")
    shutil.copy(tmp_path / "tuned.bin", base / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"lacks weights of the model: .*give the release .* by --base"):
        convert(str(base), tmp_path / "out")


@pytest.mark.parametrize(
    ("parts", "tool"),
    [
        ("global_step500", r"cd .*checkpoint-500 && python zero_to_fp32.py \. pytorch_model.bin"),
        ("pytorch_model_fsdp_0", "accelerate merge-weights .*checkpoint-500/pytorch_model_fsdp_0 MERGED"),
        ("__0_0.distcp", "accelerate merge-weights .*checkpoint-500 MERGED"),
    ],
)
def test_parts_of_several_processes_name_the_tool_that_joins_them(parts, tool, tmp_path):
    (tmp_path / "checkpoint-500" / parts).mkdir(parents=True)
    with pytest.raises(ValueError, match=f"has no weights.*{tool}"):
        convert(str(tmp_path / "checkpoint-500"), tmp_path / "out", base="base")

"""Every command and page opens every kind of model: releases, saved models, adapters."""

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from transformers_owl import MINIATURE, MplugOwlForConditionalGeneration, MplugOwlProcessor
from transformers_owl.demo.caption import SAMPLES
from transformers_owl.evaluation.models import LocalModel
from transformers_owl.loading import check_folder, load


def chat(image) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", "path": str(image)}, {"type": "text", "text": "What?"}]}]


def answers(model, processor) -> list[str]:
    inputs = processor.apply_chat_template(
        [chat(image) for image in SAMPLES],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
    )
    written = model.generate(**inputs, max_new_tokens=6)
    return processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    model = MplugOwlForConditionalGeneration.from_pretrained(MINIATURE, dtype="float32")
    tuned = get_peft_model(
        model, LoraConfig(target_modules=r".*language_model.*(q_proj|v_proj)", init_lora_weights=False)
    )
    torch.manual_seed(0)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    tuned.save_pretrained(folder)
    processor = MplugOwlProcessor.from_pretrained(MINIATURE)
    processor.save_pretrained(folder)
    return str(folder), answers(tuned, processor)


def test_commands_and_evaluation_open_an_adapter(adapter):
    folder, expected = adapter
    model, processor = load(folder, "cpu", "float32")
    assert answers(model, processor) == expected
    assert expected != answers(MplugOwlForConditionalGeneration.from_pretrained(MINIATURE, dtype="float32"), processor)
    assert LocalModel(folder, "cpu", "float32", max_new_tokens=6).answer([chat(image) for image in SAMPLES]) == expected


def test_a_language_model_is_no_owl(tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of type 'llama', but must be an mPLUG-Owl"):
        load(str(tmp_path))


def test_an_adapter_whose_base_is_gone_says_so(llama, llama_model, tmp_path):
    config = LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj")
    model = MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    settings = tmp_path / "adapter/adapter_config.json"
    settings.write_text(settings.read_text().replace(llama.checkpoint, str(tmp_path / "base")))
    with pytest.raises(ValueError, match=r"adapter of .*base, which does not exist: .*base_model_name_or_path.*config"):
        load(str(tmp_path / "adapter"), "cpu")
    shutil.copytree(llama.checkpoint, tmp_path / "base")
    MplugOwlProcessor.from_pretrained(llama.checkpoint).save_pretrained(tmp_path / "adapter")
    assert load(str(tmp_path / "adapter"), "cpu")[0].config.text_config == llama_model.config.text_config


@pytest.mark.parametrize("name", ["gpt2", "OWNER/owl", "build/owl"])
def test_a_name_that_may_be_on_the_hub_is_asked_for_there(name, tmp_path, monkeypatch):
    """Also beside a local folder of the owner's name, where other models of theirs may lie."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OWNER/another").mkdir(parents=True)
    check_folder(name)
    for gone in (f"./{name}", f"/{name}", f"~/{name}", f"models/of/{name}"):
        with pytest.raises(ValueError, match=r"The folder .* does not exist"):
            check_folder(gone)

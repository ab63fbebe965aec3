"""The TRL example trains LoRA on the language model, on answers alone, and its adapter loads back."""

import importlib.util
from pathlib import Path

import pytest
import torch
from conftest import relative_error
from peft import PeftModel

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.training import ConversationCollator


ROOT = Path(__file__).parents[2]
ANSWERS = ["An astronaut in an orange suit smiles in front of a flag.", "A tabby cat looks into the camera."]


@pytest.fixture(scope="module")
def trained(llama, tmp_path_factory):
    spec = importlib.util.spec_from_file_location("trl_sft", ROOT / "examples/trl_sft.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    options = {
        "model": llama.checkpoint, "data": str(ROOT / "examples/data/captions.jsonl"), "max_steps": 10,
        "output_dir": str(tmp_path_factory.mktemp("trl")), "learning_rate": 3e-2, "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 2, "logging_steps": 1, "report_to": "none", "bf16": "false", "use_cpu": "true",
        "disable_tqdm": "true", "save_strategy": "no", "seed": 0,
    }  # fmt: skip
    return example.main([word for name, value in options.items() for word in (f"--{name}", str(value))])


def test_the_loss_falls_and_lora_stays_in_the_language_model(trained):
    losses = [float(entry["loss"]) for entry in trained.state.log_history if "loss" in entry]
    assert len(losses) == 10
    assert losses[-1] < 0.8 * losses[0]
    moving = [name for name, parameter in trained.model.named_parameters() if parameter.requires_grad]
    assert len(moving) == 2 * 2 * 2
    assert all(".language_model." in name and "lora_" in name for name in moving)


def test_labels_are_answers_and_their_eos(trained, llama_processor):
    """What the Trainer's loader gives is what the command `train` would make of the same conversations."""
    batch = next(iter(trained.get_train_dataloader()))
    tokenizer, labels = llama_processor.tokenizer, batch["labels"]
    decoded = [tokenizer.decode(row[row != -100]).removesuffix("</s>").strip() for row in labels]
    assert sorted(decoded) == sorted(ANSWERS)
    assert all(row[row != -100][-1] == tokenizer.eos_token_id for row in labels)
    assert (batch["input_ids"][:, 0] == tokenizer.bos_token_id).all()

    names = [("astronaut.jpg", "cat.jpg")[ANSWERS.index(answer)] for answer in decoded]
    samples = []
    for name, answer in zip(names, decoded, strict=True):
        image = {"type": "image", "path": str(ROOT / "examples/pictures" / name)}
        question = {"role": "user", "content": [image, {"type": "text", "text": "Describe the picture."}]}
        samples.append({"messages": [question, {"role": "assistant", "content": answer}]})
    expected = ConversationCollator(llama_processor)(samples)
    assert expected.keys() <= batch.keys()
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(batch[name]), torch.as_tensor(value)), name


def test_the_adapter_loads_back(trained, llama):
    batch = trained.data_collator([trained.train_dataset[0]])
    base = MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint)
    model = PeftModel.from_pretrained(base, trained.args.output_dir).eval()
    with torch.no_grad():
        logits, expected = model(**batch).logits, trained.model.eval()(**batch).logits
        assert relative_error(logits, expected) < 1e-6
        with model.disable_adapter():
            assert relative_error(model(**batch).logits, expected) > 0.01

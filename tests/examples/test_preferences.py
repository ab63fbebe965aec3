"""The examples of DPO and GRPO: the margin rises and so does the reward, on the ids of inference."""

import importlib.util
from pathlib import Path
from types import ModuleType

import datasets
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer

from transformers_owl import MINIATURE
from transformers_owl.demo.caption import samples


ROOT = Path(__file__).parents[2]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(folder: Path, **values) -> list[str]:
    settings = {"output_dir": folder, "use_cpu": "true", "disable_tqdm": "true", "save_strategy": "no", **values}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


@pytest.mark.slow
def test_dpo_raises_the_margin_and_teaches_to_deny_other_things(tmp_path):
    before, after = example("dpo").main(options(tmp_path))
    assert before["margin"] == pytest.approx(0, abs=1e-5)
    assert before["denied"] == 0
    assert after["margin"] > 5
    assert after["denied"] > 0.9


@pytest.mark.slow
def test_grpo_raises_the_mean_reward(tmp_path):
    before, after = example("grpo").main(options(tmp_path))
    assert 0.1 < before < 0.4
    assert after > 0.9


def test_the_reward_is_for_the_colour_of_the_ground_alone():
    answers = {"pink": 1, " pink": 1, "orange": 0, "pink elephant": 0, "": 0}
    completions = [[{"role": "assistant", "content": text}] for text in answers]
    rewards = example("grpo").is_there(completions, ground=["pink"] * len(answers), prompts=[])
    assert rewards == list(answers.values())


def test_grpo_reads_prompts_of_any_length_as_inference_does(tmp_path, monkeypatch):
    """With the settings of the example: rows of different lengths in one batch, padded on the left, under the mask."""
    grpo = example("grpo")
    model = AutoModelForImageTextToText.from_pretrained(MINIATURE, dtype="float32")
    processor = AutoProcessor.from_pretrained(MINIATURE)
    questions = ["What is this?", "Is there a sunflower in the picture?", "What colour is the dog?"]
    image = samples()[1]
    rows = [{"images": [image], "prompt": [{"role": "user", "content": question}]} for question in questions]
    config = GRPOConfig(
        str(tmp_path), per_device_train_batch_size=6, num_generations=2, max_completion_length=4, max_steps=1,
        use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
        **{name: value for name, value in grpo.TOY.items() if name in ("bf16", "gradient_checkpointing")},
    )  # fmt: skip
    grpo.fit(config, processor)
    trainer = GRPOTrainer(
        model,
        lambda completions, **kwargs: [float(len(answer["content"])) for (answer,) in completions],
        args=config,
        train_dataset=datasets.Dataset.from_list(rows).cast_column("images", [datasets.Image()]),
        processing_class=processor,
    )
    seen = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **inputs: seen.append(inputs) or generate(**inputs))
    trainer.train()
    (inputs,) = seen
    chats = [
        [{"role": "user", "content": [{"type": "image", "path": image}, {"type": "text", "text": question}]}]
        for question in questions
    ]
    expected = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert expected["attention_mask"].sum(1).unique().numel() == len(questions)
    for name in ("input_ids", "attention_mask"):
        rows_of = {tuple(row.tolist()) for row in inputs[name]}
        assert rows_of == {tuple(row.tolist()) for row in expected[name]}, name
    assert torch.allclose(inputs["pixel_values"], expected["pixel_values"][:1].expand(6, -1, -1, -1))
    assert set(inputs["generation_config"].suppress_tokens) == {processor.image_token_id, processor.video_token_id}

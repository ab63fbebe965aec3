"""Settings of the library that touch loss, labels, batches or metrics do what they say, or are refused."""

from dataclasses import fields

import pytest
import torch
from transformers import Trainer, TrainingArguments

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.training import ConversationCollator, Mixture, OwlTrainer, Rows
from transformers_owl.training.mixture import Group
from transformers_owl.training.record import FREE
from transformers_owl.training.trainer import FIXED


# Neither refused nor free to change on resume: what a setting is, and where its effect is compared with another way.
COMPARED = {
    "test_mixture.py, test_distributed.py": {
        "per_device_train_batch_size", "max_steps", "gradient_accumulation_steps", "seed", "data_seed",
        "average_tokens_across_devices", "full_determinism",
    },
    "test_recipes.py": {
        "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args",
        "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_target_modules", "max_grad_norm",
    },
    "test_train.py": {"bf16", "fp16", "tf32"},
    "test_sharded.py": {"fsdp", "fsdp_config", "deepspeed"},
    "here": {"neftune_noise_alpha", "accelerator_config"},
    "no effect": {"liger_kernel_config", "length_column_name"},
}  # fmt: skip


def test_every_setting_is_known():
    """One that a new version adds fails here, until somebody has looked at it."""
    known = set().union(*COMPARED.values(), FIXED)
    names = {field.name for field in fields(TrainingArguments) if field.init}
    assert {name for name in names if not FREE.fullmatch(name)} <= known


@pytest.fixture
def begin(llama, llama_processor, files, tmp_path):
    """A Trainer for 5 rows of text and images in batches of 2, without dropout."""

    def begin(**settings) -> OwlTrainer:
        model = MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint)
        model.config.visual_abstractor_config.attention_probs_dropout_prob = 0.0
        mixture = Mixture(
            {"x": Group.from_dict({"sources": [files.captions(range(3)), files.text(range(2))]})},
            ConversationCollator(llama_processor), 2,
        )  # fmt: skip
        given = {"max_steps": 5, "logging_steps": 1, "learning_rate": 0.0, "save_strategy": "no", **settings}
        arguments = TrainingArguments(
            tmp_path / "out", per_device_train_batch_size=2, use_cpu=True, report_to=[], disable_tqdm=True, **given
        )
        return OwlTrainer(model, arguments, mixture, data_collator=mixture.collator)

    return begin


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"logging_strategy": "epoch", "logging_steps": 10}, [3, 5]),
        ({"logging_steps": 2, "logging_first_step": True}, [1, 2, 4]),
        ({"logging_steps": 0.4}, [2, 4]),
        ({}, [1, 2, 3, 4, 5]),
    ],
)
def test_norms_are_of_the_step_that_is_logged(begin, settings, steps):
    trainer = begin(learning_rate=1e-2, max_grad_norm=1e9, **settings)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in entries] == steps
    for entry in entries:
        parts = [value for name, value in entry.items() if name.startswith("grad_norm_")]
        assert sum(norm**2 for norm in parts) ** 0.5 == pytest.approx(entry["grad_norm"], rel=1e-4)


def test_noise_falls_on_the_embeddings_of_words_alone(begin):
    """NEFTune: uniform up to alpha / sqrt(positions * size); features of images are embeddings of none."""
    seen = {}
    for alpha in (None, 5.0):
        trainer = begin(neftune_noise_alpha=alpha, max_steps=1)
        trainer.model.model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs, alpha=alpha: seen.update({alpha: kwargs["inputs_embeds"].detach()}),
            with_kwargs=True,
        )
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.train()
    is_visual = torch.isin(batch["input_ids"], torch.tensor([trainer.model.config.image_token_id]))
    noise = seen[5.0] - seen[None]
    positions, size = noise.shape[1:]
    assert is_visual.any() and (noise[is_visual].abs() < 1e-6).all()
    bound = 5.0 / (positions * size) ** 0.5
    assert 0.95 * bound < noise[~is_visual].abs().max() <= bound * (1 + 1e-5)


@pytest.mark.parametrize("counted", ["all", "non_padding"])
def test_tokens_seen_are_those_of_the_batches(begin, counted):
    batches = [batch for batch, _ in zip(begin().get_train_dataloader(), range(3), strict=False)]
    trainer = begin(include_num_input_tokens_seen=counted, max_steps=3)  # it writes its data file anew
    masks = [batch["attention_mask"] for batch in batches]
    expected = sum(int(mask.sum()) if counted == "non_padding" else mask.numel() for mask in masks)
    trainer.train()
    assert trainer.state.num_input_tokens_seen == expected


@pytest.mark.parametrize("remove_unused_columns", [True, False])
def test_samples_keep_their_messages(begin, files, remove_unused_columns):
    """The library's default would take them out of evaluation; the plain Trainer says what to set."""
    trainer = begin(remove_unused_columns=remove_unused_columns)
    source = files.text(range(3))
    rows = Rows(source["format"], source["path"])
    samples = [rows[number] for number in range(3)]
    with torch.no_grad():
        expected = trainer.model.eval()(**trainer.data_collator(samples)).loss.item()
    assert trainer.evaluate(samples)["eval_loss"] == pytest.approx(expected, rel=1e-5)
    plain = Trainer(
        trainer.model, TrainingArguments(trainer.args.output_dir, use_cpu=True, report_to=[], max_steps=1),
        train_dataset=samples, data_collator=trainer.data_collator,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"must have `messages`.*remove_unused_columns=False"):
        plain.train()

"""The command trains after a recipe: what trains is told, the loss is the original's, and what it logs is true."""

import io
import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import relative_error, tiny_config
from huggingface_hub import ModelCard
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    Trainer,
    TrainerState,
    TrainingArguments,
)
from typer.testing import CliRunner

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.cli import app
from transformers_owl.mplug_owl.modeling_mplug_owl import MplugOwlAttention
from transformers_owl.mplug_owl.processing_mplug_owl import read_template
from transformers_owl.training import STAGES, ConversationCollator, prepare_stage
from transformers_owl.training.arguments import OwlArguments, parse_recipe
from transformers_owl.training.mixture import Group, Mixture
from transformers_owl.training.preview import memory, preview
from transformers_owl.training.run_card import write_card
from transformers_owl.training.throughput import TrainingFlops, gradient_norms
from transformers_owl.training.train import compute_dtype, load_model, train
from transformers_owl.training.trainer import OwlTrainer
from transformers_owl.training.watching import Progress
from transformers_owl_cli.commands import RECIPE


QUIET = ["--report_to", "none", "--disable_tqdm", "true", "--peak_tflops", "1", "--use_cpu", "true"]


@pytest.fixture
def recipe(files, llama, tmp_path):
    def write(**values) -> Path:
        content = {
            "model": llama.checkpoint,
            "data": {
                "text": {"sources": [files.text(range(5))]},
                "images": {"sources": [files.captions(range(100, 106))]},
            },
            "output_dir": str(tmp_path / "out"),
            "max_length": 256,
            "per_device_train_batch_size": 2,
            "max_steps": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            **values,
        }
        return files.recipe(content)

    return write


def test_the_tiny_recipes_train_and_load_back(tmp_path, monkeypatch):
    """As typed in the README: a table, falling losses, answers, curves, TensorBoard, and a model that loads."""
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    for stage in ("pretrain", "instruct"):
        output = tmp_path / stage
        result = CliRunner().invoke(app, ["train", f"configs/tiny-{stage}.yaml", "--output_dir", str(output)])
        assert result.exit_code == 0, result.output
        history = json.loads((output / "trainer_state.json").read_text())["log_history"]
        losses = [entry["loss"] for entry in history if "loss" in entry]
        assert losses[-1] < losses[0] - 2
        assert [entry["step"] for entry in history if "eval_loss" in entry] == [10, 20]
        answers = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
        assert [(entry["step"], entry["image"]) for entry in answers] == [
            (10, "examples/pictures/cat.jpg"), (20, "examples/pictures/cat.jpg"),
        ]  # fmt: skip
        assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
        assert list(output.rglob("events.out.tfevents.*"))
        card = (output / "README.md").read_text()
        assert f"Trained from `original_checkpoint` by `transformers-owl train`, stage `{stage}`" in card
        assert "20 optimizer steps of 4 rows" in card and "![The loss over the optimizer steps](loss.png)" in card
        assert f"| loss, training | {float(losses[-1]):.4g} |" in card and "| loss, evaluation |" in card
        assert str(tmp_path) not in card and ModelCard(card).data.library_name == "transformers"
        model = AutoModelForImageTextToText.from_pretrained(output)
        processor = AutoProcessor.from_pretrained(output)
        messages = [
            {"role": "user", "content": [{"type": "image", "path": "examples/pictures/cat.jpg"}]},
        ]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        written = model.generate(**inputs, max_new_tokens=40)[:, inputs["input_ids"].shape[1] :]
        assert processor.batch_decode(written, skip_special_tokens=True)[0] == answers[-1]["answer"]
        assert "language_model" in result.output
    assert "LoRA" in result.output


def test_wrong_recipes_end_with_one_line(recipe):
    result = CliRunner().invoke(app, ["train", str(recipe()), "--lerning_rate", "1"])
    assert (result.exit_code, result.output) == (
        1, "Error: Unknown setting: 'lerning_rate'. Did you mean 'learning_rate'?\n",
    )  # fmt: skip
    missing = recipe(data={"x": {"sources": [{"format": "alpaca", "path": "/gone.json"}]}})
    result = CliRunner().invoke(app, ["train", str(missing)])
    assert result.exit_code == 1
    assert "Error: [Errno 2] No such file or directory: '/gone.json'" in result.output


def test_settings_reach_the_trainer(recipe):
    options = [
        "--adam_beta1", "0.7", "--adam_beta2", "0.5", "--adam_epsilon", "1e-3", "--weight_decay", "0.3",
        "--learning_rate", "1e-3", "--lr_scheduler_type", "cosine", "--warmup_steps", "4", "--max_grad_norm", "0.125",
        "--lora_r", "3", "--lora_alpha", "7", "--lora_dropout", "0.2", "--seed", "7",
    ]  # fmt: skip
    trainer = train(recipe(), [*QUIET, *options])
    group = trainer.optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.7, 0.5), 1e-3, 0.3)
    assert group["initial_lr"] == 1e-3
    assert [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry] == [0, 1e-3 / 4]
    lora = trainer.model.peft_config["default"]
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (3, 7, 0.2)
    assert trainer.train_dataset.seed == 7


def test_epochs_become_steps(recipe):
    """Six images in halves of four rows: three steps an epoch of the larger group."""
    options = ["--max_steps", "-1", "--num_train_epochs", "2", "--gradient_accumulation_steps", "2"]
    assert train(recipe(), [*QUIET, *options]).state.global_step == 6


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("rows", "steps", "ends"), [(6, 6, [3, 6]), (6, 7, [3, 6, 7]), (7, 8, [4, 7, 8]), (2, 3, [1, 2, 3])]
)
def test_what_is_due_at_the_end_of_an_epoch_is_done_at_every_one(recipe, files, rows, steps, ends):
    """And once at the end of the run; also where an epoch is no whole number of steps."""
    data = {"text": {"sources": [files.text(range(rows), "mine.jsonl")]}}
    settings = {f"{name}_strategy": "epoch" for name in ("save", "eval", "logging")}
    content = recipe(data=data, eval_data={"text": data["text"]}, max_steps=steps, save_total_limit=9, **settings)
    for _ in range(2):  # the second run goes on from the first one's end, and has nothing left to do
        state = train(content, QUIET).state
        for name in ("loss", "eval_loss"):
            logged = [(entry["step"], entry["epoch"]) for entry in state.log_history if name in entry]
            assert logged == [(step, pytest.approx(step * 2 / rows)) for step in ends]
        output = Path(yaml.safe_load(content.read_text())["output_dir"])
        assert {path.name for path in output.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in ends}


def test_tar_shards_have_no_epochs(recipe, files):
    files.shard("0.tar", range(4))
    data = {"web": {"sources": [{"format": "webdataset", "path": str(files.folder / "0.tar")}]}}
    with pytest.raises(ValueError, match=r"`save_strategy` is epoch, but the number of samples .* use `steps`"):
        train(recipe(data=data), [*QUIET, "--save_strategy", "epoch"])
    assert not any("epoch" in entry for entry in train(recipe(data=data), QUIET).state.log_history)


@pytest.mark.parametrize("stage", ["pretrain", "instruct", "instruct-full"])
def test_trained_weights_are_float32_and_frozen_ones_as_computed(recipe, stage):
    trainer = train(recipe(stage=stage, bf16=True), QUIET)
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in trainer.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(4 < loss < 10 for loss in losses)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_trained_parts_start_from_the_values_of_their_file(recipe, tmp_path, stage, kind):
    """Not from those rounded to the type of the computation, and no other model is loaded otherwise afterwards."""
    torch.manual_seed(0)
    model = MplugOwlForConditionalGeneration(tiny_config(vision_config={"use_temporal": True}))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "model")
    expected = dict(model.named_parameters())
    owl, args = parse_recipe(recipe(stage=stage, model=str(tmp_path / "model")), ["--use_cpu", "true"])
    setattr(args, kind, True)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[kind]
    for name, parameter in load_model(owl, args).named_parameters():
        name = re.sub(r"^base_model\.model\.|\.base_layer|modules_to_save\.default\.|original_module\.", "", name)
        if "lora_" not in name:
            assert parameter.dtype == (torch.float32 if parameter.requires_grad else dtype), name
            assert torch.equal(parameter, expected[name].to(parameter.dtype)), name
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=dtype)
    assert {parameter.dtype for parameter in plain.parameters()} == {dtype}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "temporal"])
def test_text_alone_trains_in_every_stage(recipe, files, stage):
    data = {"text": {"sources": [files.text(range(5))]}}
    trainer = train(recipe(stage=stage, data=data, learning_rate=1e-2), QUIET)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(4 < loss < 10 for loss in losses)


def test_an_adapter_finds_its_base_from_any_folder(recipe, llama, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(llama.checkpoint).parent)
    trainer = train(recipe(model=Path(llama.checkpoint).name), QUIET)
    monkeypatch.chdir(tmp_path)
    settings = json.loads(Path(trainer.args.output_dir, "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(Path(llama.checkpoint).resolve())
    AutoModelForImageTextToText.from_pretrained(trainer.args.output_dir)


def test_pushes_during_training_hold_the_code(recipe, monkeypatch):
    trainer = train(recipe(stage="pretrain", save_strategy="steps", save_steps=1), QUIET)
    output = Path(trainer.args.output_dir)
    code = {path.name for path in output.glob("*.py")}
    assert "modeling_mplug_owl.py" in code
    for name in code:
        (output / name).unlink()
    pushed = []
    monkeypatch.setattr(
        Trainer, "_push_from_checkpoint", lambda *_: pushed.append({p.name for p in output.glob("*.py")})
    )
    trainer._push_from_checkpoint(str(output / "checkpoint-1"))
    assert pushed == [code]


@pytest.mark.parametrize("begun", [0, 6])
def test_the_progress_bar_tells_speed_and_counts_what_is_left(begun):
    """After a resume the steps of earlier runs are none of this one's speed."""
    progress = Progress()
    state = TrainerState(max_steps=10, global_step=begun)
    progress.on_train_begin(None, state, None)
    state.global_step += 1
    progress.on_step_end(None, state, None)
    progress.on_log(None, state, None, {"loss": 2.5, "tokens_per_second": 1234})
    shown = progress.training_bar.format_dict
    assert (shown["n"], shown["total"], shown["initial"]) == (begun + 1, 10, begun)
    assert shown["postfix"] == "loss=2.5, tokens/s=1,234"
    progress.on_train_end(None, state, None)


@pytest.mark.parametrize("flag", ["bf16", "fp16", None])
def test_the_peak_is_that_of_the_type_that_products_run_in(flag):
    args = SimpleNamespace(**{name: name == flag for name in ("bf16", "fp16")})
    assert compute_dtype(args) == {"bf16": torch.bfloat16, "fp16": torch.float16, None: torch.float32}[flag]


def test_a_recipe_chooses_the_chat_template(recipe, tmp_path):
    """By name or file, in training and in what is saved."""
    template = tmp_path / "plain.jinja"
    template.write_text(
        "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}"
        "{{ message.content }}{% endgeneration %}{% else %}<{{ message.content[-1].text }}>{% endif %}{% endfor %}"
    )
    data = {"text": {"sources": [{"format": "alpaca", "path": str(tmp_path / "say.jsonl")}]}}
    (tmp_path / "say.jsonl").write_text('{"instruction": "Say it.", "output": "grey"}\n')
    for name, expected in ((str(template), "<Say it.>"), ("original", "Human: Say it.\nAI: ")):
        trainer = train(recipe(data=data, chat_template=name), QUIET)
        row = next(iter(trainer.train_dataset))
        text = trainer.processing_class.tokenizer.decode(row["input_ids"][0])
        assert expected in text
        assert AutoProcessor.from_pretrained(trainer.args.output_dir).chat_template == read_template(name)
    with pytest.raises(ValueError, match="tokenizer has no chat template besides the model's own"):
        train(recipe(data=data, chat_template="language_model"), QUIET)
    with pytest.raises(ValueError, match=r"`chat_template` is 'gone.jinja'.* original, language_model"):
        train(recipe(data=data, chat_template="gone.jinja"), QUIET)


@pytest.mark.parametrize("prompt", ["one_image", "two_images", "text_only"])
def test_the_originals_loss_is_met_through_collator_and_trainer(llama, llama_processor, prompt, files, tmp_path):
    """
    The original's answer is two ids that no text gives: they take the place of an answer of as many tokens. (In its
    dialogue the first answer has no EOS: that is how a prompt reads, not how answers are trained.)
    """
    expected = {key.partition("/")[2]: value for key, value in llama.expected.items() if key.startswith(prompt + "/")}
    *_, question = llama.prompts[prompt]["text"].removesuffix("\nAI: ").split("\nHuman: ")
    content = [{"type": "image", "image": image} for image in llama.images(prompt)]
    content.append({"type": "text", "text": question})
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "in a"}]
    batch = ConversationCollator(llama_processor)([{"messages": messages}])
    ids = expected["train_input_ids"].masked_fill(expected["train_input_ids"] == -1, llama_processor.image_token_id)
    assert batch["input_ids"].shape == ids.shape
    assert batch["input_ids"][:, :-3].tolist() == ids[:, :-3].tolist()
    assert batch["labels"][0, -4:].tolist() == [-100, *batch["input_ids"][0, -3:].tolist()]
    batch["input_ids"], batch["labels"][:, -3:] = ids, ids[:, -3:]
    model = MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint).eval()
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to=[], max_steps=1, per_device_train_batch_size=1)
    groups = {"x": Group.from_dict({"sources": [files.text([1])]})}
    trainer = OwlTrainer(model, arguments, Mixture(groups, ConversationCollator(llama_processor), 1))
    with torch.no_grad():
        loss = trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(3))
    assert abs(loss - expected["train_loss"]) <= 1e-5


def test_accumulation_gives_the_gradient_of_the_whole_batch(recipe, monkeypatch):
    """Rows of unequal length: each token counts the same, in whichever micro-batch it is."""
    import transformers_owl.training.train as module

    def without_dropout(*given, load=module.load_model):
        model = load(*given)
        for part in model.modules():
            if isinstance(part, MplugOwlAttention):
                part.dropout.p = 0.0
        return model

    monkeypatch.setattr(module, "load_model", without_dropout)
    found = []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        options = ["--per_device_train_batch_size", str(batch), "--gradient_accumulation_steps", str(accumulation)]
        owl = recipe(stage="instruct-full", max_steps=1, max_grad_norm=1e9, crop=[1, 1], lora_dropout=0)
        trainer = train(owl, [*QUIET, *options])
        (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
        found.append((entry["loss"], entry["grad_norm"]))
    for loss, norm in found[1:]:
        assert abs(loss - found[0][0]) <= 1e-5
        assert abs(norm - found[0][1]) <= 1e-4 * norm


def test_the_log_counts_tokens_images_and_what_was_left_out(recipe, files):
    bad = files.jsonl("captions", [{"file_name": "gone.png", "text": "x"}] * 2, "bad.jsonl")
    data = {"all": {"sources": [files.captions(range(100, 106)), bad]}}
    trainer = train(recipe(data=data, max_steps=4, on_error="skip", max_skipped=0.5), QUIET)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entries[-1]["skipped_missing_image"] == 2
    for entry in entries:
        # Two images of 65 positions, a prompt of 70 and a caption: their ratio is that of positions to images.
        assert 100 < entry["tokens_per_second"] / entry["images_per_second"] < 160
        assert entry["grad_norm_abstractor"] ** 2 + entry["grad_norm_LoRA"] ** 2 == pytest.approx(
            entry["grad_norm"] ** 2, rel=1e-3
        )
        assert 0 < entry["mfu"] < 1
    listed = [json.loads(line) for line in Path(trainer.args.output_dir, "skipped-0.jsonl").read_text().splitlines()]
    assert [entry["reason"] for entry in listed] == ["missing image"] * 2


@pytest.mark.parametrize("crop", [[1, 1], [0.9, 1]])
def test_whole_pages_are_trained_on(recipe, files, llama, tmp_path, crop):
    """Cells and positions reach the model, its tables of rows and columns learn, and both settings are saved."""
    config = AutoConfig.from_pretrained(llama.checkpoint)
    config.visual_abstractor_config.max_crops = 6
    base, processor = tmp_path / "base", AutoProcessor.from_pretrained(llama.checkpoint)
    MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint, config=config).save_pretrained(base)
    processor.image_processor.max_crops = 6
    processor.save_pretrained(base)
    files.image(100).resize((170, 110)).save(tmp_path / "page.png")
    data = {"all": {"sources": [files.jsonl("captions", [{"file_name": "page.png", "text": "grey 100"}] * 4)]}}
    values = {"model": str(base), "data": data, "stage": "pretrain", "max_length": 600, "crop": crop}
    trainer = train(recipe(**values, learning_rate=0.01), QUIET)
    (entry, *_) = [entry for entry in trainer.state.log_history if "loss" in entry]
    # Seven views of 65 positions, a prompt of 70 and a caption.
    assert 70 < entry["tokens_per_second"] / entry["images_per_second"] < 80
    model = MplugOwlForConditionalGeneration.from_pretrained(trainer.args.output_dir)
    assert (model.model.abstractor.crop_rows.weight.abs().sum(1) > 0).tolist() == [True] * 3 + [False] * 4
    assert (model.model.abstractor.crop_columns.weight.abs().sum(1) > 0).tolist() == [True] * 4 + [False] * 3
    assert AutoProcessor.from_pretrained(trainer.args.output_dir).image_processor.max_crops == 6


def test_the_log_names_a_broken_shard(recipe, files, caplog):
    files.shard("0.tar", range(4))
    data = {"web": {"sources": [{"format": "webdataset", "path": str(files.folder / "{0..1}.tar")}]}}
    trainer = train(recipe(data=data, max_steps=4, on_error="skip", max_skipped=0.6), QUIET)
    assert f"{files.folder}/1.tar: broken shard: " in caplog.text
    assert trainer.state.log_history[-2]["skipped_broken_shard"] >= 1
    first, *_ = Path(trainer.args.output_dir, "skipped-0.jsonl").read_text().splitlines()
    assert json.loads(first)["source"] == f"{files.folder}/1.tar"


@pytest.mark.parametrize("stage", ["pretrain", "instruct", "instruct-full", "kosmos"])
def test_flops_agree_with_those_that_torch_counts(stage):
    """Torch counts the whole square of causal attention, and no gradient of the pixels."""
    base = tiny_config()
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4}
    text = {**base.text_config.to_dict(), **sizes, "num_key_value_heads": 4, "head_dim": 16, "vocab_size": 500}
    vision = {**base.vision_config.to_dict(), **sizes, "image_size": 140}
    abstractor = {**base.visual_abstractor_config.to_dict(), **sizes, "encoder_hidden_size": 64}
    config = type(base)(
        text_config=text, vision_config=vision, visual_abstractor_config=abstractor, num_query_tokens=16
    )
    model = prepare_stage(MplugOwlForConditionalGeneration._from_config(config, attn_implementation="eager"), stage)
    ids = torch.randint(3, 100, (2, 120))
    ids[:, 5:22] = model.config.image_token_id
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, pixel_values=torch.randn(2, 3, 140, 140)).loss.backward()
    causal = 2 * 2 * 64 * 2 * 120**2 * 3  # the other half of the square
    expected = counter.get_total_flops() - causal
    assert TrainingFlops(model)([120, 120], 2) == pytest.approx(expected, rel=0.05)


def test_gradient_norms_are_those_of_the_parts():
    torch.manual_seed(0)
    model = prepare_stage(MplugOwlForConditionalGeneration(tiny_config()), "pretrain")
    ids = torch.randint(3, 100, (1, 14))
    ids[:, 3:8] = 100
    model(input_ids=ids, labels=ids, pixel_values=torch.randn(1, 3, 28, 28)).loss.backward()
    norms = gradient_norms(model)
    assert set(norms) == {"vision_model", "abstractor"}
    for part, norm in norms.items():
        values = [p.grad.flatten() for name, p in model.named_parameters() if part in name and p.grad is not None]
        assert norm == pytest.approx(torch.cat(values).norm().item(), rel=1e-5)


def test_a_blank_image_changes_nothing_but_reaches_the_visual_modules(llama, llama_processor):
    torch.manual_seed(0)
    model = prepare_stage(MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint), "pretrain").eval()
    samples = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]}
        for text in ("Is it true?", "A much longer question, is it?")
    ]
    plain = ConversationCollator(llama_processor)(samples)
    batch = ConversationCollator(llama_processor, always="image")(samples)
    assert batch["pixel_values"].shape == (1, 3, 56, 56)
    assert (batch["input_ids"][0] == llama_processor.image_token_id).sum() == 65
    assert (batch["input_ids"][1] == llama_processor.image_token_id).sum() == 0
    expected, output = model(**plain), model(**batch)
    assert abs(output.loss - expected.loss) <= 1e-6
    length = int(plain["attention_mask"][0].sum())
    assert relative_error(output.logits[0, :length], expected.logits[0, :length]) <= 1e-5
    output.loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad is not None and not parameter.grad.any() for parameter in trained)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": -1}, "`max_steps` is needed"),
        ({"label_smoothing_factor": 0.1}, r"`label_smoothing_factor` is 0\.1, but must be 0\.0"),
        (
            {"train_sampling_strategy": "group_by_length"},
            "`train_sampling_strategy` is 'group_by_length', but must be",
        ),
        ({"dataloader_drop_last": True}, "`dataloader_drop_last` is True, but must be False"),
        ({"dataloader_in_order": False}, "`dataloader_in_order` is False, but must be True"),
        ({"auto_find_batch_size": True}, "`auto_find_batch_size` is True, .* cannot change the mixture's batches"),
        ({"use_liger_kernel": True}, "`use_liger_kernel` is True, but must be False"),
        ({"label_names": ["answers"]}, r"`label_names` is \['answers'\], but must be None"),
        ({"accelerator_config": {"split_batches": True}}, "`split_batches` is True, but must be False"),
        ({"accelerator_config": {"dispatch_batches": True}}, "`dispatch_batches` is True, but must be None"),
        (
            {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}},
            r"`gradient_accumulation_kwargs` is {'num_steps': 2}, but must be None",
        ),
        ({"per_device_train_batch_size": 4}, r"are \(2, 1, 0, 1\) in the mixture, but \(4, 1, 0, 1\)"),
        ({"gradient_accumulation_steps": 3}, r"\(2, 1, 0, 1\) in the mixture, but \(2, 3, 0, 1\)"),
    ],
)
def test_arguments_that_do_not_fit_the_mixture_are_told(
    llama_model, llama_processor, files, tmp_path, settings, message
):
    mixture = Mixture({"x": Group.from_dict({"sources": [files.text([1])]})}, ConversationCollator(llama_processor), 2)
    given = {"per_device_train_batch_size": 2, "max_steps": 1, **settings}
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to=[], **given)
    with pytest.raises(ValueError, match=message):
        OwlTrainer(llama_model, arguments, mixture)


def test_a_dry_run_shows_what_would_be_done(recipe, tmp_path):
    """Steps, samples, memory and the first rows, learned parts apart; nothing is written."""
    console = Console(record=True, width=200, file=io.StringIO())
    preview(recipe(max_steps=6), ["--use_cpu", "true"], console)
    shown = console.export_text(clear=False)
    assert "6 optimizer steps of 2 rows each; samples per epoch: images 6, text 5; 1 epochs in all." in shown
    assert "LoRA" in shown and "Memory on one device" in shown
    assert "[image: 65 positions]" in shown
    green = "".join(segment.text for segment in console._record_buffer if "bold green" in str(segment.style))
    assert sorted(re.findall(r"grey (\d)\d*", green)) and "Human" not in green and "Say" not in green
    assert not (tmp_path / "out").exists()


def test_memory_counts_weights_gradients_and_moments():
    model = nn.Sequential(nn.Linear(10, 10, bias=False).requires_grad_(False).bfloat16(), nn.Linear(10, 5, bias=False))
    assert memory(model) == 2 * 100 + 4 * 50 + 12 * 50


def test_help_lists_the_names_of_a_recipe():
    output = CliRunner().invoke(app, ["train", "--help"]).output
    assert RECIPE.split(":\n", 1)[1].splitlines()[0] in output
    listed = dict(
        re.findall(
            r"(\w+)(?:=(\[.*?\]|[^,\n]+))?(?:, |$)", re.sub(r"(?m)^  .{13}", "", RECIPE.split(":\n", 1)[1]), re.M
        )
    )
    expected = {}
    for each in fields(OwlArguments):
        value = each.default_factory() if each.default is MISSING else each.default
        expected[each.name] = "" if value in (None, "") else str(value)
    assert listed == expected


def test_a_card_tells_nothing_about_the_machine_and_claims_no_release(recipe, files, tmp_path):
    """Neither folders, secrets of a URL nor commands; and a run named as a release is not that release."""
    shards = {"format": "webdataset", "allow_commands": True}
    named = {
        "/secret/place/{00000..00099}.tar": "`{00000..00099}.tar` (webdataset)",
        "https://user:word@host.org/a/{0..9}.tar?token=1": "`https://host.org/a/{0..9}.tar` (webdataset)",
        "pipe:curl -H token https://host.org/x.tar": "`a command` (webdataset)",
    }
    data = {"a": {"sources": [{**shards, "path": path} for path in named]}}
    data["b"] = {"weight": 2, "sources": [{"format": "dataset", "path": "OWNER/rows"}]}
    output = tmp_path / "mplug-owl-llama-7b"
    output.mkdir()
    owl, args = parse_recipe(recipe(data=data), ["--output_dir", str(output)])
    write_card(owl, args, TrainerState(global_step=3, log_history=[{"loss": 2.5}]))
    card = (output / "README.md").read_text()
    assert f"| a | 1 | {', '.join(named.values())} |" in card
    assert "| b | 2 | `OWNER/rows` (dataset) |" in card
    for secret in ("/secret", "word@", "token=1", "curl", str(tmp_path)):
        assert secret not in card
    assert "huggingface.co/MAGAer13" not in card and "# mplug-owl-llama-7b" in card

"""configs/modern-*.yaml on small parts: `build`, both stages, saving, loading and answering."""

import importlib.resources
import json
import re
import shlex
from pathlib import Path

import PIL.Image
import pytest
import torch
from towers import tower_of
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM, Qwen3ForCausalLM, SiglipImageProcessorPil
from typer.testing import CliRunner

from transformers_owl import MINIATURE, MplugOwlForConditionalGeneration
from transformers_owl.cli import app
from transformers_owl.inference import Chat
from transformers_owl.loading import load
from transformers_owl.training.train import train


ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/tutorials/modern.md"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PAIRS = {
    "SigLIP 2 and Qwen3": ("siglip_vision_model", Qwen3ForCausalLM),
    "SigLIP 2 NaFlex and SmolLM2": ("siglip2_vision_model", LlamaForCausalLM),
}
COLOURS = ("red", "blue")
SIZE = (100, 60)  # of an image, pixels: two cells beside each other


def own_template(name: str) -> str:
    if "Qwen3" in name:
        return importlib.resources.files("trl").joinpath("chat_templates/qwen3_instruct_2507.jinja").read_text()
    return CHATML


def save_language_model(kind, template: str, folder: Path) -> None:
    """The miniature's, as this class computes it, with the tokens of ChatML in place of those of LLaMA."""
    owl = MplugOwlForConditionalGeneration.from_pretrained(MINIATURE, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(MINIATURE)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token, tokenizer.chat_template = "<|im_end|>", template
    fields = owl.config.text_config.to_dict()
    names = set(kind.config_class().to_dict()) - {"model_type", "architectures", "eos_token_id", "layer_types"}
    model = kind(kind.config_class(**{name: fields[name] for name in names & set(fields)}))
    missing, unexpected = model.model.load_state_dict(owl.model.language_model.state_dict(), strict=False)
    assert all("_norm" in name for name in missing) and not unexpected
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    rows = model.get_input_embeddings().weight.data
    rows[-2:] = rows[[begin, end]]
    rows[end] /= 10  # it would be as likely as its twin
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module", params=PAIRS)
def trained(request, tmp_path_factory):
    """The folder with data and models of a pair after both stages, and the losses of each."""
    folder, (vision, language_model) = tmp_path_factory.mktemp("modern"), PAIRS[request.param]
    tower_of(vision).save_pretrained(folder / "vision")
    SiglipImageProcessorPil().save_pretrained(folder / "vision")
    torch.manual_seed(0)
    save_language_model(language_model, own_template(request.param), folder / "language")
    (block, *_) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    command = shlex.split(block.replace("\\\n", ""))
    places = {"--vision": "vision", "--language": "language", "--output": "fresh"}
    for option, name in places.items():
        command[command.index(option) + 1] = str(folder / name)
    small = ["--num-query-tokens", "4", "--num-abstractor-layers", "1", "--dtype", "float32"]
    done = CliRunner().invoke(app, [*command[1:], *small])
    assert done.exit_code == 0, done.output
    fresh = MplugOwlForConditionalGeneration.from_pretrained(folder / "fresh")
    for weight in fresh.model.abstractor.parameters():  # so narrow an abstractor hardly sees an image at first
        weight.data *= 10 if weight.ndim == 2 else 1
    fresh.save_pretrained(folder / "fresh")
    captions, chats = [], []
    for colour in COLOURS:
        PIL.Image.new("RGB", SIZE, colour).save(folder / f"{colour}.png")
        captions.append({"file_name": f"{colour}.png", "text": f"It is {colour}."})
        turns = [{"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": colour}]
        chats.append({"image": f"{colour}.png", "conversations": turns})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)))
    (folder / "chats.json").write_text(json.dumps(chats))
    losses = [
        stage(
            "pretrain", 40, folder, "fresh", "captions", "captions.jsonl", ["--learning_rates", "{abstractor: 5e-3}"]
        ),
        stage("instruct", 15, folder, "pretrain", "llava", "chats.json", ["--learning_rates", "{}"]),
    ]
    return request.param, folder, losses


def stage(name: str, steps: int, folder: Path, model: str, form: str, file: str, options: list[str]) -> list[float]:
    values = {
        "model": folder / model, "output_dir": folder / name, "max_steps": steps, "warmup_steps": 2, "logging_steps": 1,
        "data": json.dumps({"all": {"sources": [{"format": form, "path": str(folder / file)}]}}),
        "global_batch_size": 2, "per_device_train_batch_size": 2, "dataloader_num_workers": 0, "bf16": False,
        "use_cpu": True, "gradient_checkpointing": False, "learning_rate": 5e-3, "lr_scheduler_type": "constant",
        "report_to": "none", "disable_tqdm": True, "peak_tflops": 1, "seed": 1,
    }  # fmt: skip
    words = [str(word) for key, value in values.items() for word in (f"--{key}", value)]
    trainer = train(ROOT / f"configs/modern-{name}.yaml", [*words, *options])
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
def test_both_stages_learn_their_rows(trained):
    _, _, losses = trained
    for found in losses:
        assert found[0] > 2 and max(found[-3:]) < 0.1


@pytest.mark.slow
def test_the_trained_model_answers_its_rows_after_its_own_template(trained):
    name, folder, _ = trained
    model, processor = load(str(folder / "instruct"), "cpu")
    config = AutoConfig.from_pretrained(folder / "pretrain")
    assert config.vision_config.model_type == PAIRS[name][0]
    assert config.visual_abstractor_config.max_crops == processor.image_processor.max_crops == 6
    assert processor.chat_template.endswith(own_template(name))
    for colour in COLOURS:
        chat = Chat(model, processor)
        assert chat.ask("Which colour?", [PIL.Image.new("RGB", SIZE, colour)], max_new_tokens=8) == colour
        assert len(chat.pixels["pixel_values"]) == 3
        asked = processor.apply_chat_template(chat.messages[:1], add_generation_prompt=True, tokenize=False)
        assert asked == "<|im_start|>user\n<image>\nWhich colour?<|im_end|>\n<|im_start|>assistant\n"

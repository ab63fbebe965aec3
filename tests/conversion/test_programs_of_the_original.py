"""
Programs in the call forms of the original's users run with the lines that docs/from-the-original.md gives, and without
them they stop with an error that names the line.
"""

import re
from pathlib import Path

import PIL.Image
import pytest
import torch
from clips import write_clip
from conftest import GoldenCase
from fresh_interpreter import in_fresh_interpreter
from releases import release, weights_of
from test_finetunes import in_pefts_names, lora_of
from transformers import AutoModel

from transformers_owl import MplugOwlProcessor


PAGE = (Path(__file__).parents[2] / "docs/from-the-original.md").read_text()
# The lines of the page: what was written, and what to write.
ROWS = dict(re.findall(r"^\| `(.+)` \| `(.+)` \|$", PAGE.partition("## Line by line")[2], re.MULTILINE))
(INTERFACE,) = re.findall(r"```python\n([^`]*def do_generate[^`]*)```", PAGE)
PROMPT = "The following is a conversation.\nHuman: {}\nHuman: What is this?\nAI: "
START = """
import torch
import PIL.Image
"""
HARNESS_VIDEO = """
from mplug_owl_video.modeling_mplug_owl import MplugOwlForConditionalGeneration
from mplug_owl_video.processing_mplug_owl import MplugOwlImageProcessor, MplugOwlProcessor
from transformers import AutoTokenizer

model = MplugOwlForConditionalGeneration.from_pretrained(checkpoint, torch_dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
processor = MplugOwlProcessor(MplugOwlImageProcessor.from_pretrained(checkpoint), tokenizer)
model.eval()
inputs = processor(text=[prompt], videos=[clip], num_frames=4, return_tensors="pt")
inputs = {name: value.float() if value.dtype == torch.float else value for name, value in inputs.items()}
inputs = {name: value.to(model.device) for name, value in inputs.items()}
settings = {"do_sample": False, "top_k": 5, "max_length": 512}
outputs = model.generate(**inputs, **settings)
answer = tokenizer.decode(outputs.tolist()[0], skip_special_tokens=True)
"""
HARNESS_IMAGE = """
from mplug_owl.modeling_mplug_owl import MplugOwlForConditionalGeneration
from mplug_owl.processing_mplug_owl import MplugOwlImageProcessor, MplugOwlProcessor
from mplug_owl.tokenization_mplug_owl import MplugOwlTokenizer

model = MplugOwlForConditionalGeneration.from_pretrained(checkpoint, torch_dtype=torch.float32)
tokenizer = MplugOwlTokenizer.from_pretrained(checkpoint)
processor = MplugOwlProcessor(MplugOwlImageProcessor.from_pretrained(checkpoint), tokenizer)
inputs = processor(images=[PIL.Image.open(image)], text=[prompt], return_tensors="pt")
outputs = model.generate(**inputs, do_sample=False, top_k=5, max_length=512)
answer = tokenizer.decode(outputs.tolist()[0], skip_special_tokens=True)
"""
# Scores of a word after a batch made by the original's collator: marks of -1 and masks beside the ids.
SCORES = """
from mplug_owl_video.modeling_mplug_owl import MplugOwlForConditionalGeneration

model = MplugOwlForConditionalGeneration.from_pretrained(checkpoint)
logits = model(
    input_ids=input_ids,
    pixel_values=None,
    video_pixel_values=video_pixel_values,
    num_videos=torch.tensor([1]),
    non_media_mask=torch.ones_like(input_ids[:, 1:]),
    non_padding_mask=torch.ones_like(input_ids[:, 1:]),
    prompt_mask=torch.ones_like(input_ids[:, 1:]),
).logits
"""
TUNED = """
from mplug_owl.modeling_mplug_owl import MplugOwlForConditionalGeneration
from peft import LoraConfig, get_peft_model

model = MplugOwlForConditionalGeneration.from_pretrained(checkpoint)
settings = LoraConfig(target_modules=r".*language_model.*\\.(q_proj|v_proj)", r=8, lora_alpha=32, lora_dropout=0.05)
model = get_peft_model(model, settings)
model.load_state_dict(torch.load(tuned, map_location="cpu"))
"""
PIPELINE = """
from pipeline.interface import do_generate, get_model

model, tokenizer, processor = get_model(pretrained_ckpt=checkpoint, use_bf16=False)
answer = do_generate([prompt], [image], model, tokenizer, processor, max_length=512, top_k=5, do_sample=False)
"""


def rewritten(program: str) -> str:
    for theirs, ours in ROWS.items():
        program = program.replace(theirs, ours)
    return program.replace("from pipeline.interface import do_generate, get_model\n", INTERFACE)


def ran(program: str, result: str = "", **names) -> str:
    given = "\n".join(f"{name} = {value!r}" for name, value in names.items())
    return in_fresh_interpreter(START + given, program, result)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Releases of images and of videos, an image and a video file."""
    folder = tmp_path_factory.mktemp("original")
    for name in ("image-llama", "video-llama"):
        release(name, folder / name)
    PIL.Image.new("RGB", (60, 40), "brown").save(folder / "image.png")
    write_clip(folder / "clip.mp4", "libx264")
    return folder


@torch.no_grad()
def answered(checkpoint, placeholder: str, **media) -> str:
    model, processor = AutoModel.from_pretrained(checkpoint), MplugOwlProcessor.from_pretrained(checkpoint)
    inputs = processor(text=[PROMPT.format(placeholder)], return_tensors="pt", **media)
    outputs = model.generate(**inputs, max_new_tokens=512)
    return processor.decode(outputs[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("program", [PIPELINE, HARNESS_IMAGE], ids=["pipeline.interface", "harness"])
def test_programs_about_images_give_the_answer_alone(program, folder):
    names = {"checkpoint": str(folder / "image-llama"), "image": str(folder / "image.png")}
    expected = answered(names["checkpoint"], "<image>", images=[PIL.Image.open(names["image"])])
    found = ran(rewritten(program), "print(answer)", prompt=PROMPT.format("<image>"), **names)
    assert found.strip() == expected.strip() != ""


def test_a_program_about_videos_gives_the_answer_alone(folder):
    names = {"checkpoint": str(folder / "video-llama"), "clip": str(folder / "clip.mp4")}
    expected = answered(names["checkpoint"], "<|video|>", videos=[names["clip"]], num_frames=4)
    found = ran(rewritten(HARNESS_VIDEO), "print(answer)", prompt=PROMPT.format("<|video|>"), **names)
    assert found.strip() == expected.strip() != ""


ARGUMENTS = {
    "num_videos=": "num_videos is an argument of the original's code: pass nothing",
    "non_media_mask=": "non_media_mask is .*pass labels",
    "non_padding_mask=": "non_padding_mask is .*pass attention_mask",
    "prompt_mask=": "prompt_mask is .*pass labels",
    "video_pixel_values=": r"pass pixel_values_videos=video_pixel_values.permute\(0, 2, 1, 3, 4\)",
}


def test_a_batch_of_the_originals_collator_is_led_to_ours_line_by_line(folder):
    """Each argument stops with its line, until none is left but the negative ids, and then values are right."""
    program = SCORES.replace("from mplug_owl_video.modeling_mplug_owl", "from transformers_owl")
    given = (
        "input_ids = torch.tensor([[1] + 65 * [-2] + [5, 6, 7]]); video_pixel_values = torch.ones(1, 3, 4, 56, 56)\n"
    )
    checkpoint = str(folder / "video-llama")
    for argument in ARGUMENTS:
        left = [line for line in program.splitlines() if argument in line or not any(a in line for a in ARGUMENTS)]
        with pytest.raises(AssertionError, match=ARGUMENTS[argument]):
            ran(given + "\n".join(left), checkpoint=checkpoint)
    ours = "pixel_values_videos=video_pixel_values.permute(0, 2, 1, 3, 4)"
    left = [line for line in program.splitlines() if not any(a in line for a in list(ARGUMENTS)[:-1])]
    left = "\n".join(left).replace("video_pixel_values=video_pixel_values", ours)
    with pytest.raises(AssertionError, match=r"-2 by processor\.video_token_id"):
        ran(given + left, checkpoint=checkpoint)
    mended = left.replace("input_ids=input_ids", "input_ids=input_ids.masked_fill(input_ids == -2, 1001)")
    model = AutoModel.from_pretrained(checkpoint)
    assert model.config.video_token_id == 1001
    ids = torch.tensor([[1, *65 * [1001], 5, 6, 7]])
    expected = model(ids, pixel_values_videos=torch.ones(1, 4, 3, 56, 56)).logits[0, -1].argmax()
    assert ran(given + mended, "print(int(logits[0, -1].argmax()))", checkpoint=checkpoint).strip() == str(
        int(expected)
    )


@pytest.mark.parametrize("kind", ["fine-tune", "LoRA alone", "release"])
def test_weights_of_the_original_in_load_state_dict_stop_with_the_command(kind, folder, tmp_path):
    weights = weights_of("image-llama")
    tuned = in_pefts_names({} if kind == "LoRA alone" else weights, lora_of(weights), "0.3")
    torch.save(weights if kind == "release" else tuned, tmp_path / "t.pth")
    program = rewritten(TUNED)
    if kind == "release":
        program = program.replace("model = get_peft_model(model, settings)\n", "")
    with pytest.raises(AssertionError, match=r"the original's names.*transformers-owl convert --checkpoint FILE"):
        ran(program, checkpoint=str(folder / "image-llama"), tuned=str(tmp_path / "t.pth"))


@pytest.mark.parametrize("bits", [8, 4])
def test_loading_in_bits_stops_with_the_line(bits):
    with pytest.raises(ValueError, match=rf"quantization_config=BitsAndBytesConfig\(load_in_{bits}bit=True\)"):
        AutoModel.from_pretrained(GoldenCase("image-llama").checkpoint, **{f"load_in_{bits}bit": True})


def test_generate_refuses_what_a_forward_pass_refuses(folder):
    model = AutoModel.from_pretrained(folder / "image-llama")
    ids = torch.tensor([[1, *65 * [-1], 5]])
    with pytest.raises(ValueError, match=r"-1 by processor\.image_token_id"):
        model.generate(ids, pixel_values=torch.zeros(1, 3, 56, 56))
    with pytest.raises(ValueError, match="num_images is an argument of the original's code"):
        model.generate(ids.abs(), num_images=torch.tensor([1]))


def test_every_line_of_the_page_is_used():
    programs = HARNESS_VIDEO + HARNESS_IMAGE + SCORES + TUNED
    assert ROWS and all(theirs in programs for theirs in ROWS)

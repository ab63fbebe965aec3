"""Videos from prompt to answer: beside images in any order, in the pipelines, on the command line, in chats."""

import json

import numpy as np
import pytest
import torch
from clips import frame, write_clip
from conftest import SYSTEM, GoldenCase, relative_error
from transformers import pipeline
from typer.testing import CliRunner

from transformers_owl import MplugOwlForConditionalGeneration, MplugOwlImageToTextPipeline
from transformers_owl.cli import app
from transformers_owl.inference import Chat, extract_features, score_answers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, model, llama_processor):
    """The video release with a tokenizer beside it, saved as ours."""
    folder = tmp_path_factory.mktemp("video-owl")
    model.save_pretrained(folder)
    llama_processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model():
    return MplugOwlForConditionalGeneration.from_pretrained(GoldenCase("video-llama").checkpoint)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / "a.mp4", "libx264"), write_clip(folder / "b.webm", "libvpx", 9)]


def question(*parts):
    return [{"role": "user", "content": [part if isinstance(part, dict) else text(part) for part in parts]}]


def text(words):
    return {"type": "text", "text": words}


def prepare(processor, chats, **options):
    return processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs=options,
    )  # fmt: skip


def test_images_and_videos_of_a_batch_in_any_order_equal_the_rows_alone(model, llama_processor, images, clips):
    first, second = {"type": "video", "path": clips[0]}, {"type": "video", "url": f"{clips[1]}"}
    frames = {"type": "video", "video": [frame(number) for number in range(6)]}
    red, green = ({"type": "image", "image": image} for image in images[:2])
    chats = [
        question(first, red, "Which came first?"),
        question(red, first, "Which came first?"),
        question("Nothing to see."),
        question("Before", second, "between", green, red, second, frames, "after"),
        question(green, "?"),
        question(frames, "?"),
    ]
    batch = prepare(llama_processor, chats)
    assert batch["pixel_values"].shape[0] == 5
    assert batch["pixel_values_videos"].shape[:2] == (6, 4)
    with torch.no_grad():
        together = model(**batch).logits
        alone = [model(**prepare(llama_processor, chat)).logits[0] for chat in chats]
    for logits, mask, single in zip(together, batch["attention_mask"], alone, strict=True):
        assert relative_error(logits[mask.bool()], single) <= 1e-5
    assert relative_error(alone[0], alone[1]) > 1e-3


def test_images_pass_a_video_model_unchanged(model, llama, llama_processor, images):
    """The image layers of the video model, as an image model, give the same answer."""
    inputs = prepare(llama_processor, question({"type": "image", "image": images[0]}, "?"))
    config = model.config.__class__.from_dict(model.config.to_dict())
    config.vision_config.use_temporal = config.visual_abstractor_config.use_temporal = False
    image_model = MplugOwlForConditionalGeneration(config).eval()
    left_over = image_model.load_state_dict(model.state_dict(), strict=False)
    assert not left_over.missing_keys
    assert all("temporal" in key for key in left_over.unexpected_keys)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, image_model(**inputs).logits)


def test_frames_of_a_batch_pass_the_vision_model_together(model, llama_processor, clips):
    batch = prepare(llama_processor, [question({"type": "video", "path": clip}, "?") for clip in clips], num_frames=3)
    passes = []
    hook = model.model.vision_model.layers[0].register_forward_hook(
        lambda module, args, out: passes.append(len(args[0]))
    )
    model.generate(**batch, max_new_tokens=3, num_beams=3)
    hook.remove()
    assert passes == [6]


def test_the_originals_call_form(model, llama_processor, clips):
    prompt = f"{SYSTEM}\nHuman: <|video|>\nHuman: What happens?\nAI: "
    inputs = llama_processor(text=[prompt], videos=[clips[0]], num_frames=4, return_tensors="pt")
    chat = prepare(llama_processor, question({"type": "video", "video": clips[0]}, "What happens?"))
    assert inputs["input_ids"].tolist() == chat["input_ids"].tolist()
    assert torch.equal(inputs["pixel_values_videos"], chat["pixel_values_videos"])
    assert model.generate(**inputs, do_sample=True, top_k=5, max_new_tokens=4).shape[1] > inputs["input_ids"].shape[1]


def test_videos_may_come_row_by_row(llama_processor, clips):
    rows = ["<|video|> a", "b", "<|video|><|video|>"]
    nested = llama_processor(text=rows, videos=[[clips[0]], [], [clips[1], clips[0]]], return_tensors="pt")
    flat = llama_processor(text=rows, videos=[clips[0], clips[1], clips[0]], return_tensors="pt")
    assert torch.equal(nested["pixel_values_videos"], flat["pixel_values_videos"])
    with pytest.raises(ValueError, match=r"videos, but there are \[1, 0, 2\] and \[2, 0, 1\]"):
        llama_processor(text=rows, videos=[clips, [], [clips[0]]])


def answer(model, processor, *parts, **options):
    inputs = prepare(processor, question(*parts), **options)
    written = model.generate(**inputs, max_new_tokens=6)[:, inputs["input_ids"].shape[1] :]
    return processor.decode(written[0], skip_special_tokens=True)


def test_pipelines(model, llama_processor, clips, images, checkpoint):
    describe = MplugOwlImageToTextPipeline(model, processor=llama_processor, device="cpu")
    given = [clips[0], images[0], np.stack([frame(number) for number in range(5)]), clips[1]]
    answers = [row[0]["generated_text"] for row in describe(given, max_new_tokens=6)]
    kinds = ["video", "image", "video", "video"]
    prompts = {"video": "Describe the video.", "image": "Describe the picture."}
    for kind, source, written in zip(kinds, given, answers, strict=True):
        assert written == answer(model, llama_processor, {"type": kind, kind: source}, prompts[kind])
    (eight,) = describe({"video": clips[0], "text": "What?"}, num_frames=8, max_new_tokens=6)
    assert eight["generated_text"] == answer(
        model, llama_processor, {"type": "video", "path": clips[0]}, "What?", num_frames=8
    )
    two = describe(clips, batch_size=2, max_new_tokens=6)
    assert [row[0]["generated_text"] for row in two] == [answers[0], answers[3]]
    chatting = pipeline("image-text-to-text", model=model, processor=llama_processor, device="cpu")
    chat = question({"type": "video", "path": clips[0]}, "Describe the video.")
    assert (
        chatting(text=chat, max_new_tokens=6, return_full_text=False)[0]["generated_text"].strip() == answers[0].strip()
    )


def test_caption_takes_videos(checkpoint, model, llama_processor, clips, llama, tmp_path):
    gif = write_clip(tmp_path / "moves.gif", "gif", pixels="rgb8")
    image = str(llama.folder / "image_0.png")
    arguments = ["caption", *clips, image, gif, "--prompt", "What?", "--max-new-tokens", "6"]
    output = tmp_path / "answers.jsonl"
    result = CliRunner().invoke(app, [*arguments, "--model", checkpoint, "--num-frames", "3", "--output", str(output)])
    assert result.exit_code == 0, result.output
    written = {row["image"]: row["answer"] for row in map(json.loads, output.read_text().splitlines())}
    for source, kind in ((clips[0], "video"), (clips[1], "video"), (image, "image"), (gif, "video")):
        assert written[source] == answer(model, llama_processor, {"type": kind, "path": source}, "What?", num_frames=3)
    # An image model takes the GIF's first frame, and no videos.
    assert (
        CliRunner().invoke(app, ["caption", gif, "--model", llama.checkpoint, "--max-new-tokens", "2"]).exit_code == 0
    )
    result = CliRunner().invoke(app, ["caption", clips[0], "--model", llama.checkpoint])
    assert result.exit_code == 1
    assert "this model takes images only" in result.stderr


def test_a_chat_sees_each_video_once(model, llama_processor, clips, images):
    passes = []
    hook = model.model.vision_model.register_forward_hook(
        lambda module, args, out: passes.append(tuple(args[0].shape[:-3]))
    )
    chat = Chat(model, llama_processor)
    first = chat.ask("What?", [clips[0], images[0]], max_new_tokens=6)
    chat.ask("And this?", [clips[1]], max_new_tokens=3)
    hook.remove()
    assert passes == [(1,), (1, 4), (1, 4)]
    assert first == answer(
        model, llama_processor, {"type": "video", "path": clips[0]}, {"type": "image", "image": images[0]}, "What?"
    )


def test_scores_and_features_of_videos(model, llama_processor, clips, images):
    video, image = {"type": "video", "path": clips[0]}, {"type": "image", "image": images[0]}
    chats = [question(video, "?"), question(image, "?"), question(image, video, "?")]
    together = score_answers(model, llama_processor, chats, [["Yes", "No"]] * 3)
    for chat, scores in zip(chats, together, strict=True):
        (alone,) = score_answers(model, llama_processor, [chat], [["Yes", "No"]])
        for one, other in zip(scores, alone, strict=True):
            assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-4)
    features = extract_features(model, llama_processor, clips, batch_size=1)
    pixels = llama_processor.video_processor(clips, return_tensors="pt")["pixel_values_videos"]
    assert relative_error(features.positions, model.get_video_features(pixels).pooler_output.detach()) <= 1e-5
    assert features.patches.shape[:2] == (2, 4)
    with pytest.raises(ValueError, match="given together"):
        extract_features(model, llama_processor, [clips[0], images[0]])


def test_the_chat_in_the_terminal_takes_videos(checkpoint, model, llama_processor, clips, tmp_path):
    saved = tmp_path / "talk.json"
    typed = f"/image {clips[0]}\nWhat happens?\nSo?\n/save {saved}\n"
    result = CliRunner().invoke(app, ["chat", "--model", checkpoint, "--max-new-tokens", "4"], input=typed)
    assert result.exit_code == 0, result.output
    assert f"{clips[0]}: a video, 4 frames of it added to the next question" in result.stdout
    chat = Chat(model, llama_processor)
    answers = [chat.ask("What happens?", [clips[0]], max_new_tokens=4), chat.ask("So?", max_new_tokens=4)]
    assert all(f"Owl: {answer}" in result.stdout for answer in answers)
    messages = json.loads(saved.read_text())
    assert messages[0]["content"][0] == {"type": "video", "path": str(clips[0])}
    assert "pixel_values_videos" in llama_processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt"
    )


def test_the_chat_in_the_terminal_says_what_is_wrong_with_a_video(checkpoint, llama, clips, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    for model, file, fault in ((llama.checkpoint, clips[0], "takes images only"), (checkpoint, broken, "broken.mp4")):
        typed = f"/image {file}\nHello?\n"
        result = CliRunner().invoke(app, ["chat", "--model", model, "--max-new-tokens", "4"], input=typed)
        assert result.exit_code == 1
        assert result.stderr.count("Error:") == 1 and fault in result.stderr
        assert "Owl: " not in result.stdout  # the question would be answered about no image

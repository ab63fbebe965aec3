"""Videos in training: as the processor prepares them, in both stages, from files of rows and tar shards."""

import csv
import io
import json
import tarfile
from pathlib import Path

import PIL.Image
import pytest
import torch
from clips import frame, number_of, write_clip
from conftest import GoldenCase, tiny_config

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.training import BadSampleError, ConversationCollator, prepare_stage
from transformers_owl.training.augmentation import Augmentation
from transformers_owl.training.mixture import Group, Mixture
from transformers_owl.training.train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """WebVid's layout, a LLaVA-style file, and a shard, about two clips."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "000_050").mkdir()
    for number in (1, 2):
        write_clip(folder / "000_050" / f"{number}.mp4", "libx264", 8 * number)
    with (folder / "webvid.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["videoid", "contentUrl", "duration", "page_dir", "name"])
        writer.writeheader()
        writer.writerows({"videoid": number, "page_dir": "000_050", "name": f"clip {number}"} for number in (1, 2))
    turns = [{"from": "human", "value": "<video>\nWhat is it?"}, {"from": "gpt", "value": "A clip."}]
    rows = [{"video": f"000_050/{number}.mp4", "conversations": turns} for number in (1, 2)]
    (folder / "chats.json").write_text(json.dumps(rows))
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number in (1, 2):
            content = (folder / "000_050" / f"{number}.mp4").read_bytes()
            for suffix, data in (("mp4", content), ("txt", f"clip {number}".encode())):
                entry = tarfile.TarInfo(f"{number}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return folder


def source(folder, form):
    names = {"webvid": "webvid.csv", "llava": "chats.json", "webdataset": "0.tar"}
    return {"sources": [{"format": form, "path": str(folder / names[form])}]}


def test_a_row_is_what_the_processor_makes_of_it(llama_processor, folder, images):
    clip, other = (str(folder / "000_050" / f"{number}.mp4") for number in (1, 2))
    content = [
        {"type": "video", "path": clip}, {"type": "image", "image": images[0]}, {"type": "text", "text": "Hm?"},
        {"type": "video", "video": [PIL.Image.fromarray(frame(number)) for number in range(5)]},
    ]  # fmt: skip
    first = [{"role": "user", "content": content}, {"role": "assistant", "content": "Ah."}]
    second = [
        {"role": "user", "content": [{"type": "video", "path": other}]}, {"role": "assistant", "content": "A clip."}
    ]  # fmt: skip
    batch = ConversationCollator(llama_processor)([{"messages": first}, {"messages": second}])
    expected = llama_processor.apply_chat_template(
        [first, second],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding_side": "right"},
    )
    for name in ("input_ids", "attention_mask", "pixel_values", "pixel_values_videos"):
        assert torch.equal(batch[name], expected[name]), name
    assert not (batch["labels"] == llama_processor.video_token_id).any()
    assert (
        ConversationCollator(llama_processor, num_frames=2)([{"messages": second}])["pixel_values_videos"].shape[1] == 2
    )


def test_a_row_is_never_cut_within_a_video(llama_processor, folder):
    content = [{"type": "text", "text": "a"}, {"type": "video", "path": str(folder / "000_050/1.mp4")}]
    messages = [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": content},
        {"role": "assistant", "content": "c"},
    ]  # fmt: skip
    whole = ConversationCollator(llama_processor).encode(messages)
    last = int((whole["input_ids"] == llama_processor.video_token_id).nonzero()[-1])
    row = ConversationCollator(llama_processor, max_length=last).encode(messages)
    assert (len(row["input_ids"]), row["video"]) == (last - 64, [])
    row = ConversationCollator(llama_processor, max_length=last + 1).encode(messages)
    assert (len(row["input_ids"]), len(row["video"])) == (last + 1, 1)


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_reach_what_is_temporal(stage, dtype):
    """In stage 1 the blocks of the vision model, in both the queries that look at all frames; no NaN."""
    torch.manual_seed(0)
    model = MplugOwlForConditionalGeneration(tiny_config(vision_config={"use_temporal": True}))
    model = prepare_stage(model, stage).train().to(dtype)
    ids = torch.randint(3, 100, (2, 12))
    ids[:, 2:7] = model.config.video_token_id
    loss = model(input_ids=ids, labels=ids, pixel_values_videos=torch.randn(2, 4, 3, 28, 28)).loss
    assert torch.isfinite(loss)
    loss.backward()
    temporal = {name: p for name, p in model.named_parameters() if "temporal" in name and "original_module" not in name}
    assert len(temporal) == 2 * 8 + 3
    for name, parameter in temporal.items():
        if stage == "pretrain" or "abstractor" in name:
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


def test_a_blank_video_teaches_nothing(llama_processor):
    torch.manual_seed(0)
    model = MplugOwlForConditionalGeneration.from_pretrained(GoldenCase("video-llama").checkpoint)
    samples = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": word}]} for word in "ab"
    ]
    losses = []
    for always in (None, "video"):
        batch = ConversationCollator(llama_processor, always=always)(samples)
        assert ("pixel_values_videos" in batch) == (always is not None)
        losses.append(model(**batch).loss)
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)
    losses[1].backward()
    visual = [p.grad for name, p in model.named_parameters() if "vision_model" in name or "abstractor" in name]
    assert all(gradient is not None and not gradient.any() for gradient in visual)


@pytest.mark.parametrize("form", ["webvid", "llava", "webdataset"])
def test_the_frames_that_a_mixture_draws(llama_processor, folder, form):
    mixture = Mixture({"data": Group.from_dict(source(folder, form))}, ConversationCollator(llama_processor), 2)
    batch = next(iter(mixture))
    assert batch["pixel_levels_videos"].shape == (2, 4, 3, 56, 56)
    frames = [
        [number_of(PIL.Image.fromarray(f.permute(1, 2, 0).numpy())) for f in v] for v in batch["pixel_levels_videos"]
    ]
    assert sorted(frames) == [[0, 2, 4, 5], [1, 5, 9, 12]]


def test_a_crop_is_the_same_in_all_frames(llama_processor, folder, monkeypatch):
    monkeypatch.chdir(folder)  # crops are drawn from the names of files, and here they shall show the border
    group = {"data": Group.from_dict(source(Path(), "llava"))}
    mixture = Mixture(group, ConversationCollator(llama_processor), 2, seed=3, augmentation=Augmentation((0.3, 0.5)))
    for video in next(iter(mixture))["pixel_levels_videos"].float():
        borders = [border(shown[0, 28]) for shown in video if shown.max() > 20]
        assert len(borders) > 1
        # A pixel of the file is at least 1.5 of the crop: other crops would be farther apart.
        assert max(borders) - min(borders) < 0.7


def border(row: torch.Tensor) -> float:
    """Where the darker left meets the lighter right, in pixels: half of the way from one level to the other."""
    middle = (row[0] + row[-1]) / 2
    last = int((row < middle).sum()) - 1
    return last + ((middle - row[last]) / (row[last + 1] - row[last])).item()


@pytest.mark.parametrize(("content", "reason"), [(b"noise", "unreadable video"), (None, "missing video")])
def test_bad_videos_are_named(llama_processor, tmp_path, content, reason):
    if content is not None:
        (tmp_path / "x.mp4").write_bytes(content)
    (tmp_path / "rows.jsonl").write_text('{"file_name": "x.mp4", "text": "x"}\n')
    group = Group.from_dict({"sources": [{"format": "captions", "path": str(tmp_path / "rows.jsonl")}]})
    drawn = next(iter(Mixture({"data": group}, ConversationCollator(llama_processor), 1)))
    assert isinstance(drawn, BadSampleError)
    assert drawn.reason == reason


@pytest.mark.parametrize(("stage", "form"), [("pretrain", "webvid"), ("instruct", "llava")])
def test_a_recipe_trains_on_videos(folder, llama_processor, tmp_path, stage, form):
    model = MplugOwlForConditionalGeneration.from_pretrained(GoldenCase("video-llama").checkpoint)
    model.save_pretrained(tmp_path / "model")
    llama_processor.save_pretrained(tmp_path / "model")
    options = {
        "model": tmp_path / "model", "stage": stage, "data": json.dumps({"clips": source(folder, form)}),
        "output_dir": tmp_path / "run", "max_steps": 2, "per_device_train_batch_size": 2, "num_frames": 3,
        "learning_rate": 1e-3, "logging_steps": 1, "save_steps": 10, "bf16": True, "use_cpu": True, "report_to": "none",
    }  # fmt: skip
    trainer = train(None, [part for name, value in options.items() for part in (f"--{name}", str(value))])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)
    assert trainer.state.log_history[0]["images_per_second"] > 0
    before, after = model.state_dict(), dict(trainer.model.named_parameters())
    moved = "temporal.conv.weight" if stage == "pretrain" else "modules_to_save.default.temporal_visual_fc.weight"
    name = next(name for name in after if name.endswith(moved))
    original = name.replace("base_model.model.", "").replace("modules_to_save.default.", "")
    assert not torch.equal(after[name].float(), before[original].float())
    assert Path(tmp_path / "run").is_dir()

"""Engines answer alike, whatever runs the model; settings that no model can have are named."""

import re

import pytest

from transformers_owl import MINIATURE
from transformers_owl.collections import engines
from transformers_owl.collections.engines import GenerateEngine, Settings, VllmEngine
from transformers_owl.collections.reading import Item
from transformers_owl.demo.caption import samples
from transformers_owl.inference import Chat


MISTAKES = {
    "Unknown engine: 'tgi'": {"engine": "tgi"},
    "--device and --score cannot be used with vLLM": {"engine": "vllm", "device": "cpu", "score": ("a", "b")},
    "--load-in-4bit cannot be used with vLLM": {"engine": "vllm", "load_in_4bit": True},
    "but must be at least one, and all different": {"prompts": ("Why?", "Why?")},
    "The prompts are [], but must be at least one": {"prompts": ()},
    "--score takes two answers or more, such as 'Yes|No', but has 'Yes'": {"score": ("Yes",)},
    "but has 'Yes|'": {"score": ("Yes", "")},
    "but has 'a|a'": {"score": ("a", "a")},
    "Unknown dtype: 'int3'": {"dtype": "int3"},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Settings("miniature", **MISTAKES[message]).check()


@pytest.fixture(scope="module")
def engine():
    return GenerateEngine(Settings(str(MINIATURE), device="cpu", dtype="float32", max_new_tokens=20))


@pytest.mark.parametrize(
    ("given", "asked"),
    [({}, []), ({"images": 1999}, []), ({"images": 2000}, [2000]), ({"fast": True, "images": 3}, [None])],
)
def test_many_images_look_for_a_fast_path_unasked(monkeypatch, given, asked):
    seen = []
    monkeypatch.setattr(engines, "optimize", lambda model, for_, images: seen.append(images))
    GenerateEngine(Settings(str(MINIATURE), device="cpu", **given))
    assert seen == asked


def shown(engine, folder) -> list:
    """Images, a video and a GIF that moves, which this model takes for a video."""
    pytest.importorskip("av")
    from clips import write_clip

    clips = [write_clip(folder / "a.mp4", "mpeg4"), write_clip(folder / "b.gif", "gif", pixels="rgb8")]
    visuals = [engine.prepare(Item(name, name)) for name in [*samples(), *clips]]
    assert [visual["type"] for visual in visuals] == ["image"] * 5 + ["video"] * 2
    return visuals


def test_answers_are_those_of_a_chat(engine, tmp_path):
    """Decoded and resized elsewhere, an image gives the answer of its file."""
    (*_, clip, gif) = visuals = shown(engine, tmp_path)
    answers = [row["answer"] for row in engine.answer(visuals[:5], "What is in the picture?")]
    answers += [row["answer"] for row in engine.answer([clip, gif], "What is in the picture?")]
    for name, answer in zip([*samples(), str(tmp_path / "a.mp4"), str(tmp_path / "b.gif")], answers, strict=True):
        chat = Chat(engine.model, engine.processor)
        assert answer.strip() == chat.ask("What is in the picture?", [name], max_new_tokens=20).strip()
    assert len(set(answers)) >= 5


@pytest.mark.slow
def test_vllm_answers_as_generate_does(engine, monkeypatch):
    pytest.importorskip("vllm")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    served = VllmEngine(Settings(str(MINIATURE), engine="vllm", dtype="float32", max_new_tokens=20))
    images = [served.prepare(Item(name, name)) for name in samples()]
    visuals = [*images, {"type": "video", "video": [image["image"] for image in images[:4]]}]
    prompt = "What is in the picture?"
    wanted = [engine.answer([visual], prompt)[0]["answer"].strip() for visual in visuals]
    assert [row["answer"].strip() for row in served.answer(visuals, prompt)] == wanted

"""Golden data of the original code, and small models to try things on."""

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import pytest
import torch
from data_folder import DataFolder
from safetensors.torch import load_file
from transformers.utils.logging import warning_once

import transformers_owl


# The models are tiny: a second thread costs more than it brings.
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"
SYSTEM = (
    "The following is a conversation between a curious human and AI assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)


@dataclass(frozen=True)
class GoldenCase:
    """One folder of golden data: what the original was given, and what it printed."""

    name: str

    @property
    def folder(self) -> Path:
        return GOLDEN / self.name

    @property
    def checkpoint(self) -> str:
        return str(self.folder / "original_checkpoint")

    @property
    def expected(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "expected.safetensors")

    @property
    def prompts(self) -> dict[str, dict]:
        return json.loads((self.folder / "prompts.json").read_text())

    def images(self, prompt: str) -> list[PIL.Image.Image]:
        return [PIL.Image.open(self.folder / f"image_{index}.png") for index in self.prompts[prompt]["images"]]


@pytest.fixture(autouse=True)
def own_path(monkeypatch):
    """Loading a repository's code extends `sys.path`: the processes that other tests start must not see that."""
    monkeypatch.setattr(sys, "path", sys.path[:])


@pytest.fixture(autouse=True)
def warnings_are_logged_again():
    """One that is logged once a process is logged in each test, whatever ran before."""
    warning_once.cache_clear()


@pytest.fixture
def files(tmp_path) -> DataFolder:
    return DataFolder(tmp_path)


@pytest.fixture(scope="session")
def llama() -> GoldenCase:
    return GoldenCase("image-llama")


@pytest.fixture(scope="session")
def llama_model(llama):
    return transformers_owl.MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `sampled(n)` every n-th case runs by default; the others are among the slow ones."""
    counts: Counter[str] = Counter()
    for item in items:
        sampled = item.get_closest_marker("sampled")
        if sampled is not None:
            name = item.nodeid.partition("[")[0]
            if counts[name] % sampled.args[0]:
                item.add_marker("slow")
            counts[name] += 1


@pytest.fixture(scope="session")
def llama_processor(llama):
    return transformers_owl.MplugOwlProcessor.from_pretrained(llama.checkpoint)


@pytest.fixture(scope="session")
def images(llama) -> list[PIL.Image.Image]:
    return [PIL.Image.open(llama.folder / f"image_{index}.png") for index in range(3)]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    return ((actual.float() - expected.float()).abs().max() / expected.float().abs().max()).item()


def tiny_config(text_config: dict | None = None, **kwargs) -> transformers_owl.MplugOwlConfig:
    """A model of two layers a part, with a LLaMA of 100 tokens unless told otherwise."""
    text = {
        "model_type": "llama", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    abstractor = {
        "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }  # fmt: skip
    return transformers_owl.MplugOwlConfig(
        vision_config={**vision, **kwargs.pop("vision_config", {})},
        visual_abstractor_config=abstractor,
        text_config={**text, **(text_config or {})},
        num_query_tokens=kwargs.pop("num_query_tokens", 4),
        **kwargs,
    )


def image_logits(model) -> torch.Tensor:
    """Logits (1, 80, V) of random text around one random image, the same in every call; of the golden models."""
    ids = torch.randint(3, 900, (1, 80), generator=torch.Generator().manual_seed(0))
    ids[:, 5:70] = model.config.image_token_id
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=pixels).logits

"""Quantised copies load as complete repositories; only the language model changes, and by no more than said."""

import shutil

import pytest
import torch
from conftest import relative_error, tiny_config
from releases import TOKENIZER
from transformers import AutoModel, AutoProcessor

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.conversion.quantize import METHODS, quantize
from transformers_owl.conversion.verify import fixed_logits


BOUNDS = {"bitsandbytes-8bit": 0.05, "bitsandbytes-4bit": 0.5, "torchao-int8": 0.05, "torchao-int4": 0.5}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Four-bit kernels want widths of 64 and more."""
    from conftest import GoldenCase

    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    config = tiny_config({"vocab_size": 1000, "hidden_size": 128, "intermediate_size": 256})
    model = MplugOwlForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    for file in (*TOKENIZER, "preprocessor_config.json"):
        shutil.copy(f"{GoldenCase('image-llama').checkpoint}/{file}", folder)
    return folder, model


@pytest.mark.parametrize("method", METHODS)
def test_a_quantised_copy_loads_and_its_error_is_small(wide, method, tmp_path):
    folder, model = wide
    said = quantize(str(folder), method, tmp_path / "out")
    copy = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert AutoProcessor.from_pretrained(tmp_path / "out").image_token_id == copy.config.image_token_id
    error = relative_error(fixed_logits(copy), fixed_logits(model))
    assert 0 < error < BOUNDS[method]
    assert error == pytest.approx(said, rel=0.05)
    for part in ("vision_model", "abstractor"):
        for name, value in model.model.get_submodule(part).state_dict().items():
            assert torch.equal(copy.model.get_submodule(part).state_dict()[name], value), name
    assert method in (tmp_path / "out/README.md").read_text()


def test_unknown_methods_are_refused(wide, tmp_path):
    with pytest.raises(ValueError, match=r"Unknown method: .*bitsandbytes-8bit"):
        quantize(str(wide[0]), "float1", tmp_path / "out")

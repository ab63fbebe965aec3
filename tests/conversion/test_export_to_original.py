"""From the original's layout to ours and back, every bit is the same."""

from pathlib import Path

import pytest
import torch
from releases import NAMES, release, weights_of
from transformers import AutoModel

from transformers_owl.conversion.convert import convert as to_ours
from transformers_owl.conversion.export import export as to_theirs


@pytest.mark.parametrize("name", NAMES)
def test_a_round_trip_is_bit_exact(name, tmp_path):
    source = release(name, tmp_path / "source")
    to_ours(str(source), tmp_path / "ours")
    to_theirs(str(tmp_path / "ours"), str(source), tmp_path / "theirs", max_shard_size="300KB")
    files = sorted((tmp_path / "theirs").glob("pytorch_model-*.bin"))
    assert len(files) > 2
    weights = {key: value for file in files for key, value in torch.load(file).items()}
    expected = weights_of(name)
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(weights[key], value) and weights[key].dtype == value.dtype, key
    for file in source.glob("*token*"):
        assert (tmp_path / "theirs" / file.name).read_bytes() == file.read_bytes()
    assert not list(Path(tmp_path / "theirs").glob("*.py"))
    model, info = AutoModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(info.values())
    assert model.config.text_config.to_dict() == AutoModel.from_pretrained(source).config.text_config.to_dict()

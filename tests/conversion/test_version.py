"""Repositories carry the version of their code; another version gives a hint and works."""

import json

import torch
from transformers import AutoModel, AutoProcessor

import transformers_owl
from transformers_owl.conversion.convert import convert
from transformers_owl.mplug_owl import configuration_mplug_owl


def test_what_another_version_wrote_loads_with_a_hint(llama, tmp_path, monkeypatch):
    convert(llama.checkpoint, tmp_path / "out")
    assert f'VERSION = "{transformers_owl.__version__}"' in (tmp_path / "out/configuration_mplug_owl.py").read_text()
    hints: list[str] = []
    monkeypatch.setattr(configuration_mplug_owl.logger, "warning_once", hints.append)
    expected = AutoModel.from_pretrained(tmp_path / "out")
    assert not hints
    for name, changes in {
        "config.json": {"code_version": "99.1.0", "a_later_field": 7},
        "processor_config.json": {"a_later_field": 7},
    }.items():
        settings = json.loads((tmp_path / "out" / name).read_text())
        if name == "config.json":
            assert settings["code_version"] == transformers_owl.__version__
        (tmp_path / "out" / name).write_text(json.dumps({**settings, **changes}))
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert "written by transformers_owl 99.1.0, but this is" in hints[0]
    AutoProcessor.from_pretrained(tmp_path / "out")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["code_version"] == transformers_owl.__version__

"""What trainers save weights in: they are found there, or what lies there is named; no code in a file is run."""

import argparse
import itertools

import pytest
import torch
from releases import NAMES, release, weights_of
from transformers import AutoModel

from transformers_owl.conversion.checkpoints import NESTS
from transformers_owl.conversion.convert import convert


NESTINGS = [
    *((key,) for key in NESTS),
    ("model", "state_dict"),
    ("state_dict", "module"),
    ("module", "model", "state_dict"),
]
# What a wrapper puts before every name: nothing, DataParallel, Lightning, both, Lightning with a compiled model.
PREFIXES = ["", "module.", "model.", "model.module.", "model._orig_mod."]
BESIDE = {
    "epoch": 3,
    "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]},
    "callbacks": {"best": None},
    "pytorch-lightning_version": "2.5.0",
}


def nested(weights, keys, beside=BESIDE):
    for key in reversed(keys):
        weights = {**beside, key: weights}
    return weights


@pytest.fixture(scope="module", params=NAMES)
def converted(request, tmp_path_factory):
    """A release's name, and what comes of the same weights as they are."""
    folder = tmp_path_factory.mktemp("plain")
    convert(str(release(request.param, folder / "source")), folder / "out")
    return request.param, folder / "source", AutoModel.from_pretrained(folder / "out")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("is_folder", [True, False], ids=["folder", "file"])
def test_nested_weights_become_what_they_would_have_become_as_they_are(converted, is_folder, tmp_path):
    """Every nesting and every wrapper, of the releases' names and of ours, bit by bit; a third of them each release."""
    name, base, expected = converted
    settings = [(keys, PREFIXES[number % 5]) for number, keys in enumerate(NESTINGS)]
    settings += [(("state_dict",), prefix) for prefix in PREFIXES] + [((), "module.")]
    theirs, ours = weights_of(name), {key: value.clone() for key, value in expected.state_dict().items()}
    cases = list(itertools.product(settings, (theirs, ours)))[NAMES.index(name) :: len(NAMES)]
    for number, ((keys, prefix), weights) in enumerate(cases):
        state = nested({f"{prefix}{key}": value for key, value in weights.items()}, keys)
        folder = tmp_path / str(number)
        if is_folder:
            release(name, folder)
            torch.save(state, folder / "pytorch_model.bin")
            convert(str(folder), tmp_path / f"out-{number}")
        else:
            folder.mkdir()
            torch.save(state, folder / "last.ckpt")
            convert(str(folder / "last.ckpt"), tmp_path / f"out-{number}", base=str(base))
        model = AutoModel.from_pretrained(tmp_path / f"out-{number}")
        assert model.state_dict().keys() == expected.state_dict().keys()
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in expected.state_dict().items())
        ignored = {"_name_or_path", "dtype"}
        configs = [{k: v for k, v in each.config.to_dict().items() if k not in ignored} for each in (model, expected)]
        assert configs[0] == configs[1]


class Callback:
    pass


REFUSED = {
    "no weights": ({"epoch": 3, "loss": [0.1]}, r"holds epoch \(int\), loss \(list\), but must hold weights"),
    "another key": ({"net": {"x": torch.ones(1)}, "epoch": 3}, r"holds net \(dict\), epoch \(int\), but must hold"),
    "two of them": (
        {"model": {"x": torch.ones(1)}, "state_dict": {"x": torch.ones(1)}},
        r"holds model \(dict\), state_dict \(dict\), but .* under one of state_dict, model_state_dict, model, module",
    ),
    "nothing": ({}, "holds nothing, but"),
    "nothing inside": ({"state_dict": {}, "epoch": 3}, "holds under state_dict nothing, but"),
    "weights and more": ({"x": torch.ones(1), "step": 3}, r"holds step \(int\) beside 1 tensors, but"),
    "more inside": (
        nested({"x": torch.ones(1), "step": 3}, ["module"]),
        r"holds under module step \(int\) beside 1 tensors, but",
    ),
    "a list": ([torch.ones(1)], "holds a list, but"),
    "a tensor": (torch.ones(1), "holds a Tensor, but"),
    "names that are none": ({3: torch.ones(1)}, r"holds 3 \(Tensor\), but"),
    "settings as objects": (
        {"state_dict": {"x": torch.ones(1)}, "hyper_parameters": argparse.Namespace(lr=1)},
        r"holds code, which was not run: argparse\.Namespace\. Save only `model\.state_dict\(\)`",
    ),
    "a class of one's own": (
        {"model": {"x": torch.ones(1)}, "callback": Callback()},
        r"holds code, which was not run: test_nested_weights\.Callback",
    ),
    "a whole model": (torch.nn.Linear(2, 2), "holds code, which was not run: "),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("is_folder", [True, False], ids=["folder", "file"])
def test_what_is_no_weights_is_named(name, is_folder, tmp_path):
    state, message = REFUSED[name]
    base = release(NAMES[0], tmp_path / "base")
    torch.save(state, base / "pytorch_model.bin")
    with pytest.raises(ValueError, match=message):
        convert(str(base if is_folder else base / "pytorch_model.bin"), tmp_path / "out", base=str(base))
    assert not (tmp_path / "out").exists()


def test_a_nest_that_holds_itself_comes_to_an_end(tmp_path):
    state: dict = {}
    state["model"] = state
    torch.save(state, tmp_path / "model.bin")
    with pytest.raises(ValueError, match=r"holds under model\.model\.model model \(dict\), but"):
        convert(str(tmp_path / "model.bin"), tmp_path / "out", base="base")

"""Linear layers by oneDNN: which ones, and that nothing but the time changes."""

import pytest
import torch
from conftest import GoldenCase, relative_error, tiny_config
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TorchAoConfig

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.inference import use_onednn


BY_ONEDNN = "mkldnn._linear_pointwise.default"


class Products(TorchDispatchMode):
    """Counts the operators that multiply by weights."""

    def __init__(self):
        super().__init__()
        self.calls = {BY_ONEDNN: 0, "aten.addmm.default": 0, "aten.mm.default": 0}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if str(function) in self.calls:
            self.calls[str(function)] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MplugOwlForConditionalGeneration(tiny_config()).eval()


def inputs_of(model) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[3, *[model.config.image_token_id] * (model.config.num_query_tokens + 1), 4, 5]])
    size = model.config.vision_config.image_size
    return {"input_ids": ids, "pixel_values": torch.randn(1, 3, size, size), "labels": ids.clamp(max=9)}


def test_all_products_with_weights_are_onednn_s(model):
    given = inputs_of(model)
    with torch.no_grad():
        expected = model(**given)
        assert use_onednn(model) is model
        with Products() as products:
            found = model(**given)
    assert relative_error(found.logits, expected.logits) < 1e-6
    assert products.calls[BY_ONEDNN] > 0
    assert [count for name, count in products.calls.items() if name != BY_ONEDNN] == [0, 0]


def test_gradients_and_names_of_weights_stay(model):
    given, names = inputs_of(model), list(model.state_dict())
    model(**given).loss.backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    use_onednn(model)
    model(**given).loss.backward()
    assert list(model.state_dict()) == names
    assert all(torch.equal(model.get_parameter(name).grad, gradient) for name, gradient in expected.items())


def test_lora_multiplies_by_onednn_too(model):
    tuned = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    given = inputs_of(model)
    with torch.no_grad():
        expected = tuned(**given).logits
        with Products() as products:
            found = use_onednn(tuned)(**given).logits
    assert relative_error(found, expected) < 1e-6
    assert products.calls["aten.mm.default"] == 0


def linear_types(model) -> set[type]:
    return {type(layer) for layer in model.modules() if isinstance(layer, torch.nn.Linear)}


def test_layers_of_other_types_stay(model):
    assert linear_types(use_onednn(model.bfloat16())) == {torch.nn.Linear}


def test_nothing_changes_where_pytorch_has_no_onednn(model, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert linear_types(use_onednn(model)) == {torch.nn.Linear}


def test_quantised_layers_stay():
    from torchao.quantization import Int8WeightOnlyConfig

    case = GoldenCase("image-llama")
    model = MplugOwlForConditionalGeneration.from_pretrained(
        case.checkpoint, quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
    )
    layer = model.model.language_model.layers[0].self_attn.q_proj
    use_onednn(model)
    assert type(layer) is torch.nn.Linear
    assert type(model.lm_head) is not torch.nn.Linear

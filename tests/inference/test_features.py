"""Features equal the golden ones, whatever the batch."""

import pytest
from conftest import relative_error

from transformers_owl.inference import extract_features


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_features_are_the_originals(llama, llama_model, llama_processor, images, batch_size):
    features = extract_features(llama_model, llama_processor, images, batch_size=batch_size)
    expected = llama.expected
    assert relative_error(features.patches[0], expected["one_image/vision_last_hidden_state"][0]) <= 1e-5
    assert relative_error(features.positions[0], expected["one_image/abstractor_last_hidden_state"][0]) <= 1e-5
    assert relative_error(features.positions[1:], expected["two_images/abstractor_last_hidden_state"]) <= 1e-5
    assert (features.patches.shape, features.positions.shape) == ((3, 17, 32), (3, 65, 48))


def test_mistakes_are_named(llama_model, llama_processor):
    with pytest.raises(ValueError, match="No images"):
        extract_features(llama_model, llama_processor, [])
    with pytest.raises(ValueError, match=r"nowhere.png"):
        extract_features(llama_model, llama_processor, ["nowhere.png"])

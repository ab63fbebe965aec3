"""What the library's tests ask of a model: a small configuration, and inputs for it."""

import torch
from conftest import tiny_config
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers_tests.test_modeling_common import floats_tensor, ids_tensor

from transformers_owl import MplugOwlForConditionalGeneration, MplugOwlModel


# The tests look up here what a class is for: whether it takes labels, for example.
MODEL_MAPPING_NAMES["mplug-owl"] = MplugOwlModel.__name__
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["mplug-owl"] = MplugOwlForConditionalGeneration.__name__


class ModelTester:
    """Rows of an image and seven tokens."""

    config: dict = {}
    conditional_generation_class = causal_lm_class = MplugOwlForConditionalGeneration
    batch_size = 7
    num_frames = 1
    num_image_tokens = 5
    seq_length = 7 + num_image_tokens
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = 32
    vocab_size = 100
    is_training = True

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return tiny_config(**self.config)

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        input_ids = 5 + ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 5)
        input_ids[:, 1 : 1 + self.num_image_tokens] = config.image_token_id
        return config, {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": floats_tensor([self.batch_size, 3, 28, 28]),
        }


class InsideVocabularyTester(ModelTester):
    """The ids of images and videos lie inside the vocabulary."""

    config = {"image_token_id": 3, "video_token_id": 4}


class BloomTester(InsideVocabularyTester):
    text_config = {"model_type": "bloom", "n_head": 4, "n_layer": 2, "tie_word_embeddings": True}
    config = {**InsideVocabularyTester.config, "text_config": text_config}


class VideoTester(InsideVocabularyTester):
    """Rows of an image, a video and seven tokens."""

    config = {**InsideVocabularyTester.config, "vision_config": {"use_temporal": True}}
    num_frames = 2
    seq_length = 7 + 2 * ModelTester.num_image_tokens

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs["input_ids"][:, 1 + self.num_image_tokens :][:, : self.num_image_tokens] = config.video_token_id
        inputs["pixel_values_videos"] = floats_tensor([self.batch_size, self.num_frames, 3, 28, 28])
        return config, inputs

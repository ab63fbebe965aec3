"""The library's tests of training on a small text, and of a model spread over two processes."""

import tempfile
import unittest

import torch
from transformers import set_seed
from transformers_tests.distributed_testing_utils import run_distributed
from transformers_tests.test_tensor_parallel_mixin import TensorParallelTesterMixin, _load_tp_and_reference_models
from transformers_tests.test_training_mixin import TrainingTesterMixin

from transformers_owl import MplugOwlForConditionalGeneration

from .model_tester import BloomTester, ModelTester, VideoTester


class TrainingTester(ModelTester):
    config = {"vocab_size": 100}  # looked up in the composite configuration


class BloomTrainingTester(BloomTester):
    config = {"vocab_size": 100, "text_config": BloomTester.text_config}


class MplugOwlTrainingTest(TrainingTesterMixin, unittest.TestCase):
    all_model_classes = (MplugOwlForConditionalGeneration,)
    model_tester = TrainingTester(None)


class MplugOwlBloomTrainingTest(TrainingTesterMixin, unittest.TestCase):
    all_model_classes = (MplugOwlForConditionalGeneration,)
    model_tester = BloomTrainingTester(None)


class MplugOwlTensorParallelTest(TensorParallelTesterMixin, unittest.TestCase):
    """The library gives Bloom no plan, so LLaMA alone."""

    all_model_classes = (MplugOwlForConditionalGeneration,)
    model_tester = ModelTester(None)

    def _skip_if_tp_distributed_not_enabled(self):
        """The library runs these tests for a few model types only; they hold for this one too."""

    def test_tp_with_images_and_videos(self):
        """The mixin's tests give text alone."""
        config, inputs = VideoTester(None).prepare_config_and_inputs_for_common()
        with tempfile.TemporaryDirectory() as folder:
            set_seed(42)
            MplugOwlForConditionalGeneration(config).save_pretrained(folder)
            run_distributed(world_size=2)(compare_logits)(folder, inputs)


def compare_logits(rank: int, folder: str, inputs: dict) -> None:
    parallel, reference, _ = _load_tp_and_reference_models(folder, MplugOwlForConditionalGeneration)
    for part in ("vision_model.layers.0.self_attn.q_proj", "abstractor.layers.0.cross_attn.out_proj"):
        weight = parallel.get_parameter(f"model.{part}.weight")
        assert weight.to_local().numel() == reference.get_parameter(f"model.{part}.weight").numel() // 2, part
    with torch.no_grad():
        torch.testing.assert_close(parallel(**inputs).logits, reference(**inputs).logits, rtol=1e-5, atol=1e-5)

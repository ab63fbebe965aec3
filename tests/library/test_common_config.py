"""The library's common tests of configurations."""

import unittest

from conftest import tiny_config
from transformers_tests.test_configuration_common import ConfigTester

from transformers_owl import MplugOwlConfig, MplugOwlVisionConfig, MplugOwlVisualAbstractorConfig


class ModelTester:
    def get_config(self):
        return tiny_config()


class ConfigTest(unittest.TestCase):
    model_tester = ModelTester()

    def test_composite(self):
        ConfigTester(
            self,
            config_class=MplugOwlConfig,
            has_text_modality=False,
            common_properties=["vision_config", "visual_abstractor_config", "text_config", "num_query_tokens"],
            num_query_tokens=32,
        ).run_common_tests()

    def test_vision(self):
        ConfigTester(
            self, config_class=MplugOwlVisionConfig, has_text_modality=False, hidden_size=32
        ).run_common_tests()

    def test_visual_abstractor(self):
        ConfigTester(
            self, config_class=MplugOwlVisualAbstractorConfig, has_text_modality=False, hidden_size=32
        ).run_common_tests()

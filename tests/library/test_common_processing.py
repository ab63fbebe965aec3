"""The library's common tests of processors."""

import unittest
from unittest import mock

from conftest import GOLDEN
from transformers_tests.test_processing_common import ProcessorTesterMixin

from transformers_owl import MplugOwlProcessor


class MplugOwlProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    """The processor prepares pictures and text, so no videos and no audio."""

    processor_class = MplugOwlProcessor
    model_id = str(GOLDEN / "image-llama" / "original_checkpoint")
    images_unstructured_max_length = 117  # a picture takes 65 positions

    @classmethod
    def _setup_test_attributes(cls, processor):
        cls.image_token = processor.image_token

    def prepare_videos_inputs(self, batch_size=None):
        return None

    def prepare_audio_inputs(self, batch_size=None):
        return None

    def test_if_input_has_mismatching_tokens_and_mm_data(self):
        """The message counts row by row, and the mixin looks for the words of another one."""
        pictures = self.prepare_images_inputs(batch_size=4, nested=True)
        with self.assertRaisesRegex(ValueError, r"in the text: \[1, 1, 1\], pictures given: \[1, 1, 1, 1\]"):
            self.get_processor()(images=pictures, text=self.prepare_text_inputs(batch_size=3, modalities="image"))

    def test_processor_from_and_save_pretrained(self):
        """Saving a class of custom code notes its file in the object, and the mixin compares afterwards."""
        with mock.patch.object(MplugOwlProcessor, "_auto_class", None):
            super().test_processor_from_and_save_pretrained()

    def test_processor_from_and_save_pretrained_as_nested_dict(self):
        """Saving a class of custom code notes its file in the object, and the mixin compares afterwards."""
        with mock.patch.object(MplugOwlProcessor, "_auto_class", None):
            super().test_processor_from_and_save_pretrained_as_nested_dict()

"""The library's common tests of processors."""

import unittest

from conftest import GOLDEN
from transformers_tests.test_processing_common import ProcessorTesterMixin

from transformers_owl import MplugOwlProcessor


class MplugOwlProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    """The processor prepares images, videos and text, so no audio."""

    processor_class = MplugOwlProcessor
    model_id = str(GOLDEN / "image-llama" / "original_checkpoint")
    images_unstructured_max_length = 117  # an image takes 65 positions

    @classmethod
    def _setup_test_attributes(cls, processor):
        cls.image_token = processor.image_token
        cls.video_token = processor.video_token

    @unittest.skip("the test fetches a video from the Hub")
    def test_apply_chat_template_video_0(self):
        pass

    @unittest.skip("the test fetches a video from the Hub")
    def test_apply_chat_template_video_1(self):
        pass

    @unittest.skip("the test fetches a video from the Hub")
    def test_apply_chat_template_video_frame_sampling(self):
        pass

    def prepare_audio_inputs(self, batch_size=None):
        return None

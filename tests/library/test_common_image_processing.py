"""The library's common tests of image processors."""

import unittest

from transformers_tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin

from transformers_owl import MplugOwlImageProcessor


class OwlImageProcessingTester(ImageProcessingTester):
    __test__ = False

    def __init__(self, parent):
        super().__init__(parent, size={"height": 18, "width": 20})

    def _get_image_processing_classes(self):
        return {"pil": MplugOwlImageProcessor}


class MplugOwlImageProcessorTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = OwlImageProcessingTester

    @unittest.skip("every image becomes RGB")
    def test_call_numpy_4_channels(self):
        pass

    @unittest.skip("every image becomes RGB: do_convert_rgb=False is refused")
    def test_image_processor_from_dict_with_kwargs_has_attributes(self):
        pass

    @unittest.skip("always PIL, also where torchvision is: its resize gives other pixels than the original's")
    def test_new_models_require_torchvision_backend(self):
        pass

    @unittest.skip("the test starts a process that does not import this package")
    def test_pil_can_run_without_torchvision(self):
        pass

    @unittest.skip("the class lives outside the library")
    def test_pil_can_load_without_torchvision(self):
        pass

"""mPLUG-Owl (arXiv 2304.14178) for today's Hugging Face libraries. Importing it registers the Auto classes."""

import sys
from pathlib import Path

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)
from transformers.models.auto.tokenization_auto import (
    MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS,
    TOKENIZER_MAPPING_NAMES,
)
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.utils import is_torchvision_available

from .mplug_owl.configuration_mplug_owl import (
    VERSION,
    MplugOwlConfig,
    MplugOwlUnderscoreConfig,
    MplugOwlVisionConfig,
    MplugOwlVisualAbstractorConfig,
)
from .mplug_owl.image_processing_mplug_owl import MplugOwlImageProcessor
from .mplug_owl.modeling_mplug_owl import MplugOwlForConditionalGeneration, MplugOwlModel
from .mplug_owl.pipeline_mplug_owl import MplugOwlImageToTextPipeline
from .mplug_owl.processing_mplug_owl import MplugOwlProcessor
from .mplug_owl.tokenization_mplug_owl import MplugOwlTokenizer
from .mplug_owl.video_processing_mplug_owl import MplugOwlVideoProcessor


__version__ = VERSION
MINIATURE = str(Path(__file__).with_name("miniature"))  # the folder of a small model that comes with this package

AutoConfig.register(MplugOwlConfig.model_type, MplugOwlConfig)
AutoConfig.register(MplugOwlUnderscoreConfig.model_type, MplugOwlUnderscoreConfig)
for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(MplugOwlConfig, MplugOwlForConditionalGeneration)
AutoProcessor.register(MplugOwlConfig, MplugOwlProcessor)
AutoImageProcessor.register(
    MplugOwlConfig, image_processor_classes=dict.fromkeys(("pil", "torchvision"), MplugOwlImageProcessor)
)
AutoVideoProcessor.register(MplugOwlConfig, MplugOwlVideoProcessor)
if not is_torchvision_available():
    # The library then exports a stand-in that refuses every video processor. Ours does without torchvision.
    vars(sys.modules["transformers"])["AutoVideoProcessor"] = AutoVideoProcessor
AutoTokenizer.register(MplugOwlConfig, tokenizer_class=MplugOwlTokenizer)
# The releases name a tokenizer class whose ids differ from the original's: the library keeps a list of such models.
TOKENIZER_MAPPING_NAMES[MplugOwlConfig.model_type] = MplugOwlTokenizer.__name__
MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS.add(MplugOwlConfig.model_type)
# `transformers serve` and trainers look up there what a model can do.
for names in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES):
    for config_class in (MplugOwlConfig, MplugOwlUnderscoreConfig):
        names[config_class.model_type] = MplugOwlForConditionalGeneration.__name__

__all__ = [
    "MINIATURE",
    "MplugOwlConfig",
    "MplugOwlForConditionalGeneration",
    "MplugOwlImageProcessor",
    "MplugOwlImageToTextPipeline",
    "MplugOwlModel",
    "MplugOwlProcessor",
    "MplugOwlTokenizer",
    "MplugOwlVideoProcessor",
    "MplugOwlVisionConfig",
    "MplugOwlVisualAbstractorConfig",
]

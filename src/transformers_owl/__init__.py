"""mPLUG-Owl (arXiv 2304.14178) for today's Hugging Face libraries. Importing it registers the Auto classes."""

from pathlib import Path

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
)

from .library import (
    register_abilities,
    register_image_processor,
    register_pipeline,
    register_tokenizer,
    register_video_processor,
)
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
AutoModel.register(MplugOwlConfig, (MplugOwlForConditionalGeneration, MplugOwlModel))  # by the folder's architecture
for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(MplugOwlConfig, MplugOwlForConditionalGeneration)
AutoProcessor.register(MplugOwlConfig, MplugOwlProcessor)
register_image_processor(MplugOwlConfig, MplugOwlImageProcessor)
register_video_processor(MplugOwlConfig, MplugOwlVideoProcessor)
register_pipeline("image-to-text", MplugOwlImageToTextPipeline, AutoModelForImageTextToText)
AutoTokenizer.register(MplugOwlConfig, tokenizer_class=MplugOwlTokenizer)
register_tokenizer(MplugOwlConfig, MplugOwlTokenizer)
for config_class in (MplugOwlConfig, MplugOwlUnderscoreConfig):
    register_abilities(config_class, MplugOwlForConditionalGeneration)

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

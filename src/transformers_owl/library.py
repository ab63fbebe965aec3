"""The fence of loading and registrations: what they lean on in the library beyond its documented names."""

import sys

from transformers import PreTrainedConfig, is_torchvision_available
from transformers.models.auto import modeling_auto
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.tokenization_auto import (
    MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS,
    TOKENIZER_MAPPING_NAMES,
)
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import find_adapter_config_file


# Without those of processors and tokenizers this package is not imported: releases would get other ids, or none.
# The others only help users and trainers: where one is missing, nothing else fails.
LEANS_ON = {
    "transformers.models.auto.image_processing_auto.AutoImageProcessor": "how image processors are found, also where "
    "torchvision is missing; `transformers` itself had a stand-in then before 5.18, which refuses all of them",
    "transformers.AutoImageProcessor": "where users find that class: the stand-in is replaced",
    "transformers.models.auto.video_processing_auto.AutoVideoProcessor": "how video processors are found, also where "
    "torchvision is missing; `transformers` itself has a stand-in then, which refuses all of them",
    "transformers.AutoVideoProcessor": "where users find that class: the stand-in is replaced",
    "transformers.utils.find_adapter_config_file": "a folder or repository of an adapter has no configuration of a "
    "model: where to look instead",
    "transformers.pipelines.PIPELINE_REGISTRY": "adds the task image-to-text, which the library had none of before "
    "5.19; since then it refuses the task before it looks here",
    "transformers.models.auto.tokenization_auto.TOKENIZER_MAPPING_NAMES": "names our tokenizer for the model type",
    "transformers.models.auto.tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS": "our tokenizer is taken in "
    "place of the one that a release names, whose ids differ from the original's",
    "transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "where `transformers serve` "
    "and trainers look up what a model can do",
    "transformers.models.auto.modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES": "the same, in newer trainers",
}

__all__ = [
    "find_adapter_config_file",
    "register_abilities",
    "register_image_processor",
    "register_pipeline",
    "register_tokenizer",
    "register_video_processor",
]


def register_image_processor(config_class: type[PreTrainedConfig], processor_class: type) -> None:
    AutoImageProcessor.register(
        config_class, image_processor_classes=dict.fromkeys(("pil", "torchvision"), processor_class)
    )
    if not is_torchvision_available():
        vars(sys.modules["transformers"])["AutoImageProcessor"] = AutoImageProcessor


def register_video_processor(config_class: type[PreTrainedConfig], processor_class: type) -> None:
    AutoVideoProcessor.register(config_class, processor_class)
    if not is_torchvision_available():
        vars(sys.modules["transformers"])["AutoVideoProcessor"] = AutoVideoProcessor


def register_pipeline(task: str, pipeline_class: type, auto_class: type) -> None:
    PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, pt_model=auto_class, type="multimodal")


def register_tokenizer(config_class: type[PreTrainedConfig], tokenizer_class: type) -> None:
    """Lets `AutoTokenizer` take this class, whatever class a folder of the model type names."""
    TOKENIZER_MAPPING_NAMES[config_class.model_type] = tokenizer_class.__name__
    MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS.add(config_class.model_type)


def register_abilities(config_class: type[PreTrainedConfig], model_class: type) -> None:
    """Lists the model among those that see; a version without one of the lists has nobody who reads it."""
    for name in ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES"):
        vars(modeling_auto).get(name, {})[config_class.model_type] = model_class.__name__

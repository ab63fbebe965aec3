# SPDX-License-Identifier: Apache-2.0
"""`generate`: its default settings, and prompts with the placeholders of images and videos."""

from typing import Any

import torch
from torch import nn
from transformers.generation import GenerationConfig, GenerationMixin

from .configuration_mplug_owl import MplugOwlConfig, expect
from .library_mplug_owl import CACHE_NAMES, PlaceholderGeneration, create_masks_for_generate
from .weights_mplug_owl import NEGATIVE_IDS, refuse_original_arguments


def default_generation_config(config: MplugOwlConfig) -> GenerationConfig:
    """Greedy decoding up to EOS or 512 new tokens, which never generates the placeholders' ids."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    start, ends, padding = (getattr(config.text_config, name, None) for name in names)
    # Llama 3 names several ids that end an answer, and none for padding.
    first_end = ends[0] if isinstance(ends, list) else ends
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=512,
        bos_token_id=start,
        eos_token_id=ends,
        pad_token_id=first_end if padding is None else padding,
        suppress_tokens=[config.image_token_id, config.video_token_id],
    )


class MplugOwlGeneration(PlaceholderGeneration, GenerationMixin):
    """`generate` of [`MplugOwlForConditionalGeneration`]."""

    context_length: float

    def generate(self, inputs: torch.LongTensor | None = None, *args, **kwargs):
        """
        As in the library, but refuses prompts whose images are missing.

        Raises:
            ValueError: for labels, for a limit of new tokens that is not a whole number, for a prompt with positions of
                images or videos but no pixels, and for a prompt longer than the language model's context.
        """
        for name in ("max_new_tokens", "max_length"):  # with NaN it would never end
            expect(not isinstance(kwargs.get(name), float), name, kwargs.get(name), "a whole number")
        prompt = kwargs.get("input_ids") if inputs is None else inputs
        if prompt is not None:
            self._check_prompt(prompt, kwargs)
        return super().generate(inputs, *args, **kwargs)

    def _check_prompt(self, prompt: torch.LongTensor, given: dict[str, Any]) -> None:
        refuse_original_arguments(given)
        if given.get("labels") is not None:
            raise ValueError(
                "`generate` was given labels, but input_ids with labels already hold the answers: leave both out. "
                "Instead of Seq2SeqTrainer, which passes them, use transformers_owl.training.OwlSeq2SeqTrainer."
            )
        if (prompt < 0).any():
            raise ValueError(NEGATIVE_IDS)
        if prompt.shape[1] > self.context_length:
            raise ValueError(
                f"The prompt has {prompt.shape[1]} positions, but the language model's context length is "
                f"{self.context_length}: shorten the text, or pass fewer images."
            )
        caches = [given[name] for name in CACHE_NAMES if given.get(name) is not None]
        new = prompt[:, caches[0].get_seq_length() :] if caches else prompt
        encoded = given.get("mm_encoder_outputs") or {}
        kinds = {"image": "pixel_values", "video": "pixel_values_videos"}
        for (kind, pixels), token_id in zip(kinds.items(), self._visual_ids(), strict=True):
            if given.get(pixels) is None and kind not in encoded and (new == token_id).any():
                raise ValueError(
                    f"The prompt has positions of {kind}s, but no {pixels} were given: prepare both with "
                    "MplugOwlProcessor, and pass everything that it returns."
                )

    def create_masks_for_generate(self, config, **kwargs):
        """Masks for a static cache: Bloom needs a 2D mask, other models take the library's."""
        if config.text_config.model_type != "bloom":
            return create_masks_for_generate(config=config, **kwargs)
        (cache,) = (kwargs[name] for name in CACHE_NAMES if name in kwargs)
        mask, tokens = kwargs["attention_mask"], kwargs["inputs_embeds"]
        if mask is None:
            mask = tokens.new_ones(len(tokens), int(cache.get_seq_length()) + tokens.shape[1], dtype=torch.long)
        if mask.ndim == 4:
            return mask
        return nn.functional.pad(mask, (0, max(0, cache.get_max_length() - mask.shape[1])))

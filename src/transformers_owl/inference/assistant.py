"""A text-only language model that drafts answers for assisted decoding."""

import torch
from transformers import PreTrainedModel


def text_assistant(language_model: PreTrainedModel) -> PreTrainedModel:
    """
    Makes a causal language model fit for `generate(assistant_model=...)`: at the positions of images, whose ids may
    lie outside its vocabulary, it reads token 0. The answer stays the greedy one; a good draft makes it come faster.

    Args:
        language_model (`PreTrainedModel`): With the vocabulary of the Owl's language model. It is changed in place.
    """

    def read_zero_outside(embedding: torch.nn.Embedding, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (ids,) = arguments
        return (ids.masked_fill(ids >= embedding.num_embeddings, 0),)

    language_model.get_input_embeddings().register_forward_pre_hook(read_zero_outside)
    return language_model

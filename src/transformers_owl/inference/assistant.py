"""A text-only language model that drafts answers for assisted decoding."""

import torch
from transformers import PreTrainedModel


def text_assistant(language_model: PreTrainedModel) -> PreTrainedModel:
    """
    Prepares a causal language model for `generate(assistant_model=...)`: at the positions of images, whose ids may be
    outside its vocabulary, it reads token 0. The answer stays the greedy one; good drafts make it faster.

    Args:
        language_model (`PreTrainedModel`): A language model with the vocabulary of the Owl's; changed in place.

    Returns:
        `PreTrainedModel`: The same model.
    """

    def read_zero_outside(embedding: torch.nn.Embedding, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (ids,) = arguments
        return (ids.masked_fill(ids >= embedding.num_embeddings, 0),)

    language_model.get_input_embeddings().register_forward_pre_hook(read_zero_outside)
    return language_model

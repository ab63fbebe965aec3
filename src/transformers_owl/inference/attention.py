"""Attention maps: where a model looks in images while it generates an answer."""

import itertools
import math
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import PIL.Image
import PIL.ImageOps
import torch
from transformers import DynamicCache

from ..mplug_owl.library_mplug_owl import CACHE_NAME
from ..mplug_owl.vision_mplug_owl import patch_grid
from .library import attention_implementations


@dataclass(frozen=True)
class ImageAttention:
    """
    Attention to one image, on the CPU.

    Args:
        patches (`torch.Tensor` (rows, columns)): Share of each patch, summing to 1; over all cells if the image was cut
            into cells.
        shares (`torch.Tensor` (views * (Q + 1),)): The language model's attention to the image's positions, averaged
            over layers, heads and generated tokens. The rest, up to 1, went to the text and other images.
    """

    patches: torch.Tensor
    shares: torch.Tensor


Word = str | tuple[int, int]


def image_attention(model, processor, messages: Sequence[dict], word: Word | None = None) -> list[ImageAttention]:
    """
    Attention of the model to each image while it generates the last answer of a chat, or one word of it.

    Each position of an image is weighted by the language model's attention to it at the steps that generate the
    tokens, averaged over layers and heads; its weight is spread over the patches by the attention of the abstractor's
    query for that position, averaged over layers and heads. The last position (`vit_eos`) attends to no patch.

    For an image that was cut into cells the map has the patches of all cells in place; attention to a patch of the
    whole view is added in equal parts to the patches of the same area.

    Args:
        model ([`MplugOwlForConditionalGeneration`]): The model, with any attention implementation.
        processor ([`MplugOwlProcessor`]): Its processor.
        messages (`Sequence[dict]`): A chat with images, and perhaps videos, that ends with the assistant's answer.
        word (`str` or `tuple[int, int]`, *optional*): A word or phrase of the answer, of which the first occurrence
            counts, or its start and end in characters. By default the whole answer.

    Returns:
        `list[ImageAttention]`: One for each image of the chat, in order.

    Raises:
        ValueError: without an image or an answer, and for a word that is not in the answer.
    """
    inputs, features, positions = _look(model, processor, messages, word, "image")
    grid = patch_grid(model.config.vision_config)
    patches = _patches_of_queries(features.abstractor_attentions, processor.num_query_tokens, math.prod(grid))
    seen = torch.stack([shares[:-1] @ of_queries for shares, of_queries in zip(positions, patches, strict=True)])
    seen = seen.unflatten(1, grid)
    places = inputs.get("crop_positions")
    places = torch.zeros(len(seen), 2, dtype=torch.long) if places is None else places.cpu()
    views = [*(~places.any(1)).nonzero().flatten().tolist(), len(places)]
    return [
        ImageAttention(_put_together(seen[start:end], places[start:end]), positions[start:end].flatten())
        for start, end in itertools.pairwise(views)
    ]


def video_attention(model, processor, messages: Sequence[dict], word: Word | None = None) -> list[ImageAttention]:
    """
    As [`image_attention`], for each video: `patches` (frames, rows, columns) sum to 1 over all sampled frames. A
    position is spread by the attention of its query and its temporal query, in equal parts.
    """
    inputs, features, positions = _look(model, processor, messages, word, "video")
    grid = patch_grid(model.config.vision_config)
    frames, queries = inputs["pixel_values_videos"].shape[1], processor.num_query_tokens
    mean = torch.stack([layer.float().mean(1).cpu() for layer in features.abstractor_attentions]).mean(0)
    of_kinds = mean.unflatten(1, (-1, queries)).mean(1)[..., mean.shape[1] :]  # the keys are the queries, then patches
    patches = of_kinds.unflatten(2, (frames, -1))[..., -math.prod(grid) :]
    seen = torch.einsum("nq,nqfp->nfp", positions[:, :-1], patches).unflatten(2, grid)
    return [ImageAttention(of_frames / of_frames.sum(), at) for of_frames, at in zip(seen, positions, strict=True)]


PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


@torch.no_grad()
def _look(model, processor, messages: Sequence[dict], word: Word | None, kind: str):
    """Inputs, features of one kind, and the attention (views or videos, Q + 1) to their positions."""
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("The chat does not end with an answer: its last message must have the role assistant.")
    inputs = processor.apply_chat_template(
        list(messages[:-1]), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    if PIXELS[kind] not in inputs:
        raise ValueError(f"The chat has no {kind}: add at least one.")
    prompt = inputs["input_ids"]
    answer, steps = _answer(processor, messages[-1]["content"], word)
    ids = torch.cat([prompt, answer.to(prompt.device)], dim=1)
    cache = DynamicCache()
    with _attention_weights(model):
        visual = {}
        if "pixel_values" in inputs:
            visual["image"] = model.get_image_features(
                inputs["pixel_values"], inputs.get("crop_positions"), output_attentions=True
            )
        if "pixel_values_videos" in inputs:
            visual["video"] = model.get_video_features(inputs["pixel_values_videos"], output_attentions=True)
        # The prompt is read first: of its own attention, which is large, nothing is needed.
        read = prompt.shape[1] - 1
        model(input_ids=ids[:, :read], mm_encoder_outputs=visual, logits_to_keep=1, **{CACHE_NAME: cache})
        written = model(
            input_ids=ids[:, read:-1],
            attention_mask=torch.ones_like(ids[:, :-1]),
            output_attentions=True,
            logits_to_keep=1,
            **{CACHE_NAME: cache},
        ).attentions
    positions = torch.stack([layer[0].float().mean(0)[steps].mean(0).cpu() for layer in written]).mean(0)
    token_id = {"image": processor.image_token_id, "video": processor.video_token_id}[kind]
    at = positions[:read][(prompt[0, :read] == token_id).cpu()]
    return inputs, visual[kind], at.view(-1, processor.num_positions())


def _answer(processor, answer: str, word: Word | None) -> tuple[torch.Tensor, list[int]]:
    """Ids (1, A) of the answer, and the indices of those in the word."""
    encoded = processor.tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    start, end = word if isinstance(word, tuple) else (0, len(answer))
    if isinstance(word, str):
        found = re.search(rf"\b{re.escape(word)}\b", answer) or re.search(re.escape(word), answer)
        if found is None or not word.strip():
            raise ValueError(f"The answer has no {word!r}: choose a word of {answer!r:.200}.")
        start, end = found.span()
    steps = [at for at, (first, last) in enumerate(encoded["offset_mapping"]) if first < end and last > start]
    if not steps:
        raise ValueError("The answer is empty, so there is no attention to show.")
    return torch.tensor([encoded["input_ids"]]), steps


SWITCHING = threading.Lock()


@contextmanager
def _attention_weights(model) -> Iterator[None]:
    """Switches to the eager implementation, which alone returns weights, and back; one thread at a time."""
    with SWITCHING:
        before = attention_implementations(model)
        model.set_attn_implementation("eager")
        try:
            yield
        finally:
            model.set_attn_implementation(before)


def _patches_of_queries(attentions: Sequence[torch.Tensor], num_queries: int, num_patches: int) -> torch.Tensor:
    """Attention of each query to each patch (N, Q, patches); the patches are the last keys."""
    mean = torch.stack([layer.float().mean(1).cpu() for layer in attentions]).mean(0)
    return mean[:, :num_queries, -num_patches:]


def _put_together(seen: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Shares of the patches of one image, from those of its views (views, rows, columns)."""
    rows, columns = places.amax(0).clamp(min=1).tolist()
    whole = seen[0].repeat_interleave(rows, 0).repeat_interleave(columns, 1) / (rows * columns)
    if len(seen) > 1:
        cells = seen[1:].unflatten(0, (rows, columns))
        whole = whole + cells.transpose(1, 2).flatten(2, 3).flatten(0, 1)
    return whole / whole.sum()


def draw_attention(
    image: PIL.Image.Image, patches: torch.Tensor, brightest: torch.Tensor | float | None = None
) -> PIL.Image.Image:
    """
    Draws a heat map over an image, in the size of the image: brighter and warmer colours are more attention.

    Args:
        image (`PIL.Image.Image`): The image or frame.
        patches (`torch.Tensor` (rows, columns)): The shares in an [`ImageAttention`].
        brightest (`float`, *optional*): The share that gets the brightest colour, to make several maps comparable; by
            default the largest of `patches`.
    """
    levels = (patches / (patches.max() if brightest is None else brightest) * 255).round().to(torch.uint8).numpy()
    heat = PIL.Image.fromarray(levels).resize(image.size, PIL.Image.Resampling.BICUBIC)
    colours = PIL.ImageOps.colorize(heat, black="#0b0b30", mid="#d1335b", white="#ffe27a")
    cover = heat.point([120 + level * 60 // 255 for level in range(256)])
    return PIL.Image.composite(colours, image.convert("RGB"), cover)

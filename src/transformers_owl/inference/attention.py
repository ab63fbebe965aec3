"""Where a model looked in the images while it wrote an answer."""

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
    Where a model looked in one image, on the CPU.

    Args:
        patches (`torch.Tensor` (rows, columns)): Shares of the patches, which sum to 1; of all cells put together, if
            the image was cut into cells.
        positions (`torch.Tensor` (views * (Q + 1),)): The language model's attention to the image's positions, mean
            over layers, heads and written tokens. Of the whole attention (1) the rest went to the text and other
            images.
    """

    patches: torch.Tensor
    positions: torch.Tensor


Word = str | tuple[int, int]


def image_attention(model, processor, messages: Sequence[dict], word: Word | None = None) -> list[ImageAttention]:
    """
    Where the model looks in each image when it writes the last answer of a chat, or one word of it.

    Each of an image's positions counts by the language model's attention to it, mean over layers and heads, at the
    steps that write the tokens in question; it spreads over the patches as the abstractor's query of that position
    attends to them, mean over layers and heads. The last position (`vit_eos`) has seen no patch.

    Of an image that was cut into cells the map has the patches of all cells, each where its cell lay; what fell on a
    patch of the view of the whole is added, in equal parts, to the patches that show the same area.

    Args:
        model ([`MplugOwlForConditionalGeneration`]): The model, loaded with any implementation of attention.
        processor ([`MplugOwlProcessor`]): Its processor.
        messages (`Sequence[dict]`): A chat with images, and perhaps videos, that ends with the assistant's answer.
        word (`str` or `tuple[int, int]`, *optional*): A word or phrase exactly as in the answer, whose first
            occurrence counts, or where its characters begin and end there. By default the whole answer.

    Returns:
        `list[ImageAttention]`: One for each image of the chat, in order.

    Raises:
        ValueError: without an image or an answer, and for a word that the answer does not have.
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
    The same of each video: `patches` (frames, rows, columns) sum to 1 over all frames that the model saw. A position
    spreads as its query and its temporal query attend, in equal parts.
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
    """The inputs, the features of one kind, and the attention (views or videos, Q + 1) to their positions."""
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("The chat does not end with an answer: its last message must be of role assistant.")
    inputs = processor.apply_chat_template(
        list(messages[:-1]), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    if PIXELS[kind] not in inputs:
        raise ValueError(f"The chat has no {kind} to look at: give at least one.")
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
    """Ids (1, A) of the answer, and which of them make up the word."""
    encoded = processor.tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    start, end = word if isinstance(word, tuple) else (0, len(answer))
    if isinstance(word, str):
        found = re.search(rf"\b{re.escape(word)}\b", answer) or re.search(re.escape(word), answer)
        if found is None or not word.strip():
            raise ValueError(f"The answer has no {word!r}: give a word of {answer!r:.200}.")
        start, end = found.span()
    steps = [at for at, (first, last) in enumerate(encoded["offset_mapping"]) if first < end and last > start]
    if not steps:
        raise ValueError("The answer is empty: there was nothing to look for.")
    return torch.tensor([encoded["input_ids"]]), steps


SWITCHING = threading.Lock()


@contextmanager
def _attention_weights(model) -> Iterator[None]:
    """Only the eager implementation gives weights: switches to it, and back, one thread at a time."""
    with SWITCHING:
        before = attention_implementations(model)
        model.set_attn_implementation("eager")
        try:
            yield
        finally:
            model.set_attn_implementation(before)


def _patches_of_queries(attentions: Sequence[torch.Tensor], num_queries: int, num_patches: int) -> torch.Tensor:
    """What each query sees of each patch (N, Q, patches); the patches are the last keys."""
    mean = torch.stack([layer.float().mean(1).cpu() for layer in attentions]).mean(0)
    return mean[:, :num_queries, -num_patches:]


def _put_together(seen: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Shares of the patches of one image, from what fell on those of its views (views, rows, columns)."""
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
    A heat map over an image, in the image's size: the brighter and warmer, the more attention.

    Args:
        image (`PIL.Image.Image`): The image or frame that the model saw.
        patches (`torch.Tensor` (rows, columns)): Shares of [`ImageAttention`].
        brightest (`float`, *optional*): The share that gets the brightest colour, so that several maps can be compared;
            by default the largest of these.
    """
    levels = (patches / (patches.max() if brightest is None else brightest) * 255).round().to(torch.uint8).numpy()
    heat = PIL.Image.fromarray(levels).resize(image.size, PIL.Image.Resampling.BICUBIC)
    colours = PIL.ImageOps.colorize(heat, black="#0b0b30", mid="#d1335b", white="#ffe27a")
    cover = heat.point([120 + level * 60 // 255 for level in range(256)])
    return PIL.Image.composite(colours, image.convert("RGB"), cover)

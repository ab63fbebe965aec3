"""Heat maps of a model's attention while it answers."""

from collections.abc import Sequence
from pathlib import Path

import PIL.Image

from ..inference import Chat, draw_attention, image_attention, video_attention
from ..journal import aside
from ..loading import load, memory_advice
from ..mplug_owl.image_processing_mplug_owl import read_image
from ..mplug_owl.video_processing_mplug_owl import VideoFile, media_type


ADVICE = "Ask for a shorter answer (--max-new-tokens), or about fewer images."


def look(
    model: str,
    images: Sequence[str],
    prompt: str,
    output: Path,
    word: str | None = None,
    max_new_tokens: int | None = None,
    device: str | None = None,
    dtype: str = "auto",
    chat_template: str | None = None,
    load_in_4bit: bool = False,
) -> tuple[str, list[Path]]:
    """
    Answers a question about images and videos, and writes a heat map over each image and each sampled frame.

    Args:
        output (`Path`): Image file in the format of its suffix; for several maps `NAME-1.png`, `NAME-2.png` and so on.
        word (`str`, *optional*): A word of the answer; by default the whole answer.

    Returns:
        `tuple[str, list[Path]]`: The answer, and the written files.

    Raises:
        ValueError: for an image that cannot be read, an unknown suffix, a folder that does not exist, and a word that
            is not in the answer.
        MemoryError: if the model or the answer does not fit into memory.
    """
    writes = PIL.Image.registered_extensions().get(output.suffix.lower())
    if writes not in PIL.Image.SAVE:
        raise ValueError(f"{output} is not the name of an image file: it must end with .png, .jpg or .webp.")
    if not output.parent.is_dir():
        raise ValueError(f"The folder {output.parent} of {output.name} does not exist: create it first.")
    given = [image if media_type(image).startswith("video/") else read_image(image) for image in images]
    owl, processor = load(model, device, dtype, chat_template, load_in_4bit)
    chat = Chat(owl, processor)
    options = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    with memory_advice(ADVICE):
        answer = chat.ask(prompt, given, **options)
        maps = [image for _, image in heat_maps(owl, processor, chat.messages, word)]
    paths = [output] if len(maps) == 1 else [numbered(output, at + 1) for at in range(len(maps))]
    for path, image in zip(paths, maps, strict=True):
        with aside(path) as file:
            image.save(file, format=writes)
    return answer, paths


def heat_maps(
    model, processor, messages: Sequence[dict], word: str | tuple[int, int] | None = None
) -> list[tuple[str, PIL.Image.Image]]:
    """
    Heat maps over the images and sampled video frames of a chat, with their captions.

    Args:
        messages (`Sequence[dict]`): The chat, as in `image_attention`, with opened images and video files.
        word: As in `image_attention`.

    Raises:
        ValueError: without an image or video, and for a word that is not in the answer.
    """
    parts = [part for message in messages if message["role"] == "user" for part in message["content"]]
    seen = [part for part in parts if part["type"] != "text"]
    kinds = {"image": image_attention, "video": video_attention}
    wanted = {part["type"] for part in seen} or {"image"}
    found = {kind: iter(find(model, processor, messages, word)) for kind, find in kinds.items() if kind in wanted}
    maps: list[tuple[str, PIL.Image.Image]] = []
    for part in seen:
        attention = next(found[part["type"]])
        share = f"{attention.shares.sum():.0%}"
        if part["type"] == "image":
            maps.append((f"{share} of its attention", draw_attention(part["image"], attention.patches)))
            continue
        shown = zip(seen_frames(processor, part["video"]), attention.patches, strict=True)
        for at, (frame, patches) in enumerate(shown, 1):
            caption = f"Frame {at}: {patches.sum():.0%} of the clip's {share}"
            maps.append((caption, draw_attention(frame, patches, attention.patches.max())))
    return maps


def seen_frames(processor, video: str | Path) -> list[PIL.Image.Image]:
    """The frames sampled from a video."""
    (metadata,) = processor.video_processor([video], return_metadata=True)["video_metadata"]
    return VideoFile(video).frames(metadata.frames_indices)


def numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")

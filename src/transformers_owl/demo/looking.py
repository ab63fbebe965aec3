"""Images of where a model looked while it answered."""

from collections.abc import Sequence
from pathlib import Path

import PIL.Image

from ..inference import Chat, draw_attention, image_attention
from ..loading import load, memory_advice
from ..mplug_owl.image_processing_mplug_owl import read_image


ADVICE = "Ask for a shorter answer (--max-new-tokens), or about fewer images."


def look(
    model: str,
    pictures: Sequence[str],
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
    Answers about images, and writes for each a heat map over it.

    Args:
        output (`Path`): The image file, in the format of its suffix; for several images, `NAME-1.png`, `NAME-2.png`
            and so on.
        word (`str`, *optional*): A word of the answer; by default the whole of it.

    Returns:
        `tuple[str, list[Path]]`: The answer, and the files written.

    Raises:
        ValueError: for an image that cannot be read, an unknown suffix, a folder that is missing, and a word that the
            answer does not have.
        MemoryError: if model or answer do not fit.
    """
    writes = PIL.Image.registered_extensions().get(output.suffix.lower())
    if writes not in PIL.Image.SAVE:
        raise ValueError(f"{output} is not the name of an image: end it with .png, .jpg or .webp.")
    if not output.parent.is_dir():
        raise ValueError(f"There is no folder {output.parent} to write {output.name} into.")
    opened = [read_image(picture) for picture in pictures]
    owl, processor = load(model, device, dtype, chat_template, load_in_4bit)
    chat = Chat(owl, processor)
    options = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    with memory_advice(ADVICE):
        answer = chat.ask(prompt, opened, **options)
        found = image_attention(owl, processor, chat.messages, word)
    paths = [output] if len(opened) == 1 else [numbered(output, at + 1) for at in range(len(opened))]
    for path, picture, attention in zip(paths, opened, found, strict=True):
        partial = path.with_name(path.name + ".partial")
        draw_attention(picture, attention.patches).save(partial, format=writes)
        partial.replace(path)
    return answer, paths


def numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")

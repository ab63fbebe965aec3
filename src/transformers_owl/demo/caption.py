"""Answers about image and video files, many at a time."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from ..journal import Journal, partial_of
from ..loading import load, memory_advice
from ..mplug_owl.video_processing_mplug_owl import visual_part


SAMPLES = [
    Path(__file__).with_name("pictures") / f"{name}.png"
    for name in ("castle-and-octopus", "elephant", "helicopters", "number", "sunflower")
]


def samples() -> list[str]:
    """
    The drawings that come with the package.

    Raises:
        FileNotFoundError: if one is missing, with its path.
    """
    missing = [str(path) for path in SAMPLES if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{', '.join(missing)}: missing, though part of transformers_owl. Install it again, or name other images."
        )
    return [str(path) for path in SAMPLES]


def check_files(names: Sequence[str]) -> None:
    """
    Raises:
        FileNotFoundError: for names that are neither URLs nor files, all of them.
    """
    missing = [name for name in names if "://" not in name and not name.startswith("data:") and not Path(name).exists()]
    if missing:
        raise FileNotFoundError(f"No such file: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}")


class Captioner:
    """
    A model that answers one question about many images and videos.

    Args:
        model (`str`): A folder or a repository on the Hub.
        device (`str`, *optional*): "cuda", "mps" or "cpu"; by default the best there is.
        dtype (`str`, defaults to `"auto"`): Type of the weights, such as "bfloat16"; "auto" takes the checkpoint's.
        num_frames (`int`, *optional*): Frames of a video; by default as many as the checkpoint's settings say.
        chat_template (`str`, *optional*): "original", "language_model" or a Jinja file; by default the checkpoint's.
        load_in_4bit (`bool`, defaults to `False`): Whether to quantise the language model, as [`load`] does.
        fast (`bool`, defaults to `False`): Whether to optimize the model for throughput.
    """

    def __init__(
        self,
        model: str,
        device: str | None = None,
        dtype: str = "auto",
        num_frames: int | None = None,
        chat_template: str | None = None,
        load_in_4bit: bool = False,
        fast: bool = False,
    ):
        self.name = model
        self.model, self.processor = load(
            model, device, dtype, chat_template, load_in_4bit, "throughput" if fast else None
        )
        if num_frames is not None:
            self.processor.video_processor.num_frames = num_frames

    def answer(self, images: list[str], prompt: str, max_new_tokens: int | None = None) -> list[str]:
        """
        Asks `prompt` about every image or video, all of them in one batch.

        Args:
            images (`list[str]`): Paths or URLs of images and videos.
            prompt (`str`): The question.
            max_new_tokens (`int`, *optional*): Longest answer; by default what the checkpoint's settings say.

        Raises:
            ValueError: for an image or video that cannot be read, with its name, and for videos where the model sees
                images alone.
            MemoryError: if the batch does not fit.
        """
        sees_videos = self.model.config.sees_videos
        question = {"type": "text", "text": prompt}
        chats = [[{"role": "user", "content": [visual_part(image, sees_videos), question]}] for image in images]
        inputs = self.processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        options = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        with memory_advice("Answer fewer images at once (--batch-size), or more briefly (--max-new-tokens)."):
            written = self.model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(written, skip_special_tokens=True)


def caption(
    captioner: Captioner,
    images: list[str],
    prompt: str,
    output: Path | None = None,
    batch_size: int = 8,
    max_new_tokens: int | None = None,
) -> Iterator[tuple[str, str]]:
    """
    Yields `(image, answer)` of every image, those of an interrupted run first, and writes the JSON Lines file
    `output`, which appears when it is whole. An interrupted run leaves `NAME.partial`, and the next run with the same
    model and prompt goes on from there.

    Raises:
        ValueError: if the interrupted run asked something else, whose answers would be lost, or still goes on.
    """
    question = {"model": captioner.name, "prompt": prompt}
    with nullcontext() if output is None else Journal(partial_of(output)) as journal:
        done = {} if journal is None else _answers_before(journal, question)
        yield from ((image, answer) for image, answer in done.items() if image in images)
        left = [image for image in dict.fromkeys(images) if image not in done]
        for start in range(0, len(left), batch_size):
            batch = left[start : start + batch_size]
            answers = dict(zip(batch, captioner.answer(batch, prompt, max_new_tokens), strict=True))
            if journal is not None:
                journal.append({"image": name, **question, "answer": answer} for name, answer in answers.items())
            yield from answers.items()
        if journal is not None and output is not None:
            journal.path.replace(output)


def _answers_before(journal: Journal, question: dict[str, str]) -> dict[str, str]:
    answers = {}
    for where, row in journal.rows():
        asked = {name: row.get(name) for name in question}
        if asked != question:
            raise ValueError(
                f"{where} is an answer of an interrupted run with {asked}, but this one has {question}: choose another "
                "--output, or delete that file."
            )
        answers[row["image"]] = row["answer"]
    return answers

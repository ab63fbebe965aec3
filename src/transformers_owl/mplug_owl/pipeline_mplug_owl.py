"""The task "image-to-text": a question about each picture, the same one unless told otherwise."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset
from transformers.pipelines.base import Pipeline
from transformers.pipelines.image_text_to_text import ImageTextToTextPipeline
from transformers.utils.chat_template_utils import Chat


PROMPT = "Describe the picture."
ONE_PICTURE = (str, os.PathLike, PIL.Image.Image, np.ndarray, torch.Tensor)


class MplugOwlImageToTextPipeline(ImageTextToTextPipeline):
    """
    Answers about pictures.

    Example:

    ```python
    describe = pipeline("image-to-text", model=folder, trust_remote_code=True)
    describe("owl.png")  # [{"generated_text": "An owl in a tree."}]
    describe(["owl.png", "cat.png"], prompt="What is it?", batch_size=2, num_beams=4)
    ```
    """

    processor: Any

    def __call__(self, images=None, prompt=None, text=None, **kwargs):
        """
        Args:
            images: A picture (PIL image, array, path, URL or base64), a row `{"image": picture, "text": prompt}` whose
                text may be left out, a chat with its own question, or a list, dataset or other iterable of these.
            prompt (`str` or `list[str]`, *optional*): What to ask about every picture, or about each picture of a
                list. One with the placeholder `<image>` is the model's whole input, as it is.
            text (*optional*): The library's name for `prompt`; chats may be given here too.
            batch_size (`int`, defaults to 1): Pictures answered together.
            kwargs: Options of `generate`, such as `max_new_tokens`, `num_beams` or `streamer`.

        Returns:
            `list[dict]`: `{"generated_text": answer}`, one for each answer asked for (`num_return_sequences`). For a
            list of pictures a list of these, for datasets and other iterables an iterator that answers as it goes.

        Raises:
            ValueError: without a picture, for prompts that do not match the pictures in number, and for pictures that
                cannot be read.
        """
        prompt = text if prompt is None else prompt
        if images is None and not isinstance(prompt, str):
            images, prompt = prompt, None
        if images is None:
            raise ValueError("No picture was given: pass a picture, a list of pictures or a chat.")
        if isinstance(prompt, (list, tuple)):
            images, prompt = pair(images, prompt), None
        elif isinstance(images, tuple):
            images = list(images)
        elif isinstance(images, Iterable) and not isinstance(images, (*ONE_PICTURE, dict, list, Dataset)):
            images = (row for row in images)
        if isinstance(images, list) and not images:
            return []
        return Pipeline.__call__(self, images, prompt=prompt, **kwargs)

    def save_pretrained(self, save_directory, **kwargs):
        """Writes model and processor with their code, and this pipeline's."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(self, prompt=None, generate_kwargs=None, local_files_only=None, **options):
        """Prompt, and all else for `generate`, which names what it does not know; `pipeline` leaves one flag over."""
        return {} if prompt is None else {"prompt": prompt}, dict(**(generate_kwargs or {}), **options), {}

    def preprocess(self, inputs, prompt=PROMPT):
        if not isinstance(inputs, Chat):
            row = inputs if isinstance(inputs, dict) else {"image": inputs}
            if "image" not in row:
                raise ValueError(f"A row holds its picture under 'image', but one with {list(row)} was given.")
            prompt = row.get("text", prompt)
            if self.processor.image_token in prompt:
                whole = self.processor(images=[row["image"]], text=[prompt], return_tensors="pt").to(dtype=self.dtype)
                whole["text"] = prompt
                return whole
            content = [{"type": "image", "image": row["image"]}, {"type": "text", "text": prompt}]
            messages: Any = [{"role": "user", "content": content}]
            inputs = Chat(messages)
        return super().preprocess(inputs)

    def _forward(self, model_inputs, **options):
        """New tokens (rows, answers of a row, tokens)."""
        outputs = super()._forward({**model_inputs}, options)
        rows, length = outputs["input_ids"].shape
        sequences = outputs["generated_sequence"]
        return {"tokens": sequences.reshape(rows, -1, sequences.shape[-1])[..., length:]}

    def postprocess(self, model_outputs):
        answers = self.processor.batch_decode(model_outputs["tokens"][0], skip_special_tokens=True)
        return [{"generated_text": answer} for answer in answers]


def pair(images, prompts) -> list[dict]:
    """Rows of pictures and their prompts."""
    if not isinstance(images, (list, tuple)) or len(images) != len(prompts):
        given = f"{len(images)} pictures" if isinstance(images, (list, tuple)) else type(images).__name__
        raise ValueError(
            f"{len(prompts)} prompts were given for {given}: give a list of as many pictures, or one prompt."
        )
    return [{"image": image, "text": prompt} for image, prompt in zip(images, prompts, strict=True)]


__all__ = ["MplugOwlImageToTextPipeline"]

"""Replaces the module of this name in the transformers repository: uses local images and downloads nothing."""

from conftest import GOLDEN


def url_to_local_path(url: str, *args, **kwargs) -> str:
    return str(GOLDEN / "image-llama" / "image_0.png") if url.endswith((".png", ".jpg")) else url

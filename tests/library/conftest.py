"""Marks the library's tests as slow. A run without slow tests fetches and imports nothing of them."""

from pathlib import Path

import pytest

from . import sdist


HERE = Path(__file__).parent
MARKERS = (
    "accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "generate",
    "is_tensor_parallel_test", "is_training_test", "is_fsdp_test", "order", "torch_compile_test",
)  # fmt: skip
collect_ignore = ["stand_ins"]


def _is_wanted(config) -> bool:
    return config.getoption("markexpr") != "not slow"


def pytest_configure(config):
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: of the library's tests")
    if _is_wanted(config):
        sdist.put_on_path()


def pytest_ignore_collect(collection_path, config):
    return None if _is_wanted(config) else True


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.slow)

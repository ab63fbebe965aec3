"""Saved folders are self-contained: every Auto class loads them in a process that has never seen this package."""

import ast
import json
from pathlib import Path

import pytest
import transformers
from conftest import GoldenCase
from fresh_interpreter import HIDDEN, in_fresh_interpreter
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # in all versions without torchvision

import transformers_owl


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory, llama):
    folder = tmp_path_factory.mktemp("saved")
    AutoModel.from_pretrained(llama.checkpoint).save_pretrained(folder)
    AutoProcessor.from_pretrained(llama.checkpoint).save_pretrained(folder)
    return folder


ELSEWHERE = """
import sys
import PIL.Image
from transformers import (
    AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
load = lambda auto_class: auto_class.from_pretrained(folder, trust_remote_code=True)
model, processor = load(AutoModel), load(AutoProcessor)
inputs = processor(text=[text], images=[PIL.Image.open(image)], return_tensors="pt")
written = model.generate(**inputs, max_new_tokens=24)[:, inputs["input_ids"].shape[1]:]
model.save_pretrained(again)
processor.save_pretrained(again)
print({
    "classes": [type(load(c)).__name__ for c in (
        AutoConfig, AutoImageProcessor, AutoTokenizer, AutoModelForImageTextToText, AutoModelForMultimodalLM)],
    "modules": type(model).__module__.partition(".")[0],
    "tokens": written.tolist(),
    "package": sys.modules["transformers_owl"] is not None,
})
"""


def run_elsewhere(folder, llama, again):
    given = {
        "folder": str(folder),
        "image": str(llama.folder / "image_0.png"),
        "text": llama.prompts["one_image"]["text"],
        "again": str(again),
    }
    return ast.literal_eval(in_fresh_interpreter(HIDDEN, f"globals().update({given})", ELSEWHERE).splitlines()[-1])


def test_a_saved_folder_works_without_the_package_and_stays_so(saved, llama, tmp_path):
    """Also after it was loaded as remote code and saved again, with the golden tokens each time."""
    folder = saved
    for number in range(2):
        again = tmp_path / f"again{number}"
        found = run_elsewhere(folder, llama, again)
        assert found == {
            "classes": [
                "MplugOwlConfig",
                "MplugOwlImageProcessor",
                "TokenizersBackend",
                "MplugOwlForConditionalGeneration",
                "MplugOwlForConditionalGeneration",
            ],
            "modules": "transformers_modules",
            "tokens": llama.expected["one_image/greedy_new_tokens"].tolist(),
            "package": False,
        }
        assert {path.name for path in again.glob("*.py")} == {path.name for path in saved.glob("*.py")}
        folder = again


AUTO_CLASSES = {
    AutoConfig: transformers_owl.MplugOwlConfig,
    AutoImageProcessor: transformers_owl.MplugOwlImageProcessor,
    AutoModel: transformers_owl.MplugOwlForConditionalGeneration,
    AutoModelForImageTextToText: transformers_owl.MplugOwlForConditionalGeneration,
    AutoModelForMultimodalLM: transformers_owl.MplugOwlForConditionalGeneration,
    AutoProcessor: transformers_owl.MplugOwlProcessor,
    AutoTokenizer: transformers.TokenizersBackend,
}


@pytest.mark.parametrize("auto_class", AUTO_CLASSES, ids=lambda auto_class: auto_class.__name__)
@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}], ids=["plain", "trusted"])
@pytest.mark.parametrize("kind", ["original", "saved"])
def test_with_the_package_imported_its_classes_win(auto_class, trust, kind, saved, llama):
    folder = saved if kind == "saved" else llama.checkpoint
    assert type(auto_class.from_pretrained(folder, **trust)) is AUTO_CLASSES[auto_class]


def test_the_saved_folder_holds_the_hub_folder_flat(saved):
    names = {path.name for path in saved.glob("*.py")}
    assert names == {
        "configuration_mplug_owl.py",
        "crops_mplug_owl.py",
        "download_mplug_owl.py",
        "generation_mplug_owl.py",
        "image_processing_mplug_owl.py",
        "language_mplug_owl.py",
        "vision_mplug_owl.py",
        "library_mplug_owl.py",
        "licence_mplug_owl.py",
        "loading_mplug_owl.py",
        "opening_mplug_owl.py",
        "modeling_mplug_owl.py",
        "pipeline_mplug_owl.py",
        "processing_mplug_owl.py",
        "video_processing_mplug_owl.py",
        "tokenization_mplug_owl.py",
        "weights_mplug_owl.py",
    }
    settings = json.loads((saved / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "TokenizersBackend"
    config = json.loads((saved / "config.json").read_text())
    assert config["custom_pipelines"]["image-to-text"]["impl"] == "pipeline_mplug_owl.MplugOwlImageToTextPipeline"
    assert config["auto_map"] == {
        "AutoConfig": "configuration_mplug_owl.MplugOwlConfig",
        "AutoModel": "modeling_mplug_owl.MplugOwlForConditionalGeneration",
        "AutoModelForImageTextToText": "modeling_mplug_owl.MplugOwlForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_mplug_owl.MplugOwlForConditionalGeneration",
    }


@pytest.mark.parametrize("name", ["image-bloom", "video-llama"])
def test_models_of_every_release_load_by_auto_model(name):
    model = AutoModel.from_pretrained(GoldenCase(name).checkpoint)
    assert model.can_generate()


VERSIONS = {
    "5.15.2": ("ImportError: mPLUG-Owl needs transformers 5.16.1 or newer, but 5.15.2 is installed", False),
    "5.24.7": ("", True),
    "99.0.0": ("is tested with transformers 5.16.1 to", True),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_another_library_than_those_tried_is_named(saved, version):
    """The folder is loaded as the library loads it; nothing in it is imported before the version is looked at."""
    program = f"""
import contextlib, importlib.metadata, io, sys, traceback
found = importlib.metadata.version
importlib.metadata.version = lambda name: "{version}" if name == "transformers" else found(name)
sys.path.insert(0, {str(saved)!r})
works, said = True, io.StringIO()
with contextlib.redirect_stderr(said):
    try:
        import library_mplug_owl
    except ImportError:
        works = False
        traceback.print_exc()
print((works, said.getvalue()))
"""
    works, said = ast.literal_eval(in_fresh_interpreter(HIDDEN, program))
    message, shall_work = VERSIONS[version]
    assert works == shall_work
    assert message in said and ("pip install" in said) == bool(message)


@pytest.mark.parametrize("way", ["imported", "elsewhere"])
def test_a_folder_of_the_base_model_comes_back_as_the_base_model(llama, tmp_path, way):
    base = transformers_owl.MplugOwlModel.from_pretrained(llama.checkpoint)
    base.save_pretrained(tmp_path)
    if way == "imported":
        loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is transformers_owl.MplugOwlModel and not any(info.values())
        assert type(AutoModel.from_pretrained(llama.checkpoint)) is transformers_owl.MplugOwlForConditionalGeneration
        return
    program = f"""
from transformers import AutoModel
loaded, info = AutoModel.from_pretrained({str(tmp_path)!r}, trust_remote_code=True, output_loading_info=True)
print(type(loaded).__name__, any(info.values()))
"""
    assert in_fresh_interpreter(HIDDEN, program).split() == ["MplugOwlModel", "False"]


SAVED = {
    "configuration": lambda model, processor: model.config,
    "model": lambda model, processor: model,
    "base model": lambda model, processor: model.model,
    "processor": lambda model, processor: processor,
    "image processor": lambda model, processor: processor.image_processor,
    "video processor": lambda model, processor: processor.video_processor,
}


@pytest.mark.parametrize("name", SAVED)
def test_the_licence_of_the_code_goes_where_the_code_goes(name, llama_model, llama_processor, tmp_path):
    SAVED[name](llama_model, llama_processor).save_pretrained(tmp_path)
    names: dict = {}
    exec((tmp_path / "licence_mplug_owl.py").read_text(), names)
    assert names["LICENCE"] == (ROOT / "LICENSE").read_text().lstrip("\n")
    assert not [path.name for path in tmp_path.iterdir() if path.name.upper().startswith(("LICENSE", "LICENCE."))]

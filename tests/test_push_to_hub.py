"""What is pushed works by its repository id, without this package; a release loads from the Hub directly."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hub import Hub


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


def run(hub, home, program, *arguments):
    environment = {**os.environ, **hub.environment(home), "PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


PUSH = """
    import json, sys, transformers_owl
    from transformers import AutoModel, AutoProcessor
    AutoModel.from_pretrained(sys.argv[1]).push_to_hub("owner/owl")
    AutoProcessor.from_pretrained(sys.argv[1]).push_to_hub("owner/owl")
    print(json.dumps("transformers_owl" in sys.modules))
"""
LOAD = """
    import json, sys, PIL.Image
    from transformers import AutoModelForImageTextToText, AutoProcessor
    repo, image, text = sys.argv[1:]
    if repo != "owner/owl":
        import transformers_owl
    model = AutoModelForImageTextToText.from_pretrained(repo, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
    inputs = processor(text=[text], images=[PIL.Image.open(image)], return_tensors="pt")
    print(json.dumps(model.generate(**inputs, max_new_tokens=24)[:, inputs["input_ids"].shape[1]:].tolist()))
"""


def load(hub, home, llama, repo):
    return run(hub, home, LOAD, repo, str(llama.folder / "image_0.png"), llama.prompts["one_image"]["text"])


@pytest.mark.slow
def test_a_pushed_model_loads_by_its_id_without_the_package(hub, llama, tmp_path):
    run(hub, tmp_path / "pusher", PUSH, llama.checkpoint)
    assert {"model.safetensors", "modeling_mplug_owl.py", "processing_mplug_owl.py", "tokenizer.json"} <= set(
        hub.repositories["owner/owl"]
    )
    assert load(hub, tmp_path / "user", llama, "owner/owl") == llama.expected["one_image/greedy_new_tokens"].tolist()


@pytest.mark.slow
def test_a_release_loads_from_the_hub_as_it_is(hub, llama, tmp_path):
    files = {path.name: path.read_bytes() for path in Path(llama.checkpoint).iterdir()}
    hub.repositories["somebody/mplug-owl-original"] = files
    written = load(hub, tmp_path, llama, "somebody/mplug-owl-original")
    assert written == llama.expected["one_image/greedy_new_tokens"].tolist()
    fetched = [line for line in hub.requests if line.startswith("GET") and line.endswith("/pytorch_model.bin")]
    assert len(fetched) == 1

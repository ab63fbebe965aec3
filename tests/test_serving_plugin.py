"""What an engine is told about mPLUG-Owl, and, where vLLM is installed, that its answers are those of `generate`."""

import ast
import importlib
import re
import shlex
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from conftest import tiny_config
from towers import tower_of
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig, LlamaForCausalLM

import transformers_owl
from transformers_owl import MINIATURE, MplugOwlConfig, MplugOwlForConditionalGeneration, MplugOwlProcessor
from transformers_owl.demo.caption import SAMPLES
from transformers_owl.fresh import build_owl
from transformers_owl.serving import plugin


ROOT = Path(__file__).parent.parent
SIZES = [(96, 96), (1, 1), (7, 900), (4000, 31)]  # height, width


class EngineConfig(SimpleNamespace):
    def get_vocab_size(self):
        return self.hf_config.get_text_config().vocab_size


@pytest.fixture
def registered(monkeypatch):
    """What was registered with a stand-in for vLLM, by two calls."""
    found = {}
    registry = SimpleNamespace(register_model=found.__setitem__)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=registry))
    monkeypatch.setitem(sys.modules, "vllm.config", SimpleNamespace(ModelConfig=EngineConfig))
    monkeypatch.setattr(EngineConfig, "get_vocab_size", EngineConfig.get_vocab_size)
    plugin.register()
    plugin.register()
    yield found
    AutoProcessor.register(MplugOwlConfig, MplugOwlProcessor, exist_ok=True)


@pytest.fixture(scope="module")
def processor():
    return MplugOwlProcessor.from_pretrained(MINIATURE)


def image_chat(*images) -> list[dict]:
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "Is <image> text?"}]}]


def test_vllm_finds_the_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    group = "vllm.general_plugins"
    (entry,) = project["entry-points"][group].items()
    assert EntryPoint(*entry, group).load() is plugin.register
    assert not any("vllm" in requirement for requirement in project["dependencies"])


def test_registering_twice_is_registering_once(registered):
    ((architecture, place),) = registered.items()
    assert architecture == MplugOwlForConditionalGeneration.__name__
    module, name = place.split(":")
    tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_text())
    assert name in [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert type(AutoProcessor.from_pretrained(MINIATURE)) is plugin.MplugOwlProcessor


@pytest.mark.parametrize("vocab_size", [50, 2048, 2049, 2051, 3000])
def test_an_engine_counts_the_columns_of_placeholders(registered, vocab_size):
    config = tiny_config({"vocab_size": vocab_size})
    ids = (config.image_token_id, config.video_token_id)
    assert EngineConfig(hf_config=config).get_vocab_size() == max(vocab_size, *(token + 1 for token in ids))
    assert EngineConfig(hf_config=config.text_config).get_vocab_size() == vocab_size


@pytest.mark.parametrize("images", [0, 1, 2])
def test_text_of_a_chat_has_the_ids_of_the_processor(registered, processor, images):
    """An engine renders the chat, tokenizes without special tokens, and expands the placeholders by itself."""
    chat = image_chat(*[PIL.Image.new("RGB", (30, 20))] * images)
    served = AutoProcessor.from_pretrained(MINIATURE)
    text = served.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = served.tokenizer.encode(text, add_special_tokens=False)
    assert ids.count(served.image_token_id) == images
    expanded = [
        copy
        for token in ids
        for copy in [token] * (served.num_query_tokens + 1 if token == served.image_token_id else 1)
    ]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    for each in (processor, served):
        assert each.apply_chat_template(chat, **options)["input_ids"] == [expanded]


def test_a_template_that_names_bos_stays(registered, processor, tmp_path):
    processor.save_pretrained(tmp_path)
    template = tmp_path / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    assert AutoProcessor.from_pretrained(tmp_path).chat_template == template.read_text()


def test_positions_of_an_image_are_told_before_it_is_seen(processor):
    told = processor._get_num_multimodal_tokens(image_sizes=SIZES, video_sizes=[(4, *SIZES[0])])
    images = [PIL.Image.new("RGB", (width, height)) for height, width in SIZES]
    inputs = processor(text=["<image>"] * len(SIZES), images=images)
    assert told["num_image_tokens"] == [row.count(processor.image_token_id) for row in inputs["input_ids"]]
    assert told["num_image_patches"] == [1] * len(SIZES)
    assert sum(told["num_image_patches"]) == len(inputs["pixel_values"])
    frames = [np.zeros((4, *SIZES[0], 3), np.uint8)]
    (row,) = processor(text=["<|video|>"], videos=frames)["input_ids"]
    assert told["num_video_tokens"] == [row.count(processor.video_token_id)]


def test_replacements_are_reported(processor):
    images = [PIL.Image.new("RGB", (9, 9))] * 2
    inputs = processor(text="<image><image>", images=images, return_text_replacement_offsets=True)
    (found,) = inputs["text_replacement_offsets"]
    assert [entry["type"] for entry in found] == ["image"] * 2
    assert {entry["replacement"] for entry in found} == {processor.image_token * (processor.num_query_tokens + 1)}


def served_options() -> dict:
    return yaml.safe_load((ROOT / "examples/serving/vllm.yaml").read_text())


def test_the_configuration_fits_the_7b_releases():
    config, options = MplugOwlConfig(), served_options()
    devices = options["tensor-parallel-size"]
    for part in (config.text_config, config.vision_config):
        assert part.num_attention_heads % devices == 0
        assert part.intermediate_size % devices == 0
    assert config.text_config.vocab_size % devices == 0
    assert options["max-model-len"] == config.text_config.max_position_embeddings
    images = options["limit-mm-per-prompt"]["image"]
    assert images * (config.num_query_tokens + 1) < options["max-model-len"]
    defaults = MplugOwlForConditionalGeneration(tiny_config()).generation_config
    assert defaults.do_sample is False and options["override-generation-config"] == {"temperature": 0.0}


def commands() -> list[list[str]]:
    """Options of the servers that docs/serving.md starts, on CPU and on GPUs."""
    page = (ROOT / "docs/serving.md").read_text()
    found = re.findall(r"^(?:vllm serve|.*vllm.entrypoints.openai.api_server) (.+)$", page, re.MULTILINE)
    return [shlex.split(options) for options in found]


def test_the_deployment_starts_that_configuration():
    deployment, service = yaml.safe_load_all((ROOT / "examples/serving/kubernetes.yaml").read_text())
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    (container,) = template["spec"]["containers"]
    gpus = str(served_options()["tensor-parallel-size"])
    assert {container["resources"][kind]["nvidia.com/gpu"] for kind in ("requests", "limits")} == {gpus}
    command = container["command"]
    (port,) = container["ports"]
    assert command[command.index("--port") + 1] == str(port["containerPort"])
    assert [entry["targetPort"] for entry in service["spec"]["ports"]] == [port["name"]]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": port["name"]}
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert any(command[2].startswith(mount["mountPath"]) for mount in container["volumeMounts"])
    docker = (ROOT / "examples/serving/Dockerfile").read_text().splitlines()
    assert f"COPY examples/serving/vllm.yaml {command[command.index('--config') + 1]}" in docker


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory):
    return save_other(tmp_path_factory.mktemp("owl"))


@pytest.fixture(scope="module")
def pages_folder(tmp_path_factory):
    return save_other(tmp_path_factory.mktemp("owl"), max_crops=4)


@pytest.fixture(scope="module")
def scaled_folder(tmp_path_factory):
    return save_other(tmp_path_factory.mktemp("owl"), model_type="cohere", logit_scale=0.25)


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory):
    return save_with_tower(tmp_path_factory.mktemp("owl"), "siglip_vision_model")


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory):
    return save_with_tower(tmp_path_factory.mktemp("owl"), "dinov2")


def save_with_tower(folder: Path, kind: str) -> str:
    """An Owl with a vision model of the library, which sees images alone."""
    tower = tower_of(kind)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    language_model = LlamaForCausalLM(LlamaConfig(vocab_size=2049, initializer_range=0.2, **sizes))
    build_owl(tower, language_model, num_query_tokens=4, num_abstractor_layers=2).save_pretrained(folder)
    image_processor = transformers_owl.MplugOwlImageProcessor(size={"height": 56, "width": 56})
    tokenizer = MplugOwlProcessor.from_pretrained(MINIATURE).tokenizer
    MplugOwlProcessor(image_processor, tokenizer, num_query_tokens=4).save_pretrained(folder)
    return str(folder)


def save_other(folder: Path, max_crops: int = 1, **text) -> str:
    """A video model with a head of its own and placeholders outside the vocabulary, as the releases have them."""
    torch.manual_seed(0)
    text |= {"vocab_size": 2049, "hidden_size": 64, "num_attention_heads": 2, "initializer_range": 0.2}
    config = tiny_config(text, vision_config={"use_temporal": True}, initializer_range=0.2)
    config.visual_abstractor_config.max_crops = max_crops
    owl = MplugOwlForConditionalGeneration(config)
    for name, table in owl.model.abstractor.named_parameters():
        if "crop_" in name:
            torch.nn.init.normal_(table)
    owl.save_pretrained(folder)
    image_processor = transformers_owl.MplugOwlImageProcessor(size={"height": 28, "width": 28}, max_crops=max_crops)
    tokenizer = MplugOwlProcessor.from_pretrained(MINIATURE).tokenizer
    MplugOwlProcessor(image_processor, tokenizer, num_query_tokens=4).save_pretrained(folder)
    return str(folder)


def prompts(processor) -> list[dict]:
    """Texts and what is to be seen, one, two and no images among them, and one of another shape."""
    images = [PIL.Image.open(path) for path in SAMPLES]
    seen = [*([image] for image in images), images[:2], [images[0].resize((90, 40)), images[1]], []]
    return [
        {
            "text": processor.apply_chat_template(image_chat(*some), add_generation_prompt=True, tokenize=False),
            "images": some,
        }
        for some in seen
    ]


def video_prompt(processor, *images) -> dict:
    parts = [{"type": "video"}, *({"type": "image", "image": image} for image in images)]
    chat = [{"role": "user", "content": [*parts, {"type": "text", "text": "What happens?"}]}]
    frames = np.random.default_rng(0).integers(0, 255, (4, 28, 28, 3), np.uint8)
    return {
        "text": processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False),
        "videos": [frames],
        **({"images": list(images)} if images else {}),
    }


def expected(folder: str, asked: list[dict], processor) -> list[list[int]]:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    answers = []
    for prompt in asked:
        inputs = processor(**{name: [value] for name, value in prompt.items() if len(value)}, return_tensors="pt")
        written = model.generate(**inputs, max_new_tokens=20)
        answers.append(written[0, inputs["input_ids"].shape[1] :].tolist())
    return answers


def engine_prompt(prompt: dict, bos: str) -> dict:
    data = {"image": prompt["images"]} if "images" in prompt else {}
    if "videos" in prompt:
        (frames,) = prompt["videos"]
        count = len(frames)
        metadata = {"fps": 2.0, "duration": count / 2, "total_num_frames": count, "frames_indices": list(range(count))}
        data["video"] = [(frames, {**metadata, "do_sample_frames": False})]
    return {"prompt": bos + prompt["text"], "multi_modal_data": data}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "devices"),
    [("miniature", 1), ("miniature", 2), ("other", 1), ("scaled", 1), ("pages", 1), ("siglip", 1), ("dinov2", 1)],
)
def test_vllm_answers_as_generate_does(monkeypatch, request, name, devices):
    vllm = pytest.importorskip("vllm")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # by itself it wants a NUMA node for each device
    folder = MINIATURE if name == "miniature" else request.getfixturevalue(f"{name}_folder")
    processor = MplugOwlProcessor.from_pretrained(folder)
    asked = prompts(processor)
    if name in ("other", "scaled", "pages"):
        asked += [video_prompt(processor), video_prompt(processor, PIL.Image.open(SAMPLES[0]).rotate(90))]
    engine = vllm.LLM(
        folder,
        tensor_parallel_size=devices,
        dtype="float32",
        max_model_len=256,
        max_num_seqs=8,
        enforce_eager=True,
    )
    choices = vllm.SamplingParams(temperature=0, max_tokens=20)
    bos = processor.tokenizer.bos_token
    replies = engine.generate([engine_prompt(prompt, bos) for prompt in asked], choices)
    assert [list(reply.outputs[0].token_ids) for reply in replies] == expected(folder, asked, processor)


ASKED = [
    {"prompt_logprobs": 1}, {"prompt_logprobs": 0}, {"prompt_logprobs": 5, "logprobs": 5}, {"logprobs": 2},
    {"repetition_penalty": 1.3}, {"repetition_penalty": 0.7}, {"presence_penalty": 1.5}, {"presence_penalty": -1.5},
    {"frequency_penalty": 1.5}, {"prompt_logprobs": 1, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"temperature": 0.8, "seed": 1}, {"temperature": 1, "top_p": 0.5, "top_k": 5, "min_p": 0.1}, {"top_k": 2049},
    {"temperature": 1, "top_k": 2048, "seed": 3}, {"temperature": 1, "seed": 4, "repetition_penalty": 1.1},
    {"min_p": 1},
    {"stop": ["a"]}, {"stop": ["a"], "include_stop_str_in_output": True}, {"stop_token_ids": [5]},
    {"stop_token_ids": [2049]}, {"bad_words": ["the"]}, {"logit_bias": {5: 10}}, {"logit_bias": {2049: 100}},
    {"logit_bias": {2050: 100}}, {"logit_bias": {5000: 1}}, {"allowed_token_ids": [5, 6, 7]},
    {"allowed_token_ids": [2049]}, {"allowed_token_ids": [5, 2050]}, {"min_tokens": 5}, {"ignore_eos": True},
    {"n": 2, "temperature": 1}, {"detokenize": False}, {"skip_special_tokens": False}, {"logprobs": 10**6},
    {"logprobs": -1}, {"prompt_logprobs": -1}, {"spaces_between_special_tokens": False}, {"min_tokens": 99},
    {"repetition_penalty": 0}, {"temperature": -1},
]  # fmt: skip


@pytest.mark.slow
def test_no_sampling_parameter_ends_vllm(monkeypatch, other_folder):
    """Placeholders outside the vocabulary: every request is answered or refused, and the next is answered right."""
    vllm = pytest.importorskip("vllm")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    processor = MplugOwlProcessor.from_pretrained(other_folder)
    assert max(processor.image_token_id, processor.video_token_id) >= 2049
    asked = [prompts(processor)[0], prompts(processor)[-1], video_prompt(processor)]
    wanted = expected(other_folder, asked, processor)
    bos = processor.tokenizer.bos_token
    given = [engine_prompt(prompt, bos) for prompt in asked]
    engine = vllm.LLM(other_folder, dtype="float32", max_model_len=256, max_num_seqs=8, enforce_eager=True)
    plain = vllm.SamplingParams(temperature=0, max_tokens=20)
    refused = importlib.import_module("vllm.exceptions").VLLMValidationError  # 400 over HTTP
    structured = vllm.sampling_params.StructuredOutputsParams(choice=["yes", "no"])
    answered = []
    for choices in [*ASKED, {"structured_outputs": structured}]:
        for prompt in given:
            try:
                params = vllm.SamplingParams(**{"temperature": 0, "max_tokens": 6, **choices})
                (reply,) = engine.generate([prompt], params)
            except (ValueError, refused):
                continue
            assert not {processor.image_token_id, processor.video_token_id} & set(reply.outputs[0].token_ids), choices
            answered.append(str(choices))
        replies = engine.generate(given, plain)
        assert [list(reply.outputs[0].token_ids) for reply in replies] == wanted, choices
    assert len(set(answered)) >= len(ASKED) - 14


@pytest.mark.slow
def test_vllm_understands_the_commands(monkeypatch):
    pytest.importorskip("vllm")
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    monkeypatch.chdir(ROOT)
    on_cpu, on_gpus = (parser.parse_args(options) for options in commands())
    assert on_cpu.override_generation_config == on_gpus.override_generation_config == {"temperature": 0}
    assert on_cpu.media_io_kwargs == on_gpus.media_io_kwargs == served_options()["media-io-kwargs"]
    assert on_gpus.limit_mm_per_prompt == served_options()["limit-mm-per-prompt"]
    assert on_gpus.tensor_parallel_size == served_options()["tensor-parallel-size"]

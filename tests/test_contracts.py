"""The installed packages are as the fences expect them: what a new release changes fails here by its entry's name."""

import asyncio
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from test_imports import FENCES, PACKAGE, leans_on
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Seq2SeqTrainer, Trainer, TrainerState, TrainingArguments


CONTRACTS: dict[str, Callable] = {}
ENTRIES = sorted({entry for names in FENCES.values() for name in names for entry in leans_on(PACKAGE / name)})


def contract(*entries: str):
    def keep(function: Callable) -> Callable:
        CONTRACTS.update(dict.fromkeys(entries, function))
        return function

    return keep


@pytest.mark.parametrize("entry", ENTRIES)
def test_contract(entry, tmp_path):
    check = CONTRACTS[entry]
    check(**{name: {"entry": entry, "tmp_path": tmp_path}[name] for name in inspect.signature(check).parameters})


def test_every_contract_is_of_an_entry():
    assert sorted(CONTRACTS) == ENTRIES


def parameters(function: Callable) -> list[str]:
    return list(inspect.signature(function).parameters)


def found(entry: str):
    """The thing of this name: a module's, or of a class in one."""
    parts = entry.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            thing = __import__(".".join(parts[:length]), fromlist=["_"])
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            thing = inspect.getattr_static(thing, name) if inspect.isclass(thing) else getattr(thing, name)
        return thing
    raise ModuleNotFoundError(entry)


AUTO = "transformers.models.auto"


@contract(f"{AUTO}.video_processing_auto.AutoVideoProcessor")
def _(entry):
    assert {"config_class", "video_processor_class"} <= set(parameters(found(entry).register))


@contract(f"{AUTO}.image_processing_auto.AutoImageProcessor")
def _(entry):
    assert {"config_class", "image_processor_classes"} <= set(parameters(found(entry).register))


@contract("transformers.AutoImageProcessor", "transformers.AutoVideoProcessor")
def _(entry):
    """What this package writes there is what others import from there."""
    import transformers_owl

    name = entry.rpartition(".")[2]
    module = {"AutoImageProcessor": "image_processing_auto", "AutoVideoProcessor": "video_processing_auto"}[name]
    assert f"{transformers_owl.__name__}.library" in sys.modules
    assert getattr(transformers, name) is found(f"{AUTO}.{module}.{name}")


@contract("transformers.pipelines.PIPELINE_REGISTRY")
def _(entry):
    assert {"task", "pipeline_class", "pt_model", "type"} <= set(parameters(found(entry).register_pipeline))


@contract(f"{AUTO}.tokenization_auto.TOKENIZER_MAPPING_NAMES")
def _(entry):
    assert found(entry)["gpt2"] == "GPT2Tokenizer"


@contract(f"{AUTO}.tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS")
def _(entry):
    """A set of model types, read when a tokenizer is loaded."""
    types = found(entry)
    assert isinstance(types, set) and all(isinstance(kind, str) for kind in types)
    loading = inspect.getsource(found(f"{AUTO}.tokenization_auto.AutoTokenizer").from_pretrained)
    assert "in MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS" in loading


@contract(
    f"{AUTO}.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    f"{AUTO}.modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
)
def _(entry):
    assert found(entry)["llava"] == "LlavaForConditionalGeneration"


@contract("transformers.cli.serve.Serve")
def _(entry):
    """It imports what is put there while it starts, and gives the model by name."""
    source = inspect.getsource(found(entry).__init__)
    for line in ("import ModelManager", "import build_server", "force_model=force_model", "enable_cors=enable_cors"):
        assert line in source


@contract("transformers.cli.serving.model_manager.ModelManager")
def _(entry):
    assert "force_model" in parameters(found(entry).__init__)
    assert {"get_quantization_config", "process_model_name", "load_model_and_processor"} <= set(dir(found(entry)))


@contract(
    "transformers.cli.serving.model_manager.ModelManager._load_model",
    "transformers.cli.serving.model_manager.ModelManager._load_processor",
)
def _(entry):
    assert parameters(found(entry))[1] == "model_id_and_revision"


@contract("transformers.cli.serving.server.build_server")
def _(entry):
    assert parameters(found(entry))[0] == "model_manager" and "enable_cors" in parameters(found(entry))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, labels):
        return {"loss": (self.weight - x).pow(2).mean(), "logits": x}


def small_trainer(cls: type[Trainer], folder: Path, **options) -> Trainer:
    """Three steps of training, with a checkpoint after each."""
    settings = {"max_steps": 3, "save_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True, **options}
    rows = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 6
    return cls(Small(), TrainingArguments(str(folder), **settings), train_dataset=rows, eval_dataset=rows)


@contract("transformers.Trainer._save_checkpoint", "transformers.Trainer._get_output_dir")
def _(entry, tmp_path):
    """All of a checkpoint is written by the one into the folder that the other says, in `checkpoint-STEP`."""
    names = parameters(Trainer._save_checkpoint), parameters(Trainer._get_output_dir)
    assert names == (["self", "model", "trial"], ["self", "trial"])

    class Elsewhere(Trainer):
        def _get_output_dir(self, trial):
            return super()._get_output_dir(trial) + ("/aside" if self.saving else "")

        def _save_checkpoint(self, model, trial):
            self.saving = True
            super()._save_checkpoint(model, trial)
            self.saving = False
            step = self.state.global_step
            assert [path.name for path in tmp_path.iterdir()] == ["aside"]
            assert TrainerState.load_from_json(str(tmp_path / f"aside/checkpoint-{step}/trainer_state.json"))
            assert (tmp_path / f"aside/checkpoint-{step}/rng_state.pth").exists()

    Elsewhere.saving = False
    small_trainer(Elsewhere, tmp_path).train()
    assert len(list((tmp_path / "aside").iterdir())) == 3


@contract("transformers.Trainer._push_from_checkpoint")
def _(tmp_path):
    """Called with a checkpoint's folder within the save, where `push_to_hub` is set; it asks for that by itself."""
    pushed = []

    class Pusher(Trainer):
        def init_hf_repo(self, *_, **__):
            pass

        def _push_from_checkpoint(self, checkpoint_folder):
            pushed.append(checkpoint_folder)

    trainer = small_trainer(Pusher, tmp_path, max_steps=1)
    trainer.train()
    assert pushed == []
    trainer.args.push_to_hub = True
    trainer._save_checkpoint(trainer.model, None)
    assert pushed == [str(tmp_path / "checkpoint-1")]


@contract("transformers.Trainer._load_from_checkpoint")
def _(tmp_path):
    trainer = small_trainer(Trainer, tmp_path)
    trainer.train()
    trained = trainer.model.weight.item()
    nn.init.zeros_(trainer.model.weight)
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-3"))
    assert trainer.model.weight.item() == trained != 0


@contract("transformers.Trainer._load_optimizer_and_scheduler", "transformers.Trainer._load_rng_state")
def _(entry, tmp_path):
    """Called with the checkpoint's folder when a run goes on, and no error tells of a file that is not there."""
    method, called = entry.rpartition(".")[2], []

    def load(self, checkpoint):
        called.append(checkpoint)
        getattr(Trainer, method)(self, checkpoint)

    small_trainer(Trainer, tmp_path).train()
    for path in (tmp_path / "checkpoint-2").glob("*.pt*"):
        path.unlink()
    checkpoint = str(tmp_path / "checkpoint-2")
    small_trainer(type("Resumed", (Trainer,), {method: load}), tmp_path).train(resume_from_checkpoint=checkpoint)
    assert called == [checkpoint]


@contract("transformers.PreTrainedModel._keep_in_fp32_modules_strict")
def _(tmp_path):
    small_llama().save_pretrained(tmp_path)
    kept = type("Kept", (LlamaForCausalLM,), {"_keep_in_fp32_modules_strict": ["lm_head"]})
    for dtype in (torch.bfloat16, torch.float16):
        model = kept.from_pretrained(tmp_path, dtype=dtype)
        assert (model.lm_head.weight.dtype, model.model.norm.weight.dtype) == (torch.float32, dtype)


@contract("transformers.Trainer._load_best_model")
def _(tmp_path):
    """What `best_model_checkpoint` names is loaded; it names where a checkpoint was written, where that is the best."""
    options = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "greater_is_better": True}
    trainer = small_trainer(Trainer, tmp_path, **options, metric_for_best_model="loss", learning_rate=0.1)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    best = trainer.model.weight.item()
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-3")
    trainer._load_best_model()
    assert trainer.model.weight.item() > best > 0


@contract("transformers.Seq2SeqTrainer._pad_tensors_to_max_len")
def _(entry):
    """Nothing but padding, which what was generated goes through on its way out."""
    assert parameters(found(entry)) == ["self", "tensor", "max_length"]
    source = inspect.getsource(Seq2SeqTrainer.prediction_step)
    assert "generated_tokens = self._pad_tensors_to_max_len(generated_tokens, " in source


@contract("transformers.trainer_utils.get_last_checkpoint")
def _(entry, tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "unfinished"):
        (tmp_path / name).mkdir()
    assert found(entry)(str(tmp_path)) == str(tmp_path / "checkpoint-10")


@contract("transformers.trainer_utils.rotate_checkpoints")
def _(entry, tmp_path):
    """The last ones stay, and the best."""
    for number in range(1, 5):
        (tmp_path / f"checkpoint-{number}").mkdir()
    found(entry)(str(tmp_path), 2, str(tmp_path / "checkpoint-1"), use_mtime=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-4"]
    assert parameters(found(entry))[:3] == ["output_dir", "save_total_limit", "best_model_checkpoint"]


def small_llama() -> LlamaForCausalLM:
    sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, pad_token_id=0, attn_implementation="sdpa"))


@contract("transformers.modeling_layers.GradientCheckpointingLayer")
def _(entry):
    names = [name for name, module in small_llama().named_modules() if isinstance(module, found(entry))]
    assert names == ["model.layers.0", "model.layers.1"]


@contract("transformers.utils.chat_template_utils.render_jinja_template")
def _(entry):
    """Spans are of characters, of what stands in `generation`."""
    template = "{% for m in messages %}{{ m.content }}{% generation %}{{ bos_token }}yes{% endgeneration %}{% endfor %}"
    texts, spans = found(entry)(
        conversations=[[{"role": "user", "content": "sure?"}]],
        chat_template=template,
        return_assistant_tokens_mask=True,
        bos_token="!",
    )
    assert texts == ["sure?!yes"]
    assert [[tuple(span) for span in each] for each in spans] == [[(5, 9)]]


@contract("webdataset.shardlists.expand_urls")
def _(entry):
    pytest.importorskip("webdataset")
    assert found(entry)("a/{08..10}.tar") == ["a/08.tar", "a/09.tar", "a/10.tar"]


@contract("webdataset.tariterators.group_by_keys")
def _(entry):
    pytest.importorskip("webdataset")
    files = [{"fname": name, "data": name.encode(), "__url__": "s.tar"} for name in ("a/1.jpg", "a/1.TXT", "2.seg.png")]
    assert list(found(entry)(files)) == [
        {"__key__": "a/1", "__url__": "s.tar", "jpg": b"a/1.jpg", "txt": b"a/1.TXT"},
        {"__key__": "2", "__url__": "s.tar", "seg.png": b"2.seg.png"},
    ]


@contract("datasets: state.json")
def _(tmp_path):
    datasets = pytest.importorskip("datasets")
    from transformers_owl.training.library import is_saved_dataset

    assert not is_saved_dataset(tmp_path)
    datasets.Dataset.from_list([{"a": 1}]).save_to_disk(tmp_path)
    assert is_saved_dataset(tmp_path)


@contract("peft: names of parameters")
def _():
    peft = pytest.importorskip("peft")
    from transformers_owl.mplug_owl.weights_mplug_owl import WRAPPER
    from transformers_owl.training.library import FROZEN_COPY, LORA, TRAINED_COPY

    model = small_llama()
    plain = set(dict(model.named_parameters()))
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    names = list(dict(peft.get_peft_model(model, config).named_parameters()))
    assert all(name.startswith(WRAPPER) for name in names)
    assert sum(LORA in name for name in names) == 4
    (copied,) = [name for name in names if FROZEN_COPY in name]
    assert copied.removeprefix(WRAPPER).replace(f".{FROZEN_COPY}", "") in plain
    (trained,) = [name for name in names if TRAINED_COPY in name]
    assert trained.removeprefix(WRAPPER).replace(TRAINED_COPY, "") in plain


@contract("transformers.PreTrainedConfig._attn_implementation")
def _():
    model = small_llama()
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"


@contract("torch.ops.mkldnn._linear_pointwise")
def _():
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    from transformers_owl.inference.library import onednn_linear

    input, weight, bias = torch.randn(3, 5), torch.randn(4, 5), torch.randn(4)
    for given in (None, bias):
        expected = nn.functional.linear(input, weight, given)
        torch.testing.assert_close(onednn_linear(input, weight, given), expected)


@contract("torch._inductor.config")
def _():
    """Both settings exist, and the one is asked for while code is traced."""
    from transformers_owl.inference.library import inductor_settings

    asked = []

    def backend(graph, inputs):
        asked.append((len(inputs), torch._inductor.config.freezing, torch._inductor.config.cpp_wrapper))
        return graph.forward

    model = Small()
    model.compile(backend=backend)
    with torch.no_grad(), inductor_settings(freezing=True, cpp_wrapper=True):
        model(torch.ones(1), None)
    # Frozen weights are no inputs of what is compiled: there is the one that was given.
    assert asked == [(1, True, True)]
    assert not torch._inductor.config.freezing


@contract("transformers.utils.find_adapter_config_file")
def _(entry, tmp_path):
    assert found(entry)(str(tmp_path)) is None
    (tmp_path / "adapter_config.json").write_text(json.dumps({}))
    assert found(entry)(str(tmp_path)) == str(tmp_path / "adapter_config.json")


@contract("gradio: requests of a page")
def _():
    """Gradio answers what passes the gate."""
    gradio = pytest.importorskip("gradio")
    from starlette.routing import Match, Router

    from transformers_owl import pages

    with gradio.Blocks(analytics_enabled=False) as page:
        gradio.Textbox()
    router: Router = gradio.routes.App.create_app(page).router

    def is_known(method: str, path: str) -> bool:
        scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
        return any(route.matches(scope)[0] == Match.FULL for route in router.routes)

    below = [prefix + "a" for prefix in (*pages.READ_BELOW, pages.FILE)]
    assert [path for path in (*pages.READ, *below) if not is_known("GET", path)] == []
    assert [path for path in (*pages.CALLED, pages.UPLOAD) if not is_known("POST", path)] == []


@contract("gradio: files in a request")
def _():
    gradio = pytest.importorskip("gradio")
    file = gradio.FileData(path="/a/b.png", meta={"_type": "gradio.FileData"})
    assert file.path == "/a/b.png"
    assert file.url is None
    assert gradio.File(type="filepath").preprocess(file) == "/a/b.png"


@contract("gradio: GRADIO_TEMP_DIR")
def _(tmp_path):
    gradio = pytest.importorskip("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
        (tmp_path / "from").mkdir()
        (tmp_path / "from" / "a.txt").write_text("a")
        assert str(tmp_path) == gradio.File().GRADIO_CACHE
        assert Path(gradio.routes.App.create_app(gradio.Blocks()).uploaded_file_dir) == tmp_path


@contract("gradio: uploads")
def _(tmp_path):
    gradio = pytest.importorskip("gradio")
    from starlette.formparsers import MultiPartException

    sent, answers = [], []
    head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\nbegins'
    headers = [(b"content-type", b"multipart/form-data; boundary=edge"), (b"content-length", b"1000")]
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": headers, "query_string": b""}

    async def receive():
        if not sent:
            sent.append(head)
            return {"type": "http.request", "body": head, "more_body": True}
        assert len(list(tmp_path.iterdir())) == 1
        raise MultiPartException("It ended early.")

    async def send(message):
        answers.append(message)

    page = gradio.Blocks()
    page.max_file_size = None  # as `launch` sets it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
        asyncio.run(gradio.routes.App.create_app(page)(scope, receive, send))
    assert list(tmp_path.iterdir()) == []
    assert answers[0]["status"] == 400


@contract("gradio.Blocks.launch")
def _(entry):
    pytest.importorskip("gradio")
    given = {
        "server_name", "server_port", "theme", "footer_links", "run_history", "ssr_mode", "allowed_paths", "app_kwargs",
        "prevent_thread_lock", "css", "js", "max_file_size", "quiet", "state_session_capacity",
    }  # fmt: skip
    assert given <= set(parameters(found(entry)))


@contract(
    "lmms_eval.models.registry_v2.ModelManifest",
    "lmms_eval.api.model.lmms",
    "lmms_eval.api.instance.GenerationResult",
)
def _(entry):
    pytest.importorskip("lmms_eval")
    names = {"ModelManifest": {"model_id", "simple_class_path"}, "GenerationResult": {"output"}, "lmms": set()}
    assert names[entry.rpartition(".")[2]] <= set(parameters(found(entry)))


VLLM = "vllm.model_executor.models.transformers"
VLLM_PARAMETERS = {
    "_create_hf_to_vllm_mapper": ["self"],
    "recursive_replace": ["self"],
    "configure_mm_token_handling": ["self", "vocab_size", "mm_token_ids"],
    "compute_logits": ["self", "hidden_states"],
    "recursive_replace_linear": ["model", "quant_config", "prefix"],
    "get_default_tok_params": ["self"],
    "get_image_size_with_most_features": ["self"],
}


@contract(*(entry for entry in ENTRIES if entry.startswith("vllm.") and entry.rpartition(".")[2] in VLLM_PARAMETERS))
def _(entry):
    pytest.importorskip("vllm")
    assert parameters(found(entry)) == VLLM_PARAMETERS[entry.rpartition(".")[2]]


@contract(f"{VLLM}.TransformersMultiModalForCausalLM._from_config_kwargs")
def _(entry):
    pytest.importorskip("vllm")
    assert type(found(entry)).__name__ == "cached_property"


@contract(f"{VLLM}.TransformersMultiModalForCausalLM.logits_processor")
def _(entry):
    pytest.importorskip("vllm")
    assert {"scale", "soft_cap"} <= set(
        parameters(found("vllm.model_executor.layers.logits_processor.LogitsProcessor"))
    )


@contract(f"{VLLM}.MultiModalProcessingInfo._is_video_model")
def _(entry):
    """Asked for before a request with a video is taken, and kept."""
    pytest.importorskip("vllm")
    assert type(found(entry)).__name__ == "cached_property"


@contract(
    f"{VLLM}.TransformersMultiModalForCausalLM",
    f"{VLLM}.MultiModalProcessingInfo",
    f"{VLLM}.MultiModalProcessor",
    f"{VLLM}.MultiModalDummyInputsBuilder",
)
def _(entry):
    pytest.importorskip("vllm")
    assert inspect.isclass(found(entry))


@contract("vllm.config.ModelConfig.get_vocab_size")
def _(entry):
    """Asked for by what makes masks."""
    pytest.importorskip("vllm")
    assert parameters(found(entry)) == ["self"]
    runner = found("vllm.v1.worker.gpu_model_runner.GPUModelRunner")
    assert "model_config.get_vocab_size()" in inspect.getsource(runner.__init__)


@contract("vllm.multimodal.parse.ImageSize")
def _(entry):
    pytest.importorskip("vllm")
    assert found(entry)._fields == ("width", "height")


@contract("vllm.multimodal.MULTIMODAL_REGISTRY")
def _(entry):
    pytest.importorskip("vllm")
    assert {"info", "dummy_inputs"} <= set(parameters(found(entry).register_processor))


@contract("transformers.PreTrainedModel._keys_to_ignore_on_load_unexpected")
def _():
    """Patterns of one model; there may be none."""
    assert not small_llama()._keys_to_ignore_on_load_unexpected


# The Hub folder: parameters that are passed by name, methods that are overridden, attributes that the library reads.
PARAMETERS = {
    "transformers.conversion_mapping.register_checkpoint_conversion_mapping": {"overwrite"},
    "transformers.integrations.peft.maybe_load_adapters": {"download_kwargs", "adapter_kwargs"},
    "transformers.masking_utils.create_masks_for_generate": {"config", "inputs_embeds", "attention_mask"},
    "transformers.modeling_utils.load_state_dict": {"map_location"},
    "transformers.utils.find_adapter_config_file": {"model_id"},
    "transformers.utils.torch_compilable_check": {"cond", "msg"},
    "transformers.utils.chat_template_utils.render_jinja_template": {
        "conversations", "chat_template", "return_assistant_tokens_mask", "add_generation_prompt"
    },
    "transformers.utils.hub.cached_file": {"path_or_repo_id", "filename"},
    "transformers.utils.hub.get_checkpoint_shard_files": {"pretrained_model_name_or_path", "index_filename"},
    "transformers.utils.output_capturing.capture_outputs": {"tie_last_hidden_states"},
    "transformers.models.auto.tokenization_auto.get_tokenizer_config": {"pretrained_model_name_or_path"},
    "transformers.ProcessorMixin._process_images": {"images"},
    "transformers.ProcessorMixin._process_videos": {"videos"},
    "transformers.ProcessorMixin._get_arguments_from_pretrained": {"pretrained_model_name_or_path", "processor_dict"},
    "transformers.ImageTextToTextPipeline._forward": {"model_inputs", "generate_kwargs"},
    "transformers.ImageTextToTextPipeline._sanitize_parameters": {"generate_kwargs"},
    "transformers.PreTrainedModel._init_weights": {"module"},
    "transformers.PreTrainedModel._load_pretrained_model": {
        "model", "state_dict", "checkpoint_files", "load_config", "expected_keys",
    },
    "transformers.PreTrainedModel._from_config": {"config"},
}  # fmt: skip


@contract(*PARAMETERS)
def _(entry):
    thing = found(entry)
    thing = getattr(thing, "__func__", thing)
    assert PARAMETERS[entry] <= set(parameters(thing))


@contract(
    *(
        f"transformers.PreTrainedModel.{name}"
        for name in (
            "_can_compile_fullgraph", "_can_record_outputs", "_fsdp_plan", "_keys_to_ignore_on_load_unexpected",
            "_no_split_modules", "_skip_keys_device_placement", "_supports_attention_backend", "_supports_flash_attn",
            "_supports_flex_attn", "_supports_sdpa", "_tied_weights_keys", "_tp_plan",
        )
    )
)  # fmt: skip
def _(entry):
    """The library reads it: some class of its own sets it, or its base class names it."""
    name = entry.rpartition(".")[2]
    module = inspect.getsource(transformers.modeling_utils) + inspect.getsource(
        transformers.models.llama.modeling_llama
    )
    bases = "".join(inspect.getsource(base) for base in transformers.PreTrainedModel.__mro__[:-1])
    assert name in module + bases


@contract("transformers.PreTrainedConfig._attn_implementation")
def _():
    model = tiny_llama()
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            eos_token_id=19, bos_token_id=1, pad_token_id=0,
        )
    ).eval()  # fmt: skip


@contract(
    "transformers.GenerationMixin._get_logits_processor",
    "transformers.GenerationMixin._get_candidate_generator",
    "transformers.GenerationMixin._expand_inputs_for_generation",
    "transformers.generation.candidate_generator.PromptLookupCandidateGenerator",
)
def _(entry):
    """`generate` calls the method, and takes what comes back; prompt lookup knows the number of columns."""
    name = {"P": "_get_candidate_generator"}.get(entry.rpartition(".")[2][0], entry.rpartition(".")[2])
    model, seen = tiny_llama(), []
    method = getattr(model, name)

    def called(*args, **kwargs):
        seen.append(method(*args, **kwargs))
        return seen[-1]

    setattr(model, name, called)
    options = {"prompt_lookup_num_tokens": 2} if name == "_get_candidate_generator" else {"num_beams": 2}
    model.generate(torch.tensor([[1, 5, 6, 5, 6]]), max_new_tokens=3, **options)
    assert seen
    if name == "_get_candidate_generator":
        assert type(seen[0]).__name__ == "PromptLookupCandidateGenerator" and seen[0].vocab_size == 20
    elif name == "_get_logits_processor":
        assert isinstance(seen[0], transformers.LogitsProcessorList)
    else:
        assert seen[0][0].tolist() == [[1, 5, 6, 5, 6]] * 2


@contract("transformers.ProcessorMixin._get_num_multimodal_tokens")
def _():
    """Engines call it on a processor; the library's own processors of images have it."""
    assert {"image_sizes"} <= set(parameters(transformers.LlavaProcessor._get_num_multimodal_tokens))


@contract("transformers.video_processing_utils.VideoProcessorMixin")
def _():
    """It, or the class that did its work before 5.19, saves and loads settings without torchvision."""
    from transformers_owl.mplug_owl.library_mplug_owl import VideoProcessorMixin

    assert {"from_pretrained", "save_pretrained", "get_video_processor_dict"} <= set(dir(VideoProcessorMixin))


@contract("transformers.models.auto.tokenization_auto.tokenizer_class_from_name")
def _(entry):
    assert issubclass(found(entry)("LlamaTokenizer"), transformers.PreTrainedTokenizerBase)


@contract("transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS")
def _(entry):
    assert callable(found(entry).get_interface("sdpa", None))
    assert found(entry).get_interface("eager", len) is len


@contract("transformers.initialization")
def _(entry):
    weight = torch.empty(100)
    importlib.import_module(entry).trunc_normal_(weight, std=1e-3)
    assert 0 < weight.abs().max() < 0.01


@contract(
    "transformers.core_model_loading.ConversionOps",
    "transformers.core_model_loading.WeightConverter",
    "transformers.core_model_loading.WeightRenaming",
    "transformers.image_processing_backends.PilBackend",
    "transformers.modeling_layers.GradientCheckpointingLayer",
    "transformers.tokenization_utils_tokenizers.TokenizersBackend",
    "transformers.utils.generic.can_return_tuple",
    "transformers.utils.generic.merge_with_config_defaults",
)
def _(entry):
    """Parity tests show what it does; here, that it is where it was."""
    assert callable(found(entry))


@contract("transformers.quantizers.quantizers_utils.should_convert_module")
def _(entry):
    """Patterns fit from the beginning, or are the end."""
    skipped = {"b": False, "a": True, "a.b": True, "b.c": True, ".*c": True, "b.d": False, None: False}
    for pattern, is_skipped in skipped.items():
        patterns = None if pattern is None else ["x", pattern]
        assert found(entry)("a.b.c", patterns) is not is_skipped, pattern


@contract("transformers.integrations.deepspeed.is_deepspeed_zero3_enabled")
def _(entry):
    assert found(entry)() is False


@contract(
    "deepspeed.runtime.zero.partition_parameters.shutdown_init_context",
    "deepspeed.runtime.zero.partition_parameters.restore_init_context",
)
def _(entry):
    pytest.importorskip("deepspeed")
    assert parameters(found(entry)) == []


@contract("torchao.prototype.safetensors.safetensors_support.flatten_tensor_state_dict")
def _(entry):
    """Plain tensors under names made of the weight's, and for each weight a text that the values do not change."""
    quantization = pytest.importorskip("torchao.quantization")
    from transformers_owl.conversion.library import flatten_torchao

    said = []
    for scale in (1, 2):
        layer = nn.Linear(8, 4, bias=False)
        nn.init.constant_(layer.weight, scale)
        quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
        tensors, metadata = flatten_torchao({"layer.weight": layer.weight})
        assert all(name.startswith("layer._weight_") for name in tensors)
        assert json.loads(metadata["tensor_names"]) == ["layer.weight"]
        said.append(metadata["layer.weight"])
    assert said[0] == said[1]


@contract("huggingface_hub.file_download.http_get")
def _(entry):
    """What it does at a server is tried in tests/evaluation/test_check.py."""
    names = ["url", "temp_file", "resume_size", "headers", "expected_size", "displayed_filename"]
    assert parameters(found(entry))[:6] == names


@contract("huggingface_hub.errors.HfHubHTTPError")
def _(entry):
    """The client's errors of connections have the same base."""
    base = found(entry).__bases__[0]
    client = importlib.import_module(base.__module__.partition(".")[0])
    assert base is client.HTTPError and issubclass(client.ConnectError, base)


@contract(*(name for name in leans_on(PACKAGE / "conversion/library.py") if name not in CONTRACTS))
def _(entry):
    """The tests of conversion show what it does, on whole checkpoints; here, that it is where it was."""
    assert callable(found(entry)) or isinstance(found(entry), (str, dict))

"""The library's own models, tiny and with random weights, in folders; and an OpenAI-style endpoint."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
TEXT = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 512,
}  # fmt: skip
QFORMER = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "encoder_hidden_size": 16,
}  # fmt: skip
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message.role | upper }}: {% for part in message.content %}"
    "{{ '<image>\n' if part.type == 'image' else part.text }}{% endfor %} {% endfor %}"
    "{{ 'ASSISTANT:' if add_generation_prompt }}"
)


def tokenizer(*extra):
    """Bytes as tokens, so that every text has its own ids."""
    raw = Tokenizer(models.BPE(byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<pad>", "<s>", "</s>", *extra]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator([], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, vocab_size=300))
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", extra_special_tokens=list(extra)
    )


def image_processor(cls):
    return cls(size={"height": 28, "width": 28}, crop_size={"height": 28, "width": 28})


def save(folder, model, processor):
    torch.manual_seed(0)
    model.apply(lambda module: [torch.nn.init.normal_(own, std=0.5) for own in module.parameters(recurse=False)])
    model.generation_config.do_sample = True  # as some checkpoints say: answers are greedy all the same
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def llava(folder):
    words = tokenizer("<image>")
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={"model_type": "llama", "vocab_size": len(words), **TEXT},
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )
    processor = transformers.LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    return save(folder, transformers.LlavaForConditionalGeneration(config), processor)


def blip2(folder, decoder="opt"):
    words = tokenizer("<image>")
    text = {"model_type": "opt", "vocab_size": len(words), "ffn_dim": 24, "word_embed_proj_dim": 16, **TEXT}
    if decoder == "t5":
        text = {
            "model_type": "t5", "vocab_size": len(words), "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2,
            "num_heads": 2, "decoder_start_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
        }  # fmt: skip
    config = transformers.Blip2Config(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config=text,
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    processor = transformers.Blip2Processor(
        image_processor(transformers.BlipImageProcessorPil), words, num_query_tokens=4
    )
    return save(folder, transformers.Blip2ForConditionalGeneration(config), processor)


def instructblip(folder):
    words = tokenizer("<image>")
    config = transformers.InstructBlipConfig(
        vision_config=VISION,
        qformer_config={**QFORMER, "vocab_size": len(words)},
        text_config={"model_type": "llama", "vocab_size": len(words), **TEXT},
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    processor = transformers.InstructBlipProcessor(
        image_processor(transformers.BlipImageProcessorPil), words, tokenizer(), num_query_tokens=4
    )
    return save(folder, transformers.InstructBlipForConditionalGeneration(config), processor)


def text_model(folder):
    words = tokenizer()
    return save(folder, transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(words), **TEXT)), words)


@contextmanager
def endpoint(reply, delay=0.0):
    """
    Serves `reply(messages)`, a text or a status, in OpenAI's form, or bytes as they are; yields its URL and the
    requests that came.
    """
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(request)
            time.sleep(delay)
            said = reply(request["messages"])
            status, message = (200, {"role": "assistant", "content": said}) if not isinstance(said, int) else (said, {})
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            body = {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": request["model"],
                "choices": [choice],
            }
            if status != 200:
                body = {"error": {"message": "no such model"}}
            data = said if isinstance(said, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if data.startswith(b"<") else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda request, address: None  # clients that stopped waiting
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

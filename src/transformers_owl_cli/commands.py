"""The console command `transformers-owl`. Heavy imports happen inside the commands."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from . import captions, conversion
from .quiet import keep_quiet
from .shared import errors


# Plain text: Rich would add half as much again to the time that a help text takes.
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def print_version(asked: bool) -> None:
    from importlib.metadata import version

    if asked:
        print(version("transformers-owl"))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """mPLUG-Owl: a language model that sees."""
    keep_quiet()


OwlEval = Annotated[Path | None, typer.Option("--owleval", help="OwlEval's folder with questions.jsonl and cases/.")]
Vicuna = Annotated[Path | None, typer.Option("--vicuna", help="File of text-only questions in Vicuna's format.")]
AnswerFiles = Annotated[list[Path], typer.Argument(metavar="ANSWERS...", help="Answer files, one per system.")]
Endpoint = Annotated[str | None, typer.Option(help="Ask MODEL at this OpenAI-style URL, such as http://host:8000/v1.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds to wait for an answer from the endpoint.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Maximum new tokens of an answer.")]
Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu (default: a GPU if there is one).")]
Template = Annotated[
    str | None,
    typer.Option(help="original, language_model (its tokenizer's own) or a Jinja file (default: the checkpoint's)."),
]
Dtype = Annotated[str, typer.Option(help="Dtype of the weights: auto (as stored), bfloat16, float16 or float32.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")]
LoadIn4bit = Annotated[
    bool, typer.Option("--load-in-4bit", help="Quantise the language model to 4 bits while loading.")
]
Fast = Annotated[
    bool,
    typer.Option("--fast", help="Use the fastest path on this device; the first answer may take minutes to compile."),
]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run code in the model's folder.")]


# Of a recipe: names, in groups, with their defaults. A test compares it with the settings themselves, which need torch.
RECIPE = """\
\b
Settings of a recipe, with their defaults:
  model        model, stage=instruct, trains, lora_on, learning_rates, quantize=none
  LoRA         lora_r=8, lora_alpha=32, lora_dropout=0.05
  data         data, eval_data, metrics=[], global_batch_size, max_length=1024, packing=False, num_frames, chat_template
  images       max_crops, crop=[0.5, 1.0], flip=False
  bad data     on_error=stop, max_skipped=0.05
  speed        attn_implementation, compile_layers=False, peak_tflops
  to watch     watch=[], watch_prompt
"""


Owl = Annotated[
    str | None,
    typer.Option(
        help="Folder or Hub repository; those of the original release work, too.",
        show_default="the miniature that comes with this package",
    ),
]
Images = Annotated[list[str] | None, typer.Argument(metavar="[IMAGE]...", help="Image files or URLs.")]
Longest = Annotated[int | None, typer.Option(min=1, help="Maximum new tokens of an answer (default: the model's).")]


@app.command()
@errors("train")
def caption(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE]...",
            help="Files, URLs, folders, patterns, tar shards, Parquet files, hf://datasets/OWNER/NAME, lists of names "
            "(.txt, .jsonl, .csv), or - for a list on standard input (default: five drawings).",
        ),
    ] = None,
    model: Owl = None,
    prompt: Annotated[str, typer.Option(help="Question about each image.")] = "Describe the picture.",
    prompts: Annotated[Path | None, typer.Option(help="File with several prompts, one per line.")] = None,
    score: Annotated[
        str | None, typer.Option(help="Write the likelihoods of these answers, such as 'Yes|No', instead of an answer.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="Also write the answers to NAME.jsonl, NAME.csv, NAME.parquet, {}.txt (beside each image) or "
            "FOLDER/{}.tar (shards with captions)."
        ),
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="Keep answers to other questions in the output.")] = False,
    on_error: Annotated[str, typer.Option(help="What to do with unreadable files: skip or stop.")] = "skip",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 8,
    max_new_tokens: Longest = None,
    device: Device = None,
    dtype: Dtype = "auto",
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames per video (default: the model's, 4).")] = None,
    chat_template: Template = None,
    load_in_4bit: LoadIn4bit = False,
    fast: Fast = False,
    image_column: Annotated[str, typer.Option(help="Image column of Parquet files and datasets.")] = "image",
    split: Annotated[str, typer.Option(help="Split of datasets.")] = "train",
    engine: Annotated[str, typer.Option(help="generate (the model's own) or vllm.")] = "generate",
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on Ray: local, auto (this cluster) or ray://HOST:PORT.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --ray, number of models (default: one per GPU, else per CPU).")
    ] = None,
) -> None:
    """Ask about images or videos, few or millions, and print or write the answers. The same command resumes a run."""
    from transformers_owl import MINIATURE
    from transformers_owl.collections.engines import Settings, check_device
    from transformers_owl.collections.inputs import find_parts
    from transformers_owl.demo.caption import samples
    from transformers_owl.demo.desk import about

    asked = captions.read_prompts(prompts) if prompts else (prompt,)
    answers = () if score is None else tuple(score.split("|"))
    settings = Settings(
        str(model or MINIATURE), asked, answers, batch_size, max_new_tokens, engine, device, dtype, num_frames,
        chat_template, load_in_4bit, fast,
    )  # fmt: skip
    captions.check(settings, output, on_error, ray, workers)
    if ray is None:
        check_device(settings)
    parts = find_parts(images or samples(), image_column, split)
    if not images:
        name = about(model or MINIATURE).name
        typer.echo(f"Asking {name} about the five sample drawings of this package. Name files to ask about.", err=True)
    captions.run(settings, parts, output, append, on_error, ray, workers)


@app.command()
@errors()
def chat(
    images: Images = None,
    model: Owl = None,
    system: Annotated[str | None, typer.Option(help="System prompt instead of the original's.")] = None,
    max_new_tokens: Longest = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy decoding; higher values vary more.")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Sample from the likeliest tokens of this total.")] = 0.9,
    device: Device = None,
    dtype: Dtype = "auto",
    chat_template: Template = None,
    load_in_4bit: LoadIn4bit = False,
    fast: Fast = False,
) -> None:
    """Chat about images in the terminal. Ctrl-C stops an answer."""
    from transformers_owl import MINIATURE
    from transformers_owl.demo.caption import check_files
    from transformers_owl.demo.desk import about
    from transformers_owl.demo.terminal import TerminalChat
    from transformers_owl.loading import generation_options, load

    check_files(images or [])
    owl, processor = load(model or MINIATURE, device, dtype, chat_template, load_in_4bit, "latency" if fast else None)
    options = generation_options(max_new_tokens, temperature, top_p)
    TerminalChat(owl, processor, options, system, str(about(model or MINIATURE))).run(images or [])


@app.command()
@errors("demo")
def web(
    model: Owl = None,
    endpoint: Endpoint = None,
    host: Annotated[str, typer.Option(help="Host to listen on; 0.0.0.0 admits other machines.")] = "127.0.0.1",
    port: Port = 7860,
    device: Device = None,
    dtype: Dtype = "auto",
    chat_template: Template = None,
    load_in_4bit: LoadIn4bit = False,
    fast: Fast = False,
) -> None:
    """Chat about images in the browser, with a model on this machine or at an endpoint."""
    from transformers_owl import MINIATURE
    from transformers_owl.demo.desk import Desk, OwlDesk, about, at_endpoint
    from transformers_owl.demo.web import serving
    from transformers_owl.loading import load
    from transformers_owl.pages import check_port

    check_port(host, port)
    if endpoint is None:
        name = model or MINIATURE
        desk: Desk = OwlDesk(
            *load(name, device, dtype, chat_template, load_in_4bit, "latency" if fast else None), about(name)
        )
    else:
        if (device, dtype, chat_template, load_in_4bit, fast) != (None, "auto", None, False, False):
            raise ValueError("--endpoint has already loaded its model: leave out the options for loading one.")
        desk = at_endpoint(endpoint, model)
    with serving(desk, host, port) as page:
        print(f"Serving {desk.about.name} at http://{host}:{port} (stop with Ctrl-C)", flush=True)
        page.block_thread()


@app.command()
@errors()
def look(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Files or URLs of images and videos.")],
    output: Annotated[
        Path,
        typer.Option(
            help="Image file to write (.png, .jpg, .webp, ...); for several images NAME-1.png, NAME-2.png, ..."
        ),
    ],
    model: Owl = None,
    prompt: Annotated[str, typer.Option(help="Question about the images.")] = "Describe the picture.",
    word: Annotated[str | None, typer.Option(help="Word of the answer to map (default: the whole answer).")] = None,
    max_new_tokens: Longest = None,
    device: Device = None,
    dtype: Dtype = "auto",
    chat_template: Template = None,
    load_in_4bit: LoadIn4bit = False,
) -> None:
    """Answer a question about images, and draw heat maps of the model's attention."""
    from transformers_owl import MINIATURE
    from transformers_owl.demo.looking import look as answer_and_look

    answer, paths = answer_and_look(
        model or MINIATURE, images, prompt, output, word, max_new_tokens, device, dtype, chat_template, load_in_4bit
    )
    print(answer)
    print(*paths, sep="\n")


@app.command()
@errors("eval", "The answers so far are kept: the same command resumes the run.")
def answer(
    model: Annotated[str, typer.Option(help="Folder, Hub repository, or the endpoint's name of the model.")],
    output: Annotated[Path, typer.Option(help="JSON Lines file for the answers, in OwlEval's format.")],
    owleval: OwlEval = None,
    vicuna: Vicuna = None,
    endpoint: Endpoint = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions per batch.")] = 8,
    max_new_tokens: MaxNewTokens = 512,
    timeout: Timeout = 120,
    device: Device = None,
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    chat_template: Template = None,
    fast: Fast = False,
) -> None:
    """Answer OwlEval's questions, or text-only ones, with any image-text-to-text model."""
    from transformers_owl.evaluation.answering import answer_questions, check_earlier
    from transformers_owl.loading import weights_version

    questions = _questions(owleval, vicuna)
    settings = {"max_new_tokens": max_new_tokens, "dtype": dtype, "chat_template": chat_template}
    check_earlier(output, questions, model, {"weights": weights_version(model), **settings})
    asked = _chat_model(model, endpoint, max_new_tokens, timeout, device, dtype, trust_remote_code, chat_template, fast)
    _follow("answering", answer_questions(asked, questions, output, batch_size), len(questions))
    print(f"{len(questions)} answers are in {output}")


@app.command()
@errors("eval")
def rate(
    answers: AnswerFiles,
    owleval: Annotated[Path, typer.Option("--owleval", help="OwlEval's folder: questions.jsonl and cases/.")],
    ratings: Annotated[Path, typer.Option(help="Ratings file; existing ratings are kept.")],
    host: Annotated[str, typer.Option(help="Host to listen on; 0.0.0.0 admits other machines.")] = "127.0.0.1",
    port: Port = 7861,
) -> None:
    """Rate answers on a page in the browser: blind, in random order, by several raters."""
    from transformers_owl.evaluation.rating_desk import RatingDesk
    from transformers_owl.evaluation.rating_page import launch
    from transformers_owl.evaluation.records import read_owleval, read_systems
    from transformers_owl.pages import check_port

    check_port(host, port)
    questions = read_owleval(owleval)
    launch(RatingDesk(questions, read_systems(answers, questions), ratings), host, port)


@app.command()
@errors("eval", "The ratings so far are kept: the same command resumes the run.")
def judge(
    answers: AnswerFiles,
    model: Annotated[str, typer.Option(help="Judge: folder, Hub repository, or the endpoint's name of a model.")],
    output: Annotated[Path, typer.Option(help="File of the judge's ratings; existing ratings are kept.")],
    owleval: OwlEval = None,
    vicuna: Vicuna = None,
    reference: Annotated[Path | None, typer.Option(help="With --vicuna: reference answers (Table 3).")] = None,
    endpoint: Endpoint = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions per batch.")] = 4,
    max_new_tokens: MaxNewTokens = 1024,
    timeout: Timeout = 120,
    device: Device = None,
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Rate answers with a model, in two orders, and keep its replies."""
    from itertools import chain

    from transformers_owl.evaluation.judging import judge_owleval, judge_pairs
    from transformers_owl.evaluation.records import read_answers, read_systems

    questions = _questions(owleval, vicuna)
    if (vicuna is None) != (reference is None):
        raise ValueError("--reference goes with --vicuna: Table 3 compares answers to text-only questions.")
    systems = read_systems(answers, questions)
    judging = _chat_model(model, endpoint, max_new_tokens, timeout, device, dtype, trust_remote_code)
    if reference is None:
        sheets = judge_owleval(judging, questions, systems, output, batch_size)
        total = 2 * len(questions)
    else:
        other = read_answers(reference, questions)
        pairs = [judge_pairs(judging, questions, one, other, output, batch_size) for one in systems.values()]
        sheets, total = chain.from_iterable(pairs), 2 * len(questions) * len(systems)
    made = _follow("judging", sheets, total)
    unread = sum(all(mark.level is None and mark.score is None for mark in sheet.marks.values()) for sheet in made)
    print(f"{len(made)} ratings are in {output}; {unread} are empty, since all replies were malformed")


@app.command()
@errors("eval")
def score(
    answers: AnswerFiles,
    ratings: Annotated[list[Path], typer.Option(help="Ratings of people or judges; repeat the option for more files.")],
    output: Annotated[Path, typer.Option(help="Folder for the tables as text, CSV, PNG and SVG.")],
    owleval: OwlEval = None,
    vicuna: Vicuna = None,
    reference: Annotated[Path | None, typer.Option(help="With --vicuna: the reference answers of the ratings.")] = None,
    answered_by: Annotated[
        str | None, typer.Option(help="Also make Figure 15: questions that this system answered, such as MMreact.")
    ] = None,
) -> None:
    """Make the paper's Figures 3, 4 and 15 and Tables 2 and 3 from ratings."""
    from transformers_owl.evaluation.paper_tables import score_owleval, score_pairs
    from transformers_owl.evaluation.records import read_systems
    from transformers_owl.evaluation.tables import write_tables

    questions = _questions(owleval, vicuna)
    if (vicuna is None) != (reference is None):
        raise ValueError("--reference goes with --vicuna: Table 3 compares answers to text-only questions.")
    systems = read_systems(answers, questions)
    if reference is None:
        tables, notes = score_owleval(questions, systems, ratings, answered_by)
    else:
        tables, notes = score_pairs(questions, systems, reference, ratings)
    print(write_tables(tables, notes, output), end="")


@app.command()
@errors(kept="Downloaded parts are kept: the same command resumes the download.")
def check(
    model: Annotated[str, typer.Argument(help="Folder, REPO or REPO@REVISION, such as MAGAer13/mplug-owl-llama-7b.")],
    output: Annotated[Path, typer.Option(help="Folder for report.md, report.json and answers.jsonl.")],
    owleval: Annotated[
        Path | None, typer.Option("--owleval", help="OwlEval's folder with cases/ and answer/, to ask its questions.")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="Number of questions to ask.")] = 10,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Download a released model, try it on this machine, and write a report to paste into an issue."""
    from transformers_owl.evaluation.check import check

    is_right = check(model, output, owleval, questions, device, dtype)
    print(f"{output / 'report.md'} is complete{'.' if is_right else ': the logits differ from the reference.'}")
    raise typer.Exit(not is_right)


def _questions(owleval: Path | None, vicuna: Path | None):
    from transformers_owl.evaluation.records import read_owleval, read_vicuna

    if owleval is not None and vicuna is None:
        return read_owleval(owleval)
    if vicuna is not None and owleval is None:
        return read_vicuna(vicuna)
    raise ValueError("Give the questions: either --owleval FOLDER or --vicuna FILE.")


def _chat_model(
    model: str,
    endpoint: str | None,
    max_new_tokens: int,
    timeout: float,
    device: str | None,
    dtype: str,
    trust: bool,
    chat_template: str | None = None,
    fast: bool = False,
):
    from transformers_owl.evaluation.models import Endpoint, LocalModel

    if endpoint is None:
        return LocalModel(model, device, dtype, max_new_tokens, trust, chat_template, fast)
    if fast or chat_template is not None:
        raise ValueError(
            "--chat-template and --fast are for a model loaded here, not for --endpoint's: leave them out."
        )
    return Endpoint(model, endpoint, max_new_tokens, timeout)


def _follow(what: str, results: Iterable, total: int) -> list:
    """All results, with a progress bar."""
    from transformers_owl.progress import track

    return list(track(results, what, total))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    options_metavar="[--NAME VALUE ...]",
    epilog=RECIPE,
)
@errors("train", "The same command resumes from the last checkpoint in output_dir, if there is one.")
def train(
    context: typer.Context,
    recipe: Annotated[Path | None, typer.Argument(help="YAML file as in configs/.", show_default=False)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would train, on which rows, in how many steps, and stop.")
    ] = False,
) -> None:
    """
    Train by a recipe: pretrain, or tune on conversations. An interrupted run resumes from its last checkpoint.

    All settings of a recipe, and all transformers.TrainingArguments, are also options: --model FOLDER
    --learning_rate 1e-4 --max_steps 1000 --output_dir build/run. docs/training.md lists the settings.
    """
    from transformers_owl.training.preview import preview
    from transformers_owl.training.train import train as run

    options = context.args
    if recipe is not None and str(recipe).startswith("--"):
        recipe, options = None, [str(recipe), *options]
    (preview if dry_run else run)(recipe, options)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    options_metavar="MODEL [OPTIONS]",
)
@errors("serve")
def serve(
    context: typer.Context,
    chat_template: Template = None,
    fast: Fast = False,
    host: Annotated[str, typer.Option(help="Host to listen on; 0.0.0.0 admits other machines.")] = "localhost",
    allow_host: Annotated[list[str] | None, typer.Option(help="Further host name of the server.")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="Site whose pages may send requests.")] = None,
    allow_files: Annotated[list[Path] | None, typer.Option(help="Folder whose files requests may name.")] = None,
) -> None:
    """
    Answer OpenAI-style requests over HTTP: `transformers serve` for one mPLUG-Owl, an adapter's too.

    MODEL is by default the miniature. The other options of `transformers serve` work, too. Requests are those of the
    chat API. They may name data: and http(s) URLs; files, and requests from pages of other sites, must be allowed here.
    """
    from transformers_owl import MINIATURE
    from transformers_owl.serving.library import serve as run

    allowed = {"hosts": allow_host or [], "origins": allow_origin or [], "files": allow_files or []}
    run([*context.args, "--host", host], str(MINIATURE), chat_template, {"host": host, **allowed}, fast)


for command in (
    conversion.convert,
    conversion.verify,
    conversion.build,
    conversion.merge,
    conversion.quantize,
    conversion.export,
    conversion.push,
):
    app.command()(command)

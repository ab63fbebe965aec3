"""What the page shows is what the model reads, whatever was sent, stopped, failed, retried, undone and cleared."""

import random
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import PIL.Image
import pytest
import torch
from conftest import GoldenCase

from transformers_owl import MINIATURE, MplugOwlForConditionalGeneration
from transformers_owl.demo import conversation
from transformers_owl.demo.conversation import EMPTY
from transformers_owl.demo.desk import NO_IMAGE, PHOTOGRAPH, About, OwlDesk, about, is_photograph
from transformers_owl.demo.looking import seen_frames
from transformers_owl.demo.rendering import WORD, render, render_answer
from transformers_owl.inference import draw_attention, image_attention, video_attention


ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "src/transformers_owl/demo/pictures"
PHOTOGRAPHS = ROOT / "examples/pictures"


class Shown(HTMLParser):
    """What stands on the page: `(role, names of files, words)` of each turn."""

    def __init__(self, html):
        super().__init__()
        self.turns = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "article":
            self.turns.append([given["class"].split()[1], [], given.get("data-text", "")])
        elif tag == "img":
            self.turns[-1][1].append(given["alt"])

    def handle_data(self, data):
        if self.turns and self.turns[-1][0] == "user":
            self.turns[-1][2] += data


class Browser:
    """A page without a browser: it calls what the real one calls, in its order."""

    def __init__(self, desk):
        self.desk = desk
        self.turns, self.written, self.box = [], "", EMPTY

    def send(self, stop_after=None):
        self.turns, self.box = conversation.send(self.turns, self.box)
        self.answer(stop_after)

    def retry(self, stop_after=None):
        self.turns, self.box = conversation.retry(self.turns, self.box)
        self.answer(stop_after)

    def answer(self, stop_after):
        answers = self.desk.answer(self.turns, length=4)
        for count, (self.turns, self.written) in enumerate(answers):
            if count == stop_after:
                answers.close()
                break
        self.turns, self.box = conversation.settle(self.turns, self.written, self.box)
        self.written = ""

    def undo(self):
        self.turns, self.box = conversation.undo(self.turns, self.box)

    def clear(self):
        self.turns = []

    def shown(self):
        return Shown(render(self.turns, looks=True)).turns


@pytest.fixture(scope="module")
def desk(llama_model, llama_processor):
    return OwlDesk(llama_model, llama_processor, About("a tiny owl"))


@pytest.fixture
def read(desk, monkeypatch):
    """What the model is given, call by call."""
    calls = []
    generate = desk.model.generate

    def spy(**given):
        calls.append((given["input_ids"], given.get("pixel_values")))
        return generate(**given)

    monkeypatch.setattr(desk.model, "generate", spy)
    return calls


def inputs_of(shown, files, processor):
    """The model's inputs for what is shown: errors are for people."""
    chat = []
    for role, names, words in shown:
        if role == "user":
            seen = [{"type": "image", "path": str(files[name])} for name in names]
            chat.append({"role": "user", "content": [*seen, {"type": "text", "text": words}]})
        elif role == "owl":
            chat.append({"role": "assistant", "content": words})
    return processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images by name, one of them broken."""
    folder = tmp_path_factory.mktemp("uploads") / "some"
    folder.mkdir()
    for number in range(4):
        PIL.Image.effect_noise((30, 20 + number), 90).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:200])
    return {path.name: path for path in folder.iterdir()}


QUESTIONS = ["What?", "A <image> of <b>what</b>?", " **two**\nlines\n", "&lt;s&gt; </s> \\n", "", "word " * 2100]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("first", range(0, 200, 50))
def test_what_is_shown_is_what_the_model_reads_after_any_200_sequences(first, desk, files, read, llama_processor):
    answered = given_back = 0
    for seed in range(first, first + 50):
        choose = random.Random(seed)
        browser = Browser(desk)
        for _ in range(choose.randint(1, 4)):
            move = choose.choice(["send", "send", "send", "stop", "stop early", "retry", "undo", "clear"])
            if move in ("undo", "clear"):
                getattr(browser, move)()
                continue
            if move != "retry":
                names = choose.sample(sorted(files), choose.choice([0, 0, 1, 2]))
                browser.box = {"text": choose.choice(QUESTIONS), "files": [str(files[name]) for name in names]}
            typed, before = browser.box, read_by_people(browser)
            getattr(browser, "retry" if move == "retry" else "send")({"stop": 1, "stop early": 0}.get(move))
            after = read_by_people(browser)
            if len(after) > len(before) or (move == "retry" and len(after) == len(before) > 0 and typed == browser.box):
                answered += 1
                ids, pixels = read[-1]
                expected = inputs_of(after[:-1], files, llama_processor)
                assert torch.equal(ids, expected["input_ids"]), (seed, move)
                assert (pixels is None) == ("pixel_values" not in expected)
                assert pixels is None or torch.equal(pixels, expected["pixel_values"])
            elif move != "retry":
                given_back += 1
                assert (browser.box, after) == (typed, before)
        roles = [role for role, *_ in read_by_people(browser)]
        assert roles == ["user", "owl"] * (len(roles) // 2)
    assert (answered > 25, given_back > 12) == (True, True)


def read_by_people(browser):
    return [turn for turn in browser.shown() if turn[0] != "error"]


def test_undo_and_failures_lose_nothing_that_was_typed(desk, files):
    browser = Browser(desk)
    browser.box = {"text": "What?", "files": [str(files["0.png"])]}
    browser.send()
    browser.box = {"text": "A draft", "files": [str(files["1.png"])]}
    browser.undo()
    assert browser.box == {"text": "What?\nA draft", "files": [str(files["0.png"]), str(files["1.png"])]}
    assert browser.turns == []


def test_an_answer_offers_the_next_question_of_an_example_once(desk):
    browser = Browser(desk)
    browser.box = {"text": "What?", "files": [], "next": "And then?"}
    browser.send()
    assert browser.box == {**EMPTY, "text": "And then?"}
    browser.send()
    assert browser.box == EMPTY


FAILURES = {
    "broken.png": ("broken", "broken.png' cannot be read"),
    "vast.png": ("vast", "400000000 pixels"),
    "clip.mp4": ("clip", "clip.mp4' is a video|clip.mp4' cannot be read"),
    "gone.png": ("gone", "gone.png has been deleted"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_errors_name_files_and_no_folder(llama_processor, tmp_path, name):
    kind, message = FAILURES[name]
    path = tmp_path / "uploads" / ("h" * 64) / name
    path.parent.mkdir(parents=True)
    if kind == "vast":
        PIL.Image.new("1", (20_000, 20_000)).save(path)
    elif kind != "gone":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" if kind == "broken" else b"\0\0\0\x20ftypisom" + bytes(200))
    model = MplugOwlForConditionalGeneration.from_pretrained(GoldenCase("video-llama").checkpoint)
    browser = Browser(OwlDesk(model, llama_processor, About("a tiny owl")))
    browser.box = {"text": "What?", "files": [str(path)]}
    browser.send()
    (turn,) = browser.turns
    assert turn["role"] == "error"
    assert any(part in turn["text"] for part in message.split("|")), turn["text"]
    assert "uploads" not in turn["text"]
    assert str(tmp_path) not in turn["text"]


def test_an_unforeseen_failure_is_told_and_the_question_comes_back(desk, monkeypatch):
    def fail(**_):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(desk.model, "generate", fail)
    browser = Browser(desk)
    browser.box = {"text": "What?", "files": []}
    browser.send()
    assert browser.box["text"] == "What?"
    assert browser.turns[-1]["text"] == "The answer failed on the server (RuntimeError): see its log."


HARMFUL = [
    "<b>bold</b>", "<img src=http://a.example/b.png>", "![x](http://a.example/b.png)", "<script>alert(1)</script>",
    "`<i>`", "```\n<i>code</i>\n```", "[a](javascript:alert(1))", "| <u> | b |\n|---|---|\n| ![](//e.example) | d |",
    "<image>", "a <!-- b --> c", "&lt;b&gt;", "<https://a.example><b>", '<a href="x" onclick="y">',
]  # fmt: skip


@pytest.mark.parametrize("text", HARMFUL)
def test_html_is_escaped_and_nothing_is_fetched(text):
    files = [{"path": '/tmp/a/"><script>.png'}]
    for html in (
        render_answer(text),
        render_answer(text, has_places=True),
        render([{"role": "user", "text": text, "files": files}, {"role": "assistant", "text": text, "note": text}]),
        render([{"role": "error", "text": text}]),
    ):
        found = []
        parser = HTMLParser()
        parser.handle_starttag = lambda tag, attributes, found=found: found.append((tag, dict(attributes)))
        parser.feed(html)
        for tag, attributes in found:
            assert tag not in ("script", "b", "i", "u", "image"), html
            assert tag != "img" or attributes["src"].startswith("gradio_api/file="), html
            assert not any(name.startswith("on") for name in attributes), html
            assert not attributes.get("href", "").startswith("javascript"), html


def test_markdown_is_rendered():
    text = "**b** *i*\n\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n`c`\n\n```\nd < e\n```\n1. x\n\nline\nbreak"
    html = render_answer(text)
    for part in (
        "<strong>b</strong>", "<em>i</em>", "<li>one</li>", "<th>a</th>", "<td>1</td>", "<code>c</code>", "d &lt; e",
        "<ol>", "<br",
    ):  # fmt: skip
        assert part in html, part


@pytest.mark.parametrize(
    "text", ["A red owl, a red **owl** and `code` *owl*.", "- don't\n- <b>\n\n> owl-like", "x" * 99]
)
def test_each_word_says_where_it_stands(text):
    spans = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: spans.append(dict(attributes).get("data-span"))
    parser.feed(render_answer(text, has_places=True))
    places = [tuple(map(int, span.split(","))) for span in spans if span]
    assert places == sorted(places)
    words = [text[start:end] for start, end in places]
    assert words
    assert all(WORD.fullmatch(word) for word in words)
    assert words.count("owl") == {"A": 3}.get(text[0], 0)


def test_maps_are_of_the_word_that_was_clicked(desk, files):
    turns = [
        {"role": "user", "text": "What?", "files": [{"path": str(files["0.png"])}, {"path": str(files["1.png"])}]},
        {"role": "assistant", "text": "An owl and an owl."},
    ]
    messages = conversation.messages(turns, desk.read)
    for span in (None, (3, 6), (14, 17)):
        maps = desk.look(turns, 1, span)
        found = image_attention(desk.model, desk.processor, messages, span)
        for (caption, image), attention, name in zip(maps, found, ("0.png", "1.png"), strict=True):
            assert caption == f"{attention.shares.sum():.0%} of its attention"
            with PIL.Image.open(files[name]) as opened:
                assert image.tobytes() == draw_attention(opened.convert("RGB"), attention.patches).tobytes()
    first, second = (desk.look(turns, 1, span)[0][1].tobytes() for span in ((3, 6), (14, 17)))
    assert first != second


def test_a_clip_has_a_map_for_each_frame():
    from transformers_owl.loading import load

    pytest.importorskip("av")
    desk = OwlDesk(*load(MINIATURE), about(MINIATURE))
    clip = IMAGES / "elephant-moves.mp4"
    browser = Browser(desk)
    browser.box = {"text": "Describe the clip.", "files": [str(clip)]}
    browser.send()
    maps = desk.look(browser.turns, 1)
    (attention,) = video_attention(desk.model, desk.processor, conversation.messages(browser.turns, desk.read))
    assert len(maps) == len(attention.patches) == 6
    assert attention.patches.sum().item() == pytest.approx(1)
    every = [PIL.Image.fromarray(frame) for frame in frames_of(clip)]
    seen = seen_frames(desk.processor, clip)
    assert all(any(frame.tobytes() == one.tobytes() for one in every) for frame in seen)
    assert len({frame.tobytes() for frame in seen}) == 6
    for (caption, image), frame, patches in zip(maps, seen, attention.patches, strict=True):
        assert f": {patches.sum():.0%} of the clip's" in caption
        assert image.tobytes() == draw_attention(frame, patches, attention.patches.max()).tobytes()


def frames_of(clip):
    import av

    with av.open(str(clip)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_drawings_are_told_from_photographs():
    drawings, photographs = sorted(IMAGES.glob("*.png")), sorted(PHOTOGRAPHS.glob("*.jpg"))
    assert (len(drawings), len(photographs)) == (5, 2)
    assert [is_photograph(PIL.Image.open(path)) for path in drawings + photographs] == [False] * 5 + [True] * 2


def test_the_reader_is_told_of_answers_that_can_only_be_made_up(desk):
    def note(names, knows_photographs=True, earlier=()):
        files = [{"path": str(path)} for path in names]
        own = OwlDesk(desk.model, desk.processor, About("x", knows_photographs=knows_photographs))
        return own.note([*earlier, {"role": "user", "text": "What?", "files": files}])

    drawing, photograph = IMAGES / "elephant.png", PHOTOGRAPHS / "cat.jpg"
    assert note([]) == NO_IMAGE
    assert note([drawing]) is None
    assert note([photograph]) is None
    assert note([photograph], knows_photographs=False) == PHOTOGRAPH
    assert note([drawing], knows_photographs=False) is None
    assert note([], earlier=[{"role": "user", "text": "", "files": [{"path": str(drawing)}]}]) is None


def test_pages_say_what_their_model_is(tmp_path):
    assert about("OWNER/owl@main").link == "https://huggingface.co/OWNER/owl"
    assert about(str(tmp_path)) == About(tmp_path.name)
    assert not about(MINIATURE).knows_photographs
    assert "/" not in about(MINIATURE).name


def test_answers_and_questions_alternate_however_turns_are_damaged():
    """What a browser kept may end anywhere."""
    whole = [
        {"role": "user", "text": "a", "files": []}, {"role": "assistant", "text": "b"},
        {"role": "user", "text": "c", "files": []}, {"role": "error", "text": "d"},
    ]  # fmt: skip
    for count in range(5):
        for written in ("", "words"):
            turns, box = conversation.settle(whole[:count], written, EMPTY)
            kept = [turn["role"] for turn in turns if turn["role"] != "error"]
            assert all(one != other for one, other in pairwise(kept))
            assert not conversation.is_pending(turns)
            assert (box["text"] != "") == (count == 4 or (count in (1, 3) and not written))

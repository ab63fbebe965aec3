"""`look` answers as `caption` does and writes the maps of `image_attention` over the images."""

from pathlib import Path

import PIL.Image
import pytest
from typer.testing import CliRunner

from transformers_owl.cli import app
from transformers_owl.inference import Chat, draw_attention, image_attention


IMAGES = Path(__file__).parents[2] / "examples/pictures"
ASTRONAUT, CAT = str(IMAGES / "astronaut.jpg"), str(IMAGES / "cat.jpg")


@pytest.fixture
def look(llama):
    def run(*arguments):
        return CliRunner().invoke(app, ["look", "--model", llama.checkpoint, "--max-new-tokens", "8", *arguments])

    return run


def test_files_hold_the_maps(look, llama_model, llama_processor, tmp_path):
    result = look(CAT, ASTRONAUT, "--prompt", "What?", "--output", str(tmp_path / "map.png"))
    assert result.exit_code == 0, result.output
    chat = Chat(llama_model, llama_processor)
    answer = chat.ask("What?", [CAT, ASTRONAUT], max_new_tokens=8)
    assert answer in result.stdout
    found = image_attention(llama_model, llama_processor, chat.messages)
    for number, (source, attention) in enumerate(zip((CAT, ASTRONAUT), found, strict=True), 1):
        with PIL.Image.open(tmp_path / f"map-{number}.png") as written, PIL.Image.open(source) as image:
            assert written.tobytes() == draw_attention(image, attention.patches).tobytes()
    word = max(answer.split(), key=len)
    assert look(CAT, ASTRONAUT, "--prompt", "What?", "--word", word, "--output", str(tmp_path / "w.png")).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map-1.png", "map-2.png", "w-1.png", "w-2.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Missing argument"),
        (["no-such.png"], 1, "no-such.png' cannot be read"),
        ([CAT, "--word", "xylophone"], 1, "answer has no 'xylophone'"),
    ],
)
def test_mistakes_are_named(look, tmp_path, arguments, code, message):
    result = look(*arguments, "--output", str(tmp_path / "map.png"))
    assert result.exit_code == code
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_clip_gives_a_map_for_each_frame(tmp_path):
    pytest.importorskip("av")
    clip = Path(__file__).parents[2] / "examples/videos/elephant-moves.mp4"
    result = CliRunner().invoke(app, ["look", str(clip), "--output", str(tmp_path / "map.webp"), "--word", "elephant"])
    assert result.exit_code == 0, result.output
    assert "elephant" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"map-{number}.webp" for number in range(1, 7)]
    frames = [PIL.Image.open(tmp_path / f"map-{number}.webp") for number in range(1, 7)]
    assert {frame.size for frame in frames} == {frames[0].size}
    assert len({frame.tobytes() for frame in frames}) == 6

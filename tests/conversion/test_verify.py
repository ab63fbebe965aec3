"""`verify` tells equal checkpoints from different ones, by a table and by its exit code."""

import pytest
from releases import release, weights_of

from transformers_owl.conversion.convert import convert
from transformers_owl_cli.conversion import verify


def code(*arguments, **options) -> int:
    with pytest.raises(SystemExit) as exit_info:
        verify(*arguments, **options)
    return int(exit_info.value.code)


@pytest.mark.parametrize("name", ["image-bloom", "video-llama"])
def test_original_and_converted_are_equal(name, tmp_path, capsys):
    source = release(name, tmp_path / "source")
    convert(str(source), tmp_path / "out")
    assert code(str(source), str(tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert "equal: largest difference 0" in printed
    rows = {line.split("│")[1].strip(): line.split("│") for line in printed.splitlines() if line.startswith("│")}
    assert rows.keys() >= {"abstractor", "language_model", "vision_model", "logits"}
    assert all(row[2].strip() == row[3].strip() for row in rows.values())


def test_one_changed_value_is_found(tmp_path, capsys):
    weights = weights_of("image-llama")
    source = release("image-llama", tmp_path / "source", weights=weights)
    name = "vision_model.encoder.layers.1.self_attn.query_key_value.weight"
    weights[name] = weights[name].clone()
    weights[name][5, 3] += 0.25
    other = release("image-llama", tmp_path / "other", weights=weights)
    assert code(str(source), str(other)) == 1
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if "vision_model" in line and " 38 " in line and "0.25" in line]
    assert "different: largest difference 0.25" in printed
    assert code(str(source), str(other), tolerance=0.5, skip_logits=True) == 0


def test_other_architectures_are_different(tmp_path):
    first = release("image-llama", tmp_path / "first")
    second = release("video-llama", tmp_path / "second")
    assert code(str(first), str(second)) == 1


def test_values_of_another_type_are_compared_as_numbers(tmp_path):
    source = release("image-llama", tmp_path / "source")
    halves = {key: value.bfloat16() for key, value in weights_of("image-llama").items()}
    rounded = release("image-llama", tmp_path / "rounded", weights=halves)
    same = release("image-llama", tmp_path / "same", weights={key: value.float() for key, value in halves.items()})
    assert code(str(rounded), str(same), skip_logits=True) == 0
    assert code(str(source), str(rounded), skip_logits=True) == 1

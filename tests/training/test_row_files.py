"""Rows are read from where they lie in a file: the same as a whole reading gives, for next to no memory."""

import codecs
import csv
import gzip
import io
import json
import os
import pickle
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transformers_owl.training import row_files
from transformers_owl.training.row_files import read_file


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('aé,]"', max_size=3), inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(st.text("ab]é", min_size=1, max_size=3), VALUES, max_size=3), max_size=5)
ENCODINGS = {
    "utf-8": str.encode,
    "with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "packed": lambda text: gzip.compress(text.encode()),
}
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_of(file) -> list[dict]:
    file = pickle.loads(pickle.dumps(file))  # as a worker that is spawned gets it
    return [file.row(number) for number in range(len(file.rows))]


@pytest.fixture(params=ENCODINGS)
def write(request, tmp_path):
    def write(name: str, text: str) -> str:
        path = tmp_path / (f"{name}.gz" if request.param == "packed" else name)
        path.write_bytes(ENCODINGS[request.param](text))
        return str(path)

    return write


@many
@given(rows=ROWS, piece=st.integers(1, 40), indent=st.sampled_from([None, 1]), plain=st.booleans())
def test_a_list_in_json(write, rows, piece, indent, plain):
    """Whatever the length of the pieces that are read, also one that ends in a number or a character."""
    text = json.dumps(rows, indent=indent, ensure_ascii=plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_files, "PIECE", piece)
        file = read_file(write("rows.json", text))
    assert rows_of(file) == rows
    assert list(file.numbers) == list(range(1, len(rows) + 1))


@many
@given(rows=ROWS, blank=st.sampled_from(["", "\n", " \r\n\n"]), plain=st.booleans(), ends=st.booleans())
def test_json_lines(write, rows, blank, plain, ends):
    lines = ("\n" + blank).join(json.dumps(row, ensure_ascii=plain) for row in rows) + "\n" * ends
    file = read_file(write("rows.jsonl", lines))
    assert rows_of(file) == rows
    numbered = enumerate(lines.split("\n"), 1)
    assert list(file.numbers) == [number for number, line in numbered if line.strip()]


CELLS = st.text(st.sampled_from('aé",;\t\n\r \u2028'), min_size=1, max_size=6)


@many
@given(
    cells=st.lists(st.tuples(CELLS, CELLS), max_size=4),
    end=st.sampled_from(["\n", "\r\n"]),
    separator=st.sampled_from(",;\t"),
)
def test_tables(write, cells, end, separator):
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(
        [("left", "right"), *cells]
    )
    expected = list(csv.reader(io.StringIO(stream.getvalue(), newline=""), delimiter=separator))[1:]
    filled = [row for row in expected if any(field.strip() for field in row)]
    file = read_file(write("rows.csv", stream.getvalue()))
    assert rows_of(file) == [dict(zip(("left", "right"), row, strict=True)) for row in filled]


@pytest.mark.parametrize(
    "text", ["[1, 2", "[1 2]", "[1,]", "[,1]", "[1] 2", "[1]]", "{}", "3", "", "[01]", '["a', "[" * 10_000]
)
@pytest.mark.parametrize("piece", [1, 2, 1000])
def test_what_is_no_list_is_refused(monkeypatch, tmp_path, text, piece):
    monkeypatch.setattr(row_files, "PIECE", piece)
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"rows\.json is (a (dict|int), but must be a list|not valid JSON)"):
        read_file(str(path))


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv"])
def test_rows_take_next_to_no_memory(monkeypatch, tmp_path, name):
    rows = [{"file_name": f"{number}.png", "text": "owl " * 250} for number in range(20_000)]
    with (tmp_path / name).open("w", newline="") as file:
        if name == "rows.csv":
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.write(json.dumps(rows) if name == "rows.json" else "\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(row_files, "PIECE", 2**16)
    tracemalloc.start()
    read = read_file(str(tmp_path / name))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read.row(12_345) == rows[12_345]
    assert (tmp_path / name).stat().st_size > 20e6
    assert held < 1e6
    assert peak < 4e6


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv"])
def test_a_file_that_has_changed_gives_no_row(tmp_path, name):
    """Another row of the same length could lie where the old one lay."""
    texts = {"rows.json": '[{"a": "1"}, {"a": "2"}]', "rows.jsonl": '{"a": "1"}\n{"a": "2"}', "rows.csv": "a\n1\n2\n"}
    path = tmp_path / name
    path.write_text(texts[name])
    file = read_file(str(path))
    assert file.row(1) == {"a": "2"}
    path.write_text(texts[name].replace("2", "3"))
    os.utime(path, ns=(0, 0))
    with pytest.raises(ValueError, match="has changed since it was opened"):
        file.row(1)

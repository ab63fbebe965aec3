"""The page's way to prepare a dataset in several processes works, whichever way they start, without this package."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModel, AutoProcessor


PAGE = (Path(__file__).parent.parent / "docs/inference.md").read_text()
BEFORE = """
import sys


class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "transformers_owl":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Hide())

import multiprocess


if __name__ == "__main__":
    multiprocess.set_start_method({method!r})
"""
AFTER = """
    import json

    print(json.dumps(rows["input_ids"][:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_way_of_the_page(method, llama, llama_processor, tmp_path):
    (block,) = re.findall(r"```python\n([^`]*num_proc=2\)\n)```", PAGE)
    for auto_class in (AutoModel, AutoProcessor):
        auto_class.from_pretrained(llama.checkpoint).save_pretrained(tmp_path / "build/my-owl")
    questions = ["one", "two three", "four"]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps({"question": each}) + "\n" for each in questions))
    (tmp_path / "program.py").write_text(BEFORE.format(method=method) + block + AFTER)
    result = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "HF_HOME": str(tmp_path / "home")},
    )
    assert result.returncode == 0, result.stderr
    expected = [llama_processor(text=question)["input_ids"][0] for question in questions]
    assert json.loads(result.stdout.splitlines()[-1]) == expected

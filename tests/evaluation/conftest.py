"""A small OwlEval in the form of the published files, with everything that is odd about them."""

import json

import numpy as np
import PIL.Image
import pytest

from transformers_owl.evaluation.records import read_owleval, read_systems


# image, question, abilities, groups
QUESTIONS = [
    ("1.jpg", "What is odd here?", "a,b,e", ["single_turn"]),
    ("2.jpg", "Is there text?", "a,c", ["single_turn", "multi_turn"]),
    ("2.jpg", "What does it say？", "a,c,f", ["multi_turn"]),
    ("2.jpg", "Why does it say so? ", "a,b,e,f", ["multi_turn"]),
    ("3.jpg", "Who is it?", "a,b,d", ["single_turn"]),
    ("4.jpg", "Where is the ball?", "a,b", ["single_turn", "multi_turn"]),
    ("4.jpg", "And the man, where is he now?", "a,b,f", ["multi_turn"]),
    ("5.jpg", "Describe it.", "a,b", ["single_turn"]),
]
# The second system's file says .png, has other question texts, line breaks within sentences, and answers that are none.
SYSTEMS = {
    "owl:v1": [f"Owl's answer {number}, with <b>marks</b>." for number in range(1, 9)],
    "react": [
        "无法回溯. ",
        " Yes,\nthere is.",
        "模型放弃回答",
        "So.",
        "模型拒绝回答",
        "无法回溯  ",
        "Left\n",
        "无法回溯.",
    ],
}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    """`questions.jsonl`, `cases/` with a PNG that is called .jpg and a grey image, `answer/` of two systems."""
    (tmp_path / "cases").mkdir()
    (tmp_path / "answer").mkdir()
    draw = np.random.default_rng(0)
    for number in range(1, 6):
        shape = (40, 50) if number == 5 else (40, 50, 3)
        image = PIL.Image.fromarray(draw.integers(0, 255, shape, dtype=np.uint8))
        image.save(tmp_path / f"cases/{number}.jpg", "png" if number == 3 else "jpeg")
    keys = ("image", "question", "ability", "category")
    rows = [
        {"image": row[0], "question_id": number, **dict(zip(keys[1:], row[1:], strict=True))}
        for number, row in enumerate(QUESTIONS, 1)
    ]
    write_rows(tmp_path / "questions.jsonl", rows)
    for model_id, texts in SYSTEMS.items():
        answers = [
            {"image": row["image"], "question_id": row["question_id"], "question": row["question"], "answer": text}
            for row, text in zip(rows, texts, strict=True)
        ]
        if model_id == "react":
            answers = [
                {**row, "image": row["image"].replace(".jpg", ".png"), "question": f" {row['question'][:-3]}？ "}
                for row in answers
            ]
        name = model_id.partition(":")[0]
        write_rows(tmp_path / f"answer/{name}.jsonl", [{**row, "model_id": model_id} for row in answers])
    return tmp_path


@pytest.fixture
def questions(folder):
    return read_owleval(folder)


@pytest.fixture
def answer_files(folder):
    return sorted((folder / "answer").iterdir())


@pytest.fixture
def systems(answer_files, questions):
    return read_systems(answer_files, questions)

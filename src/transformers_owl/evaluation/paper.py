"""What the paper published (arXiv 2304.14178, section 4.2), to stand beside what is measured here."""

# Questions that need each ability: the denominators of Table 2.
NEEDED = {"IU": 82, "VU": 63, "OCR": 30, "KTA": 24, "RA": 35, "MDA": 20}

# Figure 3, as far as its text gives numbers: answers rated A or B, and D, of 82.
FIGURE_3 = {"mPLUG-Owl": {"A and B": 66, "D": 0}, "MiniGPT-4": {"A and B": 54}}

# Table 2: per cent of the questions that need an ability in which the answer shows it.
TABLE_2 = {
    "r1 pretraining alone": (58.5, 38.1, 13.3, 16.7, 17.1, 40.0),
    "r2 without pretraining": (93.9, 47.6, 23.3, 29.2, 14.3, 45.0),
    "r3 without multimodal tuning": (93.0, 73.0, 40.0, 41.7, 48.6, 80.0),
    "r4 without text-only tuning": (86.6, 68.3, 40.0, 50.0, 60.0, 75.0),
    "r5 mPLUG-Owl": (100.0, 95.2, 56.7, 87.5, 80.0, 95.0),
    "MiniGPT-4": (97.6, 81.0, 40.0, 83.3, 65.7, 75.0),
}

# Table 3: summed scores of a system and of ChatGPT on Vicuna's 80 questions.
TABLE_3 = {
    "Alpaca-7B": (573, 708),
    "Vicuna-7B": (612, 684),
    "mPLUG-Owl without multimodal tuning": (587, 682),
    "mPLUG-Owl": (600, 692),
}

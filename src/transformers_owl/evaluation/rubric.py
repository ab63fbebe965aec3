"""What raters go by: the levels of an answer and the abilities it can show, in the words of this project."""

# After Self-Instruct's four levels (section 4.2).
LEVELS = {
    "A": "Correct and satisfying.",
    "B": "Acceptable: minor errors or gaps.",
    "C": "Answers the question, but with serious errors.",
    "D": "Beside the question, or wrong altogether.",
}
# After Table 1.
ABILITIES = {
    "IU": ("Instruction understanding", "Does what the question asks for, even where the content is wrong."),
    "VU": ("Visual understanding", "Recognises what the picture shows."),
    "OCR": ("Reading text", "Reads the words and figures in the picture."),
    "KTA": ("Knowledge transfer", "Brings in knowledge of the world that fits the picture."),
    "RA": ("Reasoning", "Draws conclusions from the picture and the text, in several steps where needed."),
    "MDA": ("Multi-turn dialogue", "Takes earlier questions and answers of the dialogue into account."),
}

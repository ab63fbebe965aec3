"""The rubric of raters: levels of an answer, and abilities that it can show, in this project's words."""

# After Self-Instruct's four levels (section 4.2).
LEVELS = {
    "A": "Correct and satisfying.",
    "B": "Acceptable: minor errors or gaps.",
    "C": "Answers the question, but with serious errors.",
    "D": "Misses the question, or is entirely wrong.",
}
# After Table 1.
ABILITIES = {
    "IU": ("Instruction understanding", "Does what the question asks for, even where the content is wrong."),
    "VU": ("Visual understanding", "Recognises what the image shows."),
    "OCR": ("Reading text", "Reads the words and numbers in the image."),
    "KTA": ("Knowledge transfer", "Uses world knowledge that fits the image."),
    "RA": ("Reasoning", "Draws conclusions from the image and the text, in several steps if needed."),
    "MDA": ("Multi-turn dialogue", "Takes earlier questions and answers of the dialogue into account."),
}

"""Whether a short answer is right: as the original counts, and as the field does.

The field cleans answers before it compares them, with the rules of LEO (arXiv 2311.12871), which
LLaVA-3D and others took over; docs/evaluation.md lists them.
"""

import re
from collections.abc import Sequence

_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty",
)  # fmt: skip
# Whole words and what they become: misspellings of the training sets, and numbers.
_WORDS = {
    "letf": "left", "let": "left", "tehre": "there", "rigth": "right", "rght": "right",
    "behine": "behind", "tv": "TV", "chai": "chair", "wasing": "washing", "waslked": "walked",
    "oclock": "o'clock", "o'[ ]+clock": "o'clock",
    **{str(number): word for number, word in enumerate(_NUMBERS)}, "23": "twenty-three",
    "none": "zero",
}  # fmt: skip
# One after the other.
_RULES = [
    *((re.compile(rf"\b{before}\b"), after) for before, after in _WORDS.items()),
    # chair2
    (re.compile(r"\b([a-zA-Z]+)[0-9]\b"), r"\1"),
    *((re.compile(rf"\b{article}\b ([a-zA-Z]+)"), r"\1") for article in ("a", "an", "the")),
    (re.compile(r"\bbackwards\b"), "backward"),
]


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Equal to a reference but for case and surrounding space; an empty prediction is wrong."""
    text = plain(prediction)
    return bool(text) and text in {plain(r) for r in references}


def partial_match(prediction: str, references: Sequence[str]) -> bool:
    """Contains a reference or is contained in one, ignoring case; an empty prediction is wrong."""
    text = plain(prediction)
    return bool(text) and any(text in plain(r) or plain(r) in text for r in references)


def em(prediction: str, references: Sequence[str]) -> bool:
    """The field's EM: equal to a reference after cleaning; an empty prediction is wrong."""
    text = cleaned(prediction)
    return bool(text.strip()) and text in {cleaned(r) for r in references}


def em_r(prediction: str, references: Sequence[str]) -> bool:
    """The field's refined EM: EM, or one contains the other when their spaces are taken out.

    An empty prediction is wrong; some published copies count it as right.
    """
    text = "".join(cleaned(prediction).split())
    others = {"".join(cleaned(r).split()) for r in references} - {""}
    return bool(text) and any(text in other or other in text for other in others)


def plain(text: str) -> str:
    """In lower case, without surrounding space."""
    return text.strip().lower()


def cleaned(text: str) -> str:
    """An answer as the field compares it."""
    text = re.sub(" {2,}", " ", text.lower().strip(" "))
    text = re.sub(r"[^a-zA-Z0-9,'\s\-:]+", "", text)
    for before, after in _RULES:
        text = before.sub(after, text)
    return text

"""Measures of whole sentences, as pycocoevalcap computes them.

Published figures differ by how sentences become words: `plain` splits answers, cleaned as for EM,
at spaces (LEO and those that follow it), `ptb` is the Penn Treebank tokeniser of COCO (ScanQA's own
evaluation, LLaVA-3D), which needs Java.
"""

import contextlib
import io
import math
import shutil
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxvlm.errors import UserError
from jaxvlm.metrics.answers import cleaned

TOKENIZERS = ("plain", "ptb")
_ORDERS = 4
# Of `bleu_counts`.
BLEU_COUNTS = 2 + 2 * _ORDERS
# Those of pycocoevalcap, which keep a quotient finite.
_SMALL, _TINY = 1e-9, 1e-15


def has_java() -> bool:
    """Whether there is a Java for what needs one."""
    return shutil.which("java") is not None


def check_tokenizer(name: str) -> None:
    """Raises a UserError for an unknown tokeniser, or one that cannot run here."""
    if name not in TOKENIZERS:
        raise UserError(f"unknown tokeniser {name!r}: expected one of {TOKENIZERS}")
    if name == "ptb" and not has_java():
        raise UserError("the tokeniser 'ptb' needs Java; install one, or take 'plain'")


def tokenized(
    predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Predictions and references as words with single spaces, as pycocoevalcap takes them.

    Raises:
      UserError: an unknown tokeniser, or one that cannot run here.
    """
    if tokenizer == "plain":
        return (
            {i: [_spaced(cleaned(text))] for i, text in enumerate(predictions)},
            {i: [_spaced(cleaned(t)) for t in texts] for i, texts in enumerate(references)},
        )
    check_tokenizer(tokenizer)
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def words(texts: dict[int, Sequence[str]]) -> dict[int, list[str]]:
        captions = {i: [{"caption": _spaced(t)} for t in each] for i, each in texts.items()}
        try:
            # It says on the console how fast it was.
            with contextlib.redirect_stderr(io.StringIO()):
                return PTBTokenizer().tokenize(captions)
        except OSError as error:
            raise UserError(f"the tokeniser 'ptb' cannot run: {error}") from None

    return words({i: [t] for i, t in enumerate(predictions)}), words(dict(enumerate(references)))


def sentence_scores(
    predicted: dict[int, list[str]], references: dict[int, list[str]]
) -> dict[str, Float[np.ndarray, "N"]]:
    """`rouge_l`, `cider` and, with Java, `meteor` of every sentence; their means are the corpus'.

    CIDEr is CIDEr-D (n = 4, sigma 6), with document frequencies from these references, and is 10 at
    most, of which papers print a hundredth.
    """
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    # Without a word in any reference there are no document frequencies.
    words = any(map(any, references.values()))
    found = {
        "rouge_l": np.asarray(Rouge().compute_score(references, predicted)[1]),
        "cider": np.asarray(Cider().compute_score(references, predicted)[1])
        if words
        else np.zeros(len(predicted)),
    }
    if has_java():
        from pycocoevalcap.meteor.meteor import Meteor

        found["meteor"] = np.asarray(Meteor().compute_score(references, predicted)[1])
    return found


def bleu_counts(
    predicted: dict[int, list[str]], references: dict[int, list[str]]
) -> Float[np.ndarray, "N 10"]:
    """What BLEU-1..4 of any choice of sentences follow from, once they are summed.

    Returns:
      For every sentence its length, that of the closest reference, and of each order the n-grams
      and those of them that a reference has.
    """
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=_ORDERS)
    for i, (text,) in predicted.items():
        scorer += (text, references[i])
    rows = [
        (
            each["testlen"],
            min((abs(length - each["testlen"]), length) for length in each["reflen"])[1],
            *each["guess"],
            *each["correct"],
        )
        for each in scorer.ctest
    ]
    return np.asarray(rows, np.float64).reshape(len(rows), BLEU_COUNTS)


def bleu(counts: Float[np.ndarray, "*A 10"]) -> dict[str, Float[np.ndarray, "*A"]]:
    """`bleu_1` to `bleu_4` of summed `bleu_counts`."""
    length, reference = counts[..., 0], counts[..., 1]
    guessed, right = counts[..., 2 : 2 + _ORDERS], counts[..., 2 + _ORDERS :]
    logs = np.cumsum(np.log((right + _TINY) / (guessed + _SMALL)), axis=-1)
    ratio = (length + _TINY) / (reference + _SMALL)
    brevity = np.where(ratio < 1, 1 - 1 / ratio, 0.0)
    return {
        f"bleu_{n}": np.exp(np.maximum(logs[..., n - 1] / n + brevity, math.log(1e-300)))
        for n in range(1, _ORDERS + 1)
    }


def _spaced(text: str) -> str:
    # Half a pair of surrogates is a character of JSON, but of no encoding.
    return " ".join(text.encode("utf-8", "replace").decode().split())

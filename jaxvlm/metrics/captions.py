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
METEOR_COUNTS = 23
# What METEOR's stages of matching count: exact, stems, synonyms, paraphrases; and its parameters
# for English: the shares of content words and of recall, the penalty and how steep it is.
_STAGES = (1.0, 0.6, 0.8, 0.6)
_CONTENT, _RECALL, _PENALTY, _STEEPNESS = 0.75, 0.85, 0.6, 0.2
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
    """`rouge_l` and `cider` of every sentence; their means are the corpus'.

    CIDEr is CIDEr-D (n = 4, sigma 6), with document frequencies from these references, and is 10 at
    most, of which papers print a hundredth.
    """
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    # Without a word in any reference there are no document frequencies.
    words = any(map(any, references.values()))
    # Nothing is not like nothing: of texts in other letters cleaning leaves none.
    said = [bool(texts[0]) for texts in predicted.values()]
    return {
        "rouge_l": np.where(said, Rouge().compute_score(references, predicted)[1], 0.0),
        "cider": np.asarray(Cider().compute_score(references, predicted)[1])
        if words
        else np.zeros(len(predicted)),
    }


def meteor_counts(
    predicted: dict[int, list[str]], references: dict[int, list[str]]
) -> Float[np.ndarray, "N 23"] | None:
    """What METEOR of any choice of sentences follows from, once they are summed; None without Java.

    Returns:
      For every sentence, each of the answer and of its best reference: words; function words;
      matched content words and function words, for each stage of matching; then how many runs the
      matches make, and all matched words.
    """
    if not has_java():
        return None
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    counts = np.zeros((len(predicted), METEOR_COUNTS))
    with scorer.lock:
        for row, (i, (text,)) in enumerate(predicted.items()):
            counts[row] = [float(number) for number in scorer._stat(text, references[i]).split()]
    # What is the same from beginning to end has no breaks.
    same = (counts[:, :2] == counts[:, 21:23]).all(1) & (counts[:, 20] == 1)
    counts[same, 20] = 0
    return counts


def meteor(counts: Float[np.ndarray, "*A 23"]) -> Float[np.ndarray, "*A"]:
    """METEOR 1.5 for English of summed `meteor_counts` (Denkowski and Lavie, 2014)."""
    words, functional = counts[..., :2], counts[..., 2:4]
    stages = counts[..., 4:20].reshape(*counts.shape[:-1], len(_STAGES), 2, 2)
    matched = np.einsum("s,...skt,k->...t", _STAGES, stages, (_CONTENT, 1 - _CONTENT))
    weighted = _CONTENT * (words - functional) + (1 - _CONTENT) * functional
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(matched / weighted, -1, 0)
        mean = 1 / ((1 - _RECALL) / precision + _RECALL / recall)
        breaks = counts[..., 20] / counts[..., 21:23].mean(-1)
        found = mean * (1 - _PENALTY * breaks**_STEEPNESS)
    # Without a match, or a word, it is 0.
    return np.nan_to_num(found)


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

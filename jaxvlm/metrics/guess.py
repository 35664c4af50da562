"""The guess that never looks at an image."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool

from jaxvlm.metrics.answers import em, plain


class QuestionOnlyGuess:
    """The best guess from a question alone: majority answers of the training set."""

    def __init__(self, examples: Iterable[tuple[str, str, str]]):
        """Counts answers; `examples` are `(question, kind, answer)` of the training set."""
        by_question: dict[str, Counter] = defaultdict(Counter)
        by_kind: dict[str, Counter] = defaultdict(Counter)
        everything: Counter = Counter()
        for question, kind, answer in examples:
            everything[plain(answer)] += 1
            by_question[plain(question)][plain(answer)] += 1
            by_kind[kind][plain(answer)] += 1
        self._by_question = {q: _majority(c) for q, c in by_question.items()}
        self._by_kind = {k: _majority(c) for k, c in by_kind.items()}
        self._of_all = _majority(everything) if everything else ""

    def from_text(self, question: str, kind: str) -> str:
        """The majority answer to this very question, else to its kind."""
        return self._by_question.get(plain(question), self.from_kind(kind))

    def from_kind(self, kind: str) -> str:
        """The majority answer to questions of this kind, of a kind that is not known to all."""
        return self._by_kind.get(kind, self._of_all)

    def right(self, questions: Iterable[tuple[str, str, Sequence[str]]]) -> Bool[np.ndarray, "N"]:
        """Whether the better of the two guesses for each kind is right, question by question.

        Args:
          questions: `(question, kind, references)`.

        Returns:
          bool[N]; which guess is better is taken from the references: no single rule does better.
        """
        kinds, pairs = [], []
        for question, kind, references in questions:
            kinds.append(kind)
            guesses = self.from_text(question, kind), self.from_kind(kind)
            pairs.append([em(guess, references) for guess in guesses])
        both = np.array(pairs, bool).reshape(-1, 2)
        totals = {kind: np.zeros(2, int) for kind in kinds}
        for kind, pair in zip(kinds, both, strict=True):
            totals[kind] += pair
        better = np.array([totals[kind].argmax() for kind in kinds], int)
        return both[np.arange(len(both)), better]


def _majority(counts: Counter) -> str:
    """The most frequent answer; the alphabet decides ties, so that runs agree."""
    return min(counts, key=lambda answer: (-counts[answer], answer))

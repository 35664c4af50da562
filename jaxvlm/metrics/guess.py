"""The guess that never looks at an image."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from jaxvlm.metrics.answers import em, plain


class QuestionOnlyGuess:
    """The best guess from a question alone: majority answers of the training set."""

    def __init__(self, examples: Iterable[tuple[str, str, str]]):
        """Counts answers; `examples` are `(question, kind, answer)` of the training set."""
        by_question: dict[str, Counter] = defaultdict(Counter)
        by_kind: dict[str, Counter] = defaultdict(Counter)
        for question, kind, answer in examples:
            by_question[plain(question)][plain(answer)] += 1
            by_kind[kind][plain(answer)] += 1
        self._by_question = {q: _majority(c) for q, c in by_question.items()}
        self._by_kind = {k: _majority(c) for k, c in by_kind.items()}

    def from_text(self, question: str, kind: str) -> str:
        """The majority answer to this very question, else to its kind."""
        return self._by_question.get(plain(question), self.from_kind(kind))

    def from_kind(self, kind: str) -> str:
        """The majority answer to questions of this kind."""
        return self._by_kind.get(kind, "")

    def accuracy(self, questions: Iterable[tuple[str, str, Sequence[str]]]) -> dict[str, float]:
        """EM by kind of the better of the two guesses.

        Args:
          questions: `(question, kind, references)`.

        Returns:
          For every kind the higher of both guesses' fractions: no single rule does better.
        """
        right: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
        for question, kind, references in questions:
            text = em(self.from_text(question, kind), references)
            right[kind].append((text, em(self.from_kind(kind), references)))
        return {
            kind: max(sum(column) / len(pairs) for column in zip(*pairs, strict=True))
            for kind, pairs in right.items()
        }


def _majority(counts: Counter) -> str:
    """The most frequent answer; the alphabet decides ties, so that runs agree."""
    return min(counts, key=lambda answer: (-counts[answer], answer))

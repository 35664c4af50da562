"""Tables of an evaluation: scores by question kind beside the two controls."""

from collections.abc import Sequence
from typing import TypedDict

from jaxvlm.data.record import Record
from jaxvlm.metrics.answers import QuestionOnlyGuess, exact_match, partial_match


class Prediction(TypedDict):
    """One line of `predictions.jsonl`: the original's fields, then ours."""

    index: int
    scene_id: str
    question: str
    prediction: str
    reference: str
    exact_match: bool
    partial_match: bool
    references: list[str]
    situation: str
    kind: str
    question_id: str
    images: list[str]


def predictions(records: Sequence[Record], answers: Sequence[str]) -> list[Prediction]:
    """Scores each answer against all its references."""
    return [
        Prediction(
            index=index,
            scene_id=record.scene_id,
            question=record.question,
            prediction=answer,
            reference=record.answer,
            exact_match=exact_match(answer, record.answers),
            partial_match=partial_match(answer, record.answers),
            references=list(record.answers),
            situation=record.situation,
            kind=record.kind,
            question_id=record.question_id,
            images=list(record.images),
        )
        for index, (record, answer) in enumerate(zip(records, answers, strict=True))
    ]


def summarize(
    scored: Sequence[Prediction],
    other: Sequence[Prediction] | None,
    guess: QuestionOnlyGuess | None,
) -> dict:
    """The summary: fractions from 0 to 1 over all questions and by kind.

    Args:
      scored: predictions.
      other: the same questions answered with another room's images, or None.
      guess: fitted on the training records, or None.

    Returns:
      `count`, `exact_match`, `partial_match`, `controls` with `other_images` and `question_only`
      (None where it was not run), and `kinds` with the same figures for each kind.
    """
    questions = [(p["question"], p["kind"], p["references"]) for p in scored]
    by_guess = guess.accuracy(questions) if guess else {}
    kinds = {}
    for kind in sorted({p["kind"] for p in scored}):
        chosen = [i for i, p in enumerate(scored) if p["kind"] == kind]
        kinds[kind] = {
            "count": len(chosen),
            "exact_match": _mean([scored[i]["exact_match"] for i in chosen]),
            "partial_match": _mean([scored[i]["partial_match"] for i in chosen]),
            "other_images": _mean([other[i]["exact_match"] for i in chosen]) if other else None,
            "question_only": by_guess.get(kind),
        }
    total = sum(k["count"] for k in kinds.values())
    guessed = (
        sum(k["question_only"] * k["count"] for k in kinds.values()) / total if guess else None
    )
    return {
        "count": total,
        "exact_match": _mean([p["exact_match"] for p in scored]),
        "partial_match": _mean([p["partial_match"] for p in scored]),
        "controls": {
            "other_images": _mean([p["exact_match"] for p in other]) if other else None,
            "question_only": guessed,
        },
        "kinds": kinds,
    }


def rows(summary: dict) -> list[tuple[object, ...]]:
    """Table rows in the order of `COLUMNS`, the total last."""
    every = {"all": {**summary, **summary["controls"]}}
    names = ("exact_match", "partial_match", "other_images", "question_only")
    return [
        (kind, figures["count"], *(_percent(figures[name]) for name in names))
        for kind, figures in {**summary["kinds"], **every}.items()
    ]


COLUMNS = ("kind", "questions", "exact match", "partial match", "other room's images",
           "question only")  # fmt: skip


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"

"""Whether updates still teach anything, and what they were on average."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from jaxvlm.errors import UserError
from jaxvlm.training.loss import ActionTally
from jaxvlm.training.work import Work

Metrics = Mapping[str, jax.Array]


class Health:
    """Counts updates that were skipped: without a label, or with numbers that are not finite.

    Attributes:
      streak: skipped updates in a row, up to the last one looked at.
    """

    def __init__(self, step: int, most: int, last: int):
        """Begins behind update `step`; `most` skipped in a row are too many, and so are all
        updates of a run to its `last`.
        """
        self.streak = 0
        self._checked = step
        self._most = most
        self._last = last

    def check(self, recent: Sequence[Metrics], done: int) -> None:
        """Looks at the metrics of the latest updates, the last of which is `done`.

        Raises:
          UserError: too many were skipped in a row.
        """
        for step, metrics in enumerate(jax.device_get(list(recent)), done - len(recent) + 1):
            if step <= self._checked:
                continue
            self._checked = step
            self.streak = self.streak + 1 if metrics["skipped"] else 0
            if self.streak in (self._most, self._last):
                raise UserError(f"update {step}: {self._reason(metrics)}")

    def _reason(self, metrics: Mapping[str, np.ndarray]) -> str:
        if not metrics["label_tokens"]:
            return (
                f"for {self.streak} updates not one sample was left, no image of them could be "
                "read. Mend the images (is a disk gone?) and repeat the command, which goes on "
                "from the newest checkpoint"
            )
        return (
            f"the loss is {metrics['loss']} and the gradient's norm {metrics['gradient_norm']}; "
            f"so it was for {self.streak} updates in a row (train.max_skipped), none of which was "
            "applied; the newest checkpoint is of before. Lower optimizer.learning_rate, or look "
            "for numbers that are not finite in the imported weights"
        )


def source_losses(recent: Sequence[Metrics], names: Sequence[str]) -> dict[str, float]:
    """The loss of each data source that updates had labels of and were not skipped."""
    table = [m["tally"] for m in jax.device_get(list(recent)) if not m["skipped"]]
    losses, labels = (sum(getattr(tally, of) for tally in table) for of in ("losses", "labels"))
    return {
        f"loss/{name}": float(losses[i] / labels[i])
        for i, name in enumerate(names)
        if table and labels[i]
    }


def head_losses(recent: Sequence[Metrics]) -> dict[str, float]:
    """The losses of updates that had actions and were not skipped, each without its weight.

    `head/language`, `head/action_json` and `head/geometry_consistency`, and
    `action_center_error` in metres.
    """
    table = [m["tally"] for m in jax.device_get(list(recent)) if not m["skipped"]]
    if not table:
        return {}
    sums = ActionTally(*(sum(each) for each in zip(*(t.actions for t in table), strict=True)))
    if not sums.boxes:
        return {}
    losses, labels = (sum(getattr(t, of).sum() for t in table) for of in ("losses", "labels"))
    found = {
        "head/language": losses / labels,
        "head/action_json": sums.box / sums.boxes,
        "head/geometry_consistency": sums.projection / sums.boxes,
        "action_center_error": sums.centre / sums.boxes,
    }
    return {name: float(value) for name, value in found.items()}


def mean_work(recent: Sequence[Metrics]) -> Work:
    """What an update's batches held on average."""
    works = [metrics["work"] for metrics in jax.device_get(list(recent))]
    return Work(*(float(np.mean(counts)) for counts in zip(*works, strict=True)))


def means(recent: Sequence[Metrics]) -> dict[str, float | None]:
    """Metrics over several updates, of those that were not skipped; None where all were.

    Those of label tokens are weighted by how many there were; `skipped` is counted.
    """
    table = jax.device_get(list(recent))
    names = [name for name, value in table[0].items() if not isinstance(value, tuple)]
    series = {name: np.array([metrics[name] for metrics in table]) for name in names}
    skipped = series.pop("skipped")
    kept = skipped == 0
    labels = series["label_tokens"][kept]
    found: dict[str, float | None] = {"skipped": int(skipped.sum())}
    for name, values in series.items():
        values = values[kept]
        if name in ("loss", "token_accuracy"):
            values = values * labels / max(labels.mean(), 1e-30) if len(values) else values
        found[name] = float(values.mean()) if len(values) else None
    return found

"""Loss and exact match on samples that are not trained on.

Greedy decoding gives the labels exactly if, and only if, each of them is the likeliest token after
those before it; so one pass over question and answer tells what decoding token by token would.

Axes: B rows, L labels a row.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxvlm.console import say
from jaxvlm.data.training_set import Rows
from jaxvlm.models.tree import load
from jaxvlm.models.vlm import VLMConfig, abstract_vlm
from jaxvlm.paths import unflatten
from jaxvlm.training.feed import Feed
from jaxvlm.training.loss import Batch, action_tally, hidden_states, label_scores
from jaxvlm.training.mesh import batch_sharding
from jaxvlm.training.optimizer import Params


def exact_samples(batch: Batch, right: Bool[Array, "B L"]) -> tuple[Float[Array, ""], ...]:
    """How many samples have all their labels right, and how many samples there are."""
    real = batch["label_weights"] > 0
    segments = jnp.take_along_axis(batch["segment_ids"], batch["label_positions"], axis=1)
    # A row has no more samples than labels; segments count from 1.
    places = jax.nn.one_hot(segments, real.shape[1] + 1, dtype=jnp.float32)
    labels = jnp.einsum("bl,bls->bs", real.astype(jnp.float32), places)
    wrong = jnp.einsum("bl,bls->bs", (real & ~right).astype(jnp.float32), places)
    asked = labels > 0
    return (asked & (wrong == 0)).sum(dtype=jnp.float32), asked.sum(dtype=jnp.float32)


class Validation:
    """A fixed set of rows, and the compiled pass over them."""

    def __init__(self, model: VLMConfig, rows: Rows, batch_rows: int, dtype: jnp.dtype, mesh):
        """Compiles nothing yet.

        Args:
          model: sizes.
          rows: of one epoch.
          batch_rows: rows of a global batch.
          dtype: of the computation.
          mesh: devices.
        """
        self._rows, self._batch_rows = rows, batch_rows
        self._sharding = batch_sharding(mesh)
        abstract = abstract_vlm(model)

        def tally(params: Params, frozen: Params, batch: Batch) -> Float[Array, "6"]:
            compute = {path: leaf.astype(dtype) for path, leaf in params.items()}
            vlm = load(abstract, unflatten({**frozen, **compute}))
            hidden = hidden_states(vlm, batch)
            losses, right = label_scores(vlm, hidden, batch)
            weights = batch["label_weights"]
            sums = [(losses * weights).sum(), weights.sum(), *exact_samples(batch, right)]
            if model.action is None:
                return jnp.stack([*sums, jnp.zeros([]), jnp.zeros([])])
            actions = action_tally(vlm, hidden, batch)
            return jnp.stack([*sums, actions.centre, actions.boxes])

        self._tally: Callable = jax.jit(tally)

    def __call__(
        self, params: Params, frozen: Params, alive: Callable[[], None]
    ) -> Mapping[str, float]:
        """`val_loss` in nats a label, `val_exact_match` from 0 to 1, `val_samples`.

        With actions `val_action_center_error`, of the action head, in metres. `alive` is called
        after every batch.
        """
        tallies: list[jax.Array] = []
        with contextlib.closing(Feed(self._batches(), self._sharding)) as feed:
            for batch, lost in feed:
                if lost:
                    say(f"warning: {lost} samples of validation are left out, for their images "
                        "cannot be read", warns=True)  # fmt: skip
                tallies.append(self._tally(params, frozen, batch))
                # No more than two batches are under way: each has a batch of its own.
                jax.block_until_ready(tallies[-2:][0])
                alive()
        loss, labels, exact, samples, centre, boxes = np.sum(
            jax.device_get(tallies), axis=0, dtype=np.float64
        )
        found = {
            "val_loss": loss / max(labels, 1),
            "val_exact_match": exact / max(samples, 1),
            "val_samples": int(samples),
        }
        return found | ({"val_action_center_error": centre / boxes} if boxes else {})

    def _batches(self) -> Iterator[Mapping[str, np.ndarray]]:
        """This process's rows of one epoch; what fills the last batch up counts for nothing."""
        count, size = len(self._rows), self._batch_rows
        share = size // jax.process_count()
        mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
        for first in range(0, count, size):
            arrays = self._rows.batch(first, first + size, mine)
            arrays["lost"][max(count - first - mine.start, 0) :] = 0
            for name in {"label_weights", "action_weights"} & arrays.keys():
                arrays[name][max(count - first - mine.start, 0) :] = 0
            yield arrays

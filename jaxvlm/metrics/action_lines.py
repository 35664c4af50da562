"""What a model said about an action, beside the true one: in metres, in the record's frame."""

import numpy as np
from jaxtyping import Float

from jaxvlm.data.actions import language
from jaxvlm.data.actions.fields import NotConform
from jaxvlm.data.boxes import BOX
from jaxvlm.data.frames import move_action, with_axis
from jaxvlm.data.record import Record


def action_fields(record: Record, text: str, box: Float[np.ndarray, "9"] | None) -> dict:
    """Fields of a line of predictions.

    Args:
      record: what was asked.
      text: the answer, in the action language.
      box: of the action head (centre, extent, normal; the first camera's frame), or None.

    Returns:
      `predicted_action`, None where the text is no action; `head_action`, an object with `center`,
      `extent` and `normal`, where there is a head; `up`, the vertical axis of both.
    """
    try:
        predicted = _moved_back(record, language.parse(text))
    except NotConform:
        predicted = None
    fields = {"predicted_action": predicted, "up": record.up}
    if box is not None:
        assert len(box) == BOX
        centre, extent, normal = (part.tolist() for part in np.split(np.float64(box), 3))
        head = {"center": centre, "normal": normal, "extent": np.round(extent, 4).tolist()}
        fields["head_action"] = _moved_back(record, head)
    return fields


def _moved_back(record: Record, action: dict) -> dict:
    """An action of the first camera's frame in the record's."""
    frame = record.model_frame()
    return action if frame is None else move_action(with_axis(action), frame.inverse())

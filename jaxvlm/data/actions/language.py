"""The action language: which actions there are, and their text that a model reads and writes.

    {"action":"place_anchor","scene":"s1","center_cm":[120,-84,36],"normal":[0,100,0],
     "extent_cm":[37,89,183]}

in one line: fields in this order, no white space, whole centimetres, directions in hundredths of
their length. In a record and in an answer's `predicted_action` the same action is an object of
JSON with numbers in metres (docs/actions.md).
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping

from jaxvlm.data.actions import automaton
from jaxvlm.data.actions.automaton import State
from jaxvlm.data.actions.fields import DIRECTION, POINT, SIZE, TEXT, Field, NotConform, literal


@dataclasses.dataclass(frozen=True)
class Schema:
    """What an action consists of, besides `action`, its name, and `scene`.

    Attributes:
      fields: what it must have, in the order of its text.
      optional: what it may have, behind those.
    """

    fields: Mapping[str, Field]
    optional: Mapping[str, Field] = dataclasses.field(default_factory=dict)

    def known(self) -> dict[str, Field]:
        """All fields."""
        return {"scene": TEXT, **self.fields, **self.optional}


# `center` is the middle of a box; its axes are (up × normal, up, normal), or for a level surface,
# whose normal is up, (axis, normal × axis, normal); `extent` are its full lengths along them.
ACTIONS: dict[str, Schema] = {
    "place_anchor": Schema(
        {"center": POINT, "normal": DIRECTION, "extent": SIZE}, {"axis": DIRECTION}
    )
}


def register(name: str, schema: Schema) -> None:
    """Adds an action.

    Raises:
      ValueError: its name or that of a field is not of small letters and underscores, or is taken.
    """
    if ACTIONS.get(name, schema) != schema:
        raise ValueError(f"{name!r} is registered already, with other fields")
    fields = (*schema.fields.items(), *schema.optional.items())
    for word in (name, *(field for field, _ in fields)):
        if not re.fullmatch("[a-z_]+", word):
            raise ValueError(f"{word!r}: expected small letters and underscores")
    written = ["action", "scene", *(f"{field}{kind.suffix}" for field, kind in fields)]
    if len({*written}) < len(written):
        raise ValueError(f"{name!r} has two fields of one name in its text: {', '.join(written)}")
    ACTIONS[name] = schema


def problem(action: Mapping, anywhere: bool = False) -> str | None:
    """What is wrong with an action in metres; None where nothing is.

    Args:
      action: as a record has it.
      anywhere: it may be measured from afar, where its text could not tell it.
    """
    name = action.get("action")
    if not isinstance(name, str):
        return "action_json needs a text 'action' such as \"place_anchor\""
    if name not in ACTIONS:
        return (
            f"action_json.action {name!r} is unknown{_instead(name, ACTIONS)} (one of your own is "
            "registered in the configuration file that --config names)"
        )
    schema = ACTIONS[name]
    known = schema.known()
    missing = [field for field in ("scene", *schema.fields) if action.get(field) in (None, "")]
    if missing:
        return f"action_json lacks {', '.join(missing)}"
    for field, value in action.items():
        if field == "action" or (value is None and field in schema.optional):
            continue
        if field not in known:
            return f"action_json.{field} is unknown{_instead(field, known)}"
        kind = known[field]
        wrong = kind.malformed(value) if anywhere else kind.problem(value)
        if wrong is not None:
            return f"action_json.{field} {wrong}"
    return None


def _instead(name: str, known: Mapping) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def write(action: Mapping) -> str:
    """The text of an action that has no `problem`."""
    schema = ACTIONS[action["action"]]
    there = [name for name in schema.optional if action.get(name) is not None]
    values = {name: schema.known()[name].write(action[name]) for name in (*schema.fields, *there)}
    texts = [f"{_name(schema, name)}{value}" for name, value in values.items()]
    return f"{_head(action['action'])}{TEXT.write(action['scene'])}{''.join(texts)}}}"


def parse(text: str) -> dict:
    """The action in metres that a text is.

    Raises:
      NotConform: it is none; with the place where it stops being one.
    """
    name, at = _action_name(text)
    schema = ACTIONS[name]
    scene, at = TEXT.read(text, at)
    action = {"action": name, "scene": scene}
    for field, kind in schema.fields.items():
        action[field], at = kind.read(text, literal(text, at, _name(schema, field)))
    for field, kind in schema.optional.items():
        if text.startswith(_name(schema, field), at):
            action[field], at = kind.read(text, at + len(_name(schema, field)))
    at = literal(text, at, "}")
    if at < len(text):
        raise NotConform(at, "the end")
    return action


def _action_name(text: str) -> tuple[str, int]:
    """Which action a text begins with, and where its scene begins."""
    furthest = NotConform(0, "an action")
    for name in ACTIONS:
        try:
            return name, literal(text, 0, _head(name))
        except NotConform as error:
            furthest = max(furthest, error, key=lambda each: each.at)
    raise furthest


def _head(name: str) -> str:
    return f'{{"action":"{name}","scene":'


def _name(schema: Schema, field: str) -> str:
    return f',"{field}{schema.known()[field].suffix}":'


def forms() -> dict[str, State]:
    """By action, the state of an automaton behind the scene in its text."""
    found = {}
    for name, schema in ACTIONS.items():
        then = automaton.literal("}", automaton.end())
        for field, kind in reversed(schema.optional.items()):
            there = automaton.literal(_name(schema, field), kind.form(then))
            then = automaton.either(then, there)
        for field, kind in reversed(schema.fields.items()):
            then = automaton.literal(_name(schema, field), kind.form(then))
        found[name] = then
    return found


def beginning(scene: str, behind: Mapping[str, State]) -> State:
    """The state in which a text stands that must be an action in a scene.

    Args:
      scene: its name.
      behind: of `forms`; made once for all scenes.
    """
    return automaton.either(
        *(automaton.literal(_head(n) + TEXT.write(scene), then) for n, then in behind.items())
    )

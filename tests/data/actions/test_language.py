"""The action language: what is an action, its text, and where a text stops being one."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jaxvlm.data.actions import automaton, fields, language
from jaxvlm.data.actions.fields import NotConform
from jaxvlm.data.actions.language import Schema, parse, problem, write

ANCHOR = {"action": "place_anchor", "scene": "s1", "center": [1.2, -0.84, 0.364],
          "normal": [0, 1, 0], "extent": [0.37, 0.89, 0.004]}  # fmt: skip
TEXT = (
    '{"action":"place_anchor","scene":"s1","center_cm":[120,-84,36],"normal":[0,100,0],'
    '"extent_cm":[37,89,1]}'
)
LEVEL = {"axis": [0.6, 0.8, 0]}
# What a registry is for.
MORE = {
    "place_plane": Schema({"center": fields.POINT, "normal": fields.DIRECTION}),
    "measure": Schema({"start": fields.POINT, "end": fields.POINT, "length": fields.LENGTH}),
    "list_objects": Schema({"names": fields.TEXTS}, {"note": fields.TEXT}),
}
SCENES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
LENGTHS = st.floats(-99.99, 99.99)
POINTS = st.lists(LENGTHS, min_size=3, max_size=3)
SIZES = st.lists(st.floats(1e-3, 99.99), min_size=3, max_size=3)
DIRECTIONS = POINTS.filter(lambda values: np.linalg.norm(values) > 0.01)
VALUES = {
    fields.POINT: POINTS,
    fields.SIZE: SIZES,
    fields.DIRECTION: DIRECTIONS,
    fields.LENGTH: st.floats(0.01, 99.99),
    fields.TEXT: SCENES,
    fields.TEXTS: st.lists(SCENES, max_size=3),
}


@pytest.fixture(scope="module", autouse=True)
def more():
    for name, schema in MORE.items():
        language.register(name, schema)
    yield
    for name in MORE:
        del language.ACTIONS[name]


@st.composite
def actions(draw):
    name = draw(st.sampled_from(("place_anchor", *MORE)))
    schema = language.ACTIONS[name]
    chosen = dict(schema.fields)
    chosen |= {n: kind for n, kind in schema.optional.items() if draw(st.booleans())}
    action = {"action": name, "scene": draw(SCENES)}
    return action | {field: draw(VALUES[kind]) for field, kind in chosen.items()}


def test_the_text_is_whole_centimetres_in_a_fixed_order():
    assert write(ANCHOR) == TEXT
    assert write(dict(reversed(ANCHOR.items())) | LEVEL) == TEXT[:-1] + ',"axis":[60,80,0]}'
    assert parse(TEXT) == ANCHOR | {"center": [1.2, -0.84, 0.36], "extent": [0.37, 0.89, 0.01]}


@settings(max_examples=500, deadline=None)
@given(actions())
def test_an_action_comes_back_to_the_centimetre(action):
    assert problem(action) is None
    text = write(action)
    back = parse(text)
    assert back.keys() == action.keys()
    for name, kind in language.ACTIONS[action["action"]].known().items():
        if name not in action:
            continue
        if isinstance(kind, fields.Text):
            assert back[name] == action[name]
        elif isinstance(kind, fields.Direction):
            cosine = np.dot(back[name], action[name]) / np.linalg.norm(action[name])
            assert math.acos(min(cosine, 1)) < 0.01
        else:
            # The least length is a centimetre.
            np.testing.assert_allclose(back[name], action[name], atol=0.0101)


NUMBER = "a whole number of at most 4 digits"


@pytest.mark.parametrize(
    ("text", "conform", "expected"),
    [
        ("", "", "an action"),
        (TEXT[:-1], TEXT[:-1], "}"),
        (TEXT + " ", TEXT, "the end"),
        (TEXT.replace("120", "0120"), '_cm":[', NUMBER),
        (TEXT.replace("120", "12345"), '_cm":[', NUMBER),
        (TEXT.replace("-84", "-0"), "120,", NUMBER),
        (TEXT.replace("-84", "+84"), "120,", NUMBER),
        (TEXT.replace("-84", "84.5"), "120,84", ","),
        (TEXT.replace("36]", "NaN]"), "-84,", NUMBER),
        (TEXT.replace("37", "0"), 'extent_cm":[', "a positive whole number"),
        (TEXT.replace("0,100,0", "0,0,0"), 'normal":', "a direction"),
        (TEXT.replace('"s1"', "7"), 'scene":', "a text in double quotes"),
        (TEXT.replace('"s1"', '""'), 'scene":', "a text in double quotes"),
        (TEXT.replace("place_anchor", "place_ancor"), "place_anc", "hor"),
        (TEXT.replace("center_cm", "center"), '"center', "_cm"),
        (TEXT.replace(",", ", ", 1), 'anchor",', '"scene'),
    ],
)
def test_the_place_where_a_text_stops_being_an_action_is_told(text, conform, expected):
    at = text.index(conform) + len(conform)
    with pytest.raises(NotConform) as error:
        parse(text)
    assert error.value.at == at
    assert str(error.value).startswith(f"column {at + 1}: expected ")
    assert expected in error.value.expected


def walks(text: bytes, at) -> bool:
    """Whether an automaton takes a text whole."""
    for value in text:
        at = automaton.following(at).get(value)
        if at is None:
            return False
    return any(state.is_end for state in at)


EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["", "0", "-", "1", ",", '"', "]", "}", " ", "\\"]),
              st.booleans()),
    max_size=2,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(actions(), EDITS)
def test_the_parser_takes_exactly_what_the_automaton_takes(action, edits):
    """Conform texts, and such with something put in, taken away or exchanged."""
    text = write(action)
    for place, put, over in edits:
        at = round(place * len(text))
        text = text[:at] + put + text[at + over :]
    form = automaton.place(language.beginning(action["scene"], language.forms()))
    try:
        conform = parse(text)["scene"] == action["scene"]
    except NotConform as error:
        conform = False
        # It says a place up to which there is an action that begins so.
        assert 0 <= error.at <= len(text)
    assert conform == walks(text.encode(), form)
    assert conform or edits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": None}, "needs a text 'action'"),
        ({"action": "place_ancor"}, "'place_ancor' is unknown; did you mean 'place_anchor'"),
        ({"normal": None}, "lacks normal"),
        ({"scene": ""}, "lacks scene"),
        ({"centre": [0, 0, 0]}, "centre is unknown; did you mean 'center'"),
        ({"center": [0, "1", 2]}, r"center must be a list of 3 numbers \(metres\), found"),
        ({"center": [0, True, 2]}, "must be a list of 3 numbers"),
        ({"center": [0, math.nan, 2]}, "expected finite metres"),
        ({"center": [0, 10**400, 2]}, "expected finite metres"),
        ({"center": [0, 100.0, 2]}, "out of range; give metres, at most 99.99"),
        ({"extent": [1, 0, 1]}, "must be positive metres"),
        ({"normal": [0, 0, 0]}, "is no direction"),
        ({"axis": [0, 1]}, "axis must be a list of 3 numbers"),
        ({"scene": "a\nb"}, "control character"),
    ],
)
def test_what_is_wrong_with_an_action_is_told(change, message):
    import re

    assert re.search(message, problem(ANCHOR | change))
    # A range is of the text; everything else is wrong wherever it is measured from.
    assert ("out of range" in message) == (problem(ANCHOR | change, anywhere=True) is None)


def test_a_name_that_is_no_word_is_refused():
    with pytest.raises(ValueError, match="small letters"):
        language.register('a"b', Schema({}))
    with pytest.raises(ValueError, match="two fields of one name"):
        language.register("look", Schema({"a": fields.POINT, "a_cm": fields.DIRECTION}))
    with pytest.raises(ValueError, match="'place_anchor' is registered already"):
        language.register("place_anchor", Schema({}))
    with pytest.raises(ValueError, match="one name in its text: action, scene, scene"):
        language.register("look", Schema({"scene": fields.TEXT}))

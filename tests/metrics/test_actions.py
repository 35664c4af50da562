"""Figures of actions: boxes against independent computations, and what no box counts."""

import dataclasses
import json

import numpy as np
import pytest

from jaxvlm.data.actions import language
from jaxvlm.data.boxes import Box, box_axes
from jaxvlm.data.record import parse_record, record_entry
from jaxvlm.metrics.action_summary import figure_rows
from jaxvlm.metrics.actions import action_values
from jaxvlm.metrics.baselines import baselines
from jaxvlm.metrics.overlap import intersection_over_union
from jaxvlm.metrics.scoring import score, summarize
from jaxvlm.metrics.tasks import measured

TRUE = {"action": "place_anchor", "scene": "s", "center": [1, 2, 0.5], "normal": [0, 1, 0],
        "extent": [1, 1, 0.5]}  # fmt: skip


def line(prediction, reference=TRUE, **fields):
    text = prediction if isinstance(prediction, str) else json.dumps(prediction)
    return {"prediction": text, "reference": reference, "references": [json.dumps(reference)],
            "task": "", "kind": "chair", "scene_id": "s"} | fields  # fmt: skip


def box(rng, tilted: bool) -> Box:
    normal = rng.normal(size=3) * (1, 1, tilted)
    return Box("", "object", "", rng.normal(size=3) * 0.3, box_axes(normal), rng.uniform(0.3, 2, 3))


def by_points(one: Box, other: Box, rng) -> float:
    """The share of both volumes in both, from points drawn in the first."""
    points = rng.random((60_000, 3), np.float32) - np.float32(0.5)
    # As the other box has them: lengths along its axes from its centre.
    along = (one.size[:, None] * one.axes) @ other.axes.T
    points = points @ np.float32(along) + np.float32((one.centre - other.centre) @ other.axes.T)
    inside = (np.abs(points) <= other.size / 2).all(1)
    shared = inside.mean() * one.size.prod()
    return shared / (one.size.prod() + other.size.prod() - shared)


def test_the_overlap_of_turned_boxes_is_that_of_drawn_points():
    rng = np.random.default_rng(0)
    for number in range(500):
        one, other = box(rng, number % 2 == 0), box(rng, number % 3 == 0)
        found = intersection_over_union(one, other)
        assert found == pytest.approx(by_points(one, other, rng), abs=1e-2)
        if number % 5 == 0:
            assert found == pytest.approx(intersection_over_union(other, one), abs=1e-6)


def test_the_overlap_of_simple_boxes():
    axes = np.eye(3)
    one = Box("", "object", "", np.zeros(3), axes, np.ones(3))
    assert intersection_over_union(one, one) == pytest.approx(1)
    half = Box("", "object", "", np.array([0.5, 0, 0]), axes, np.ones(3))
    assert intersection_over_union(one, half) == pytest.approx(1 / 3)
    touching = Box("", "object", "", np.array([1.0, 0, 0]), axes, np.ones(3))
    assert intersection_over_union(one, touching) == pytest.approx(0)
    within = Box("", "object", "", np.zeros(3), axes, np.full(3, 0.5))
    assert intersection_over_union(one, within) == pytest.approx(1 / 8)


def test_a_world_may_begin_far_from_the_camera():
    """An action's range is counted from the camera; records and predictions are in the world."""
    far = TRUE | {"center": [150.0, 2, 0.5]}
    values = action_values(line(far, far))
    assert values["action_valid"] == 1 and values["iou"] == pytest.approx(1)
    assert action_values(line(far | {"normal": [1e200, 1e200, 0]}, far))["action_valid"] == 0


def test_the_values_of_a_prediction():
    near = TRUE | {"center": [1, 2.2, 0.5], "normal": [1, 0, 0], "extent": [1, 1, 0.8]}
    values = action_values(line(near))
    assert values["json_valid"] == values["action_valid"] == values["keys_present"] == 1
    assert values["center_error"] == pytest.approx(0.2)
    found = [values[f"center_{most}cm"] for most in (10, 25, 50)]
    assert found == [0, 1, 1]
    assert values["extent_error"] == pytest.approx(0.1)
    assert values["normal_angle"] == pytest.approx(90)
    # Turned by 90° it is 0.8 along the true y: 0.4 each way, of which 0.25 + 0.05 are common.
    assert 0.25 < values["iou"] < 0.6 and values["acc_25"] == 1


@pytest.mark.parametrize(
    ("prediction", "valid", "keys", "action", "scene"),
    [
        ("no JSON", 0, 0, 0, 0),
        ("[1, 2]", 0, 0, 0, 0),
        ({"action": "place", "scene": "s", "center": [0.5, 0.5]}, 1, 0, 0, 1),
        (TRUE | {"scene": "t", "extent": [1, 0, 1]}, 1, 1, 1, 0),
        (TRUE | {"center": [0.5, 0.5]}, 1, 1, 1, 1),
    ],
)
def test_what_is_no_box_is_right_about_nothing(prediction, valid, keys, action, scene):
    values = action_values(line(prediction))
    assert values["json_valid"] == valid and values["keys_present"] == keys
    assert values["action_right"] == action and values["scene_right"] == scene
    assert values["action_valid"] == 0 and values["center_error"] is None
    assert values["iou"] == values["acc_25"] == values["center_50cm"] == 0


def test_what_a_reference_does_not_tell_is_not_counted():
    bare = {name: value for name, value in TRUE.items() if name not in ("action", "scene")}
    values = action_values(line("garbage", bare))
    assert values["action_right"] is None and values["scene_right"] is None
    assert values["json_valid"] == 0 and values["iou"] == 0
    found = summarize(score([line("garbage", bare), line(TRUE)]))
    assert found["action_right"] == 1 and "scene_right" not in summarize(score([line(TRUE, bare)]))


def test_a_text_that_is_no_action_may_be_json():
    """Ours has centimetres, and other systems' texts are in metres."""
    text = language.write(TRUE)
    others = dict(reversed(json.loads(text).items()))
    for said, keys, scene in (
        (json.dumps(others), 1, 1),
        (text.replace(",", ", "), 1, 1),
        (text.replace('"s"', '"t"')[:-1] + ',"more":1}', 1, 0),
        ('{"action":"place_anchor","scene":"s","center_cm":[1,2,3]}', 0, 1),
        ("no JSON", 0, 0),
    ):
        values = action_values(line(said, predicted_action=None))
        assert values["json_valid"] == values["action_right"] == (said != "no JSON")
        assert (values["keys_present"], values["scene_right"]) == (keys, scene)
        assert values["action_valid"] == values["iou"] == 0 and values["center_error"] is None
    assert action_values(line(text))["keys_present"] == 0


def test_true_actions_without_a_box_are_counted():
    found = summarize(score([line(TRUE), line(TRUE), line(TRUE, {"action": "other"}, kind="x")]))
    assert found["no_true_box"] == 1 and found["iou"] == 1
    assert ("1", "-") in [row[1:] for row in figure_rows(found)]
    assert "no_true_box" not in summarize(score([line(TRUE)]))


def test_a_level_surface_has_an_axis_of_its_own():
    table = TRUE | {"normal": [0, 0, 1], "extent": [2, 1, 0.1], "axis": [0, 1, 0]}
    assert action_values(line(table, table))["iou"] == pytest.approx(1)
    turned = {**table, "axis": [1, 0, 0]}
    assert action_values(line(turned, table))["iou"] == pytest.approx(1 / 3)
    # In a world whose y is up it is the normal that says so.
    upright = TRUE | {"normal": [0, 1, 0], "extent": [2, 1, 0.1], "axis": [0, 0, -1]}
    assert action_values(line(upright, upright, up="y"))["iou"] == pytest.approx(1)


def test_the_summary_has_means_medians_and_categories():
    errors = [0.0, 0.1, 2.0]
    lines = [line(TRUE | {"center": [1 + e, 2, 0.5]}, scene_id=str(e)) for e in errors]
    lines.append(line("nothing", kind="door", scene_id="x"))
    found = summarize(score(lines))
    assert found["center_error"] == pytest.approx(0.7)
    assert found["center_error_median"] == pytest.approx(0.1)
    assert found["center_25cm"] == pytest.approx(2 / 4) and found["json_valid"] == 0.75
    assert found["kinds"]["door"]["iou"] == 0 and "center_error" not in found["kinds"]["door"]
    assert found["intervals"]["center_error"][0] < 0.7


def test_the_original_exact_match_is_kept():
    assert measured(line(json.dumps(TRUE)))["exact_match"] is True
    assert measured(line(json.dumps(TRUE | {"scene": "t"})))["exact_match"] is False


def record(scene, centre, size, t=((0, 0, 1.5), (4, 0, 1.5))):
    looking_north = [1, 0, 0, 0, 0, 1, 0, -1, 0]
    looking_west = [0, 0, -1, 1, 0, 0, 0, -1, 0]
    geometry = {"R": [looking_north, looking_west], "t": list(t)}
    action = TRUE | {"scene": scene, "center": centre, "extent": size}
    return parse_record(
        {"images": ["a", "b"], "instruction": "it", "scene_id": scene, "action_json": action,
         "geom_token": geometry}, "o",
    )  # fmt: skip


def from_its_second_camera(known):
    """A record with its views turned round, told from the one that is first then."""
    geometry = {name: rows[::-1] for name, rows in known.geometry.items()}
    known = dataclasses.replace(known, geometry=geometry, images=known.images[::-1])
    frame, (rotations, positions) = known.model_frame(), known.poses()
    views = {
        "R": frame.rotations(rotations).reshape(-1, 9).tolist(),
        "t": frame.points(positions).tolist(),
    }
    there = {"frame": "first_camera", "frame_to_world": frame.to_world().tolist()}
    action = {"action_json": known.learnt_action(), "geom_token": views}
    return parse_record(record_entry(known) | there | action, "o")


def test_the_largest_object_is_compared_in_the_world():
    small, large = record("c", [0, 1, 1.5], [1, 1, 1]), record("c", [0, 4, 1.5], [1, 2, 1])
    turned = from_its_second_camera(large)
    assert np.linalg.norm(np.subtract(turned.action["center"], large.action["center"])) > 1
    for asked in ([small, turned], [from_its_second_camera(small), large]):
        found = baselines([], asked)["largest_object"]
        assert found["center_error"] == pytest.approx(np.mean([3, 0]), abs=1e-3)


def test_baselines():
    training = [record("a", [0, 2, 1.5], [1, 1, 1]), record("b", [2, 2, 1.5], [1, 1, 3])]
    small, large = record("c", [0, 1, 1.5], [1, 1, 1]), record("c", [0, 4, 1.5], [1, 2, 1])
    found = baselines(training, [small, large])
    # The mean centre is (1, 2) from the first camera, which stands in the origin.
    expected = [np.hypot(1, 1), np.hypot(1, 2)]
    assert found["training_mean"]["center_error"] == pytest.approx(np.mean(expected), abs=1e-6)
    # Lines of sight that cross at the first camera.
    assert found["room_center"]["center_error"] == pytest.approx(np.mean([1, 4]), abs=1e-6)
    assert found["largest_object"]["center_error"] == pytest.approx(np.mean([3, 0]), abs=1e-6)
    assert found["largest_object"]["count"] == 2
    assert baselines([], [small]).keys() == {"largest_object"}

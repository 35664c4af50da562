"""RoomPlan exports: the two real ones become records of everything in them, and a flat."""

import collections
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scans import read_lines, run_script

from jaxvlm.data.audit.files import audit_file
from jaxvlm.data.boxes import SURFACE_DEPTH
from jaxvlm.data.frames import Frame, move_action
from jaxvlm.data.prep.drawn import scene_mesh
from jaxvlm.data.prep.looks import _COLOURS, colour
from jaxvlm.data.prep.referring import phrases
from jaxvlm.data.prep.roomplan import read_roomplan
from jaxvlm.data.prep.synth import find_inputs
from jaxvlm.data.records import RecordFile
from jaxvlm.errors import UserError

FIELDS = ("walls", "doors", "windows", "openings", "objects")
ROOMPLAN = Path(__file__).parents[2] / "fixtures" / "roomplan"
EXPORTS = ("captured_single_room", "captured_multi_room")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roomplan")
    run_script(
        "synth_roomplan_instructions",
        *("--input", ROOMPLAN, "--output", folder / "out.jsonl"),
        *("--render", "--num-views", 6, "--image-size", 96, "--workers", 1),
        *("--floor-plans", folder / "plans"),
    )
    return folder


def export(name: str) -> dict:
    return json.loads((ROOMPLAN / f"{name}.json").read_text())


def independent(element: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners, normal and size of an element, read from the transform's numbers one by one."""
    t = element["transform"]
    width, height, depth = element["dimensions"]
    corners = []
    for x in (-width / 2, width / 2):
        for y in (-height / 2, height / 2):
            corners.append([t[12 + i] + x * t[i] + y * t[4 + i] for i in range(3)])
    return np.array(corners), np.array(t[8:11]), np.array([width, height, depth])


@pytest.mark.parametrize("name", EXPORTS)
def test_everything_in_the_room_has_a_record_with_its_box(prepared, name):
    elements = {e["identifier"]: (f, e) for f in FIELDS for e in export(name)[f]}
    records = [r for r in RecordFile(prepared / "out.jsonl") if r.scene_id == name]
    assert {record.object_ids[0] for record in records} == elements.keys()
    for record in records:
        field, element = elements[record.object_ids[0]]
        corners, normal, size = independent(element)
        # Back to the export's own world, y up.
        action = move_action(record.action, Frame.from_world(record.frame_to_world).inverse())
        centre, front = np.array(action["center"]), np.array(action["normal"])
        np.testing.assert_allclose(centre, corners.mean(0), atol=5e-4)
        np.testing.assert_allclose(front, normal, atol=5e-4)
        width, height, depth = action["extent"]
        np.testing.assert_allclose([width, height], size[:2], atol=1e-4)
        assert depth == (pytest.approx(size[2], abs=1e-4) if field == "objects" else SURFACE_DEPTH)
        # The box of the action's convention: right is up x normal.
        right, up = np.cross([0, 1, 0], front), np.array([0, 1, 0])
        mine = [
            centre + x * width / 2 * right + y * height / 2 * up for x in (-1, 1) for y in (-1, 1)
        ]
        np.testing.assert_allclose(mine, corners, atol=2e-3)


def test_records_are_of_several_kinds_say_that_they_are_drawn_and_pass_the_audit(prepared):
    records = list(RecordFile(prepared / "out.jsonl"))
    assert all(record.rendered for record in records)
    kinds = collections.Counter(record.kind for record in records)
    assert {"object", "object by attribute", "object by relation", "object by size"} <= kinds.keys()
    assert {"door by attribute", "wall by relation", "window by relation"} <= kinds.keys()
    findings = audit_file(RecordFile(prepared / "out.jsonl"), ["."], True)
    assert findings.counts().keys() <= {"action-unseen"}
    assert not findings.bad()


def test_no_two_things_of_a_scene_have_the_same_instruction(prepared):
    of = collections.defaultdict(set)
    for record in RecordFile(prepared / "out.jsonl"):
        of[record.scene_id, record.question].add(record.object_ids[0])
    assert all(len(names) == 1 for names in of.values())


def ends(wall) -> list[np.ndarray]:
    return [(wall.centre + side * wall.axes[0] * wall.size[0] / 2)[:2] for side in (-1, 1)]


def off(point: np.ndarray, wall) -> float:
    """Metres from a point to a wall's line on the floor."""
    a, b = ends(wall)
    share = np.clip((point - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    return float(np.linalg.norm(point - a - share * (b - a)))


@pytest.mark.parametrize(("name", "free"), [(EXPORTS[0], 0), (EXPORTS[1], 2)])
def test_the_floor_plan_is_a_flat(name, free):
    scene = read_roomplan(ROOMPLAN / f"{name}.json")
    walls = [box for box in scene.boxes if box.group == "wall"]
    gaps = [
        min(off(end, other) for other in walls if other is not wall)
        for wall in walls
        for end in ends(wall)
    ]
    # The scan of the larger flat breaks off in the hall, where two walls end in the open.
    assert sum(gap > 0.05 for gap in gaps) == free
    by_name = {wall.name: wall for wall in walls}
    for box in scene.boxes:
        if box.group in ("door", "window", "opening"):
            wall = by_name[box.parent]
            across, up, out = wall.axes @ (box.centre - wall.centre)
            room = (wall.size - box.size) / 2 + 0.05
            assert abs(across) <= room[0] and abs(up) <= room[1] and abs(out) < 0.05
            assert abs(box.axes[2] @ wall.axes[2]) > 0.99


def test_floor_plans_are_drawn(prepared):
    for name in EXPORTS:
        image = np.asarray(Image.open(prepared / "plans" / f"{name}.png"))
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10


def test_walls_have_holes_where_doors_stand_open():
    scene = read_roomplan(ROOMPLAN / f"{EXPORTS[0]}.json")
    mesh = scene_mesh(scene.boxes, scene.floors)
    for box in scene.boxes:
        if box.group != "door":
            continue
        # Off the middle, where an open door's leaf is thin, a little in front of the wall.
        start = box.centre + box.axes[0] * box.size[0] / 4 - 0.3 * box.axes[2]
        way = 0.6 * box.axes[2]
        hit = mesh.embree.run(np.float32([start]), np.float32([way]), output=1)
        assert (hit["tfar"][0] < 1) == (not box.open)


def test_every_category_has_a_look_of_its_own():
    shared_looks = {
        ("cabinet", "storage unit"),
        ("TV", "TV monitor"),
        ("washer", "washing machine"),
    }
    names = list(_COLOURS)
    for number, first in enumerate(names):
        for second in names[:number]:
            same = np.abs(np.subtract(colour(first), colour(second))).max() < 0.02
            assert same == ((second, first) in shared_looks), (first, second)
    assert colour("unheard of") == colour("unheard of") != colour("something else")


def test_the_number_of_instructions_is_kept_and_spread(tmp_path):
    single = ROOMPLAN / f"{EXPORTS[0]}.json"
    flags = ("--render", "--num-views", 1, "--image-size", 32, "--workers", 1)
    for number in (1, 5, 20):
        output = tmp_path / f"{number}.jsonl"
        run_script(
            "synth_roomplan_instructions",
            *("--input", single, "--output", output, *flags),
            *("--num-instructions-per-scene", number),
        )
        lines = read_lines(output)
        assert len(lines) == number
        things = {line["object_ids"][0] for line in lines}
        assert len(things) == min(number, 13)


def test_a_phrase_is_true_of_its_box_alone():
    scene = read_roomplan(ROOMPLAN / f"{EXPORTS[1]}.json")
    viewpoint = np.array([0.0, 0, 1.5])
    by_name = {box.name: box for box in scene.boxes}
    checked = 0
    for name, said in phrases(scene.boxes, viewpoint).items():
        box = by_name[name]
        group = [other for other in scene.boxes if other.category == box.category]
        for phrase in said:
            if phrase.kind == "category":
                assert len(group) == 1
            elif phrase.kind == "relation" and "nearest to" in phrase.text:
                mark = by_name[phrase.others[0]]
                nearest = min(group, key=lambda other: other.distance(mark.centre))
                assert nearest is box
                checked += 1
            elif phrase.text.startswith(("the largest", "the longest", "the widest")):
                assert box is max(group, key=lambda other: np.prod(other.size))
                checked += 1
    assert checked > 10


def test_planes_with_cameras(tmp_path):
    scene = tmp_path / "in" / "47430000"
    (scene / "annotations").mkdir(parents=True)
    planes = [
        {"label": "wall", "center": [0, 2, 1.2], "normal": [0, -1, 0], "extent": [4, 2.4, 0]},
        {"label": "table", "center": [0.2, 1, 0.7], "normal": [0, 0, 1], "extent": [1, 0.6, 0.05]},
    ]
    (scene / "annotations" / "planes.json").write_text(json.dumps(planes))
    cameras = []
    for number in range(4):
        Image.new("RGB", (64, 48)).save(scene / f"{number}.png")
        # Looks along +y from (0, -2, 1.5): x right, image down is -z.
        pose = [[1, 0, 0, 0.1 * number], [0, 0, 1, -2], [0, -1, 0, 1.5], [0, 0, 0, 1]]
        cameras.append(
            {
                "rgb_path": f"{number}.png",
                "pose": pose,
                "intrinsics": [[50, 0, 32], [0, 50, 24], [0, 0, 1]],
                "depth_hist": [0.25] * 4 + [0] * 12,
            }
        )
    (scene / "cameras.json").write_text(json.dumps(cameras))
    run_script(
        "synth_roomplan_instructions",
        *("--input", tmp_path / "in", "--output", tmp_path / "out.json", "--frame", "world"),
        *("--num-views", 3, "--workers", 1),
    )
    records = list(RecordFile(tmp_path / "out.json"))
    assert [record.object_names[0] for record in records] == ["wall", "table"]
    wall, table = (record.action for record in records)
    assert wall["center"] == [0, 2, 1.2] and wall["extent"] == [4, 2.4, SURFACE_DEPTH]
    assert table["normal"] == [0, 0, 1]
    assert len(records[0].images) == 3 and not records[0].rendered
    np.testing.assert_allclose(records[0].geometry["depth_hist"].sum(1), 1)
    assert audit_file(RecordFile(tmp_path / "out.json"), ["."], True).problems == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("transform"), r"walls\[0\]: 'transform' must be 16 finite numbers"),
        (lambda e: e["transform"].__setitem__(0, 5), r"walls\[0\]: .* are no rotation"),
        (lambda e: e.update(dimensions=[1, -2, 0]), r"walls\[0\]: 'dimensions' must be .*-2"),
        (lambda e: e.pop("identifier"), r"walls\[0\]: needs a text 'identifier'"),
    ],
)
def test_wrong_elements_are_named(tmp_path, change, message):
    whole = export(EXPORTS[0])
    change(whole["walls"][0])
    path = tmp_path / "room.json"
    path.write_text(json.dumps(whole))
    with pytest.raises(UserError, match=message):
        read_roomplan(path)


def test_a_structure_of_rooms_is_read_once(tmp_path):
    room = export(EXPORTS[0])
    (tmp_path / "s.json").write_text(json.dumps({"rooms": [room, room], "version": 2}))
    whole = read_roomplan(tmp_path / "s.json")
    assert len(whole.boxes) == 13


def test_inputs_that_are_something_else_are_told_apart(tmp_path, shared):
    def synth(*inputs):
        run_script(
            "synth_roomplan_instructions",
            *("--input", *inputs, "--output", tmp_path / "o.jsonl", "--workers", 1),
        )

    single = ROOMPLAN / f"{EXPORTS[0]}.json"
    with pytest.raises(UserError, match="has no photographs; pass --render"):
        synth(single)
    with pytest.raises(UserError, match="does not exist"):
        synth(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds neither <scene>/annotations/planes\.json nor"):
        synth(tmp_path)
    with pytest.raises(UserError, match="its records have no 'action_json'"):
        synth(shared / "samples" / "original" / "sqa3d_test_split.jsonl")
    with pytest.raises(UserError, match="mixes records and roomplan"):
        synth(single, shared / "samples" / "original" / "arkit_synth_test.json")


def test_an_opening_is_a_hole_with_a_record_of_its_own(tmp_path):
    """Neither real export has one; this is a door of theirs, told as RoomPlan tells openings."""
    whole = export(EXPORTS[0])
    door = whole["doors"].pop(0)
    opening = {**door, "identifier": "OPENING", "category": {"opening": {}}}
    (tmp_path / "room.json").write_text(json.dumps({**whole, "openings": [opening]}))
    scene = read_roomplan(tmp_path / "room.json")
    (box,) = [box for box in scene.boxes if box.group == "opening"]
    mesh = scene_mesh(scene.boxes, scene.floors)
    ray = np.float32([box.centre - 0.3 * box.axes[2]]), np.float32([0.6 * box.axes[2]])
    assert not mesh.embree.run(*ray, output=1)["tfar"][0] < 1
    run_script(
        "synth_roomplan_instructions",
        *("--input", tmp_path / "room.json", "--output", tmp_path / "o.jsonl", "--render"),
        *("--num-views", 2, "--image-size", 32, "--workers", 1),
    )
    found = [r for r in RecordFile(tmp_path / "o.jsonl") if r.object_ids[0] == "OPENING"]
    assert found[0].kind == "opening" and "'opening'" in found[0].question
    action = move_action(found[0].action, Frame.from_world(found[0].frame_to_world).inverse())
    np.testing.assert_allclose(action["center"], independent(opening)[0].mean(0), atol=5e-4)


def posed(width_axis, normal, entry: dict) -> dict:
    """An element with these axes of its transform (y up); its height axis is normal × width."""
    axes = np.array([width_axis, np.cross(normal, width_axis), normal], float)
    columns = np.concatenate([axes, np.zeros((3, 1))], 1).ravel().tolist()
    return {**entry, "transform": [*columns, *entry["transform"][12:]]}


def read_changed(tmp_path, field: str, change):
    """The scene, and its element 0 of a field, once `change` has made another of it."""
    whole = export(EXPORTS[0])
    whole[field][0] = change(whole[field][0])
    (tmp_path / "room.json").write_text(json.dumps(whole))
    return read_roomplan(tmp_path / "room.json"), whole[field][0]


def box_of(scene, element):
    (box,) = [box for box in scene.boxes if box.name == element["identifier"]]
    return box


def same_corners(box, element) -> bool:
    """Whether a flat element's corners lie in the middle of its box's edges, in any order."""
    found = independent(element)[0] @ np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    local = np.abs((found - box.centre) @ box.axes.T) * 2
    return np.allclose(local, [*box.size[:2], 0], atol=1e-6)


@pytest.mark.parametrize("degrees", [45, 0, 10, 90, 200])
def test_a_window_in_a_ceiling_lies_as_its_transform_says(tmp_path, degrees):
    angle = np.radians(degrees)
    way = (np.cos(angle), 0, np.sin(angle))
    scene, window = read_changed(tmp_path, "windows", lambda e: posed(way, (0, -1, 0), e))
    box = box_of(scene, window)
    np.testing.assert_allclose(box.axes[0], [way[0], -way[2], 0], atol=1e-9)
    assert same_corners(box, window) and not scene.notes


@pytest.mark.parametrize("field", ["objects", "windows"])
@pytest.mark.parametrize("degrees", [90, -90, 180])
def test_a_quarter_turn_about_the_normal_swaps_width_and_height(tmp_path, field, degrees):
    angle = np.radians(degrees)
    way = (np.cos(angle), np.sin(angle), 0)
    scene, element = read_changed(tmp_path, field, lambda e: posed(way, (0, 0, 1), e))
    box = box_of(scene, element)
    assert same_corners(box, element) and not scene.notes
    np.testing.assert_allclose(box.axes[1], [0, 0, 1], atol=1e-9)


@pytest.mark.parametrize(("degrees", "taken"), [(30, 0), (-70, 90), (170, 180)])
def test_what_is_rolled_otherwise_is_noted(tmp_path, degrees, taken):
    angle = np.radians(degrees)
    way = (np.cos(angle), np.sin(angle), 0)
    scene, element = read_changed(tmp_path, "objects", lambda e: posed(way, (0, 0, 1), e))
    (note,) = scene.notes
    place = tmp_path / "room.json"
    rolled = f"rolled by {abs(degrees)}° about its normal, which is taken as {taken}°"
    assert note == f"{place}: objects[0]: {rolled}"
    size = np.array(element["dimensions"])[[1, 0, 2] if taken == 90 else [0, 1, 2]]
    np.testing.assert_allclose(box_of(scene, element).size, size)


def test_what_is_too_thin_for_a_record_is_named(tmp_path):
    with pytest.raises(UserError, match=r"room\.json: objects\[0\]: 'dimensions' .*1e-05\]"):
        read_changed(tmp_path, "objects", lambda e: {**e, "dimensions": [1, 1, 1e-5]})


def test_a_broken_export_of_a_folder_is_named(tmp_path, capsys):
    whole = (ROOMPLAN / f"{EXPORTS[0]}.json").read_text()
    (tmp_path / "good.json").write_text(whole)
    (tmp_path / "._good.json").write_bytes(b"\0\5\26\7 what a Mac leaves")
    (tmp_path / "settings.json").write_text("{}")
    assert find_inputs([tmp_path]).scenes == {"good": tmp_path / "good.json"}
    assert f"{tmp_path}: passed over 1 of 2 *.json" in capsys.readouterr().err
    (tmp_path / "broken.json").write_text(whole[:300])
    with pytest.raises(UserError, match=r"broken\.json:\d+: malformed JSON"):
        find_inputs([tmp_path])
    (tmp_path / "broken.json").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UserError, match=r"broken\.json is no UTF-8 text"):
        find_inputs([tmp_path])

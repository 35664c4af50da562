"""Predicted rooms as files like RoomPlan's."""

from jaxvlm.data.prep.roomplan import read_roomplan
from jaxvlm.data.record import parse_record
from jaxvlm.metrics.room_files import write_rooms


def test_an_object_asked_for_in_several_words_stands_in_a_room_once(tmp_path):
    entry = {"images": ["a"], "instruction": "Place it.", "scene_id": "s", "up": "y"}
    asked = [parse_record({**entry, "object_names": ["chair"], "object_ids": [which]}, "o")
             for which in (7, 7, 7, 8)]  # fmt: skip
    action = {"action": "place_anchor", "scene": "s", "normal": [0, 0, 1], "extent": [1, 1, 1]}
    places = ([9, 0, 1], [2, 0, 1], [3, 0, 1], [5, 0, 1])
    said = [{"predicted_action": {**action, "center": place}} for place in places]
    (path,) = write_rooms(tmp_path, zip(asked, said, strict=True))
    # RoomPlan's y is up too; the reader turns it to z.
    assert [box.centre.tolist() for box in read_roomplan(path).boxes] == [[3, -1, 0], [5, -1, 0]]


def test_rooms_of_records_in_frames_of_their_own_are_warned_of(tmp_path, capsys):
    entry = {"instruction": "Place it.", "scene_id": "s", "frame": "first_camera"}
    asked = [parse_record({**entry, "images": [image]}, "o") for image in "ab"]
    action = {"action": "place_anchor", "scene": "s", "normal": [0, 1, 0], "extent": [1, 1, 1]}
    said = [{"predicted_action": {**action, "center": [1, 2, 3]}}] * 2
    write_rooms(tmp_path, zip(asked, said, strict=True))
    assert "1 scenes, such as 's', are measured from different first" in capsys.readouterr().err


def test_questions_among_the_records_are_nobodys_boxes(tmp_path, capsys):
    question = parse_record({"images": ["a"], "question": "Where?", "scene_id": "s"}, "o")
    assert write_rooms(tmp_path, [(question, {"prediction": "here"})]) == []
    assert capsys.readouterr().err == ""

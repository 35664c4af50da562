"""Actions from training to the page: learnt, said under a constraint, scored in metres, drawn."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tiny

from convert import export_torch
from jaxvlm import ask, evaluate, predict
from jaxvlm.data import sources
from jaxvlm.data.actions import language
from jaxvlm.data.prep.roomplan import read_roomplan
from jaxvlm.data.record import parse_record
from jaxvlm.data.records import RecordFile
from jaxvlm.data.training_set import training_rows
from jaxvlm.errors import UserError
from jaxvlm.generation.ways import ACTIONS, NO_GEOMETRY, Ways
from jaxvlm.metrics.action_lines import action_fields
from jaxvlm.models.tree import load
from jaxvlm.models.vlm import abstract_vlm, vlm_config
from jaxvlm.paths import unflatten
from jaxvlm.training.loop import train
from jaxvlm.training.loss import hidden_states
from jaxvlm.training.mesh import make_mesh
from jaxvlm.training.run import find_checkpoint, run_config, run_parameters

NAMES = ("", "no_image.", "other_images.", "no_geometry.")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return tiny.action_records(tmp_path_factory.mktemp("actions"))


@pytest.fixture(scope="module")
def run(records, tmp_path_factory):
    """A run of twenty updates, which has learnt next to nothing."""
    workdir = tmp_path_factory.mktemp("runs") / "actions"
    changes = {"train__max_steps": 20, "train__save_every": 20, "train__eval_every": 20}
    train(tiny.config_for(records, **tiny.ACTIONS, **changes), workdir)
    return workdir


def command(*flags):
    parsed = evaluate.parser().parse_args([str(flag) for flag in flags])
    parsed.overrides = []
    return parsed


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated")
    evaluate.main(command("--checkpoint", run, "--output", output))
    return output


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_loss_is_logged_by_itself(run):
    first, *_, last = read(run / "metrics.jsonl")
    heads = ("head/language", "head/action_json", "head/geometry_consistency")
    for name in (*heads, "action_center_error"):
        assert np.isfinite(first[name])
    parts = first["head/language"] + first["head/action_json"]
    # With the weights of the configuration.
    parts += 0.5 * first["head/geometry_consistency"]
    assert first["loss"] == pytest.approx(parts, rel=1e-3)
    assert last["head/language"] < first["head/language"]
    assert np.isfinite(last["val_action_center_error"])


def test_every_answer_is_an_action_of_its_scene(evaluated, records):
    known = list(RecordFile(records))
    for name in NAMES:
        lines = read(evaluated / f"predictions.{name}jsonl")
        assert len(lines) == len(known)
        for line, record in zip(lines, known, strict=True):
            action = language.parse(line["prediction"])
            assert action["scene"] == record.scene_id and language.problem(action) is None
            assert line["action_valid"] == line["scene_right"] == 1 and line["ended"]
            assert line["reference"] == record.action


def test_the_heads_box_is_that_of_the_training_pass(run, evaluated, records):
    """It reads the same token, whatever stands before and behind it."""
    checkpoint = find_checkpoint(run)
    config = run_config(checkpoint, [])
    params = run_parameters(checkpoint, config, make_mesh(-1, -1))
    model = load(abstract_vlm(vlm_config(config.model)), unflatten(params))
    known = {read_box(record): index for index, record in enumerate(RecordFile(records))}
    batch = {k: v for k, v in training_rows(config, 2).batch(0, 2).items() if k != "lost"}
    positions = batch["action_positions"][..., None]
    at_actions = np.take_along_axis(np.asarray(hidden_states(model, batch)), positions, 1)
    found, lines, compared = model.action(at_actions), read(evaluated / "predictions.jsonl"), set()
    for row, at in np.argwhere(batch["action_weights"] > 0):
        index = known[tuple(np.round(batch["action_targets"][row, at], 2))]
        record = RecordFile(records)[index]
        expected = action_fields(record, "", np.asarray(found[row, at]))["head_action"]
        compared.add(index)
        for name in ("center", "extent", "normal"):
            said = lines[index]["head_action"][name]
            np.testing.assert_allclose(said, expected[name], atol=2e-3)
    assert len(compared) > 2


def read_box(record):
    """The box that is learnt, to tell records by."""
    learnt = record.learnt_action()
    return tuple(np.round(np.float32(learnt["center"] + learnt["extent"] + learnt["normal"]), 2))


def test_no_geometry_takes_the_geometry_away(run, evaluated, records, tmp_path):
    """And nothing else: records without any are answered the same."""
    bare = tmp_path / "bare.jsonl"
    entries = [json.loads(line) | {"geom_token": None} for line in records.open()]
    bare.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    flags = ["--checkpoint", run, "--data", bare, "--output", tmp_path / "o", "--no-controls"]
    parsed = command(*flags)
    parsed.overrides = [f"data.image_roots=({str(records.parent)!r},)"]
    evaluate.main(parsed)
    without, plain = (read(evaluated / f"predictions.{way}jsonl") for way in ("no_geometry.", ""))
    texts = [line["prediction"] for line in read(tmp_path / "o" / "predictions.jsonl")]
    assert texts == [line["prediction"] for line in without]
    # Where there is none, there is nothing to take away.
    known = sources.load_sources([{"path": str(bare)}], (str(records.parent),), "error")[0].records
    assert NO_GEOMETRY not in list(Ways(known, ACTIONS, len(known), True, 0))
    told = RecordFile(records)
    assert NO_GEOMETRY in list(Ways(told, ACTIONS, len(told), True, 0))
    assert NO_GEOMETRY not in list(Ways(told, ACTIONS, len(told), True, 0, located=False))
    assert texts != [line["prediction"] for line in plain]


def test_predictions_are_in_the_frame_of_their_record(records):
    record = RecordFile(records)[2]
    found = action_fields(record, record.answer, None)["predicted_action"]
    for name in ("center", "normal", "extent"):
        np.testing.assert_allclose(found[name], record.action[name], atol=0.011)
    box = np.concatenate([record.learnt_action()[n] for n in ("center", "extent", "normal")])
    head = action_fields(record, "nothing", box)
    assert head["predicted_action"] is None
    np.testing.assert_allclose(head["head_action"]["center"], record.action["center"], atol=1e-3)


def test_the_summary_has_controls_baselines_and_the_head(evaluated, records):
    summary = json.loads((evaluated / "summary.json").read_text())
    assert summary["task"] == "actions" and summary["count"] == len(list(RecordFile(records)))
    assert summary["json_valid"] == summary["action_valid"] == summary["keys_present"] == 1
    assert all(summary["controls"][name] for name in ("no_image", "other_images", "no_geometry"))
    assert set(summary["kinds"]) == {"chair", "table"}
    for name in ("training_mean", "room_center", "largest_object"):
        assert summary["baselines"][name]["center_error_median"] >= 0
    assert summary["head_center_error_median"] > 0
    better = summary["center_50cm"] - summary["controls"]["no_image"]["center_50cm"]
    lead = summary["leads"]["no_image"]["center_50cm"]["difference"]
    assert lead == pytest.approx(better, abs=1e-6)
    errors = [line["center_error"] for line in read(evaluated / "predictions.jsonl")]
    assert summary["center_error_median"] == pytest.approx(np.median(errors), abs=1e-5)
    assert summary["headline"].startswith("valid 100.0%, centre off by ")


def test_the_page_shows_every_scene_from_above_and_in_its_photographs(evaluated, records):
    page = (evaluated / "report.html").read_text()
    known = list(RecordFile(records))
    scenes = {record.scene_id for record in known}
    assert all(f"<h3>{scene}</h3>" in page for scene in scenes)
    views = sum(len(r.images) for r in {r.scene_id: r for r in known}.values())
    assert page.count('alt="from above" src="data:image/png') == len(scenes)
    assert page.count('src="data:image/jpeg') == views
    assert "other images" in page and "training mean" in page


def test_questions_and_instructions_are_not_mixed(run, records, tmp_path):
    questions = tiny.write_records(records.parent)
    mixed = tmp_path / "mixed.jsonl"
    folder = str(records.parent)
    texts = [questions.read_text(), records.read_text()]
    mixed.write_text("".join(texts))
    flags = ["--checkpoint", run, "--data", mixed, "--output", tmp_path / "o", "--no-controls"]
    parsed = command(*flags)
    parsed.overrides = [f"data.image_roots=({folder!r},)"]
    with pytest.raises(UserError, match=r"12 questions and 6 instructions.*--task answers"):
        evaluate.main(parsed)
    parsed = command(*flags, "--task", "answers")
    parsed.overrides = [f"data.image_roots=({folder!r},)"]
    evaluate.main(parsed)
    assert len(read(tmp_path / "o" / "predictions.jsonl")) == 12
    # What stands of the one task is nothing of the other.
    parsed = command(*flags, "--task", "actions")
    parsed.overrides = [f"data.image_roots=({folder!r},)"]
    evaluate.main(parsed)
    assert all("predicted_action" in line for line in read(tmp_path / "o" / "predictions.jsonl"))
    with pytest.raises(UserError, match="--task answers: every record is an instruction"):
        evaluate.main(command("--checkpoint", run, "--task", "answers", "--no-controls"))


def test_an_evaluation_whose_answers_stand_is_scored_again(evaluated):
    """Nothing is left to be answered, only to be counted."""
    before = (evaluated / "summary.json").read_text()
    (evaluated / "report.html").unlink()
    run = json.loads(before)["checkpoint"]
    evaluate.main(command("--checkpoint", run, "--output", evaluated))
    assert (evaluated / "report.html").exists()
    assert (evaluated / "summary.json").read_text() == before


def test_its_lines_are_scored_and_compared_as_actions(evaluated, records, tmp_path, capsys):
    """In metres, as objects of JSON; less is better."""
    lines = read(evaluated / "predictions.jsonl")
    right = tmp_path / "right.jsonl"
    kept = ("question_id", "scene_id", "question", "reference", "references", "task", "kind", "up")
    entries = [
        {**{name: line[name] for name in kept if name in line}, "prediction": line["reference"]}
        for line in lines
    ]
    right.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    evaluate.main(command("--predictions", right, "--output", tmp_path / "o"))
    assert "valid 100.0%, centre off by 0.00 m (median)" in capsys.readouterr().out
    evaluate.main(command("--compare", evaluated / "predictions.jsonl", right))
    said = capsys.readouterr().out
    assert "centre: the second is better by" in said and "CIDEr" not in said


def test_scoring_its_lines_does_not_write_over_an_evaluation(evaluated):
    flags = command("--predictions", evaluated / "predictions.jsonl", "--output", evaluated)
    with pytest.raises(UserError, match="holds an evaluation with its controls"):
        evaluate.main(flags)


def test_a_recording_has_every_scene(evaluated, records, tmp_path):
    """Read back by Rerun's own tool."""
    run = json.loads((evaluated / "summary.json").read_text())["checkpoint"]
    path = tmp_path / "scenes.rrd"
    evaluate.main(command("--checkpoint", run, "--output", evaluated, "--rerun", path))
    tool = [sys.executable, "-m", "rerun_cli", "rrd"]
    subprocess.run([*tool, "verify", path], check=True, capture_output=True)
    shown = subprocess.run([*tool, "print", path], check=True, capture_output=True, text=True)
    for record in RecordFile(records):
        for name in ("true", "predicted", "view_0/image"):
            assert re.search(rf"{record.scene_id}.*{name}", shown.stdout)
    branches = [
        set(re.findall(rf"([^\s'\"`]*scene\S*(?:\\ \S+)?)/{name}", shown.stdout))
        for name in ("true", "predicted", "view_0")
    ]
    assert branches[0] == branches[1] == branches[2] != set()
    with pytest.raises(UserError, match=r"ends in \.rrd"):
        evaluate.main(
            command("--checkpoint", run, "--output", evaluated, "--rerun", tmp_path / "x")
        )


def test_predictions_can_be_written_like_roomplan(run, records, tmp_path, monkeypatch):
    (tmp_path / "rooms").mkdir()
    monkeypatch.chdir(tmp_path / "rooms")
    flags = ["--checkpoint", run, "--data", records, "--format", "roomplan"]
    parsed = predict.parser().parse_args([str(f) for f in [*flags, "--output", "."]])
    parsed.overrides = []
    predict.main(parsed)
    # Told before anything is answered.
    (tmp_path / "file").write_text("")
    parsed.output = tmp_path / "file"
    with pytest.raises(UserError, match="file is a file; expected the name of a folder"):
        predict.main(parsed)
    parsed.output, parsed.format = tmp_path, "jsonl"
    with pytest.raises(UserError, match="is a folder; expected the name of a file"):
        predict.main(parsed)
    scenes = {record.scene_id for record in RecordFile(records)}
    found = {path.stem: read_roomplan(path) for path in (tmp_path / "rooms").glob("*.json")}
    assert found.keys() == scenes
    for scene in found.values():
        assert {box.category for box in scene.boxes} == {"chair", "table"}


def test_an_action_can_be_asked_for(run, records, tmp_path, capsys):
    record = RecordFile(records)[0]
    entry = json.loads(records.read_text().splitlines()[0])
    (tmp_path / "views.json").write_text(json.dumps(entry))
    flags = ["--checkpoint", run, "--scene", record.scene_id]
    flags += ["--images", *(records.parent / image for image in record.images)]
    flags += ["--instruction", record.question]
    for more in ([], ["--geometry", tmp_path / "views.json"]):
        parsed = ask.parser().parse_args([str(flag) for flag in (*flags, *more)])
        parsed.overrides = []
        ask.main(parsed)
        said, metres = capsys.readouterr().out.splitlines()[-2:]
        known = parse_record({k: v for k, v in entry.items() if more or k != "geom_token"}, "")
        assert json.loads(metres) == action_fields(known, said, None)["predicted_action"]
        assert language.parse(said)["scene"] == record.scene_id
    views = entry["geom_token"] | {"R": [[0] * 9] * len(record.images)}
    (tmp_path / "views.json").write_text(json.dumps(entry | {"geom_token": views}))
    with pytest.raises(UserError, match=r"--geometry: geom_token\.R of view 0 is no rotation"):
        ask.main(parsed)
    parsed.scene = None
    with pytest.raises(UserError, match="--instruction needs --scene"):
        ask.main(parsed)
    parsed.scene, parsed.question = record.scene_id, "What is there?"
    with pytest.raises(UserError, match="--question asks for an answer and --instruction for an"):
        ask.main(parsed)


def test_an_export_says_that_it_has_no_place_for_the_head(run, tmp_path, capsys):
    flags = [str(run), str(tmp_path / "original"), "--format", "original"]
    parsed = export_torch.parser().parse_args(flags)
    parsed.overrides = []
    export_torch.main(parsed)
    assert "left out: action, the head that measures boxes" in capsys.readouterr().out

"""Answers into a file, by our flags and the original's, and the weights that they may name."""

import functools
import itertools
import json
import os
from pathlib import Path

import pytest
import tiny

from jaxvlm import entry, predict
from jaxvlm.data.actions import language
from jaxvlm.errors import UserError
from jaxvlm.generation import answer
from jaxvlm.generation.weights import choose


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command; returns exit code and error output."""

    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)

    def function(*flags):
        try:
            entry.run(predict.parser(), predict.main, [str(flag) for flag in flags])
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, ""

    return function


def test_records_without_references_are_answered(call, finished_run, colours, tmp_path):
    """With the names that the original's flags have, and its fields."""
    asked = [json.loads(line) for line in colours.read_text().splitlines()]
    action = {"action": "place_anchor", "scene": "s9", "center": [0, 0, 1], "normal": [0, 0, 1],
              "extent": [1, 1, 1]}  # fmt: skip
    for record in asked:
        record.pop("answer"), record.pop("answers", None)
        record["images"] = [str(colours.parent / image) for image in record["images"]]
    asked[1]["action_json"], asked[1]["scene_id"] = action, None
    asked[1]["instruction"] = asked[1].pop("question")
    for number, part in enumerate((asked[:3], asked[3:])):
        (tmp_path / f"part{number}.json").write_text(json.dumps(part))
    out = tmp_path / "new" / "out.jsonl"
    code, said = call(
        "--checkpoint_dir", finished_run, "--arkit_glob", tmp_path / "*.json", "--num_scenes", 5,
        "--max_new_tokens", 3, "--device", "cpu", "--output_jsonl", out,
    )  # fmt: skip
    assert code == 0, said
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(5))
    said = lines.pop(1)
    assert [line["prediction"] for line in lines] == [c for c in tiny.COLOURS if c != "green"][:4]
    assert lines[0]["reference"] is None and said["reference"] == action
    # A model that never learnt any still says one, of this scene.
    assert said["scene_id"] == said["predicted_action"]["scene"] == "s9"
    assert language.parse(said["prediction"])["action"] == "place_anchor"
    assert lines[0]["raw_prediction"] == lines[0]["prediction"]
    assert lines[0]["record"] == f"{tmp_path / 'part0.json'}:1 (item 0)"


def test_an_answer_has_no_more_tokens_than_it_may(call, finished_run, colours, tmp_path):
    """Drawn so hot that none ends by itself."""
    texts = []
    for most in (1, 6):
        out = tmp_path / f"{most}.jsonl"
        flags = "--data", colours, "--max_new_tokens", most, "--output", out
        hot = "--config.evaluation.sampling.temperature=50"
        assert call("--checkpoint", finished_run, hot, *flags)[0] == 0
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        texts.append([line["raw_prediction"] for line in lines])
    assert all(0 < len(short) < len(longer) for short, longer in zip(*texts, strict=True))


def test_killed_the_same_command_goes_on(call, finished_run, colours, tmp_path, monkeypatch):
    """What was answered is not asked again; a file of the same name with others is."""
    asked, answers = [], answer.answers

    def counted(answerer, groups, most):
        for found in itertools.islice(answers(answerer, groups), most):
            asked.append(found.key)
            yield found
        if most is not None:
            raise KeyboardInterrupt

    out = tmp_path / "out.jsonl"
    flags = "--checkpoint", finished_run, "--data", colours, "--output", out
    for most in (4, None):
        monkeypatch.setattr(answer, "answers", functools.partial(counted, most=most))
        call(*flags)
        assert out.exists() == (most is None)
    assert sorted(asked) == list(range(6))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["prediction"] for line in lines] == list(tiny.COLOURS)
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_what_is_no_predictions_is_not_written_over(call, finished_run, colours, tmp_path):
    out = tmp_path / "out.jsonl"
    flags = "--checkpoint", finished_run, "--data", colours, "--output", out
    for text in (colours.read_text(), "notes\n", "[1]"):
        out.write_text(text)
        code, said = call(*flags)
        assert code == 2 and "is there and holds no predictions" in said
        assert out.read_text() == text
    out.unlink()
    part = tmp_path / "out.jsonl.part"
    part.mkdir()
    (part / "notes.txt").write_text("mine")
    code, said = call(*flags)
    assert code == 2 and "is in the way and was not made by this command" in said
    (part / "notes.txt").rename(part / ".lock")
    assert call(*flags)[0] == 0 and not part.exists()
    part.write_text("mine")
    code, said = call(*flags)
    assert code == 2 and "Traceback" not in said and part.read_text() == "mine"


def test_records_are_not_written_over(call, finished_run, colours, tmp_path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text(colours.read_text())
    for image in colours.parent.glob("*.png"):
        (tmp_path / image.name).symlink_to(image)
    code, said = call("--checkpoint", finished_run, "--data", mine, "--output", mine)
    assert code == 2 and "is one of the files of --data" in said
    assert mine.read_text() == colours.read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_scenes", 0], "--num_scenes 0: expected at least 1"),
        (["--device", "tpu"], "--device tpu: expected cpu, cuda or cuda:N"),
        ([], "expected --checkpoint, or a --config"),
        (["--checkpoint", "nowhere"], "--checkpoint"),
        (["--config", tiny.__file__], "without --checkpoint all weights are imported ones"),
    ],
)
def test_what_cannot_be_is_refused(call, colours, tmp_path, flags, message):
    code, said = call("--data", colours, "--output", tmp_path / "o", *flags)
    assert code == 2 and message in said
    assert not (tmp_path / "o").exists()


def test_weights_of_pytorch_are_looked_for_in_the_originals_order(tmp_path):
    def message():
        with pytest.raises(UserError) as error:
            choose(tmp_path, None, [])
        return str(error.value)

    (tmp_path / "model.safetensors").touch()
    assert f"({tmp_path / 'model.safetensors'})" in message()
    (tmp_path / "pytorch_model_fp32.bin").mkdir()
    assert f"({tmp_path / 'pytorch_model_fp32.bin'})" in message()
    (tmp_path / "pytorch_model_fp32").mkdir()
    assert f"({tmp_path / 'pytorch_model_fp32'})" in message()
    assert f"convert.import_torch original {tmp_path} {tmp_path / 'jaxvlm'}" in message()
    # Once imported, that is what is read.
    (tmp_path / "jaxvlm").mkdir()
    about = {"format": 2, "content": "x", "model": {"projector": {}, "language": {}}}
    (tmp_path / "jaxvlm" / "meta.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="holds imported weights; give a --config too"):
        choose(tmp_path, None, [])
    chosen = choose(tmp_path, tiny.__file__, [])
    model = chosen.config.model
    assert model.projector.weights == model.language.weights == str(tmp_path / "jaxvlm")
    assert model.vision.weights is None and chosen.folder is None


def test_a_configuration_takes_the_place_of_a_runs_data_and_evaluation(finished_run):
    own = choose(finished_run, None, []).config
    given = choose(finished_run, tiny.__file__, ["evaluation.max_new_tokens=5"]).config
    assert given.evaluation.max_new_tokens == 5 and own.evaluation.max_new_tokens != 5
    assert given.model == own.model and given.train == own.train
    demo = Path(__file__).parents[2] / "configs" / "demo.py"
    with pytest.raises(UserError, match=r"demo\.py: model\.\S+ is \S+ but the run of --checkpoint"):
        choose(finished_run, str(demo), [])

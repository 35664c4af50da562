"""The command lines: train, evaluate, ask, and what they say to wrong input."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from jaxvlm import ask, entry, evaluate, train
from jaxvlm.training import loop

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def call(monkeypatch, capsys):
    """`(module, *arguments) -> (exit code, out, error)`, as from the command line."""

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)

    def function(module, *arguments):
        capsys.readouterr()
        code = 0
        try:
            entry.run(module.parser(), module.main, [str(a) for a in arguments])
        except SystemExit as left:
            code = left.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return function


@pytest.fixture
def refused(call, monkeypatch):
    """`(module, *arguments) -> message` of a start that must fail before its first step."""

    def must_not(*arguments, **named):
        raise AssertionError("a step was made")

    monkeypatch.setattr(loop, "run_steps", must_not)

    def function(module, *arguments):
        code, _, errors = call(module, *arguments)
        assert code == 2
        assert "Traceback" not in errors
        *_, line = errors.splitlines()
        assert line.startswith(f"{module.parser().prog}: error: ")
        return line

    return function


@pytest.fixture(scope="module")
def evaluation(finished_run):
    """The folder of an evaluation of the finished run."""
    arguments = ["--checkpoint", str(finished_run), "--split", "val"]
    entry.run(evaluate.parser(), evaluate.main, arguments)
    return finished_run / "evaluation" / "val"


def test_train_evaluate_ask(call, colours, tmp_path):
    workdir = tmp_path / "run"
    changes = ("train.max_steps=80", "train.log_every=20", "train.save_every=80")
    code, out, _ = call(train, *tiny.arguments(colours, workdir, *changes))
    assert code == 0
    assert "Parameters" in out and "Step 80/80" in out and "6 samples in 3 rows" in out
    code, out, _ = call(evaluate, "--checkpoint", workdir)
    assert code == 0 and "100.0%" in out
    summary = json.loads((workdir / "evaluation" / "test" / "summary.json").read_text())
    assert summary["count"] == 6 and summary["exact_match"] == 1.0
    # Photographs come without geometry, as the odd scenes do.
    images = [colours.parent / f"scene3_{view}.png" for view in range(2)]
    question = ("--question", "What color is the wall?")
    code, out, _ = call(ask, "--checkpoint", workdir, "--images", *images, *question)
    assert code == 0 and out.strip().splitlines()[-1] == "yellow"
    # Once more: it stands already.
    code, out, _ = call(train, *tiny.arguments(colours, workdir, *changes))
    assert code == 0 and "nothing to do" in out


def test_predictions_have_the_fields_of_the_original(evaluation):
    lines = [json.loads(x) for x in (evaluation / "predictions.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(6))
    for line, (scene, colour) in zip(lines, enumerate(tiny.COLOURS), strict=True):
        assert line["scene_id"] == f"scene{scene}"
        assert line["question"] == "What color is the wall?"
        assert line["prediction"] == line["reference"] == colour
        assert line["exact_match"] is True and line["partial_match"] is True


def test_the_summary_has_scores_and_controls(evaluation, finished_run):
    summary = json.loads((evaluation / "summary.json").read_text())
    assert summary["count"] == 6
    assert summary["exact_match"] == summary["partial_match"] == 1.0
    # Six colours: another scene's is never right, and the majority answer once.
    assert summary["controls"]["other_images"] == 0.0
    assert summary["controls"]["question_only"] == pytest.approx(1 / 6)
    assert summary["kinds"]["colour"]["count"] == 6
    assert summary["split"] == "val"
    assert summary["checkpoint"] == str(finished_run / "checkpoints" / "80")


def test_the_page_holds_its_images(evaluation):
    page = (evaluation / "report.html").read_text()
    # Two views of five scenes, one of the sixth.
    assert (
        len(re.findall(r'<img [^>]*src="data:image/jpeg;base64,[A-Za-z0-9+/=]{200,}"', page)) == 11
    )
    assert page.count("What color is the wall?") == 6
    assert 'src="http' not in page


def test_evaluate_takes_files_a_limit_and_an_output(call, finished_run, records, tmp_path):
    flags = ("--data", records, "--limit", "3", "--output", tmp_path / "out", "--no-controls")
    code, _, _ = call(evaluate, "--checkpoint", finished_run, *flags)
    assert code == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["count"] == 3
    assert set(summary["controls"].values()) == {None}
    assert set(summary["kinds"]) == {"colour", "existence"}


def test_print_config_shows_every_field_and_starts_nothing(call, records, tmp_path):
    workdir = tmp_path / "run"
    arguments = tiny.arguments(records, workdir, "seed=7")
    code, out, _ = call(train, *arguments, "--print_config")
    assert code == 0 and json.loads(out)["seed"] == 7
    assert not workdir.exists()


def test_a_wrong_start_leaves_with_exit_code_2_and_one_line(tmp_path):
    command = [sys.executable, "-m", "jaxvlm.train", "--config", "configs/demoo.py"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("jaxvlm.train: error: configuration file 'configs/demoo.py'")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.num_view=3", r"unknown configuration field 'data.num_view'.*'num_views'"),
        ("trian.max_steps=3", r"unknown configuration field 'trian'.*'train'"),
        ("train.max_steps=many", r"'train.max_steps' expects int like 6, found 'many'"),
        ("train", r"must have the form --config.field=value"),
        ("data.num_views=0", r"data.num_views=0: expected at least 1"),
        ("data.image_size=60", r"data.image_size=60 is no multiple of .*patch_size=14"),
        ("data.view_dropout=1.0", r"data.view_dropout=1.* leave out every view"),
        ("train.remat=some", r"train.remat='some': expected one of"),
        ('parameters=((".*","frozen"),)', r"no trainable parameters"),
        ('parameters=(("vision/.*","frozen"),)', r"no rule of 'parameters' matches 'geometry/"),
        ("model.language.vocab_size=100", r"vocab_size=100 is too small for the tokenizer"),
        (
            "model.vision.weights=/nowhere",
            r"no imported weights at '/nowhere'.*import_torch.* set the field to ",
        ),
        ("text.max_length=8", r"records.jsonl:\d+: the answer .* no room .*text.max_length=8"),
        ("data.row_labels=1", r"data.row_labels=1 is less than the longest answer"),
        ("data.row_length=40", r"data.row_length=40 is shorter than text.max_length=48"),
        ("model.projector.num_heads=0", r"model.projector.num_heads=0: expected at least 1"),
        ("model.language.rope_theta=0.0", r"model.language.rope_theta=0.0: expected at least 1"),
        ("optimizer.weight_decay=1e999", r"optimizer.weight_decay=inf: expected"),
        ("seed=99999999999", r"seed=99999999999: expected less than"),
        ("data.train=('none.jsonl','b.jsonl')", r"'none.jsonl' does not exist"),
        ("data.train=(3,)", r"a data source is a mapping like .*found 3"),
        ("mesh.data=3", r"mesh.data=3 x mesh.fsdp=-1 does not make 1 devices"),
        ("text.tokenizer=./nothing", r"text.tokenizer='./nothing' cannot be loaded"),
    ],
)
def test_a_wrong_field_is_named(refused, records, tmp_path, override, message):
    line = refused(train, *tiny.arguments(records, tmp_path / "run", override))
    assert re.search(message, line), line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_missing_config_file_is_named(refused, tmp_path):
    line = refused(train, "--config", tmp_path / "none.py")
    assert "none.py' does not exist" in line


def test_a_missing_data_file_is_named(refused, tmp_path):
    line = refused(train, *tiny.arguments(tmp_path / "none.jsonl", tmp_path / "run"))
    assert re.search(r"record file '.*none.jsonl' does not exist", line)


def test_no_data_at_all_is_an_error(refused, tmp_path):
    line = refused(train, "--config", tiny.__file__, "--workdir", tmp_path / "run")
    assert "names no source" in line


@pytest.mark.parametrize(
    ("number", "text", "message"),
    [
        (3, '{"images": ["a.png"], "question"', r"bad.jsonl:3: malformed JSON"),
        (2, '{"images": [], "question": "q"}', r"bad.jsonl:2: 'images' must be"),
        (
            1,
            '{"images": ["scene0_0.png"], "question": "q"}',
            r"bad.jsonl:1: no answer",
        ),
        (
            4,
            '{"images": ["gone.png"], "question": "q", "answer": "a"}',
            r"bad.jsonl:4: the image 'gone.png' does not exist",
        ),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(refused, tmp_path, number, text, message):
    lines = tiny.write_records(tmp_path).read_text().splitlines()
    lines[number - 1] = text
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(lines) + "\n")
    line = refused(train, *tiny.arguments(bad, tmp_path / "run"))
    assert re.search(message, line), line


def test_a_workdir_that_cannot_be_written_is_named(refused, records, tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        line = refused(train, *tiny.arguments(records, workdir))
        assert f"--workdir {workdir} cannot be written" in line


@pytest.mark.parametrize("module", [evaluate, ask])
def test_a_folder_without_checkpoint_is_named(refused, records, tmp_path, module):
    more = () if module is evaluate else ("--images", records.parent / "scene0_0.png")
    more += () if module is evaluate else ("--question", "Where?")
    line = refused(module, "--checkpoint", tmp_path, *more)
    assert f"--checkpoint {tmp_path} holds no checkpoint" in line
    (tmp_path / "params").mkdir()
    line = refused(module, "--checkpoint", tmp_path, *more)
    assert "lies in no run" in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.num_views=0", r"data.num_views=0: expected at least 1"),
        ("model.projector.num_latents=5", r"holds 'projector/latents' with shape \[4, 16\]"),
        ("model.geometry.mode=none", r"holds 'geometry/.*', not in this configuration"),
        ("seed=1", r"frozen weights of vision are random, 1"),
    ],
)
def test_evaluating_with_fields_that_do_not_fit(call, finished_run, override, message):
    arguments = ("--checkpoint", finished_run, "--limit", "1", f"--config.{override}")
    code, _, errors = call(evaluate, *arguments, "--no-controls", "--output", finished_run / "x")
    assert code == 2 and re.search(message, errors), errors
    assert len(errors.splitlines()) == 1


def test_wrong_flags_of_evaluate_and_ask(refused, finished_run, records, tmp_path):
    checkpoint = ("--checkpoint", finished_run)
    line = refused(evaluate, *checkpoint, "--limit", "0")
    assert "--limit 0: expected at least 1" in line
    line = refused(evaluate, *checkpoint, "--data", tmp_path / "none.jsonl")
    assert "does not exist" in line
    (tmp_path / "file").write_text("")
    line = refused(evaluate, *checkpoint, "--output", tmp_path / "file" / "out")
    assert "cannot be written" in line
    question = ("--question", "Where?")
    line = refused(ask, *checkpoint, "--images", tmp_path / "none.png", *question)
    assert "--images: " in line and "is not a file" in line
    image = records.parent / "scene0_0.png"
    line = refused(ask, *checkpoint, "--images", image, image, image, *question)
    assert "3 views, but this run was trained with at most 2" in line
    line = refused(ask, *checkpoint, "--images", image, "--question", " ")
    assert "--question" in line
    line = refused(ask, *checkpoint, "--images", tmp_path / "file", *question)
    assert "cannot be read" in line


@pytest.mark.slow
def test_an_evaluation_is_made_anew_when_anything_it_came_from_changes(
    call, finished_run, colours, tmp_path
):
    data, out = colours.with_name("copy.jsonl"), tmp_path / "out"
    data.write_text(colours.read_text())
    command = ("--checkpoint", finished_run, "--data", data, "--output", out, "--no-controls")

    def again(*more):
        code, printed, errors = call(evaluate, *command, *more)
        assert code == 0, errors
        return "up to date" in printed

    assert not again()
    assert again()
    (out / "predictions.jsonl").unlink()
    assert not again()
    assert not again("--config.evaluation.max_new_tokens=5")
    data.write_text(re.sub(r'"answer": "\w+"', '"answer": "zebra"', colours.read_text()))
    assert not again()
    assert json.loads((out / "summary.json").read_text())["exact_match"] == 0.0


def test_an_evaluation_that_breaks_off_leaves_no_old_summary(
    call, finished_run, colours, tmp_path, monkeypatch
):
    command = ("--checkpoint", finished_run, "--data", colours, "--output", tmp_path)
    assert call(evaluate, *command)[0] == 0

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxvlm.generation.finish.page", full)
    code, _, said = call(evaluate, *command, "--no-controls")
    assert code == 2 and "the disk is full" in said
    assert not (tmp_path / "summary.json").exists()


def test_predictions_are_read_from_files(call, tmp_path):
    for flags, message in (
        (("--predictions", tmp_path), "is no file; give a predictions.jsonl"),
        (("--predictions", tmp_path / "gone"), "gone does not exist"),
        (("--compare", tmp_path, tmp_path), "is a folder; give the predictions.jsonl in it"),
    ):
        code, _, said = call(evaluate, *flags)
        assert code == 2 and message in said


def test_what_a_run_begins_from_is_looked_for_before_anything_is_compiled(
    call, records, tmp_path, monkeypatch
):
    def must_not(*_):
        raise AssertionError("compiled")

    monkeypatch.setattr("jaxvlm.planning.at_start.in_a_child", must_not)
    auto = ("train.rows_per_device=auto", "model.language.weights=nowhere")
    code, _, said = call(train, *tiny.arguments(records, tmp_path / "run", *auto))
    assert code == 2 and "no imported weights at 'nowhere' (model.language.weights)" in said
    code, _, said = call(train, *tiny.arguments(tmp_path / "gone.jsonl", tmp_path / "run", auto[0]))
    assert code == 2 and "gone.jsonl' does not exist" in said


def test_an_evaluation_without_memory_says_what_takes_less(call, finished_run, colours, tmp_path):
    command = ("--checkpoint", finished_run, "--data", colours, "--output", tmp_path)
    sizes = {"max_new_tokens": 2**20, "batch_questions": 10**7}
    more = [f"--config.evaluation.{name}={size}" for name, size in sizes.items()]
    code, _, said = call(evaluate, *command, *more)
    assert code == 2 and "Traceback" not in said
    assert "out of memory: RESOURCE_EXHAUSTED" in said
    assert "What takes less: a smaller --config.evaluation.batch_questions" in said


def test_fewer_questions_drop_no_answers(call, finished_run, colours, tmp_path):
    command = ("--checkpoint", finished_run, "--data", colours, "--output", tmp_path)
    assert call(evaluate, *command, "--limit", "3", "--no-controls")[0] == 0
    code, _, said = call(evaluate, *command, "--limit", "2", "--no-controls")
    assert code == 2 and "holds answers to 3 questions, and --limit 2 would drop 1 of them" in said
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 3


def test_an_evaluation_of_other_files_is_not_replaced(call, finished_run, colours, tmp_path):
    command = ("--checkpoint", finished_run, "--limit", "2", "--no-controls")
    code, printed, _ = call(evaluate, *command, "--data", colours)
    # Each data set has its files in a folder of its own, of the same names.
    folder = f"{colours.parent.name}_{colours.stem}_first_2"
    assert code == 0 and f"evaluation/{folder}/report.html" in "".join(printed.split())
    other = colours.with_name("other.jsonl")
    other.write_text("".join(reversed(colours.read_text().splitlines(keepends=True))))
    output = ("--output", finished_run / "evaluation" / folder)
    code, _, said = call(evaluate, *command, "--data", other, *output)
    assert code == 2 and "colours.jsonl; give another --output" in " ".join(said.split())


def test_a_line_that_is_no_text_is_left_out(call, finished_run, colours, monkeypatch):
    command = ("--checkpoint", finished_run, "--images", colours.parent / "scene3_0.png")
    lines = "\udcff\nWhat color is the wall?\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    code, answers, said = call(ask, *command)
    assert code == 0 and answers.startswith("\n") and len(answers.splitlines()) == 2
    assert "holds bytes that are no text" in said
    code, _, said = call(ask, *command, "--question", " ")
    assert code == 2 and "--question is empty" in said


def test_every_line_of_a_file_is_a_question(call, finished_run, colours, monkeypatch):
    image = colours.parent / "scene3_0.png"
    command = ("--checkpoint", finished_run, "--images", image)
    code, alone, _ = call(ask, *command, "--question", "What color is the wall?")
    assert code == 0
    text = "What color is the wall?\n\n  \nWhat color is the wall?\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    code, answers, said = call(ask, *command)
    assert code == 0 and answers == alone * 2
    # What else is told stands beside the answers.
    assert "without --geometry the model knows no scale" in said
    assert "looking at 1 image\n" in said


def test_missing_training_records_stop_an_evaluation_before_it_answers(
    call, finished_run, monkeypatch
):
    def must_not(*arguments):
        raise AssertionError("a question was answered")

    monkeypatch.setattr("jaxvlm.generation.restore.restore_answerer", must_not)
    wrong = "--config.data.train=none.jsonl"
    code, _, errors = call(evaluate, "--checkpoint", finished_run, wrong)
    assert code == 2 and "'none.jsonl' does not exist" in errors


def test_ask_takes_geometry(call, refused, finished_run, records, tmp_path):
    first = json.loads(records.read_text().splitlines()[0])
    images = [records.parent / name for name in first["images"]]
    file = tmp_path / "geometry.json"
    command = ("--checkpoint", finished_run, "--images", *images, "--question", "Where?")
    file.write_text(json.dumps(first))
    code, answer, errors = call(ask, *command, "--geometry", file)
    assert code == 0 and answer.strip(), errors
    file.write_text(json.dumps({**first, "geom_token": {"t": [[0, 0, 0]]}}))
    assert "geom_token.t has shape" in refused(ask, *command, "--geometry", file)
    file.write_text("[]")
    assert "with 'geom_token'" in refused(ask, *command, "--geometry", file)


def test_ask_warns_that_a_run_may_not_have_learnt_actions(call, finished_run, records):
    first = json.loads(records.read_text().splitlines()[0])
    images = [records.parent / name for name in first["images"]]
    nothing = ("--instruction", " ", "--scene", "here")
    code, _, said = call(ask, "--checkpoint", finished_run, "--images", *images, *nothing)
    assert code == 2 and "--instruction is empty" in said
    asked = ("--instruction", "Mark the middle.", "--scene", "here")
    code, answer, said = call(ask, "--checkpoint", finished_run, "--images", *images, *asked)
    assert code == 0 and json.loads(answer.splitlines()[0])["scene"] == "here"
    assert "warning: this run has no action head" in said

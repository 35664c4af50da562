"""An evaluation that breaks off and goes on, in one process and in several."""

import json
import shutil
import threading
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jaxvlm import evaluate
from jaxvlm.data.readers import LostImage
from jaxvlm.errors import UserError
from jaxvlm.generation import answer, evaluation
from jaxvlm.generation.evaluation import Evaluation
from jaxvlm.generation.journal import Journal, in_order, places
from jaxvlm.generation.ways import Ways
from jaxvlm.generation.weights import choose
from jaxvlm.workdir import open_workdir

FILES = ("predictions.jsonl", "predictions.no_image.jsonl", "predictions.other_images.jsonl")


def command(run, output, *more):
    flags = ["--checkpoint", run, "--split", "val", "--output", output, *more]
    parsed = evaluate.parser().parse_args([str(flag) for flag in flags])
    parsed.overrides = []
    return parsed


def command_files(run):
    """The files of the split that is asked."""
    return [source["path"] for source in choose(run, None, []).config.data.val]


def lines(path):
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(line["seconds"] >= 0 for line in found if "prediction" in line)
    return [{name: line[name] for name in line if name != "seconds"} for line in found]


@pytest.fixture(scope="module")
def whole(finished_run, tmp_path_factory):
    """The folder of an evaluation that nothing happened to."""
    output = tmp_path_factory.mktemp("whole")
    evaluate.main(command(finished_run, output))
    return output


def test_the_lead_over_each_control_has_an_interval(whole):
    """The colours are learnt by heart: with other pictures none is right."""
    summary = json.loads((whole / "summary.json").read_text())
    for way in ("no_image", "other_images"):
        lead = summary["leads"][way]["em"]
        assert lead["second"] == summary["em"] and lead["first"] == summary["controls"][way]
        low, high = lead["interval"]
        assert low <= lead["difference"] <= high
    assert summary["leads"]["other_images"]["em"]["interval"][0] > 0.5


class Killed(BaseException):
    """In place of SIGKILL, which leaves no time for anything."""


@pytest.mark.parametrize("after", [1, 17])
def test_a_killed_evaluation_goes_on(finished_run, whole, tmp_path, monkeypatch, after):
    """No line is lost or doubled, and the result is that of one that nothing happened to."""
    written = []

    def deadly(journal, line):
        if len(written) == after:
            # What a process leaves that is killed while it writes.
            journal._file.write(b'{"index": 3, "predic')
            journal._file.flush()
            raise Killed
        written.append(line)
        Journal.write(journal, line)

    class Dying(Journal):
        write = deadly

    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "Journal", Dying)
        with pytest.raises(Killed):
            evaluate.main(command(finished_run, tmp_path))
    assert not (tmp_path / "summary.json").exists()
    asked = []

    def counted(answerer, groups):
        for shown, questions in groups:
            questions = list(questions)
            asked.extend(each.key for each in questions)
            yield from answers(answerer, [answer.Group(shown, questions)])

    answers = evaluation.answers
    monkeypatch.setattr(evaluation, "answers", counted)
    evaluate.main(command(finished_run, tmp_path))
    assert len(asked) == 18 - after
    for name in FILES:
        assert lines(tmp_path / name) == lines(whole / name)
    summaries = [json.loads((f / "summary.json").read_text()) for f in (tmp_path, whole)]
    assert summaries[0] == summaries[1]


def test_every_process_counts(finished_run, whole, tmp_path, capsys):
    """Three processes, the first of which waits for the others' lines."""
    flags = [command(finished_run, tmp_path, "--shard", f"{i}/3", "--join_seconds", "60")
             for i in range(3)]  # fmt: skip
    first = threading.Thread(target=evaluate.main, args=(flags[0],))
    first.start()
    for other in flags[1:]:
        evaluate.main(other)
    first.join()
    for name in FILES:
        assert lines(tmp_path / name) == lines(whole / name)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["count"] == 6 and summary["controls"]["no_image"] is not None
    assert not list(tmp_path.glob("parts-*"))


@pytest.mark.slow
def test_four_devices_give_the_same_lines(finished_run, whole, tmp_path, python):
    """Image sets and texts are shared out among them."""
    flags = "--checkpoint", finished_run, "--split", "val", "--output", tmp_path
    devices = "--xla_force_host_platform_device_count=4"
    process = python("-m", "jaxvlm.evaluate", *flags, XLA_FLAGS=devices)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    for name in FILES:
        found = lines(tmp_path / name)
        # Where there is Java, a process of its own has it.
        assert [line | {"meteor": 0} for line in found] == [
            line | {"meteor": 0} for line in lines(whole / name)
        ]


def test_processes_share_what_is_asked_without_images(finished_run, tmp_path):
    evaluate.main(command(finished_run, tmp_path, "--shard", "1/2"))
    (part,) = tmp_path.glob("parts-*/1")
    assert [len(lines(part / name)) for name in FILES] == [3, 3, 3]


def test_lines_of_a_process_that_is_gone_count_for_another_number(finished_run, whole, tmp_path):
    evaluate.main(command(finished_run, tmp_path, "--shard", "1/2"))
    (part,) = tmp_path.glob("parts-*/1/predictions.jsonl")
    stood = {line["index"] for line in lines(part)}
    assert 0 < len(stood) < 6
    evaluate.main(command(finished_run, tmp_path))
    assert lines(tmp_path / FILES[0]) == lines(whole / FILES[0])


def lose_everything(monkeypatch):
    monkeypatch.setattr(answer, "_read", lambda *_: LostImage("gone.png cannot be read"))


@pytest.mark.slow
def test_lost_questions_that_are_asked_again_are_waited_for(
    finished_run, whole, tmp_path, monkeypatch
):
    """The second process lost its questions before, was killed, and is slower this time."""
    second = command(finished_run, tmp_path, "--shard", "1/2")
    with monkeypatch.context() as patched:
        lose_everything(patched)
        evaluate.main(second)
    with monkeypatch.context() as patched:
        patched.setattr(Evaluation, "answer", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate.main(second)
    waits, goes_on = threading.Event(), evaluation.time.sleep
    monkeypatch.setattr(evaluation.time, "sleep", lambda seconds: waits.set() or goes_on(0.05))
    first = threading.Thread(
        target=evaluate.main, args=(command(finished_run, tmp_path, "--shard", "0/2"),)
    )
    first.start()
    assert waits.wait(60)
    evaluate.main(second)
    first.join()
    for name in FILES:
        assert lines(tmp_path / name) == lines(whole / name)


def test_what_several_processes_have_lost_for_good_is_not_waited_for(
    finished_run, tmp_path, monkeypatch
):
    read = answer._read
    lose_everything(monkeypatch)
    evaluate.main(command(finished_run, tmp_path, "--shard", "1/2"))
    monkeypatch.setattr(answer, "_read", read)
    evaluate.main(command(finished_run, tmp_path, "--shard", "0/2", "--join_seconds", "5"))
    assert 0 < json.loads((tmp_path / "summary.json").read_text())["lost"] < 6


@pytest.mark.parametrize("finished", [True, False])
def test_answers_to_other_files_are_not_replaced(finished_run, tmp_path, finished):
    """Those of an evaluation that was broken off neither."""
    own, other = (str(finished_run.parent / name) for name in ("own.jsonl", "other.jsonl"))
    shared = Path(command_files(finished_run)[0])
    for path in (own, other):
        lines_of = [json.loads(line) for line in shared.read_text().splitlines()]
        for line in lines_of:
            line["images"] = [str(shared.parent / image) for image in line["images"]]
            line["scene_id"] += Path(path).stem
        Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines_of))
    output = tmp_path / "out"
    if finished:
        evaluate.main(command(finished_run, output, "--data", own))
    else:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Evaluation, "wait", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                evaluate.main(command(finished_run, output, "--data", own))
    stood = (output / FILES[0]).read_text()
    with pytest.raises(UserError, match=r"holds the evaluation of .*own\.jsonl; give another"):
        evaluate.main(command(finished_run, output, "--data", other))
    assert (output / FILES[0]).read_text() == stood
    # The same file may have moved, and another may have its name.
    evaluate.main(command(finished_run, output, "--data", shutil.move(own, tmp_path)))
    assert json.loads((output / "summary.json").read_text())["count"] == 6


def test_a_process_that_never_comes_is_told(finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "_POLL_SECONDS", 0.05)
    with pytest.raises(UserError, match=r"\d+ answers of the other processes are missing"):
        evaluate.main(command(finished_run, tmp_path, "--shard", "0/2", "--join_seconds", "1"))


@pytest.mark.parametrize("name", ["summary.json", "report.html"])
def test_files_that_no_evaluation_has_written_are_left_alone(finished_run, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {name}, which no evaluation has written"):
        evaluate.main(command(finished_run, tmp_path))
    assert (tmp_path / name).read_text() == "mine"


def test_lines_of_another_checkpoint_are_dropped(finished_run, tmp_path):
    evaluate.main(command(finished_run / "checkpoints" / "40", tmp_path, "--shard", "1/2"))
    (tmp_path / "predictions.jsonl").write_text('{"index": 0, "prediction": "of another one"}\n')
    with pytest.raises(
        UserError, match=r"holds predictions\.jsonl, which no evaluation has written"
    ):
        evaluate.main(command(finished_run, tmp_path))
    (tmp_path / "identity").write_text("of another one")
    evaluate.main(command(finished_run, tmp_path))
    assert "of another one" not in (tmp_path / "predictions.jsonl").read_text()
    assert [line["index"] for line in lines(tmp_path / "predictions.jsonl")] == list(range(6))


def test_stale_lines_that_are_not_cleared_yet_do_not_count(finished_run, whole, tmp_path):
    """The second process begins before the first has looked at the folder."""
    old = whole / "predictions.jsonl"
    (tmp_path / "predictions.jsonl").write_text(old.read_text())
    (tmp_path / "identity").write_text("of another one")
    evaluate.main(command(finished_run, tmp_path, "--shard", "1/2"))
    (part,) = tmp_path.glob("parts-*/1/predictions.jsonl")
    assert lines(part)
    evaluate.main(command(finished_run, tmp_path))
    assert lines(tmp_path / "predictions.jsonl") == lines(old)


@pytest.mark.slow
def test_questions_whose_images_are_lost_are_left_out_of_every_way(
    finished_run, tmp_path, monkeypatch
):
    """Lost with its own images or as another's: what is compared is asked about the same."""
    read = answer._read

    def losing(answerer, sets, place, shown):
        if shown is not None and shown.scene_id == "scene2":
            return LostImage("scene2_0.png cannot be read")
        return read(answerer, sets, place, shown)

    monkeypatch.setattr(answer, "_read", losing)
    evaluate.main(command(finished_run, tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    found = [lines(tmp_path / name) for name in FILES]
    asked = [{line["index"] for line in each} for each in found]
    assert asked[0] == asked[1] == asked[2] and 2 not in asked[0]
    # Its own question, and the one that was to be shown its images.
    assert (summary["lost"], summary["count"]) == (2, 4) and summary["cut"] == 0
    assert summary["headline"].endswith("(2 lost: their images cannot be read)")
    monkeypatch.setattr(answer, "_read", lambda *_: LostImage("gone.png cannot be read"))
    nothing = tmp_path / "nothing"
    with pytest.raises(UserError, match=r"images of all 6 cannot be read.*asks again"):
        evaluate.main(command(finished_run, nothing))
    monkeypatch.setattr(answer, "_read", read)
    for folder in (tmp_path, nothing):
        evaluate.main(command(finished_run, folder))
        assert json.loads((folder / "summary.json").read_text())["count"] == 6


def test_answers_that_are_gone_are_missed(finished_run, tmp_path, monkeypatch):
    """A file that loses lines while it is written is no shorter evaluation."""
    answer_all = Evaluation.answer

    def losing(made, answerer):
        answer_all(made, answerer)
        path = tmp_path / "predictions.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))

    monkeypatch.setattr(Evaluation, "answer", losing)
    with pytest.raises(UserError, match=r"holds 3 of 6 answers .*; were some removed\?"):
        evaluate.main(command(finished_run, tmp_path))
    monkeypatch.setattr(Evaluation, "answer", answer_all)
    evaluate.main(command(finished_run, tmp_path))
    assert [line["index"] for line in lines(tmp_path / "predictions.jsonl")] == list(range(6))


def test_answers_that_are_gone_are_asked_again(finished_run, whole, tmp_path):
    """Though the summary stands."""
    evaluate.main(command(finished_run, tmp_path))
    (tmp_path / FILES[1]).unlink()
    stood = (tmp_path / FILES[0]).read_text().splitlines(True)
    # Somebody has edited it, too: what stands behind a broken line stands.
    edited = [stood[0], '{"index": 1, "predic\n', stood[2], '{"index": -1, "prediction": "x"}\n']
    (tmp_path / FILES[0]).write_text("".join(edited))
    evaluate.main(command(finished_run, tmp_path))
    for name in FILES:
        assert lines(tmp_path / name) == lines(whole / name)


def test_records_that_a_check_leaves_out_are_counted(finished_run, tmp_path):
    shared = Path(command_files(finished_run)[0])
    records = [json.loads(line) for line in shared.read_text().splitlines()]
    for record in records:
        record["images"] = [str(shared.parent / image) for image in record["images"]]
    records[2]["images"] = [str(tmp_path / "broken.png")]
    (tmp_path / "broken.png").write_text("no image")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    flags = command(finished_run, tmp_path / "out", "--data", tmp_path / "a.jsonl")
    flags.overrides = ["data.on_bad_record=skip"]
    evaluate.main(flags)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["count"], summary["left_out"], summary["lost"]) == (5, 1, 0)
    assert summary["headline"].endswith("(1 records left out: they fail checks)")


@pytest.mark.slow
def test_fewer_questions_keep_the_answers(finished_run, whole, tmp_path, monkeypatch):
    """Another limit, no controls: what stands is of the same questions."""
    evaluate.main(command(finished_run, tmp_path, "--limit", "2"))
    assert len(lines(tmp_path / "predictions.jsonl")) == 2
    evaluate.main(command(finished_run, tmp_path, "--no-controls"))
    evaluate.main(command(finished_run, tmp_path))
    for name in FILES:
        assert lines(tmp_path / name) == lines(whole / name)


def test_two_at_once_are_refused(finished_run, tmp_path):
    with open_workdir(tmp_path), pytest.raises(UserError, match="another run works in"):
        evaluate.main(command(finished_run, tmp_path))


def test_a_record_without_a_reference_is_named(tmp_path):
    record = type("R", (), {"answers": (), "origin": "test.jsonl:3"})()
    ways = Ways([record], "answers", 1, controls=False, seed=0)
    made = Evaluation(ways, tmp_path / "out", evaluate.Share(), "", ["test.jsonl"])
    with pytest.raises(UserError, match=r"test\.jsonl:3: no answer to score against"):
        made.begin()


@given(st.lists(st.integers(0, 30), unique=True), st.integers(0, 60), st.integers(1, 3))
def test_journals_keep_whole_lines_in_order(tmp_path_factory, indices, cut, count):
    folder = tmp_path_factory.mktemp("journal")
    paths = [folder / f"{number}.jsonl" for number in range(count)]
    for number, path in enumerate(paths):
        with Journal(path) as journal:
            for index in indices[number::count]:
                journal.write({"index": index, "text": "ä" * index})
    assert [line["index"] for line in in_order(paths)] == sorted(indices)
    # Cut anywhere, the lines before stay, and what is written again follows them.
    data = paths[0].read_bytes()
    paths[0].write_bytes(data[: max(len(data) - cut, 0)])
    kept = [at.index for at in places(paths[0])]
    assert kept == indices[0::count][: len(kept)]
    with Journal(paths[0]) as journal:
        for index in set(indices[0::count]) - set(kept):
            journal.write({"index": index})
    assert [line["index"] for line in in_order(paths)] == sorted(indices)

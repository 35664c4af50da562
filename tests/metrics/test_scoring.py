"""Files of predictions: their figures beside pycocoevalcap's, intervals, comparisons, bad lines."""

import json
import os

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from jaxvlm import entry, evaluate
from jaxvlm.data.actions import language
from jaxvlm.data.official import questions_of
from jaxvlm.errors import UserError
from jaxvlm.metrics import captions, tasks
from jaxvlm.metrics.compare import compare
from jaxvlm.metrics.files import SCORED, score_file
from jaxvlm.metrics.intervals import by_scene, intervals
from jaxvlm.metrics.kinds import question_type
from jaxvlm.metrics.lines import read_lines
from jaxvlm.metrics.scoring import score, summarize

REALLY_HAS_JAVA = captions.has_java
# Words that cleaning leaves alone.
WORDS = [
    "sofa",
    "chair",
    "brown",
    "wooden",
    "left",
    "window",
    "behind",
    "small",
    "table",
    "door",
    "round",
    "lamp",
]


def sentences(count, seed=0):
    rng = np.random.default_rng(seed)

    def text():
        return " ".join(rng.choice(WORDS, rng.integers(1, 9)))

    return [
        {
            "prediction": text(),
            "references": [text() for _ in range(rng.integers(1, 4))],
            "question": "What is there?",
            "question_id": f"q{i}",
            "scene_id": f"scene{i % 7}",
        }
        for i in range(count)
    ]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_sentences_are_scored_as_by_pycocoevalcap(tmp_path):
    lines = sentences(40)
    lines[3]["prediction"] = ""
    found = score_file(write(tmp_path / "a.jsonl", lines), tmp_path / "out", "plain")
    predicted = {i: [line["prediction"]] for i, line in enumerate(lines)}
    references = {i: line["references"] for i, line in enumerate(lines)}
    bleu, _ = Bleu(4).compute_score(references, predicted, verbose=0)
    for n in range(4):
        assert found[f"bleu_{n + 1}"] == pytest.approx(bleu[n], rel=1e-9)
    cider, each = Cider().compute_score(references, predicted)
    assert found["cider"] == pytest.approx(cider, rel=1e-9)
    assert found["rouge_l"] == pytest.approx(Rouge().compute_score(references, predicted)[0])
    scored = [json.loads(x) for x in (tmp_path / "out" / "scored.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([line["cider"] for line in scored], each, atol=1e-6)
    assert found["tokenizer"] == "plain" and "meteor" not in found
    assert found["count"] == 40 and json.loads((tmp_path / "out" / "summary.json").read_text())


@pytest.mark.parametrize(("name", "exact", "partial"), [
    ("sqa3d", 1, 21), ("scanqa", 2, 6), ("arkit", 0, 0)])  # fmt: skip
def test_the_originals_files_give_the_originals_summary(tmp_path, samples, name, exact, partial):
    found = score_file(samples / "original" / f"{name}_baseline.jsonl", tmp_path / "o", "plain")
    count = found["count"]
    assert count == (9 if name == "arkit" else 50)
    assert found["exact_match"] * count == pytest.approx(exact)
    assert found["partial_only"] * count == pytest.approx(partial)
    assert found["partial_match"] == pytest.approx(found["exact_match"] + found["partial_only"])


def test_types_are_those_of_the_official_questions(samples):
    """As counted by hand in the sample of the official test file."""
    (path,) = (samples / "sqa3d").glob("v1_balanced_questions_test*.json")
    asked = [entry["question"] for entry in json.loads(path.read_text())["questions"]]
    counts = {"what": 124, "is": 57, "how": 84, "can": 19, "which": 34, "others": 68}
    types = [question_type(question) for question in asked]
    assert {name: types.count(name) for name in counts} == counts


@pytest.mark.parametrize(("question", "kind"), [
    ("What's on the desk?", "what"), ("Is it open?", "is"), ("How many?", "how"),
    ("Can I sit?", "can"), ("Which way?", "which"), ("Are there chairs?", "others"),
    (" WHAT is it?", "what"), ("", "others")])  # fmt: skip
def test_types_follow_the_first_word(question, kind):
    assert question_type(question) == kind


def test_intervals_hold_the_figure_and_widen_with_fewer_scenes():
    rng = np.random.default_rng(1)
    right = (rng.random(400) < 0.4).astype(float)[:, None]

    def mean(sums):
        return {"em": sums[..., 0] / sums[..., 1]}

    def found(scenes):
        both = np.concatenate([right, np.ones_like(right)], axis=1)
        return intervals(by_scene(both, [i % scenes for i in range(400)]), mean)["em"]

    low, high = found(400)
    # As the normal approximation of 400 independent answers.
    spread = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert (low, high) == pytest.approx((right.mean() - spread, right.mean() + spread), abs=0.01)
    assert found(1) is None
    # Scenes that are wholly right or wholly wrong tell less.
    alike = np.repeat(right[:20], 20, axis=0)
    both = np.concatenate([alike, np.ones_like(alike)], axis=1)
    low, high = intervals(by_scene(both, np.repeat(range(20), 20)), mean)["em"]
    assert high - low > 3 * spread


def test_two_files_are_compared_question_by_question(tmp_path):
    lines = sentences(60)
    for line in lines:
        line["prediction"] = line["references"][0]
    worse = [dict(line) for line in lines]
    for line in worse[:15]:
        line["prediction"] = "piano"
    # In another order.
    first, second = write(tmp_path / "a", worse), write(tmp_path / "b", lines[::-1])
    found = compare(first, second)["figures"]["em"]
    assert (found["first"], found["second"], found["difference"]) == (0.75, 1.0, 0.25)
    low, high = found["interval"]
    # Drawn by scene: line by line it would be from 0.15 to 0.37.
    assert 0.2 < low < 0.25 < high < 0.32
    nameless = write(tmp_path / "c", [{**line, "scene_id": ""} for line in lines])
    for pair in ((first, nameless), (nameless, first)):
        ends = compare(*pair)["figures"]["em"]["interval"]
        assert sorted(map(abs, ends)) == pytest.approx([low, high])
    same = compare(first, first)["figures"]
    assert all(each["difference"] == 0 and each["interval"] == (0, 0) for each in same.values())


def test_actions_are_no_sentences(tmp_path):
    """They have no such figures, and do not change those of the sentences beside them."""
    lines = sentences(9)
    action = {"action": "place_anchor", "scene": "a", "center": [0, 0, 1]}
    action |= {"normal": [0, 1, 0], "extent": [1, 1, 1]}
    actions = [{"prediction": json.dumps(action), "reference": action, "scene_id": "a"}] * 3
    actions = [{**line, "kind": "bed"} for line in actions]
    own = score_file(write(tmp_path / "a.jsonl", actions), tmp_path / "a", "plain")
    assert own["center_error"] == 0 and own["scenes"] == 1
    assert not any(name.startswith(("bleu", "rouge", "cider", "meteor")) for name in own)
    alone = score_file(write(tmp_path / "b.jsonl", lines), tmp_path / "b", "plain")
    both = summarize(score(read_lines(write(tmp_path / "c.jsonl", actions + lines))))
    for name in ("bleu_1", "bleu_4", "rouge_l", "cider"):
        assert both[name] == alone[name]
        assert name not in both["kinds"]["bed"]


def test_other_questions_are_named(tmp_path):
    lines = sentences(9)
    first, second = write(tmp_path / "a", lines), write(tmp_path / "b", lines[2:])
    with pytest.raises(UserError, match=r"not the same questions: .*b lacks q0, q1.*same --data"):
        compare(first, second)
    with pytest.raises(UserError, match=r"a:10: q0 stands twice"):
        compare(write(tmp_path / "a", [*lines, lines[0]]), second)
    other = [line | {"references": ["piano"]} for line in lines]
    with pytest.raises(UserError, match="have other references"):
        compare(write(tmp_path / "a", lines), write(tmp_path / "b", other))
    # Other systems know no tasks.
    named = write(tmp_path / "a", [{**line, "task": "mine"} for line in lines])
    assert compare(named, write(tmp_path / "b", lines))["count"] == len(lines)
    nameless = [{k: v for k, v in line.items() if k != "question_id"} for line in lines]
    with pytest.raises(UserError, match=r"b has lines without 'question_id'"):
        compare(named, write(tmp_path / "b", nameless))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no line"),
        ("{", "a.jsonl:1: no JSON"),
        ("[1]", "a.jsonl:1: expected a JSON object a line, found list"),
        ('{"reference": "x"}', "a.jsonl:1: the line has no 'prediction'; has reference"),
        ('{"prediction": 3, "reference": "x"}', "'prediction' should be a text, is 3"),
        ('{"prediction": "x"}', "a.jsonl:1: no reference to score against"),
        ('{"prediction": "x", "references": [" "]}', "no reference to score against"),
        ('{"prediction": "x", "references": "y"}', "a.jsonl:1: expected 'references', a list"),
        ('{"prediction": "x", "reference": 3}', "'reference', a text or an action"),
        ('{"prediction": "x", "reference": "y", "task": 3}', "'task' should be a text, is 3"),
        ('{"prediction": "x", "reference": {"action": []}}', "should be the name of an action"),
        ('{"prediction": "", "reference": {}, "predicted_action": 1}', "'predicted_action' should"),
        ('{"prediction": "x", "reference": "x", "n": NaN}', "a.jsonl:1: no JSON (NaN is no"),
        ('{"prediction": "x", "reference": "x", "n": [-1e999]}', "a.jsonl:1: no JSON ('-1e999'"),
        ('{"prediction": "\\ud800", "reference": "x"}', "a.jsonl:1: it holds half of a surrogate"),
        ('{"prediction": "x", "reference": {"\\udfff": 1}}', "a.jsonl:1: it holds half of a"),
        ('{"prediction": ' + "[" * 100_000, "a.jsonl:1: no JSON"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path, text, message):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        list(read_lines(path))
    assert message in str(error.value)


@pytest.mark.parametrize("bad", [b"\xff", b"\xed\xa0\x80", b"\xe4\xbd"])
def test_a_line_that_is_no_text_is_named(tmp_path, bad):
    path = tmp_path / "a.jsonl"
    good = b'{"prediction": "\xe4\xbd\xa0", "reference": "x"}\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\n" + good.replace(b"x", bad) + good)
    with pytest.raises(UserError, match=r"a\.jsonl:3: the line is no text in UTF-8"):
        list(read_lines(path))
    path.write_bytes(good + bad)
    with pytest.raises(UserError, match=r"a\.jsonl:2: the line is no text in UTF-8"):
        list(read_lines(path))
    path.write_bytes(b"\xef\xbb\xbf" + good)
    assert next(read_lines(path))["prediction"] == "你"


def test_answers_without_a_latin_letter_are_scored(tmp_path):
    """Nothing is left of them when they are cleaned."""
    texts = ["你好", "???", "\\ud83d\\ude00"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"prediction": "{t}", "reference": "{t}"}}\n' for t in texts))
    found = score_file(path, tmp_path / "o", "plain")
    assert (found["exact_match"], found["cider"], found["count"]) == (1, 0, 3)
    assert found["rouge_l"] == 0


def test_a_scored_file_is_scored_anew(tmp_path):
    """Values that it has from before do not stay."""
    action = {"action": "place_anchor", "scene": "s", "center": [0, 1, 2], "normal": [0, 1, 0],
              "extent": [1, 1, 1]}  # fmt: skip
    line = {"reference": action, "center_error": 9.0, "iou": 1.0, "em": True, "mine": 4}
    write(tmp_path / "a", [{**line, "prediction": "nothing"}])
    score_file(tmp_path / "a", tmp_path / "o", "plain")
    scored = json.loads((tmp_path / "o" / "scored.jsonl").read_text())
    assert "center_error" not in scored and scored["iou"] == 0 and scored["mine"] == 4


def test_actions_of_records_are_scored_as_actions(tmp_path):
    """In metres, or in the very text that is learnt."""
    action = {"action": "place_anchor", "scene": "s", "center": [0, 1, 2], "normal": [0, 1, 0],
              "extent": [1, 1, 1]}  # fmt: skip
    record = {"images": ["a"], "instruction": "Place it.", "scene_id": "s", "action_json": action}
    records = write(tmp_path / "records.jsonl", [record | {"question_id": q} for q in "ab"])
    learnt = language.write(action)
    lines = [
        {"question_id": "a", "prediction": json.dumps(action)},
        {"question_id": "b", "prediction": learnt, "predicted_action": language.parse(learnt)},
    ]
    known = questions_of([str(records)])
    found = score_file(write(tmp_path / "a", lines), tmp_path / "o", "plain", known)
    assert (found["exact_match"], found["action_valid"], found["center_error"]) == (1, 1, 0)
    nameless = write(tmp_path / "b", [{"prediction": "x"}])
    with pytest.raises(UserError, match=r"b:1: no question_id, by which --data"):
        score_file(nameless, tmp_path / "o", "plain", known)
    with pytest.raises(UserError, match=r"records.jsonl:1: no question_id"):
        questions_of([str(write(records, [record]))])


def test_an_action_is_kept_as_it_was(tmp_path):
    action = {"action": "place_anchor", "scene": "s1", "center": [0, 1, 2], "normal": [0, 1, 0],
              "extent": [1, 1, 1]}  # fmt: skip
    path = write(tmp_path / "a", [{"prediction": json.dumps(action), "reference": action}])
    assert score_file(path, tmp_path / "o", "plain")["exact_match"] == 1
    line = json.loads((tmp_path / "o" / "scored.jsonl").read_text())
    assert line["reference"] == action and line["scene_id"] == "s1" and line["em"] is True


def test_a_task_gets_a_measure_of_its_own(tmp_path, monkeypatch, capsys):
    """The example of the documentation, as a user would run it."""
    monkeypatch.setattr(tasks, "_measures", {})
    example = tmp_path / "counting.py"
    example.write_text(tasks.__doc__.split("registered for it:\n\n")[1].split("\n\nIts")[0]
                       .replace("\n    ", "\n").strip())  # fmt: skip
    lines = [
        {"prediction": "red", "reference": "red", "task": "scanqa", "scene_id": "c"},
        {"prediction": "3", "reference": "5", "task": "counting", "scene_id": "a"},
        {"prediction": "4", "reference": "4", "task": "counting", "scene_id": "b"},
    ]
    path = write(tmp_path / "a.jsonl", lines)
    flags = ["--predictions", str(path), "--metrics", str(example)]
    entry.run(evaluate.parser(), evaluate.main, flags)
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["intervals"]["off_by"] == [0.0, 2.0]
    assert summary["off_by"] == 1.0 and summary["tasks"]["counting"]["off_by"] == 1.0
    assert "off_by" not in summary["tasks"]["scanqa"]
    assert "off_by" in capsys.readouterr().out
    scored = (tmp_path / "a" / "scored.jsonl").read_text().splitlines()
    assert [json.loads(line).get("off_by") for line in scored] == [None, 2, 0]
    assert "no line is of the task" not in capsys.readouterr().err
    tasks.register("countin")(lambda line: {"lost": 1})
    score_file(path, tmp_path / "a", "plain")
    assert "'countin' that is measured; counting, scanqa" in capsys.readouterr().err
    tasks._measures.pop("countin")
    # An ordinary answer has no such value.
    lines[1]["prediction"] = "three"
    assert score_file(write(path, lines), tmp_path / "a", "plain")["off_by"] == 0
    tasks.register("counting")(lambda line: {"share": float("inf")})
    with pytest.raises(UserError, match=r"share is inf; give None where there is no value"):
        score_file(path, tmp_path / "a", "plain")
    tasks._measures["counting"].pop()
    tasks.register("counting")(lambda line: {"length": len(line["no such field"])})
    with pytest.raises(UserError, match=r"a.jsonl:2: the measure .* 'three': KeyError"):
        score_file(path, tmp_path / "a", "plain")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected one of --checkpoint (or --config), --predictions and --compare"),
        (["--predictions", "a", "--compare", "a", "b"], "expected one of"),
        (["--predictions", "nowhere.jsonl"], "--predictions nowhere.jsonl does not exist"),
        (["--predictions", "a", "--metrics", "no.py"], "--metrics no.py: FileNotFoundError"),
        (["--predictions", "a", "--config.seed=1"], "--config.seed=1 belongs to --checkpoint"),
        (["--predictions", "a", "--limit", "3"], "--limit belongs to --checkpoint"),
        (["--predictions", "a", "--no-controls"], "--controls belongs to --checkpoint"),
        (["--compare", "a", "b", "--data", "c"], "--data does not go with --compare"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(monkeypatch, capsys, flags, message):
    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit, match="2"):
        entry.run(evaluate.parser(), evaluate.main, flags)
    assert message in capsys.readouterr().err


def test_the_treebank_tokeniser_needs_java(tmp_path):
    path = write(tmp_path / "a", sentences(2))
    with pytest.raises(UserError, match="'ptb' needs Java"):
        score_file(path, tmp_path / "o", "ptb")


@pytest.mark.skipif(not REALLY_HAS_JAVA(), reason="no Java here: METEOR and ptb are not tried")
def test_with_java_there_is_meteor_and_the_treebank_tokeniser(tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "has_java", REALLY_HAS_JAVA)
    lines = [
        {"prediction": "A chair, by the door.", "reference": "a chair by the door"},
        {"prediction": "", "reference": "two\nchairs"},
    ]
    found = score_file(write(tmp_path / "a", lines), tmp_path / "o", "ptb")
    assert found["tokenizer"] == "ptb" and 0.5 < found["meteor"] < 1
    assert found["rouge_l"] == 0.5


@pytest.mark.slow
@pytest.mark.skipif(not REALLY_HAS_JAVA(), reason="no Java here: METEOR is not tried")
def test_meteor_is_that_of_the_whole_corpus(tmp_path, monkeypatch):
    from pycocoevalcap.meteor.meteor import Meteor

    monkeypatch.setattr(captions, "has_java", REALLY_HAS_JAVA)
    pairs = [
        ("a red chair", ["red chair"]), ("red", ["red"]), ("sofa", ["couch"]), ("", ["red"]),
        ("brown table near door", ["table is brown and near a door", "brown table"]),
        ("dog cat", ["cat dog"]), ("in front of it", ["in front of it"]), ("two", ["blue"]),
        ("walking to doors", ["walk to door"]),
    ]  # fmt: skip
    lines = [
        {"prediction": said, "references": true, "kind": "ab"[number % 2], "scene_id": f"s{number}"}
        for number, (said, true) in enumerate(pairs)
    ]
    found = score_file(write(tmp_path / "a", lines), tmp_path / "o", "plain")
    scored = [json.loads(line) for line in (tmp_path / "o" / SCORED).read_text().splitlines()]
    scorer = Meteor()
    for part, chosen in ((found, slice(None)), (found["kinds"]["b"], slice(1, None, 2))):
        words = captions.tokenized(*zip(*pairs[chosen], strict=True), "plain")
        corpus, each = scorer.compute_score(words[1], words[0])
        assert part["meteor"] == pytest.approx(corpus, abs=1e-6)
        own = [line["meteor"] for line in scored][chosen]
        assert own == pytest.approx(each, abs=1e-6)
    low, high = found["intervals"]["meteor"]
    assert low < found["meteor"] < high


def test_a_file_of_measures_that_leaves_is_an_error(tmp_path):
    (tmp_path / "mine.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(UserError, match=r"mine.py: SystemExit: 0"):
        tasks.read_measures(tmp_path / "mine.py")


def test_references_may_come_from_the_records(tmp_path):
    """An official file, or records; what does not match is listed."""
    official = [
        {"question_id": f"val-{i}", "scene_id": "s", "question": "What?", "answers": [f"thing{i}"]}
        for i in range(8)
    ]
    (tmp_path / "val.json").write_text(json.dumps(official))
    lines = [{"prediction": f"thing{i}", "question_id": f"val-{i}"} for i in range(8)]
    known = questions_of([str(tmp_path / "val.json")])
    found = score_file(write(tmp_path / "a", lines), tmp_path / "o", "plain", known)
    assert found["count"] == 8 and found["em"] == 1
    scored = json.loads((tmp_path / "o" / "scored.jsonl").read_text().splitlines()[3])
    assert scored["references"] == ["thing3"] == [scored["reference"]]
    # Intervals are by scene, and figures by kind, if the records tell.
    assert (scored["scene_id"], scored["question"], scored["kind"]) == ("s", "What?", "what")
    lines[0]["question_id"] = "val-99"
    with pytest.raises(UserError, match=r"records lack val-99; the file lacks val-0"):
        score_file(write(tmp_path / "a", lines), tmp_path / "o", "plain", known)
    with pytest.raises(UserError, match=r"a:9: val-1 stands there and at .*a:2"):
        score_file(write(tmp_path / "a", [*lines, lines[1]]), tmp_path / "o", "plain", known)
    official[1]["question_id"] = "val-0"
    (tmp_path / "val.json").write_text(json.dumps(official))
    with pytest.raises(UserError, match="the question_id 'val-0' stands twice"):
        questions_of([str(tmp_path / "val.json")])

"""The sequence layout and the tokenizer below it, on text as users write it."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from transformers import AutoTokenizer

from jaxvlm.config import default
from jaxvlm.data.audit.files import audit_file
from jaxvlm.data.plan import Plan
from jaxvlm.data.record import parse_record
from jaxvlm.data.records import RecordFile
from jaxvlm.data.sequence import prompt, tokenize
from jaxvlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxvlm.data.training_set import row_capacity
from jaxvlm.data.views import RandomViews
from jaxvlm.errors import UserError

VISUAL = 10
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)


@pytest.fixture(scope="module", params=["jaxvlm:rooms", "qwen3"])
def any_tokenizer(request) -> Tokenizer:
    name = request.param
    if name == "qwen3":
        name = str(request.getfixturevalue("shared") / "tokenizer" / "qwen3")
    return load_tokenizer(name)


def record(question: str, answer: str = "", situation: str = "", **more):
    entry = {"images": ["a.jpg"], "question": question, "answer": answer, **more}
    return parse_record({**entry, "situation": situation}, "here.jsonl:5")


def one(tokenizer, *args, template="plain", max_length=512, **kwargs):
    (sample,), shortened = tokenize([record(*args, **kwargs)], tokenizer, template, max_length, 10)
    return sample, shortened


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode([text])[0]


@settings(max_examples=60, deadline=None)
@given(TEXT, TEXT, st.just("") | TEXT)
def test_the_plain_template(question, answer, situation):
    tokenizer = load_tokenizer("jaxvlm:rooms")
    sample, shortened = one(tokenizer, question, answer, situation)
    text = f"{situation.strip()} {question.strip()}" if situation else question.strip()
    assert tokenizer.decode(sample.before) == text.strip() and shortened == 0
    assert list(sample.before) == ids(tokenizer, text + "\n")
    assert list(sample.after) == ids(tokenizer, "\n")
    assert tokenizer.decode(sample.answer[:-1]) == answer.strip()
    assert sample.answer[-1] == tokenizer.end_id
    assert sample.length(VISUAL) == len(sample.before) + VISUAL + 1 + len(sample.answer) - 1


def test_the_chat_template(any_tokenizer):
    sample, _ = one(any_tokenizer, "Where?", "left", "I sit.", template="chat")
    start, end = any_tokenizer.start_id, any_tokenizer.end_id
    newline = ids(any_tokenizer, "\n")
    assert list(sample.before) == [
        start, *ids(any_tokenizer, "user\n"), *ids(any_tokenizer, "I sit. Where?\n")
    ]  # fmt: skip
    assert list(sample.after) == [end, *newline, start, *ids(any_tokenizer, "assistant\n")]
    assert list(sample.answer) == [*ids(any_tokenizer, "left"), end]


def test_special_tokens_typed_by_a_user_are_text(any_tokenizer):
    text = "<|im_end|> and <|im_start|>user <|endoftext|> <think> <tool_call>"
    sample, _ = one(any_tokenizer, text, text, text)
    special = set(any_tokenizer._fast.added_tokens_decoder)
    assert not special & {*sample.before.tolist(), *sample.answer[:-1].tolist()}
    assert any_tokenizer.decode(sample.before) == f"{text} {text}"
    assert any_tokenizer.decode(sample.answer) == text


def test_reserved_ids_lie_behind_the_tokenizer(any_tokenizer):
    reserved = {any_tokenizer.placeholder_id, any_tokenizer.action_id}
    assert any_tokenizer.rows == max(reserved) + 1
    text = "".join(map(chr, range(32, 0x3000)))
    assert max(ids(any_tokenizer, text)) < min(reserved)
    # A reserved id has no string, so that nothing of it shows.
    assert any_tokenizer.decode([*ids(any_tokenizer, "red"), *reserved]) == "red"


def test_qwens_ids(shared):
    tokenizer = load_tokenizer(str(shared / "tokenizer" / "qwen3"))
    assert (tokenizer.placeholder_id, tokenizer.action_id) == (151669, 151670)
    assert (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id) == (151643, 151644, 151645)
    assert len(ids(tokenizer, "2048")) == 4


@settings(max_examples=60, deadline=None)
@given(TEXT)
def test_every_text_can_be_written(text):
    tokenizer = load_tokenizer("jaxvlm:rooms")
    assert tokenizer.decode(ids(tokenizer, text)) == text.strip()


@settings(max_examples=50, deadline=None)
@given(
    words=st.integers(1, 60),
    answer=st.integers(1, 8),
    room=st.integers(1, 30),
    template=st.sampled_from(["plain", "chat"]),
)
def test_a_long_question_loses_its_end_only(words, answer, room, template):
    tokenizer = load_tokenizer("jaxvlm:rooms")
    texts = "What color is it ? " * words, "red " * answer
    whole, _ = one(tokenizer, *texts, template=template, max_length=10_000)
    shortest = whole.length(VISUAL) - len(ids(tokenizer, texts[0].strip() + "\n")) + 2
    limit = shortest + room
    sample, shortened = one(tokenizer, *texts, template=template, max_length=limit)
    assert sample.length(VISUAL) <= limit
    assert shortened == (whole.length(VISUAL) > limit)
    np.testing.assert_array_equal(sample.after, whole.after)
    np.testing.assert_array_equal(sample.answer, whole.answer)
    if shortened:
        assert sample.length(VISUAL) == limit
        assert sample.before[-1:].tolist() == ids(tokenizer, "\n")
        np.testing.assert_array_equal(sample.before[:-1], whole.before[: len(sample.before) - 1])


def test_an_answer_without_room_names_its_record(tokenizer):
    with pytest.raises(UserError, match=r"here\.jsonl:5: the answer .*text\.max_length=30"):
        one(tokenizer, "Where?", "red " * 30, max_length=30)
    with pytest.raises(UserError, match="template is 'qwen'"):
        one(tokenizer, "Where?", template="qwen")


def test_a_question_without_answer_has_no_labels(tokenizer):
    sample, _ = one(tokenizer, "Where?")
    assert len(sample.answer) == 0
    assert sample.length(VISUAL) == len(sample.before) + VISUAL + len(sample.after)


def test_a_set_is_shared_only_where_everything_shown_is_the_same(tokenizer):
    token = {"t": [[0, 0, 1]], "R": [[1, 0, 0, 0, 1, 0, 0, 0, 1]]}
    moved = {**token, "t": [[0, 0, 2]]}
    records = [record("a", geom_token=g) for g in (None, token, token, moved, None)]
    records.append(record("a", images=["b.jpg"]))
    records.append(record("a", geom_token=token, up="y"))
    samples, _ = tokenize(records, tokenizer, "plain", 512, VISUAL)
    assert [s.set_id for s in samples] == [0, 1, 1, 2, 0, 3, 4]


def test_the_prompt_holds_each_visual_vector_once(tokenizer):
    sample, _ = one(tokenizer, "Where?", "left")
    visual = np.array([7, 8, 12, 13])
    tokens, index = prompt(sample, visual, tokenizer.placeholder_id)
    assert index[index >= 0].tolist() == visual.tolist()
    np.testing.assert_array_equal(tokens == tokenizer.placeholder_id, index >= 0)
    np.testing.assert_array_equal(tokens[index < 0], [*sample.before, *sample.after])
    assert tokens.dtype == index.dtype == np.int32


def test_tokenizers_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match=r"text\.tokenizer='.*nowhere' cannot be loaded"):
        Tokenizer(str(tmp_path / "nowhere"))
    for text in ("{", "{}"):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(UserError, match="cannot be loaded"):
            Tokenizer(str(tmp_path))
    model = {"type": "WordLevel", "vocab": {"red": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
    plain = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
             "post_processor": None, "decoder": None, "model": model}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match=r"has no token '<\|im_end\|>'"):
        Tokenizer(str(tmp_path))


@pytest.fixture(scope="session")
def real_questions(shared) -> dict[str, list]:
    """Real SQA3D questions: the original's test split as the audit leaves it, and official ones.

    The official ones are shown eight views with poses each.
    """
    split = RecordFile(shared / "samples" / "original" / "sqa3d_test_split.jsonl")
    findings = audit_file(split, ["."], False)
    bad = findings.bad()
    folder = shared / "samples" / "sqa3d"
    name = "v1_balanced_{}_test_scannetv2.sample.json"
    questions = json.loads((folder / name.format("questions")).read_text())["questions"]
    annotations = json.loads((folder / name.format("sqa_annotations")).read_text())["annotations"]
    answers = {a["question_id"]: a["answers"][0]["answer"] for a in annotations}
    poses = {"R": [[1, 0, 0, 0, 1, 0, 0, 0, 1]] * 8, "t": [[0, 0, 0]] * 8}
    official = [
        parse_record(
            {
                "images": [f"{q['scene_id']}_{view}.jpg" for view in range(8)],
                "question": q["question"],
                "situation": q["situation"],
                "answer": answers[q["question_id"]],
                "geom_token": poses,
            },
            str(q["question_id"]),
        )
        for q in questions
    ]
    original = [split[index] for index in range(len(split)) if index not in bad]
    return {"original": original, "official": official}


def test_real_questions_are_the_parts_as_transformers_has_them(shared, real_questions):
    folder = str(shared / "tokenizer" / "qwen3")
    tokenizer, reference = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    records = real_questions["original"] + real_questions["official"]
    assert len(records) == 3169 + 386
    samples, shortened = tokenize(records, tokenizer, "plain", 512, 136)
    assert shortened == 0
    end = reference.convert_tokens_to_ids("<|im_end|>")
    for record, sample in zip(records, samples, strict=True):
        before = reference(f"{record.situation} {record.question}\n", add_special_tokens=False)
        after = reference("\n", add_special_tokens=False)
        answer = reference(record.answer, add_special_tokens=False)
        assert sample.before.tolist() == before["input_ids"]
        assert sample.after.tolist() == after["input_ids"]
        assert sample.answer.tolist() == [*answer["input_ids"], end]


@pytest.mark.parametrize("name", ["original", "official"])
def test_rows_of_real_questions_are_real_tokens(shared, real_questions, name):
    tokenizer = load_tokenizer(str(shared / "tokenizer" / "qwen3"))
    data = default().data
    samples, _ = tokenize(real_questions[name], tokenizer, "plain", 512, 136)
    capacity = row_capacity(data)
    for seed in range(3):
        plan = Plan(
            samples,
            [(1.0, range(len(samples)))],
            capacity,
            lambda views, known: 128 + (views if known else 0),
            RandomViews(most=8, dropout=0.3),
            seed,
        )
        rows = [plan.row(index) for index in range(plan.rows_in_epoch(0))]
        used = sum(plan.size(group)[0] for row in rows for group in row)
        assert used / (len(rows) * 4096) >= 0.95

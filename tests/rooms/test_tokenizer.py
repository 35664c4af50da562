"""The small tokenizer: made from the rooms' words, able to write everything else."""

import json
import subprocess
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tiny import action_records

from jaxvlm.data.tokenizer import Tokenizer
from jaxvlm.rooms.tokenizer import SPECIAL, train_tokenizer

CORPUS = ["What color is the round table?\n", "dark blue", "There are 12 chairs.\n"] * 5


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(CORPUS, 400)


def test_words_of_the_corpus_are_one_token(trained):
    assert trained.encode("What color is the round table?").tokens == [
        "What", "Ġcolor", "Ġis", "Ġthe", "Ġround", "Ġtable", "?"
    ]  # fmt: skip
    # Digits are split one by one, as Qwen does, so that every number can be said.
    assert trained.encode("12").tokens == ["1", "2"]


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back(trained, text):
    assert trained.decode(trained.encode(text).ids, skip_special_tokens=False) == text


def test_special_tokens_come_first_and_the_size_is_kept(trained):
    assert [trained.token_to_id(token) for token in SPECIAL] == [0, 1, 2]
    assert 256 + len(SPECIAL) < trained.get_vocab_size() <= 400


def test_the_same_texts_make_the_same_tokenizer(trained):
    assert train_tokenizer(CORPUS, 400).to_str() == trained.to_str()


def command(*flags: str) -> subprocess.CompletedProcess:
    program = [sys.executable, "-m", "jaxvlm.rooms.tokenizer", *flags]
    return subprocess.run(program, capture_output=True, text=True)


def test_the_command_writes_what_training_reads(tmp_path):
    records = [
        {"question": "Is the bed red?", "answer": "yes", "situation": "I am at the door."},
        {"question": "What is behind me?", "answer": "chair"},
    ]
    path = tmp_path / "train.jsonl"
    shared = {"scene_id": "s0", "images": ["0.jpg"]}
    path.write_text("".join(json.dumps(shared | record) + "\n" for record in records))
    actions = action_records(tmp_path)
    done = command("--records", str(path), str(actions), "--output", str(tmp_path / "made"))
    assert done.returncode == 0, done.stderr
    tokenizer = Tokenizer(str(tmp_path / "made"))
    assert tokenizer.placeholder_id > max(map(max, tokenizer.encode(["I am at the door. 日本"])))
    assert tokenizer.decode(tokenizer.encode(["Is the bed red?"])[0]) == "Is the bed red?"
    assert len(tokenizer.encode(["chair"])[0]) == 1
    # The text that is learnt, with centimetres, and not the record's.
    assert len(tokenizer.encode(['"center_cm'])[0]) < len(tokenizer.encode(['"center": ['])[0])


def test_records_that_do_not_exist(tmp_path):
    done = command("--records", str(tmp_path / "no.jsonl"), "--output", str(tmp_path / "made"))
    assert done.returncode == 2 and "no.jsonl' does not exist" in done.stderr
    assert len(done.stderr.splitlines()) == 1

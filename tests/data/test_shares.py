"""Work that several jobs share: each its part, and in the end the same as one alone makes."""

import argparse
import dataclasses
import fcntl
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxvlm.data.features import shards
from jaxvlm.data.prep.job import Job, Part
from jaxvlm.data.record import Record
from jaxvlm.errors import UserError
from jaxvlm.shares import WHOLE, Share, add_shard

SCENES = [f"scene{n}" for n in range(7)]


def make(scene: str) -> Part:
    return Part([Record(("a.png",), f"What is in {scene}?", "chair", ("chair",), scene_id=scene)])


def job(path, share=WHOLE, work=make) -> Job:
    return Job(path, {"command": "test"}, SCENES, work, lambda scene: [], share=share)


@given(st.integers(1, 9), st.integers(0, 40))
def test_shares_are_all_of_it_and_none_twice(count, parts):
    shares = [Share(index, count) for index in range(count)]
    taken = [part for share in shares for part in share.of(range(parts))]
    assert sorted(taken) == list(range(parts))
    assert all(sum(share.owns(number) for share in shares) == 1 for number in range(parts))


@pytest.mark.parametrize(
    "text", ["3/3", "1", "-1/2", "1/0", "a/b", "1/2/3", "", "٠/٢", "0/9999999"]
)
def test_a_share_that_cannot_be_is_refused(text, capsys):
    parser = argparse.ArgumentParser()
    add_shard(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--shard={text}"])
    assert "expected I/N with I from 0 to N-1" in capsys.readouterr().err


def test_the_last_job_joins_what_all_have_made(tmp_path, capsys):
    job(tmp_path / "whole.jsonl").run(1, False)
    for index in (2, 0):
        job(tmp_path / "o.jsonl", Share(index, 3)).run(1, False)
        assert not (tmp_path / "o.jsonl").exists()
    assert "shard 2/3 is made; 5 of 7 scenes are still to be made" in capsys.readouterr().out
    job(tmp_path / "o.jsonl", Share(1, 3)).run(1, False)
    assert (tmp_path / "o.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / "o.jsonl.parts").exists()
    job(tmp_path / "o.jsonl", Share(1, 3)).run(1, False)
    assert "up to date" in capsys.readouterr().out


def test_jobs_at_once_make_one_file(tmp_path):
    """Each works while the other does; whoever ends last joins."""
    together = threading.Barrier(2, timeout=30)

    def work(scene):
        if scene in SCENES[:2]:
            together.wait()
        return make(scene)

    jobs = [job(tmp_path / "o.jsonl", Share(index, 2), work) for index in (0, 1)]
    threads = [threading.Thread(target=each.run, args=(1, False)) for each in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    job(tmp_path / "whole.jsonl").run(1, False)
    assert (tmp_path / "o.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_whole_run_stays_out_while_a_share_is_made(tmp_path):
    refused = []

    def work(scene):
        if scene == SCENES[0]:
            with pytest.raises(UserError, match=r"another run is making .*o.jsonl; wait for it"):
                job(tmp_path / "o.jsonl").run(1, False)
            refused.append(scene)
        return make(scene)

    job(tmp_path / "o.jsonl", Share(0, 2), work).run(1, False)
    assert refused


def test_a_share_stays_out_while_the_whole_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxvlm.data.prep.job._PATIENCE", 0.3)
    with (tmp_path / ".o.jsonl.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is making"):
            job(tmp_path / "o.jsonl", Share(0, 2)).run(1, False)


def test_one_share_does_not_overwrite_for_all(tmp_path):
    with pytest.raises(UserError, match="--overwrite would remove what the other shards make"):
        job(tmp_path / "o.jsonl", Share(0, 2)).run(1, True)


def test_a_share_of_other_settings_leaves_what_others_have_made(tmp_path):
    job(tmp_path / "o.jsonl", Share(0, 2)).run(1, False)
    other = dataclasses.replace(job(tmp_path / "o.jsonl", Share(1, 2)), settings={"style": "B"})
    with pytest.raises(UserError, match=r"o.jsonl.parts holds what shards with other settings"):
        other.run(1, False)
    job(tmp_path / "o.jsonl", Share(1, 2)).run(1, False)
    assert (tmp_path / "o.jsonl").exists()


def test_no_shard_of_features_takes_the_place_of_another(tmp_path, monkeypatch):
    """Two jobs that chose the same number at the same time, with different N."""
    free, chosen = shards._free, []

    def at_once(folder, share):
        chosen.append(
            free(folder, share) if len(chosen) > 1 else folder / "features-00000.safetensors"
        )
        return chosen[-1]

    monkeypatch.setattr(shards, "_free", at_once)
    for name, share in (("a", Share(0, 2)), ("b", Share(0, 3))):
        shards.write_shard(tmp_path, {name: np.ones((1, 2), np.float32)}, "made", share)
    assert set(shards.Shards(tmp_path, "made")) == {"a", "b"}
    assert not shards.draft_files(tmp_path)

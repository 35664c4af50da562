"""Work in processes: all of it is done, and what goes wrong ends it."""

import os
import signal

import pytest

from jaxvlm.data.prep.workers import made_of
from jaxvlm.errors import UserError


def double(number: int) -> int:
    if number == 13:
        raise UserError("thirteen is no number")
    if number == 666:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


@pytest.mark.parametrize("workers", [1, 2, 50])
def test_everything_is_made_once(workers):
    assert dict(made_of(double, range(7), workers)) == {i: 2 * i for i in range(7)}
    assert dict(made_of(double, [], workers)) == {}


def test_what_a_worker_says_is_said():
    with pytest.raises(UserError, match="thirteen"):
        dict(made_of(double, [1, 13, 2], 2))


def test_a_killed_worker_ends_the_work():
    with pytest.raises(UserError, match="a worker was killed"):
        dict(made_of(double, [1, 666, 2, 3], 2))

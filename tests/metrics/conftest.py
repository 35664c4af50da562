"""Fixtures of the metrics' tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def samples():
    """The folder of real samples."""
    folder = os.environ.get("JAXVLM_SHARED")
    if folder is None:
        pytest.skip("JAXVLM_SHARED is not set: no real data here")
    return Path(folder) / "samples"

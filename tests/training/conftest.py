"""Record files with feature caches, imported weights, and a run that nothing disturbed."""

import shutil

import pytest
import tiny
from adapters import PARTS
from caches import fill

from convert import parts
from jaxvlm.training import loop
from jaxvlm.training.weights import save_weights


@pytest.fixture
def data(tmp_path):
    """A record file of its own, beside its images, for tests that change them."""
    folder = tmp_path / "data"
    folder.mkdir()
    return tiny.write_records(folder)


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A folder with `data` and the `features` of it, without view dropout."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "data").mkdir()
    fill(tiny.write_records(folder / "data"), folder / "features")
    return folder


@pytest.fixture
def filled(template, tmp_path):
    """A copy of the template's record file and folder of features."""
    shutil.copytree(template, tmp_path / "copy")
    return tmp_path / "copy" / "data" / "records.jsonl", tmp_path / "copy" / "features"


@pytest.fixture(scope="session")
def straight(records, tmp_path_factory):
    """The workdir of a run of six updates that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("straight")
    loop.train(tiny.config_for(records), workdir)
    return workdir


@pytest.fixture(scope="session")
def weights(toy, tmp_path_factory):
    """A folder of imported weights with all of the toy's parameters."""
    folder = tmp_path_factory.mktemp("weights") / "all"
    sizes = parts.described({part: getattr(toy.model, part) for part in PARTS})
    save_weights(folder, {**toy.trained, **toy.frozen}, {"model": sizes})
    return folder

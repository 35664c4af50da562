"""Fixtures of a toy experiment, made once a session."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from jaxvlm.data.training_set import Rows, training_rows
from jaxvlm.metrics import captions
from jaxvlm.models.vlm import VLMConfig, vlm_config
from jaxvlm.training.loop import train
from jaxvlm.training.mesh import make_mesh
from jaxvlm.training.parameters import FROZEN, Group, assign_groups
from jaxvlm.training.setup import all_parameters
from jaxvlm.training.state import abstract_parameters

# Compiling is what takes the time: do it once, and without polish.
_COMPILING = {
    "jax_disable_most_optimizations": True,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
}


@pytest.fixture(scope="session", autouse=True)
def compile_cache():
    """Shares compiled functions among runs and sessions, in this process and in others."""
    folder = str(Path(__file__).parent.parent / ".cache" / "tests")
    for name, value in _COMPILING.items():
        jax.config.update(name, value)
    jax.config.update("jax_compilation_cache_dir", folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Keeps what the session finds out about record files to the session."""
    os.environ["JAXVLM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def without_java():
    """METEOR takes seconds to start; a test of its own has it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(captions, "has_java", lambda: False)
        yield


@pytest.fixture(scope="session")
def python(compile_cache):
    """Starts a Python process with the session's settings; returns its `Popen`."""
    settings = {name.upper(): str(value) for name, value in _COMPILING.items()}
    settings |= {"JAX_COMPILATION_CACHE_DIR": compile_cache, "JAX_PLATFORMS": "cpu"}

    def start(*arguments: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, **settings, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@dataclasses.dataclass(frozen=True)
class Toy:
    """The toy experiment on the devices, before its first update."""

    config: object
    model: VLMConfig
    mesh: jax.sharding.Mesh
    groups: dict[str, Group]
    trained: dict[str, jax.Array]
    frozen: dict[str, jax.Array]
    rows: Rows

    def batch(self, first: int = 0, count: int = 2) -> dict[str, np.ndarray]:
        """Rows `first` to `first + count - 1`, as one batch."""
        return self.rows.batch(first, first + count)


def make_toy(config) -> Toy:
    """Everything a run makes before its first update."""
    model = vlm_config(config.model)
    shapes = abstract_parameters(model)
    groups = assign_groups(config.parameters, shapes, config.optimizer.learning_rate)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    params = all_parameters(config, model, groups, mesh)
    frozen = {path for path in params if groups[path].name == FROZEN}
    return Toy(
        config,
        model,
        mesh,
        groups,
        {path: leaf for path, leaf in params.items() if path not in frozen},
        {path: params[path] for path in frozen},
        training_rows(config, 64),
    )


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """The toy's record file, beside its images."""
    return tiny.write_records(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def toy(records) -> Toy:
    """The toy experiment in float32."""
    return make_toy(tiny.config_for(records))


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """A record file of six questions that only the images answer."""
    return tiny.colour_records(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def finished_run(colours, tmp_path_factory):
    """The workdir of a run that has learnt the six colour questions by heart."""
    workdir = tmp_path_factory.mktemp("runs") / "colours"
    changes = {"train__max_steps": 80, "train__save_every": 40, "train__log_every": 10}
    train(tiny.config_for(colours, **changes), workdir)
    return workdir

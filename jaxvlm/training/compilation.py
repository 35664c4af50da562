"""What XLA has compiled is kept: the next start does not compile it again."""

import math
import os
from pathlib import Path

import jax

FOLDER = "compiled"


def keep_compiled(place: Path) -> None:
    """Has this process keep compiled programs in a folder of a workdir, and read those there.

    Where `JAX_COMPILATION_CACHE_DIR` names another place, that one is taken; in a folder that
    cannot be written programs are only read. XLA knows its programs by everything they depend on,
    its own version among it.
    """
    # By itself JAX keeps no program that took less than a second, of which a start has twenty.
    least = 0.0
    if jax.config.jax_compilation_cache_dir is None:
        folder = place.resolve() / FOLDER
        if not os.access(folder if folder.exists() else place, os.W_OK):
            # JAX would warn of every program.
            least = math.inf
        if folder.exists() or not least:
            jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)

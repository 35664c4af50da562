"""What XLA has compiled is kept: the next start does not compile it again."""

import os
from pathlib import Path

import jax

FOLDER = "compiled"


def keep_compiled(place: Path) -> None:
    """Has this process keep compiled programs in a folder of a workdir, and read those there.

    Where `JAX_COMPILATION_CACHE_DIR` names another place, that one is taken; a place that cannot
    be written keeps nothing. XLA knows its programs by everything they depend on, its own version
    among it.
    """
    if jax.config.jax_compilation_cache_dir is None and os.access(place, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(place.resolve() / FOLDER))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # By itself JAX keeps no program that took less than a second, of which a start has twenty.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

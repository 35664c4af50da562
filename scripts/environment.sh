# Sourced by the launchers, in the project's folder: where caches lie, and what NCCL is told.
# What is set already stays as it is.

# Compiled programs, weights and temporary files stay with the project: home folders are small, and
# /tmp of a cluster's nodes often is.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}"
export HF_HOME="${HF_HOME:-$PWD/.cache/huggingface}"
export JAXVLM_CACHE="${JAXVLM_CACHE:-$PWD/.cache/jaxvlm}"
export PYTHONPYCACHEPREFIX="${PYTHONPYCACHEPREFIX:-$PWD/.cache/python}"
# Names of sockets in it may have 107 characters in all.
if [ -z "${TMPDIR:-}" ] && [ "${#PWD}" -le 60 ]; then export TMPDIR="$PWD/.cache/tmp"; fi
mkdir -p .cache "${TMPDIR:-/tmp}"

# Overlaps communication with computation.
export JAX_OPTIMIZATION_LEVEL="${JAX_OPTIMIZATION_LEVEL:-O1}"
# The share of a GPU's memory that JAX takes at the start; the rest is NCCL's and cuDNN's.
if [ -z "${XLA_PYTHON_CLIENT_MEM_FRACTION:-}" ]; then
  export XLA_CLIENT_MEM_FRACTION="${XLA_CLIENT_MEM_FRACTION:-0.9}"
fi
# Only what goes wrong; INFO shows which network NCCL takes.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"

#!/usr/bin/env bash
# Trains Stage 1 on the GPUs of this machine, as the original's launcher was used:
#
#   scripts/train.sh [--safe] [debug|full] [num_gpus]      (full, 2)
#
# The same command goes on where it stopped. BATCH_PER_GPU questions x GRAD_ACCUM micro-batches a
# GPU and update (one question a row, instead of packed rows), DATALOADER_NUM_WORKERS, PYTHON and
# WORKDIR are taken from the environment; flags of jaxvlm.train may stand behind.
set -euo pipefail
unset CDPATH
# A link to this file is followed, a linked folder is where it stands.
script=$0
if [ -L "$script" ]; then script=$(readlink -f "$script"); fi
cd "$(dirname "$script")/.."
source scripts/environment.sh

words="scripts/train.sh [--safe] [debug|full] [num_gpus]"
usage() {
  echo "scripts/train.sh: $1; use $words" >&2
  exit 2
}

number() { # name value: what must be a whole number from 1
  [[ $2 =~ ^[1-9][0-9]{0,4}$ ]] || usage "$1=$2 is no number from 1"
}

safe="" mode=full gpus=2
while [ $# -gt 0 ]; do
  case "$1" in
    --safe) safe=1 ;;
    debug | full) mode=$1 ;;
    -h | --help)
      sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' scripts/train.sh
      exit ;;
    -*) break ;;
    [0-9]*) gpus=$1 ;;
    *) usage "unknown mode '$1'" ;;
  esac
  shift
done
number num_gpus "$gpus"

variants=$([ "$mode" = debug ] && echo debug || true)
name=stage1${variants:+_$variants}
if [ -n "$safe" ]; then variants+=${variants:+,}safe name+=_safe; fi
flags=(--config "configs/stage1.py${variants:+:$variants}" --workdir "${WORKDIR:-runs/$name}")
flags+=(--devices "$gpus")
if [ -n "${BATCH_PER_GPU:-}${GRAD_ACCUM:-}" ]; then
  if [ -n "$safe" ]; then usage "--safe is 1 question x 4; unset BATCH_PER_GPU and GRAD_ACCUM"; fi
  number BATCH_PER_GPU "${BATCH_PER_GPU:=6}"
  number GRAD_ACCUM "${GRAD_ACCUM:=32}"
  flags+=(--config.data.pack=False --config.train.rows_per_device="$BATCH_PER_GPU")
  flags+=(--config.train.accumulation="$GRAD_ACCUM")
fi
if [ -n "${DATALOADER_NUM_WORKERS:-}" ]; then
  flags+=(--config.data.num_workers="$DATALOADER_NUM_WORKERS")
fi

# The first of the GPUs that may be used.
visible=${CUDA_VISIBLE_DEVICES-$(seq -s, 0 $((gpus - 1)))}
given=$(tr ',' '\n' <<<"$visible" | grep -c . || true)
if [ "$given" -lt "$gpus" ]; then usage "$gpus GPUs, but CUDA_VISIBLE_DEVICES=$visible"; fi
CUDA_VISIBLE_DEVICES=$(cut -d, -f"1-$gpus" <<<"$visible")
export CUDA_VISIBLE_DEVICES

python=${PYTHON:-.venv/bin/python}
echo "$python -m jaxvlm.train ${flags[*]} $*"
exec "$python" -m jaxvlm.train "${flags[@]}" "$@"

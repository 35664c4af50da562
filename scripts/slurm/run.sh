#!/usr/bin/env bash
# Stage 1 on one node, with the words of scripts/train.sh:
#
#   sbatch scripts/slurm/run.sh [--safe] [debug|full] [num_gpus]      (full, 8)
#
# from the project's folder. Options of sbatch go before the script's name and win over these:
#SBATCH --job-name=stage1
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus=8
#SBATCH --cpus-per-task=32
#SBATCH --mem-per-gpu=120gb
#SBATCH --time=48:00:00
#SBATCH --output=jaxvlm_%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
# Five minutes before the time limit: save, and be started again.
#SBATCH --signal=USR1@300
# Your cluster's:
##SBATCH --partition=
##SBATCH --account=
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?submit this with sbatch}"
source scripts/environment.sh
source scripts/slurm/launch.sh
# All GPUs of the job, where no number stands behind the mode.
words=()
while [[ ${1:-} =~ ^(--safe|debug|full)$ ]]; do words+=("$1"); shift; done
gpus=${SLURM_GPUS:-8}
if [[ ${1:-} =~ ^[0-9]+$ ]]; then gpus=$1; shift; fi
again scripts/train.sh "${words[@]}" "${gpus##*:}" "$@"

# Sourced by the batch scripts: runs a command in all tasks of the job, and starts the job again
# where that helps.

# again COMMAND: runs it with srun. Its checkpoints lie in WORKDIR, or somewhere in runs/.
again() {
  local code=0 restarts=${SLURM_RESTART_COUNT:-0} most=${MOST_RESTARTS:-20}
  local began=.cache/began_$SLURM_JOB_ID
  whole MOST_RESTARTS "$most"
  touch "$began"
  echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restart $restarts"
  # A task that fails ends the others; --label tells in the log who said what.
  srun --kill-on-bad-exit=1 --label "$@" || code=$?
  if [ "$code" -eq 0 ]; then
    rm "$began"
    return
  fi
  # 75: asked to stop (time limit, preemption), and saved. Above 128: killed, with a node or for
  # lack of memory, which is worth another try only if something was gained since the last.
  if [ "$code" -ne 75 ] && { [ "$code" -le 128 ] || ! saved_since "$began"; }; then
    echo "ended with $code; not started again"
  elif [ "$restarts" -ge "$most" ]; then
    echo "ended with $code after $restarts restarts (MOST_RESTARTS)"
  else
    echo "ended with $code; starting again"
    scontrol requeue "$SLURM_JOB_ID"
    # Slurm ends this script.
    sleep 60
  fi
  exit "$code"
}

whole() { # name value: what must be a whole number
  [[ $2 =~ ^[0-9]{1,6}$ ]] || { echo "$1=$2 is no whole number" >&2; exit 2; }
}

saved_since() {
  # -H: a folder that is a link is looked into.
  [ -n "$(find -H "${WORKDIR:-runs}" -regex '.*/checkpoints/[0-9]+' -newer "$1" -print -quit 2>/dev/null)" ]
}

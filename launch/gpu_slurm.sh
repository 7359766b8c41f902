#!/usr/bin/env bash
# Trains on GPU nodes under Slurm. Run on a login node, it installs and submits itself:
#
#   launch/gpu_slurm.sh [--dry-run] CONFIG [--a.b VALUE ...]
#   SBATCH_ARGS="--nodes=4 --partition=h200" launch/gpu_slurm.sh CONFIG
#
# One process a node has all of its GPUs; with SBATCH_ARGS=--ntasks-per-node=8, one process a GPU.
# A preempted job, and one whose time is up, is put back into the queue and goes on from its last
# checkpoint; so is one that fails, unless it was put back RETRIES times (3) before, and one that is
# stopped within a minute of its start, unless it was put back STOPS times (20). The repository and
# the work folder must be on a file system that all nodes see. Variables such as WANDB_API_KEY go
# along with the job.
# EXTRAS (cuda13) says what to install. What a site needs besides, edit below.

#SBATCH --job-name=t2g
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
#SBATCH --signal=B:TERM@300
set -euo pipefail

say() { printf 'gpu_slurm.sh: %s\n' "$*" >&2; }
act() { # does it; in a dry run, shows it
  [[ -z "${DRY_RUN:-}" ]] || { printf '+'; printf ' %q' "$@"; echo; return; }
  "$@"
}

# What each process does before it becomes t2g: only there its number is known.
# shellcheck disable=SC2016
process='export T2G_PROCESS_ID=$SLURM_PROCID PATH="$PWD/.venv/bin:$PATH"
export JAX_LOCAL_DEVICE_IDS=$SLURM_LOCALID # else JAX takes one GPU a process, whatever there is
((SLURM_NTASKS > SLURM_NNODES)) || JAX_LOCAL_DEVICE_IDS=$(seq -s , 0 $((SLURM_GPUS_ON_NODE - 1)))
exec t2g run "$@"'
# When one process has ended, the others have ten minutes to save before they are killed.
srun=(srun --kill-on-bad-exit=0 --wait=600 bash -c "$process" t2g)

submit() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  # shellcheck source=launch/environment.sh
  source launch/environment.sh
  require_config "$1" # the nodes would say so when the job's turn has come
  [[ -n "${DRY_RUN:-}" ]] || command -v sbatch >/dev/null ||
    { say "sbatch is not found here; run this on a login node of a Slurm cluster"; exit 2; }
  # shellcheck disable=SC2086  # these may name several
  act prepare_environment tasks ${EXTRAS:-cuda13}
  # shellcheck disable=SC2086
  act sbatch ${SBATCH_ARGS:-} launch/gpu_slurm.sh "$@"
  [[ -z "${DRY_RUN:-}" ]] || act "${srun[@]}" "$@" # which is what the job does
}

job() {
  local status=0 child first tasks=${SLURM_NTASKS:-$SLURM_NNODES}
  cd "$SLURM_SUBMIT_DIR"
  read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  export T2G_COORDINATOR=$first:$((20000 + SLURM_JOB_ID % 10000)) T2G_NUM_PROCESSES=$tasks
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
  export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
  say "$tasks processes on $SLURM_JOB_NODELIST, coordinator $T2G_COORDINATOR"
  # srun itself would take SIGTERM for the end of everything; its tasks save and end with 75.
  trap 'say "SIGTERM: having the run saved"; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
  act "${srun[@]}" "$@" </dev/null &
  child=$!
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do # a trap ends `wait` early
    status=0
    wait "$child" || status=$?
  done
  case $status in
    0 | 2 | 130) exit "$status" ;;
    75) ((SECONDS >= 60 || ${SLURM_RESTART_COUNT:-0} < ${STOPS:-20})) || exit 70 ;;
    *) ((${SLURM_RESTART_COUNT:-0} < ${RETRIES:-3})) || exit "$status" ;;
  esac
  # Not what was cancelled, nor what Slurm puts back itself.
  [[ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" == RUNNING ]] || exit "$status"
  say "ended with $status; back into the queue"
  act scontrol requeue "$SLURM_JOB_ID"
}

[[ "${1:-}" != --dry-run ]] || { DRY_RUN=1; shift; }
if [[ $# -eq 0 || "$1" == -h || "$1" == --help ]]; then
  # shellcheck source=launch/environment.sh
  source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
  print_help "${BASH_SOURCE[0]}"
elif [[ -n "${SLURM_JOB_ID:-}" ]]; then
  job "$@"
else
  submit "$@"
fi

#!/usr/bin/env bash
# Trains on all NVIDIA GPUs of this machine, in one process, from nothing.
#
#   launch/gpu_local.sh [--dry-run] [CONFIG] [--a.b VALUE ...]     configs/quickstart.yaml
#   GPUS=0,1 launch/gpu_local.sh CONFIG                            only these
#
# The CUDA that JAX brings along is chosen by the driver: EXTRAS=cuda12 or cuda13 overrules that.
# How the GPUs are used is in the configuration: mesh.data, mesh.fsdp, mesh.tensor. All else is
# as with launch/local.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

[[ "${1:-}" != --dry-run ]] || { DRY_RUN=1; shift; }
if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
  print_help launch/gpu_local.sh
  exit
fi

if [[ " ${EXTRAS:-} " != *" cuda1"[23]" "* ]]; then
  if command -v nvidia-smi >/dev/null; then
    drivers=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader) || drivers=''
    driver=${drivers%%.*}
    if [[ ! "$driver" =~ ^[0-9]+$ ]]; then
      say "nvidia-smi finds no GPU with a driver; EXTRAS=cuda12 or cuda13 goes on regardless"
      exit 1
    fi
    # CUDA 13 wants driver 580 or newer, CUDA 12 wants 525.
    if ((driver >= 580)); then cuda=cuda13; else cuda=cuda12; fi
    say "$(($(wc -l <<<"$drivers"))) GPUs, driver $driver: $cuda"
  elif [[ -n "${DRY_RUN:-}" ]]; then
    cuda=cuda13
    say "no nvidia-smi, so no GPU, on this machine. Shown is what is done where there is a driver" \
      "of 580 or newer; an older one gets cuda12"
  else
    say "no nvidia-smi, so no GPU with a driver, on this machine; EXTRAS=cuda12 or cuda13 goes on" \
      "regardless, --dry-run shows what would be done, launch/local.sh trains without a GPU"
    exit 1
  fi
  export EXTRAS="$cuda${EXTRAS:+ $EXTRAS}"
fi
[[ -z "${GPUS:-}" ]] || export CUDA_VISIBLE_DEVICES=$GPUS
# Nothing else is to run on these GPUs, so JAX may have nearly all of their memory.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}

if [[ -n "${DRY_RUN:-}" ]]; then
  [[ $# -eq 0 || "$1" == -* ]] || require_config "$1"
  for variable in EXTRAS CUDA_VISIBLE_DEVICES XLA_PYTHON_CLIENT_MEM_FRACTION; do
    [[ -z "${!variable:-}" ]] || printf '+ export %s=%q\n' "$variable" "${!variable}"
  done
  printf '+ launch/local.sh'
  if (($#)); then printf ' %q' "$@"; fi
  echo
  exit
fi
exec launch/local.sh "$@"

#!/usr/bin/env bash
# Trains on this machine, from nothing: makes .venv, installs t2g_jax, runs all phases of one config.
#
#   launch/local.sh                                    configs/quickstart.yaml
#   launch/local.sh CONFIG [--a.b VALUE ...]           another one, with values changed for this run
#   EXTRAS=cuda13 launch/local.sh                      on a GPU; also cuda12, tpu
#
# A run that was stopped goes on when started again; one that SIGTERM stopped in order is started
# again here. PYTHON names the interpreter to use.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
  print_help launch/local.sh
  exit
fi

config=configs/quickstart.yaml
if [[ $# -gt 0 && "$1" != -* ]]; then
  config=$1
  shift
fi
require_config "$config"

# shellcheck disable=SC2086  # EXTRAS may name several
prepare_environment tasks ${EXTRAS:-}
# Large pages for large arrays: on Linux, a step on the CPU spends far less time in page faults.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
exec launch/restart.sh t2g run "$config" "$@"

#!/usr/bin/env bash
# Runs the tests, from nothing: makes .venv, installs t2g_jax with its test extra, starts pytest.
#
#   launch/test.sh                         all tests, on all cores
#   launch/test.sh tests/losses -k gae     arguments go to pytest
#
# PYTHON names the interpreter to use; JOBS is the number of processes (0: in this one).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
  print_help launch/test.sh
  exit
fi

prepare_environment test
# Tests of one file share what is dear to make, so one process gets all of them.
exec python -m pytest --numprocesses "${JOBS:-auto}" --dist loadfile --no-loadscope-reorder "$@"

#!/usr/bin/env bash
# Runs a command, and runs it again for as long as it ends with 75: stopped in order, not finished.
#
#   launch/restart.sh t2g run configs/quickstart.yaml
#
# SIGTERM to this script goes on to the command, which saves; then the script ends with 75 too, so
# that whoever sent it (Slurm, Kubernetes, a TPU about to be taken away) can start it elsewhere.
set -euo pipefail

if [[ $# -eq 0 || "$1" == -h || "$1" == --help ]]; then
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
  exit
fi

child='' leaving='' told=''
forward() {
  leaving=1
  [[ -z "$child" ]] || { told=1; kill -TERM "$child" 2>/dev/null || true; }
}
trap forward TERM
trap : INT # Ctrl-C reaches the command too, which decides

while true; do
  # In the background, as bash waits with a trap for a command in the foreground; there it would
  # also be deaf to Ctrl-C.
  (
    trap - INT TERM
    exec "$@"
  ) &
  child=$!
  # The signal may have come before there was anybody to tell.
  [[ -z "$leaving" || -n "$told" ]] || forward
  status=0
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do # a trap ends `wait` early
    status=0
    wait "$child" || status=$?
  done
  [[ $status -eq 75 && -z "$leaving" ]] || exit "$status"
  printf 'restart.sh: stopped in order (75); starting again\n' >&2
done

#!/usr/bin/env bash
# Runs a command, and runs it again for as long as it ends with 75: stopped in order, not finished.
#
#   launch/restart.sh t2g run configs/quickstart.yaml
#
# SIGTERM to this script goes on to the command, which saves; then the script ends with 75 too, so
# that whoever sent it (Slurm, Kubernetes, a TPU about to be taken away) can start it elsewhere.
#
# A command that is stopped again and again and gets nowhere is not run for ever: the pause before a
# start doubles, and in the end the script gives up with 70. A run got somewhere if it took a while,
# or if what is saved is not what it was (checkpoints, finished phases, judged completions) in a
# folder that the command names, as --workdir, or else in runs/. Then pause and count begin anew:
#
#   PAUSE=1          seconds before the first start again
#   MAX_PAUSE=60     seconds that it is never longer than
#   PROGRESS=60      seconds after which a run got somewhere, whatever it wrote
#   RETRIES=5        starts again in a row, without getting anywhere, before it gives up
set -euo pipefail

if [[ $# -eq 0 || "$1" == -h || "$1" == --help ]]; then
  # shellcheck source=launch/environment.sh
  source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
  print_help "${BASH_SOURCE[0]}"
  exit
fi

say() { printf 'restart.sh: %s\n' "$*" >&2; }

for name in PAUSE MAX_PAUSE PROGRESS RETRIES; do
  [[ "${!name:-0}" =~ ^[0-9]{1,6}$ ]] ||
    { say "$name=${!name} is no whole number from 0 to 999999"; exit 2; }
done
pause=$((10#${PAUSE:-1})) max_pause=$((10#${MAX_PAUSE:-60}))
progress=$((10#${PROGRESS:-60})) retries=$((10#${RETRIES:-5}))

child='' leaving='' told=''
forward() {
  leaving=1
  [[ -z "$child" ]] || { told=1; kill -TERM "$child" 2>/dev/null || true; }
}
trap forward TERM
trap : INT # Ctrl-C reaches the command too, which decides

attend() { # COMMAND ...; `status` says how it ended
  told=''
  # In the background, as bash waits with a trap for a command in the foreground; there it would
  # also be deaf to Ctrl-C.
  (
    trap - INT TERM
    # Older shells, as a Mac's, leave the command deaf all the same.
    # shellcheck disable=SC2016
    ((BASH_VERSINFO[0] >= 5)) || ! command -v perl >/dev/null ||
      exec perl -e '$SIG{INT} = "DEFAULT"; exec { $ARGV[0] } @ARGV or exit 127' "$@"
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
  child=''
}

saved() ( # COMMAND ...; what there is in its work folder, in words that differ if that does
  shopt -s nullglob
  folders=() found=()
  for word in "$@"; do
    case $word in --*=*) word=${word#*=} ;; esac
    [[ ! -d "$word" ]] || folders+=("$word")
  done
  ((${#folders[@]})) || folders=(runs/*)
  for folder in ${folders[@]+"${folders[@]}"}; do
    found+=("$folder"/*/checkpoints/* "$folder"/*/complete.json)
    for journal in "$folder"/*/journal.jsonl; do found+=("$(wc -c <"$journal")"); done
  done
  echo ${found[@]+"${found[@]}"}
)

fruitless=0
while true; do
  before=$(saved "$@") started=$SECONDS
  attend "$@"
  [[ $status -eq 75 && -z "$leaving" ]] || exit "$status"
  if ((SECONDS - started >= progress)) || [[ "$(saved "$@")" != "$before" ]]; then
    fruitless=0
  elif ((++fruitless > retries)); then
    say "stopped in order (75) $fruitless times in a row without progress; given up"
    exit 70
  fi
  seconds=$((pause << (fruitless > 16 ? 16 : fruitless > 0 ? fruitless - 1 : 0)))
  ((seconds <= max_pause)) || seconds=$max_pause
  say "stopped in order (75); starting again in $seconds s"
  attend sleep "$seconds"
  [[ -z "$leaving" ]] || exit 75
  ((status == 0)) || exit "$status" # Ctrl-C
done

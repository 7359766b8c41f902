#!/usr/bin/env bash
# Trains on a Cloud TPU slice: asks for it, waits, installs on all its hosts, runs there. When it is
# preempted it does all of that again, until the run is done. Started again, it finds what there is.
#
#   launch/tpu_pod.sh [--dry-run] run CONFIG [--a.b VALUE ...]    all phases of a configuration
#   launch/tpu_pod.sh [--dry-run] t2g COMMAND ...                 another command of t2g
#   launch/tpu_pod.sh [--dry-run] status | logs | stop | delete
#   launch/tpu_pod.sh [--dry-run] ssh COMMAND                     on all hosts
#
# Hosts get the files that `launch/parcel.sh --list` names. Ctrl-C ends this script, not the run.
# `stop` has the run saved and ended, `delete` gives the TPU back. What to ask for, as variables:
#
#   NAME=t2g                 of the queued resource and of the TPU
#   PROJECT, ZONE            otherwise gcloud's own settings
#   TYPE=v5litepod-16        accelerator type; RUNTIME, its software, follows from it
#   MODE=spot                or on-demand, or reserved
#   BUCKET                   of Cloud Storage, mounted on every host: work folders go there, to runs/
#   SECRETS                  variables that the run gets and nothing prints: WANDB_API_KEY HF_TOKEN
#   EXTRAS                   more extras to install, e.g. wandb
#   RETRIES=3                failures in a row, each within ten minutes, before it gives up
#   STOPS=10                 the same for runs that stop in order, though the TPU is not taken away
#   DELETE=1                 give the TPU back when the run is done
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

say() { printf 'tpu_pod.sh: %s\n' "$*" >&2; }
fail() { say "$1"; exit "${2:-2}"; }

[[ "${1:-}" != --dry-run ]] || { DRY_RUN=1; shift; }
[[ $# -gt 0 && "$1" != -h && "$1" != --help ]] || { print_help launch/tpu_pod.sh; exit; }

name=${NAME:-t2g} type=${TYPE:-v5litepod-16} poll=${POLL:-30} dry_state=NONE failures=0 stops=0
where=(--quiet) # asks no questions
[[ -z "${ZONE:-}" ]] || where+=(--zone="$ZONE")
[[ -z "${PROJECT:-}" ]] || where+=(--project="$PROJECT")
asked=(--node-id="$name" --accelerator-type="$type")
case ${MODE:-spot} in
  spot) asked+=(--spot) ;;
  reserved) asked+=(--reserved) ;;
  on-demand) ;;
  *) fail "MODE=$MODE is none of spot, on-demand, reserved" ;;
esac
case $type in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) runtime=tpu-ubuntu2204-base ;;
esac
[[ -z "${DRY_RUN:-}" ]] || poll=0

# gcloud does it; in a dry run it is only shown.
tpus() {
  [[ -z "${DRY_RUN:-}" ]] || { printf '+ gcloud compute tpus'; printf ' %q' "$@"; echo; return; }
  gcloud compute tpus "$@" </dev/null
}
resources() { tpus queued-resources "$1" "$name" "${where[@]}" "${@:2}"; }
hosts() { # WORKER COMMAND
  tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --ssh-flag='-o ServerAliveInterval=30' \
    --command="$2"
}

state() { # of the queued resource; NONE: it does not exist
  local answer
  [[ -z "${DRY_RUN:-}" ]] || { echo "$dry_state"; return; }
  if answer=$(resources describe --format='value(state.state)' 2>&1); then
    tail -n 1 <<<"$answer"
  elif [[ "$answer" == *NOT_FOUND* || "$answer" == *"not found"* ]]; then
    echo NONE
  else
    say "$answer"
    echo UNKNOWN
  fi
}

again() { # WHY; a failure that may pass
  ((++failures <= ${RETRIES:-3})) || fail "$1; given up after $failures failures in a row" 1
  say "$1; trying again"
}

obtain() {
  local now last='' unknown=0
  while true; do
    now=$(state)
    [[ "$now" == "$last" ]] || say "$name: $now"
    last=$now
    case $now in
      ACTIVE) return ;;
      NONE)
        resources create "${asked[@]}" --runtime-version="${RUNTIME:-$runtime}" ||
          again "asking for $name failed"
        dry_state=ACTIVE ;;
      SUSPENDED) resources delete --force || again "giving $name back failed" ;;
      FAILED) again "the request for $name failed"; resources delete --force || true ;;
      UNKNOWN) ((++unknown < 10)) || fail "gcloud does not say how $name is" 1 ;;
    esac
    [[ "$now" == UNKNOWN ]] || unknown=0
    sleep "$poll"
  done
}

deploy() (
  umask 077
  parcel=$(mktemp -d) # secrets travel in a file: a command line is seen by all, and logged
  unpack='mkdir -p t2g && tar -xzf t2g.tar.gz -C t2g'
  trap 'rm -rf "$parcel"' EXIT
  for secret in ${SECRETS:-WANDB_API_KEY HF_TOKEN}; do
    [[ -n "${!secret:-}" ]] || continue
    say "passing on $secret"
    printf 'export %s=%q\n' "$secret" "${!secret}"
  done >"$parcel/t2g-secrets"
  launch/parcel.sh "$parcel/t2g.tar.gz" &&
    tpus tpu-vm scp "$parcel/t2g.tar.gz" "$parcel/t2g-secrets" "$name:" "${where[@]}" --worker=all &&
    hosts all "$unpack && t2g/launch/tpu_host.sh prepare ${BUCKET:--} ${EXTRAS:-}"
)

run() {
  local status started now
  while true; do
    obtain
    started=$SECONDS status=0
    # A run that is under way is followed; new code must not get in between.
    if [[ -n "${DRY_RUN:-}" ]] || ! hosts 0 't2g/launch/tpu_host.sh running' 2>/dev/null; then
      deploy || status=$?
    fi
    ((status)) || hosts all "t2g/launch/tpu_host.sh start $(printf '%q ' "$@")" || status=$?
    case $status in
      0) break ;;
      130) exit 130 ;; # stopped on request
      2) [[ "$(state)" != ACTIVE ]] || exit 2 ;; # an error of use, unless hosts have gone
    esac
    ((SECONDS - started < 600 && status != 75)) || failures=0
    [[ $status -eq 75 ]] || again "ended with $status"
    now=$(state)
    [[ "$now" == ACTIVE && $status -eq 75 && $((SECONDS - started)) -lt 600 ]] || stops=-1
    ((++stops <= ${STOPS:-10})) || fail "stopped in order $stops times in a row; given up" 1
    [[ "$now" != ACTIVE ]] || hosts all 't2g/launch/tpu_host.sh stop' || true
    sleep $((poll * (stops + 1)))
  done
  say "done"
  [[ -z "${DELETE:-}" ]] || { resources delete --force; return; }
  say "the TPU is still yours, and is counted; give it back with: launch/tpu_pod.sh delete"
}

case $1 in
  run | t2g)
    [[ "$1" == run ]] || shift
    launch/parcel.sh --check "$@" || exit
    [[ -n "${BUCKET:-}" ]] || say "no BUCKET: hosts share no folder; what is trained goes with the TPU"
    run t2g "$@"
    ;;
  status) resources describe ;;
  logs) hosts 0 'tail -n 100 -F t2g-run/log' ;;
  ssh) hosts all "${*:2}" ;;
  stop) hosts all 't2g/launch/tpu_host.sh stop' ;;
  delete) resources delete --force ;;
  *) print_help launch/tpu_pod.sh >&2; exit 2 ;;
esac

#!/usr/bin/env bash
# What tpu_pod.sh has each host of a TPU do; it is not called by hand.
#
#   launch/tpu_host.sh prepare BUCKET [EXTRA ...]   Python, the library, the bucket; "-": no bucket
#   launch/tpu_host.sh start COMMAND ...            runs it, shows what it writes, ends as it ends
#   launch/tpu_host.sh running                      whether a command runs
#   launch/tpu_host.sh stop                         SIGTERM; waits until the command has saved
#
# A command goes on when the connection is lost; `start` then finds it and follows it. What it
# writes is in ~/t2g-run/log. Its environment has what ~/t2g-secrets exports.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run=$HOME/t2g-run

apt() {
  sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 "$@" >/dev/null
}

prepare() { # BUCKET [EXTRA ...]
  local bucket=$1 mount=$HOME/bucket codename
  local packages=https://packages.cloud.google.com/apt keyring=/usr/share/keyrings/t2g.asc
  if ! command -v gcsfuse >/dev/null || ! command -v cc >/dev/null; then
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    curl -fsSL "$packages/doc/apt-key.gpg" | sudo tee "$keyring" >/dev/null
    echo "deb [signed-by=$keyring] $packages gcsfuse-$codename main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    apt update
    apt install --yes gcsfuse gcc python3-dev python3-venv
  fi
  if ! command -v python3.1{1..9} >/dev/null; then # Ubuntu 22.04 has Python 3.10
    sudo add-apt-repository --yes ppa:deadsnakes/ppa >/dev/null
    apt update
    apt install --yes python3.12-dev python3.12-venv
  fi
  if [[ "$bucket" != - ]]; then
    mkdir -p "$mount"
    # No caches: what one host writes, the others see at once.
    mountpoint -q "$mount" || gcsfuse --implicit-dirs --rename-dir-limit=100000 \
      --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$bucket" "$mount" >/dev/null
    mkdir -p "$mount/runs"
    ln -sfn "$mount/runs" runs
  fi
  # shellcheck source=launch/environment.sh
  source launch/environment.sh
  prepare_environment tasks tpu "${@:2}"
}

# The lock is held for as long as the command lives, however it ends. Looking takes it for a moment.
running() { [[ -e "$run/lock" ]] && ! flock --timeout 1 "$run/lock" true; }

start() {
  mkdir -p "$run"
  exec 8>"$run/starting" 9>"$run/lock"
  flock 8 # one at a time: who comes second finds the first one's command, and its number
  if flock --timeout 1 9; then
    rm -f "$run/status" "$run/stopping"
    : >"$run/log"
    # shellcheck source=/dev/null
    [[ ! -f ~/t2g-secrets ]] || source ~/t2g-secrets
    export T2G_DISTRIBUTED=auto PATH="$PWD/.venv/bin:$PATH"
    # A session of its own: it does not end with ssh. Told to end with the machine, it waits for t2g.
    # It has the lock from here.
    # shellcheck disable=SC2016
    setsid bash -c 'trap : TERM; status=0
      "$@" >>"$0/log" 2>&1 9>&- || status=$?
      echo "$status" >"$0/status"' "$run" "$@" </dev/null >/dev/null 2>&1 8>&- &
    echo $! >"$run/pid"
  fi
  exec 8>&- 9>&-
  tail -n +1 -F "$run/log" --pid="$(<"$run/pid")" 2>/dev/null || true
  [[ ! -e "$run/stopping" ]] || exit 130
  exit "$(cat "$run/status" 2>/dev/null || echo 137)"
}

stop() {
  running || return 0
  touch "$run/stopping"
  # It may be so new that there is nobody to tell yet.
  until pkill -TERM --parent "$(<"$run/pid")"; do
    running || return 0
  done
  flock --timeout "${PATIENCE:-600}" "$run/lock" true && return
  echo "tpu_host.sh: it did not end; killing it" >&2
  pkill -KILL --parent "$(<"$run/pid")" || true
}

case "${1:-}" in
  prepare | start | running | stop) "$@" ;;
  *)
    # shellcheck source=launch/environment.sh
    source launch/environment.sh
    print_help launch/tpu_host.sh
    ;;
esac

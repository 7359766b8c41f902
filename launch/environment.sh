# shellcheck shell=bash
# Sourced by the other scripts, also by a Mac's bash, which is 3.2, beside BSD's tools.
#
#   print_help SCRIPT                  the comment at its top
#   require_config PATH                ends with 2 where neither a configuration nor a run is
#   prepare_environment EXTRA...       makes .venv with these extras and puts it first on PATH
#
# PYTHON names the interpreter to use; otherwise .venv's own serves, then the first python3 that is
# 3.11 or newer. .venv/t2g-installed remembers what was installed: while pyproject.toml and the
# Python version stay the same, the next start installs nothing.

say() { printf '%s\n' "$*" >&2; }

print_help() {
  local line
  while IFS= read -r line; do
    case $line in
      '#!'*) ;;
      '#'*) line=${line#\#} && printf '%s\n' "${line# }" ;;
      *) break ;;
    esac
  done <"$1"
}

require_config() {
  [[ ! -f "$1" && ! -f "$1/config.yaml" ]] || return 0
  say "$1: no such file, and no work folder of a run, seen from $PWD. There is: $(echo configs/*.yaml)"
  exit 2
}

is_suitable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

version_of() { "$1" -c 'import sys; print(sys.version)' 2>/dev/null || true; }

find_python() {
  local candidate
  if [[ -n "${PYTHON:-}" ]]; then
    is_suitable "$PYTHON" && printf '%s\n' "$PYTHON" && return
    say "PYTHON=$PYTHON does not run, or is older than Python 3.11."
    return 1
  fi
  for candidate in .venv/bin/python python3 python3.14 python3.13 python3.12 python3.11; do
    is_suitable "$candidate" && printf '%s\n' "$candidate" && return
  done
  say "No Python 3.11 or newer found. Install one, or name it: PYTHON=/path/to/python3 $0"
  return 1
}

make_venv() {
  if ! "$1" -c 'import ensurepip, venv' 2>/dev/null; then
    say "$1 cannot make virtual environments."
    say "On Debian or Ubuntu: sudo apt-get install python3-venv"
    return 1
  fi
  say "Making .venv with $("$1" --version)"
  "$1" -m venv --clear .venv
}

# The puzzles' library has a dependency that is compiled when it is installed.
check_compiler() {
  .venv/bin/python -c 'import pycosat' 2>/dev/null && return
  if ! command -v "${CC:-cc}" >/dev/null || ! .venv/bin/python -c '
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'; then
    say "Installing reasoning-gym takes a C compiler and Python's header files."
    say "On Debian or Ubuntu: sudo apt-get install gcc python3-dev; on a Mac: xcode-select --install"
    return 1
  fi
}

prepare_environment() {
  local installed=.venv/t2g-installed verbosity=--quiet python current extra
  local -a missing=()
  python=$(find_python)
  [[ "$(version_of .venv/bin/python)" == "$(version_of "$python")" ]] || make_venv "$python"
  current=$(.venv/bin/python -c '
import hashlib, pathlib, sys
print(hashlib.sha256(sys.version.encode() + pathlib.Path("pyproject.toml").read_bytes()).hexdigest())')
  [[ "$(head -n 1 "$installed" 2>/dev/null)" == "$current" ]] || printf '%s\n' "$current" >"$installed"
  for extra in "$@"; do
    grep -qx "$extra" "$installed" || missing+=("$extra")
  done
  if ((${#missing[@]})); then
    check_compiler
    say "Installing t2g_jax with ${missing[*]}; the first time this takes some minutes"
    if [[ -t 1 ]]; then verbosity=--progress-bar=on; fi
    (
      IFS=,
      .venv/bin/python -m pip install --disable-pip-version-check "$verbosity" \
        --editable ".[${missing[*]}]"
    )
    printf '%s\n' "${missing[@]}" >>"$installed"
  fi
  export PATH="$PWD/.venv/bin:$PATH"
}

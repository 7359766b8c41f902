#!/usr/bin/env bash
# Packs this folder for other machines: what git tracks or does not ignore; without git, everything.
# Never runs/, __pycache__/ and what begins with a dot.
#
#   launch/parcel.sh ARCHIVE.tar.gz               writes it, and looks whether all of that is in it
#   launch/parcel.sh --list                       names what would be in it
#   launch/parcel.sh --check COMMAND CONFIG ...   whether hosts with no more than that could do this
#                                                 command of t2g; runs/ is in the BUCKET, if any
#
# Uses nothing but bash, git and tar, GNU's or BSD's.
set -euo pipefail
archive=${1:-}
[[ "$archive" == [-/]* ]] || archive=$PWD/$archive
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { printf 'parcel.sh: %s\n' "$1" >&2; exit "${2:-2}"; }

files=()

add() { # FILE, seen from here
  case /$1 in */.* | /runs/* | */__pycache__/*) return 0 ;; esac
  [[ ! -f "$1" ]] || files+=("./$1") # git also lists what was deleted, and folders of submodules
}

add_folder() { # FOLDER/, or '' for this one
  local path
  for path in "$1"*; do
    if [[ -d "$path" ]]; then
      # No links to folders: they may lead in a circle.
      [[ -L "$path" || /$path/ == /runs/* || "/$path" == */__pycache__ ]] || add_folder "$path/"
    else
      add "$path"
    fi
  done
}

collect() {
  local path
  # A .git of its own: this folder may lie in another repository, which ignores it.
  if [[ -e .git ]] && git rev-parse --git-dir >/dev/null 2>&1; then
    while IFS= read -r -d '' path; do
      if [[ -d "$path" && ! -L "$path" ]]; then add_folder "$path/"; else add "$path"; fi
    done < <(git ls-files -z --cached --others --exclude-standard)
  else
    add_folder ''
  fi
}

pack() { # ARCHIVE
  local packed=0
  ((${#files[@]})) || fail "there are no files in $PWD to pack" 1
  # Without what a Mac keeps beside a file, which elsewhere are more files.
  printf '%s\0' "${files[@]}" | COPYFILE_DISABLE=1 tar -czf "$1" --null -T -
  while IFS= read -r; do
    ((++packed))
  done < <(tar -tzf "$1")
  ((packed == ${#files[@]})) ||
    fail "of ${#files[@]} files, $packed are in the archive; is this tar GNU's or BSD's?" 1
}

check() { # COMMAND CONFIG ...; hosts would say the same, but once they are paid for
  local known='sft annotate train-rm train-policy evaluate report generate run import export study'
  local path config=${2:-}
  [[ $# -gt 0 ]] || fail "t2g COMMAND ...: which one of $known?"
  [[ " $known " == *" $1 "* ]] || fail "t2g has no command $1, but $known"
  [[ "$config" != runs/* || -z "${BUCKET:-}" ]] || return 0
  [[ -f "$config" && "$config" != /* ]] ||
    fail "t2g $1 CONFIG: '$config' is no file in this folder, which is what the hosts get"
  for path in ${files[@]+"${files[@]}"}; do
    [[ "$path" != "./${config#./}" ]] || return 0
  done
  fail "t2g $1 CONFIG: '$config' is none of the files that hosts get: launch/parcel.sh --list"
}

collect
case ${1:-} in
  --list) ((${#files[@]} == 0)) || printf '%s\n' "${files[@]#./}" ;;
  --check) check "${@:2}" ;;
  '' | -h | --help)
    # shellcheck source=launch/environment.sh
    source launch/environment.sh
    print_help launch/parcel.sh
    ;;
  *) pack "$archive" ;;
esac

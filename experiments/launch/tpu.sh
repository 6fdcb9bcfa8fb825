#!/usr/bin/env bash
# A run on a Cloud TPU slice: one process on each of its hosts. `tpu.sh --help` says how.
# shellcheck disable=SC2016  # what stands in single quotes is for the hosts' shells
set -euo pipefail
export LC_ALL=C

usage() {
  cat <<'END'
usage: [NAME=VALUE …] tpu.sh [--dry-run] COMMAND [ARGUMENTS]

  create             makes the slice
  install            brings the committed state of this repository, Python and packages to every host
  run --config=… --workdir=… [--config.KEY=VALUE …]
                     starts experiments/train.py with these flags on every host, and leaves it running
  resume …           the same, with the same flags: a run goes on from its newest checkpoint
  logs [TAIL_FLAGS]  the end of a host's log, by default -n 50; -f follows it
  stop               SIGTERM on every host: the run saves at its next step and ends with status 75
  delete             deletes the slice with its disks

  --dry-run          prints the commands, a line each, and runs nothing

variables:
  NAME     of the slice                                                      needed
  ZONE     such as us-central2-b                                             needed
  TYPE     v3-8, v4-32, v5e-256, …                                           needed by create
  PROJECT  if it is not gcloud's default
  RUNTIME  software of the hosts, if not the usual one for TYPE
  SPOT     1: a slice that may be preempted
  QUEUED   1: created, and deleted, as a queued resource: waits until there are enough TPUs
  NFS      HOST:/SHARE that install mounts on every host as /mnt/shared
  WORKER   whose log: a number, or all                                       default 0
END
}

fail() {
  echo "error: $1" >&2
  exit 2
}

need() {
  [[ -n ${!1:-} ]] || fail "$1 is not set: want $2, as in $1=$3 $0 …"
}

# The arguments as words that a shell reads as they are: quotes where they are needed and nowhere else.
quote() {
  local word quoted='' mark="'" marked="'\"'\"'"
  for word; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//$mark/$marked}'"
    quoted+="${quoted:+ }$word"
  done
  printf '%s\n' "$quoted"
}

execute() {
  if [[ -n $dry_run ]]; then quote "$@"; else "$@"; fi
}

tpus() {
  execute gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}
}

# The arguments are one line of shell.
on_worker() {
  tpus tpu-vm ssh "$NAME" --worker="$1" --command="$2"
}

create() {
  need TYPE "the slice's type" v4-32
  local accelerator=${TYPE/#v5e-/v5litepod-} runtime
  case $accelerator in
    v[234]-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) runtime=${RUNTIME:-} ;;
  esac
  [[ -n $runtime ]] || fail "no runtime is known for TYPE=$TYPE: want v2-, v3-, v4-, v5e-, v5p-, v6e-N, or RUNTIME too."
  runtime=${RUNTIME:-$runtime}
  if [[ -n ${QUEUED:-} ]]; then
    tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$accelerator" \
      --runtime-version="$runtime" ${SPOT:+--spot}
  else
    tpus tpu-vm create "$NAME" --accelerator-type="$accelerator" --version="$runtime" ${SPOT:+--spot}
  fi
}

install() {
  local root bundle=${TMPDIR:-/tmp}/grafit_jax.bundle
  root=$(cd "$(dirname "$0")/../.." && pwd)
  # With its history: results name the revision that they were made with.
  execute git -C "$root" bundle create "$bundle" HEAD
  tpus tpu-vm scp "$bundle" "$NAME:grafit_jax.bundle" --worker=all
  local steps=(
    'git init --quiet grafit_jax'
    'cd grafit_jax'
    'git fetch --quiet ../grafit_jax.bundle HEAD'
    'git checkout --quiet FETCH_HEAD'
    # The hosts' own Python is too old.
    'python3 -m pip install --quiet --user uv'
    'python3 -m uv venv --quiet --allow-existing --python 3.12 .venv'
    "python3 -m uv pip install --quiet --python .venv/bin/python --editable . 'jax[tpu]'"
  )
  if [[ -n ${NFS:-} ]]; then
    steps+=(
      'sudo apt-get install --quiet --yes nfs-common'
      'sudo mkdir -p /mnt/shared'
      "{ mountpoint -q /mnt/shared || sudo mount -t nfs $(quote "$NFS") /mnt/shared; }"
    )
  fi
  local line
  line=$(printf ' && %s' "${steps[@]}")
  on_worker all "${line# && }"
}

run() {
  local flag found=' '
  for flag; do found+="${flag%%=*} "; done
  [[ $found == *' --config '* ]] || fail "no --config=FILE.py among the flags of the run."
  [[ $found == *' --workdir '* ]] || fail "no --workdir=DIR among the flags of the run: want one that all hosts share."
  # Left behind when the connection ends. The process's number is for `stop`.
  local train
  train=$(quote .venv/bin/python experiments/train.py "$@" --distributed)
  train+=' & echo $! > ~/grafit_train.pid; wait $!; echo "exit status $?"'
  on_worker all "cd grafit_jax || exit; { trap '' HUP; $train; } >> ~/grafit_train.log 2>&1 < /dev/null &"
}

logs() {
  [[ $# -gt 0 ]] || set -- -n 50
  on_worker "${WORKER:-0}" "tail $(quote "$@") grafit_train.log"
}

stop() {
  on_worker all 'kill -TERM "$(cat ~/grafit_train.pid)"'
}

delete() {
  if [[ -n ${QUEUED:-} ]]; then
    tpus queued-resources delete "$NAME" --force --quiet
  else
    tpus tpu-vm delete "$NAME" --quiet
  fi
}

dry_run=
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi
command=${1:-}
case $command in
  -h | --help)
    usage
    exit
    ;;
  create | install | run | resume | logs | stop | delete) shift ;;
  '') fail "no command: want create, install, run, resume, logs, stop or delete; --help says more." ;;
  *) fail "unknown command $command: want create, install, run, resume, logs, stop or delete; --help says more." ;;
esac
need NAME "the slice's name" grafit
need ZONE "its zone" us-central2-b
[[ $command != resume ]] || command=run
"$command" "$@"

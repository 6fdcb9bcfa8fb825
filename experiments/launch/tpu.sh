#!/usr/bin/env bash
# Runs training on a Cloud TPU slice, one process per host. See `tpu.sh --help`.
# shellcheck disable=SC2016  # single quotes protect what the hosts' shells expand
set -euo pipefail
export LC_ALL=C

usage() {
  cat <<'END'
usage: [NAME=VALUE …] tpu.sh [--dry-run] COMMAND [ARGUMENTS]

  create             creates the slice
  install            installs the committed state of this repository, Python and packages on every host
  run --config=… --workdir=… [--config.KEY=VALUE …]
                     starts experiments/train.py in the background on every host, with these flags
  resume …           same as run: with the same flags, it resumes from the newest checkpoint
  logs [TAIL_FLAGS]  prints the end of a host's log, by default -n 50; -f follows it
  stop               sends SIGTERM on every host: the run saves at its next step and exits with status 75
  delete             deletes the slice and its disks

  --dry-run          prints the commands, one per line, and runs nothing

variables:
  NAME     name of the slice                                                 required
  ZONE     zone, such as us-central2-b                                       required
  TYPE     v3-8, v4-32, v5e-256, …                                           required by create
  PROJECT  Google Cloud project; default: gcloud's
  RUNTIME  software version of the hosts; default: the usual one for TYPE
  SPOT     1: use a preemptible slice
  QUEUED   1: create and delete the slice as a queued resource, which waits for free TPUs
  NFS      HOST:/SHARE, which install mounts on every host as /mnt/shared
  WORKER   host whose log is printed: a number, or all                       default 0
END
}

fail() {
  echo "error: $1" >&2
  exit 2
}

need() {
  [[ -n ${!1:-} ]] || fail "found no $1, $2; use $1=$3 $0 …"
}

# Prints the arguments as shell words, quoted only where necessary.
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

# on_worker HOST LINE: runs one line of shell.
on_worker() {
  tpus tpu-vm ssh "$NAME" --worker="$1" --command="$2"
}

create() {
  need TYPE "the type of the slice" v4-32
  local accelerator=${TYPE/#v5e-/v5litepod-} runtime
  case $accelerator in
    v[234]-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) runtime=${RUNTIME:-} ;;
  esac
  [[ -n $runtime ]] || fail "found TYPE=$TYPE; expected v2-N, v3-N, v4-N, v5e-N, v5p-N or v6e-N; use RUNTIME= for another type."
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
  # With history, since results record their revision.
  execute git -C "$root" bundle create "$bundle" HEAD
  tpus tpu-vm scp "$bundle" "$NAME:grafit_jax.bundle" --worker=all
  local steps=(
    'git init --quiet grafit_jax'
    'cd grafit_jax'
    'git fetch --quiet ../grafit_jax.bundle HEAD'
    'git checkout --quiet FETCH_HEAD'
    # The Python of the hosts is too old.
    'python3 -m pip install --quiet --user uv'
    'python3 -m uv venv --quiet --allow-existing --python 3.12 .venv'
    "python3 -m uv pip install --quiet --python .venv/bin/python --editable '.[hub,tfds,tpu]'"
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
  [[ $found == *' --config '* ]] || fail "found no --config among the flags; use --config=FILE.py."
  [[ $found == *' --workdir '* ]] || fail "found no --workdir among the flags; use --workdir=DIR, a folder that all hosts share."
  # The process keeps running when the connection ends; `stop` uses its pid.
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
  *) fail "found command '$command'; expected create, install, run, resume, logs, stop or delete; see --help." ;;
esac
need NAME "the name of the slice" grafit
need ZONE "the zone of the slice" us-central2-b
[[ $command != resume ]] || command=run
"$command" "$@"

#!/bin/sh
# Rehearses a pod on this machine: one game, several processes of several CPU devices each.
set -eu

usage() {
    cat <<TEXT
usage: $0 CONFIG[:BITS] [--processes=N] [--devices=M] [--dry-run] [--workdir=DIR] [--config.FIELD=VALUE ...]

  $0 configs/digits_resnet20.py
  $0 configs/cifar10_resnet20.py:w4a4 --processes=4 --devices=1 --config.teacher.path=resnet20.th

N processes (2) of M CPU devices each (2) play one game over the loopback interface; N x M must divide
the batch. The workdir is runs/CONFIG_pod unless one is given; process I > 0 writes to its
process_I.log. Calling again resumes. --dry-run prints the commands. The exit code is the largest of
the processes'.
Environment: PYTHON (the interpreter to start from), ADADFQ_VENV (the environment's folder).
TEXT
}

case "${1:-}" in
-h | --help)
    usage
    exit
    ;;
"" | -*)
    usage >&2
    exit 2
    ;;
esac
config=$1
shift

# shellcheck source=launch/environment.sh
. "$(dirname "$0")/environment.sh"

processes=2
devices=2
dry=""
workdir="$(workdir_of "$config")_pod"
count=$#
while [ "$count" -gt 0 ]; do
    argument=$1
    shift
    count=$((count - 1))
    case "$argument" in
    --processes=*) processes=${argument#*=} ;;
    --devices=*) devices=${argument#*=} ;;
    --workdir=*) workdir=${argument#*=} ;;
    --workdir)
        echo "$0: write --workdir=DIR" >&2
        exit 2
        ;;
    --dry-run) dry=yes ;;
    *) set -- "$@" "$argument" ;;
    esac
done
for number in "$processes" "$devices"; do
    case "$number" in
    "" | 0 | *[!0-9]*)
        echo "$0: --processes and --devices must be positive numbers, not '$number'" >&2
        exit 2
        ;;
    esac
done

check_call "$config" --workdir="$workdir" "$@"
if [ -n "$dry" ]; then
    port=PORT
else
    prepare
    case "$workdir" in
    *://*) logs=$(mktemp -d) ;;
    *) logs=$workdir ;;
    esac
    mkdir -p "$logs"
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
fi

play() {
    process=$1
    shift
    set -- "$python" -m adadfq_jax quantize --config="$config" --workdir="$workdir" \
        --distributed --coordinator="127.0.0.1:$port" --processes="$processes" --process="$process" "$@"
    if [ -n "$dry" ]; then
        printf 'JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=%s ' "$devices"
        printed "$@"
        return
    fi
    export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="$devices"
    exec "$@"
}

if [ -n "$dry" ]; then
    process=0
    while [ "$process" -lt "$processes" ]; do
        play "$process" "$@"
        process=$((process + 1))
    done
    exit
fi

pids=""
process=$((processes - 1))
while [ "$process" -ge 0 ]; do
    if [ "$process" -eq 0 ]; then
        play 0 "$@" &
    else
        play "$process" "$@" >"$logs/process_$process.log" 2>&1 &
    fi
    pids="$pids $!"
    process=$((process - 1))
done
# A signal goes to all; each then ends with a checkpoint, and this script with their code.
trap 'for pid in $pids; do kill -TERM "$pid" 2>/dev/null || true; done' TERM INT
code=0
for pid in $pids; do
    while :; do
        result=0
        wait "$pid" || result=$?
        # A trapped signal ends `wait` early.
        kill -0 "$pid" 2>/dev/null || break
    done
    if [ "$result" -gt "$code" ]; then
        code=$result
    fi
done
exit "$code"

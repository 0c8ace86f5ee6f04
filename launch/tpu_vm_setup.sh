#!/bin/sh
# Makes the environment on one TPU VM; run there, again and again without harm.
set -eu

usage() {
    cat <<TEXT
usage: $0 [--dry-run]

Installs Python 3.11 from the deadsnakes archive where the VM has no newer one (with sudo apt-get), then
this project with the extras [tpu] and [gcs] into .venv. launch/tpu_pod.sh setup runs it on every worker.
Environment: PYTHON (the interpreter to start from), ADADFQ_VENV (the environment's folder).
TEXT
}

dry=""
case "${1:-}" in
-h | --help)
    usage
    exit
    ;;
--dry-run) dry="echo" ;;
"") ;;
*)
    usage >&2
    exit 2
    ;;
esac

# shellcheck source=launch/environment.sh
. "$(dirname "$0")/environment.sh"

new_enough() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

if [ -z "${PYTHON:-}" ]; then
    for PYTHON in python3 python3.13 python3.12 python3.11; do
        new_enough "$PYTHON" && break
    done
    if ! new_enough "$PYTHON"; then
        $dry sudo add-apt-repository --yes ppa:deadsnakes/ppa
        $dry sudo apt-get update --quiet --option DPkg::Lock::Timeout=300
        $dry sudo apt-get install --option DPkg::Lock::Timeout=300 --yes --quiet python3.11 python3.11-venv
        PYTHON=python3.11
    fi
    export PYTHON
fi
if [ -n "$dry" ]; then
    echo "$PYTHON -m venv $venv, and the extras [tpu] and [gcs] into it"
    exit
fi
prepare "tpu gcs"

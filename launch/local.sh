#!/bin/sh
# Quantizes on this machine, CPU or GPU; makes its own environment the first time.
set -eu

usage() {
    cat <<TEXT
usage: $0 CONFIG[:BITS] [--workdir=DIR] [--config.FIELD=VALUE ...]

  $0 configs/digits_resnet20.py
  $0 configs/cifar10_resnet20.py:w4a4 --config.teacher.path=resnet20.safetensors

The workdir is runs/CONFIG unless one is given. Calling again resumes, or reads the finished run.
Environment: PYTHON (the interpreter to start from), ADADFQ_VENV (the environment's folder).
TEXT
}

case "${1:-}" in
-h | --help)
    usage
    exit
    ;;
"")
    usage >&2
    exit 2
    ;;
esac
config=$1
shift

# shellcheck source=launch/environment.sh
. "$(dirname "$0")/environment.sh"
prepare

# A later --workdir wins over this one.
exec "$python" -m adadfq_jax quantize --config="$config" --workdir="$(workdir_of "$config")" "$@"

#!/bin/sh
# Quantizes on this machine, CPU or GPU; makes its own environment the first time.
set -eu

usage() {
    cat <<TEXT
usage: $0 CONFIG[:BITS] [--with=EXTRAS] [--dry-run] [--workdir=DIR] [--config.FIELD=VALUE ...]
       $0 --with=EXTRAS

  $0 digits_resnet20
  $0 cifar10_resnet20:w4a4 --config.teacher.path=resnet20.safetensors
  $0 --with=export,report,torch

CONFIG is the name of a configuration in the package or a file such as configs/digits_resnet20.py. The
workdir is runs/CONFIG in the project unless one is given. Calling again resumes, or reads the finished
run. All flags of \`adadfq quantize\` are handed on.
--with installs extras too: export (ONNX), report, torch (reading .pth files; without CUDA's libraries
where there is no GPU), gcs (Cloud Storage), allocate (bits by layer), all (these five), openvino,
cuda, tpu, tf; without CONFIG it does only that.
--dry-run checks configuration, teacher and workdir, and prints the command.
Environment: PYTHON (the interpreter to start from), ADADFQ_VENV (the environment's folder).
TEXT
}

# shellcheck source=launch/environment.sh
. "$(dirname "$0")/environment.sh"

config=""
with=""
dry=""
count=$#
while [ "$count" -gt 0 ]; do
    argument=$1
    shift
    count=$((count - 1))
    case "$argument" in
    -h | --help)
        usage
        exit
        ;;
    --with=*) with=${argument#*=} ;;
    --dry-run | --dry_run) dry=yes ;;
    --config=*) config=${argument#*=} ;;
    -*) set -- "$@" "$argument" ;;
    *)
        if [ -z "$config" ]; then
            config=$argument
        else
            set -- "$@" "$argument"
        fi
        ;;
    esac
done
if [ -z "$config" ] && { [ -z "$with" ] || [ $# -gt 0 ]; }; then
    usage >&2
    exit 2
fi

if [ -n "$config" ]; then
    check_call "$config" "$@"
    case "${config%%:*}" in
    */* | *.py)
        case "$config" in *:*) bits=":${config#*:}" ;; *) bits="" ;; esac
        config="$(file_of "$config")$bits"
        ;;
    esac
    [ -n "$workdir_given" ] || set -- --workdir="$(workdir_of "$config")" "$@"
    set -- "$python" -m adadfq_jax quantize --config="$config" "$@"
fi
if [ -n "$dry" ]; then
    [ -z "$config" ] || printed "$@"
    if ! is_ready "$with"; then
        echo "$0: $venv would be made first${with:+, with $with}" >&2
    elif [ -n "$config" ]; then
        exec "$@" --dry_run
    fi
    exit
fi
prepare "$with"
if [ -z "$config" ]; then
    echo "$venv has $with" >&2
    exit
fi
exec "$@"

#!/bin/sh
# Prepares a data set of tensorflow-datasets once; afterwards it is read without TensorFlow.
set -eu

usage() {
    cat <<TEXT
usage: $0 NAME [--data_dir=DIR] [--manual_dir=DIR]

  $0 cifar10                                 downloads and prepares it
  $0 cifar10 --manual_dir=~/Downloads        with cifar-10-binary.tar.gz downloaded before
  $0 imagenet2012 --manual_dir=~/Downloads   with ILSVRC2012_img_val.tar downloaded before

Then measure with --source=tfds:NAME, and --path=DIR where a data_dir was given. Of ImageNet, the
validation images are enough: what else is there is prepared too.
Preparing needs TensorFlow (the extra [tf]), which is installed into the environment; reading does not.
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
name=$1
shift

# shellcheck source=launch/environment.sh
. "$(dirname "$0")/environment.sh"
prepare tf

exec "$python" -m adadfq_jax.data.prepare "$name" "$@"

#!/bin/sh
# Measures what this machine's GPUs do, within a time; also on a machine without a network.
set -eu

# shellcheck source=launch/environment.sh
. "$(dirname "$0")/environment.sh"
measure_here gpu "test" "$@"

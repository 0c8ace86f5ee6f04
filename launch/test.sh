#!/bin/sh
# Lints and tests; makes its own environment the first time. Arguments go to pytest.
set -eu

case "${1:-}" in
-h | --help)
    echo "usage: $0 [pytest arguments]    -m slow: the tests on real data and whole runs"
    exit
    ;;
esac

# shellcheck source=launch/environment.sh
. "$(dirname "$0")/environment.sh"
prepare test

cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
exec "$python" -m pytest -n "${ADADFQ_TEST_WORKERS:-2}" --dist=loadfile "$@"

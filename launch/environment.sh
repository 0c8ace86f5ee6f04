# Sourced by the other scripts: what they share. Above all it makes .venv once and installs the pinned
# requirements into it: call `prepare` or, for the test extras too, `prepare test`; afterwards $python is
# the interpreter.

# Where a script is run from a copy, it says itself where the project is.
root="${ADADFQ_ROOT:-$(cd "$(dirname "$0")/.." && pwd)}"
venv="${ADADFQ_VENV:-$root/.venv}"
python="$venv/bin/python"

# Says where the run of a configuration goes, unless a workdir is given.
workdir_of() {
    echo "$root/runs/$(basename "$1" | sed 's/\.py//; s/:/_/')"
}

# Quotes a word for another shell.
quoted() {
    printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")"
}

# Prints a command as it could be typed.
printed() {
    separator=""
    for word in "$@"; do
        case "$word" in
        "" | *[!A-Za-z0-9_=:,./@%+-]*) word=$(quoted "$word") ;;
        esac
        printf '%s%s' "$separator" "$word"
        separator=" "
    done
    echo
}

prepare() {
    extra="${1:-}"
    cuda=""
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then
        cuda="cuda"
    fi
    extras=$(echo "$extra $cuda" | xargs | tr ' ' ',')
    # What is installed is named by what it was made from, so that a change installs again.
    stamp="$venv/installed-${extras:-base}-$(cat "$root/requirements.txt" "$root/setup.cfg" | cksum | cut -d' ' -f1)"
    [ -e "$stamp" ] && return
    # Not there, or cut short while it was made.
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        base="${PYTHON:-python3}"
        "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
            echo "$0: needs Python 3.11 or newer; name one with PYTHON=/path/to/python3.11" >&2
            exit 2
        }
        "$base" -m venv "$venv"
    fi
    echo "installing into $venv (once)" >&2
    "$python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$root/requirements.txt" --editable "$root${extras:+[$extras]}"
    : >"$stamp"
}

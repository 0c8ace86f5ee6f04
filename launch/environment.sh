# Sourced by the other scripts: what they share. Above all it makes .venv once and installs the pinned
# requirements into it: call `prepare` or, for extras too, `prepare test`; afterwards $python is the
# interpreter.

# Where a script is run from a copy, it says itself where the project is.
root="${ADADFQ_ROOT:-$(cd "$(dirname "$0")/.." && pwd)}"
venv="${ADADFQ_VENV:-$root/.venv}"
python="$venv/bin/python"
presets="$root/adadfq_jax/config/presets"

# Ends the script with a sentence: bad input.
fail() {
    echo "$0: $1" >&2
    exit 2
}

# Says where the run of a configuration goes, unless a workdir is given.
workdir_of() {
    echo "$root/runs/$(basename -- "$1" | sed 's/\.py//; s/:/_/')"
}

# Says the path of the file that CONFIG[:BITS] names: by itself, or as a file here or, second, in the
# project. With `project` as second argument, only what is there counts.
file_of() {
    stem=${1%%:*}
    case "$stem" in
    */* | *.py)
        if [ "${2:-}" != project ] && [ -f "$stem" ]; then
            echo "$stem"
        elif [ -f "$root/$stem" ]; then
            echo "$root/$stem"
        fi
        ;;
    *) [ ! -f "$presets/$stem.py" ] || echo "$presets/$stem.py" ;;
    esac
}

# Says the names of the configurations in the package.
names() {
    for path in "$presets"/*.py; do
        basename "$path" .py
    done | grep -v __init__ | xargs | sed 's/ /, /g'
}

# Checks a configuration, its teacher and a workdir before anything is made or asked for. Arguments: the
# configuration, then the flags of the call. A caller that knows where files must lie sets $place.
check_call() {
    asked=$1
    shift
    found=$(file_of "$asked" "${place:-}")
    if [ -z "$found" ]; then
        case "${asked%%:*}" in
        */* | *.py) fail "there is no configuration file '${asked%%:*}'." ;;
        *) fail "there is no configuration '${asked%%:*}': known: $(names); a file is written FILE.py." ;;
        esac
    fi
    teacher="" workdir_given=""
    for word in "$@"; do
        case "$word" in
        --config.teacher.path=*) teacher=${word#*=} ;;
        *teacher.path*) teacher="://" ;; # in a grid, or in two words: it is checked later
        --workdir=*) workdir_given=${word#*=} ;;
        esac
    done
    preset="$presets/$(basename "$found")"
    case "$teacher" in
    "")
        if [ -f "$preset" ] && ! grep -q '^ *config\.teacher\.path = ' "$preset"; then
            fail "there is no teacher: give one with --config.teacher.path=FILE."
        fi
        ;;
    *://*) ;;
    *)
        if [ "${place:-}" = project ]; then
            check_place "--config.teacher.path" "$teacher"
        elif [ ! -f "$teacher" ]; then
            fail "there is no teacher file '$teacher'."
        fi
        ;;
    esac
    case "$workdir_given" in
    "" | *://*) ;;
    *)
        if [ "${place:-}" = project ]; then
            check_place "--workdir" "$workdir_given"
        elif [ -f "$workdir_given" ]; then
            fail "workdir '$workdir_given' is a file; name a folder."
        fi
        ;;
    esac
}

# Checks that a file or folder will be there on other machines, which have the committed tree alone.
# Arguments: the flag, its value. What is on a disk that they share cannot be seen from here.
check_place() {
    case "$2" in
    /tmp/* | /var/tmp/* | /dev/shm/* | /root/* | /home/*)
        fail "$1=$2 lies on this machine's disk, or each worker's: name one in Cloud Storage (gs://BUCKET/…) or on a disk that all workers share."
        ;;
    /*) ;;
    *)
        if [ "$1" = --workdir ] || ! git -C "$root" cat-file -e "HEAD:$2" 2>/dev/null; then
            fail "$1=$2 would be in each worker's own folder: name one in Cloud Storage (gs://BUCKET/…) or on a disk that all workers share."
        fi
        ;;
    esac
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

# Tells whether what is installed is this clone, and not a copy of it or another one. -I: neither the
# folder of the call nor PYTHONPATH counts.
is_this_clone() {
    "$python" -I -c '
import importlib.util, os, sys
found = importlib.util.find_spec("adadfq_jax")
origin = found.origin if found else "nothing"
here = os.path.realpath(sys.argv[1] + "/adadfq_jax")
if os.path.realpath(os.path.dirname(origin)) != here:
    sys.exit(f"{sys.argv[2]} has {os.path.dirname(origin) or origin}, and not this clone: installing again")
' "$root" "$venv"
}

# Sets $extras, with commas between, and $stamp, the file that says that they are installed.
choose_extras() {
    cuda=""
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then
        cuda="cuda"
    fi
    extras=$(echo "${1:-} $cuda" | tr ',' ' ' | xargs | tr ' ' ',')
    # What is installed is named by what it was made from, so that a change installs again.
    made_from=$(cat "$root/requirements.txt" "$root/setup.cfg" | cksum | cut -d' ' -f1)
    stamp="$venv/installed-${extras:-base}-$made_from"
}

# Tells whether the environment is there, with extras.
is_ready() {
    choose_extras "${1:-}"
    [ -e "$stamp" ] && is_this_clone 2>/dev/null
}

# PyTorch's own index has builds without CUDA's libraries, which take gigabytes.
cpu_index="https://download.pytorch.org/whl/cpu"

prepare() {
    choose_extras "${1:-}"
    for extra in $(echo "${1:-}" | tr ',' ' '); do
        known=$(sed -n '/^\[options.extras_require\]/,$ s/^\([a-z]*\) *=.*/\1/p' "$root/setup.cfg" | xargs)
        case " $known " in
        *" $extra "*) ;;
        *) fail "there is no extra '$extra': known: $(echo "$known" | sed 's/ /, /g')." ;;
        esac
    done
    [ -e "$stamp" ] && is_this_clone && return
    # Not there, or cut short while it was made.
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        base="${PYTHON:-python3}"
        "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
            fail "needs Python 3.11 or newer; name one with PYTHON=/path/to/python3.11"
        "$base" -m venv "$venv"
    fi
    echo "installing into $venv (once; some minutes)" >&2
    set -- --quiet --disable-pip-version-check --constraint "$root/requirements.txt"
    case ",$extras," in
    *,cuda,*) ;;
    *,torch,* | *,all,* | *,test,* | *,zoo,*)
        if "$python" -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)' \
            "$cpu_index/torch/" >/dev/null 2>&1; then
            set -- "$@" --extra-index-url "$cpu_index"
        fi
        ;;
    esac
    "$python" -m pip install "$@" --editable "$root${extras:+[$extras]}"
    # Nor need the same be installed again without the extras.
    : >"$stamp"
    : >"$venv/installed-${cuda:-base}-$made_from"
}

# What a program of this project imports, where no environment was made for it; grain reads images.
imported="absl etils flax grain jax ml_collections ml_dtypes numpy optax orbax.checkpoint PIL rich safetensors"

# What the scripts say that measure this machine.
measure_usage() {
    cat <<TEXT
usage: $0 [--minutes=N] [--wheels=FOLDER] [--dry-run] [--teacher=FILE] [--images=PATH] ...

  $0 --minutes=30
  $0 --minutes=8 --wheels=wheels --teacher=resnet20.safetensors --images=test.npz
  $0 --minutes=0                            prints the tables of what was measured
  $0 --rehearse --platform=cpu              the same with small networks, to see whether it works

Measures what \`adadfq measure\` measures, in its order, what fits into N minutes, into runs/measured unless
another --output is given; called again, it goes on. All flags of \`adadfq measure\` are handed on.
--wheels is for a machine without a network on which JAX is installed: no environment is made, what is
missing is installed from that folder of .whl files into runs/wheels, and PYTHON is the interpreter.
--dry-run prints what would be run.
Environment: PYTHON (the interpreter to start from), ADADFQ_VENV (the environment's folder).
TEXT
}

# Measures this machine, and ends the script. Arguments: the platform, the extras of an environment for
# it, then the flags of the call.
measure_here() {
    platform=$1
    with=$2
    shift 2
    wheels="" bare="" dry=""
    count=$#
    while [ "$count" -gt 0 ]; do
        argument=$1
        shift
        count=$((count - 1))
        case "$argument" in
        -h | --help)
            measure_usage
            exit
            ;;
        --wheels=*) bare=yes wheels=${argument#*=} ;;
        --dry-run | --dry_run) dry=yes ;;
        *) set -- "$@" "$argument" ;;
        esac
    done
    set -- -m adadfq_jax measure --platform="$platform" --output="$root/runs/measured" "$@"
    if [ -n "$bare" ]; then
        python="${PYTHON:-python3}"
        [ -d "$wheels" ] || fail "there is no folder '$wheels': --wheels=FOLDER holds .whl files."
    fi
    set -- "$python" "$@"
    if [ -n "$dry" ]; then
        [ -z "$bare" ] || echo "$python -m pip install --no-index --no-deps --target $root/runs/wheels $wheels/*.whl"
        printed "$@"
        exit
    fi
    if [ -n "$bare" ]; then
        use_wheels
    else
        prepare "$with"
    fi
    exec "$@"
}

# Installs the wheels of the folder $wheels for $python, which stays as it is, and checks that nothing
# is missing.
use_wheels() {
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "needs Python 3.11 or newer; name one with PYTHON=/path/to/python3.11"
    for wheel in "$wheels"/*.whl; do
        [ -f "$wheel" ] || break # an empty folder
        "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile \
            --upgrade --target "$root/runs/wheels" "$wheel"
    done
    PYTHONPATH="$root:$root/runs/wheels${PYTHONPATH:+:$PYTHONPATH}"
    export PYTHONPATH
    # shellcheck disable=SC2086 # words
    missing=$("$python" -c '
import importlib, sys
missing = set()
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:  # it, or what it imports
        missing.add(error.name)
print(*sorted(missing))' $imported)
    [ -z "$missing" ] ||
        fail "$python lacks $(echo "$missing" | sed 's/ /, /g'): lay their wheels into '$wheels'."
}

#!/bin/sh
# Plays one game, or many, on a Cloud TPU slice, from this machine, with `gcloud`.
set -eu

usage() {
    cat <<TEXT
usage: $0 create NAME --zone=ZONE --type=TYPE [--version=VERSION] [--spot] [--queued] [--project=ID]
       $0 setup  NAME
       $0 run    NAME CONFIG[:BITS] --workdir=DIR [--detach] [--config.FIELD=VALUE ...]
       $0 sweep  NAME CONFIG --workdir=DIR --grid=GRID [--detach] [--config.FIELD=VALUE ...]
       $0 logs | status | stop | delete NAME

  $0 create pod1 --zone=us-west4-a --type=v5litepod-16 --spot
  $0 setup pod1
  $0 run pod1 configs/imagenet_resnet18.py:w4a4 --workdir=gs://bucket/resnet18_w4a4 \\
    --config.teacher.path=gs://bucket/resnet18.safetensors --config.batch_size=64
  $0 sweep pod1 configs/cifar10_resnet20.py --workdir=gs://bucket/sweep \\
    --grid='bits=w3a3,w4a4,w5a5;seed=0..4' --config.teacher.path=gs://bucket/resnet20.safetensors

Needs a \`gcloud\` that is logged in. Teachers are files of \`adadfq convert\`, as PyTorch is not installed.

create  makes the slice, and remembers in runs/pods/NAME how, unless it fails; --queued asks for it by a queued resource,
        --spot at spot price; --version is the TPU software of its kind (v2-alpha-tpuv5-lite, of v5e)
setup   copies the committed tree to every worker and makes its environment there
run     plays one game on all workers, detached from this terminal, and waits. A game that was preempted
        (exit code 75, as where Cloud Storage was not reached, or the slice is gone) is played on, the
        slice made anew where it has to be; so is one that crashed (a code of 128 or more, as of worker 0
        where another is gone), three times. Any other code ends the wait and is this script's:
        0 complete, 2 bad input, 3 diverged, 4 not verified, 1 an error of the program.
        --detach starts the game and does not wait. DIR and teacher lie in Cloud Storage or, as data
        have to, on a disk that all workers share (such as a Filestore mount)
sweep   plays the games of a grid likewise, one on each chip
logs    follows what worker 0 says
status  says how the slice is, and the game's exit code where it has ended
stop    ends the game with a checkpoint, and a \`run\` on this machine that waits for it
delete  gives the slice back

Everywhere: --dry-run prints the gcloud commands instead; of a slice that was not made, with ZONE for its
zone. \`run\` and \`sweep\` check configuration, teacher and workdir before they call anything.
Environment: ADADFQ_POLL, seconds between two looks at a game that is waited for (60); ADADFQ_PODS,
where it is remembered how slices were made.
TEXT
}

case "${1:-}" in
-h | --help)
    usage
    exit
    ;;
create | setup | run | sweep | logs | status | stop | delete) ;;
*)
    usage >&2
    exit 2
    ;;
esac
if [ $# -lt 2 ]; then
    usage >&2
    exit 2
fi
# shellcheck source=launch/environment.sh
. "$(dirname "$0")/environment.sh"
verb=$1
name=$2
shift 2
pods="${ADADFQ_PODS:-$root/runs/pods}"
memory="$pods/$name"
dry=""
detach=""

call() {
    if [ -n "$dry" ]; then
        printed gcloud "$@"
    else
        gcloud "$@"
    fi
}

# Sets zone, project, type, version, spot and queued, as `create` was told.
remember() {
    zone="" project="" type="" version="" spot="" queued=""
    if [ ! -r "$memory" ]; then
        [ -n "$dry" ] || fail "there is no slice '$name' that '$0 create' made: $memory is missing."
        zone=ZONE type=TYPE version=VERSION
        return
    fi
    while IFS='=' read -r key value; do
        case "$key" in
        zone) zone=$value ;;
        project) project=$value ;;
        type) type=$value ;;
        version) version=$value ;;
        spot) spot=$value ;;
        queued) queued=$value ;;
        esac
    done <"$memory"
}

# Calls gcloud about the slice: what, then what to do with it.
slice() {
    call compute tpus "$@" --zone="$zone" ${project:+"--project=$project"}
}

make_slice() {
    if [ -n "$queued" ]; then
        slice queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
            --runtime-version="$version" ${spot:+--spot} || return 1
        until [ -n "$dry" ] || [ "$(state)" = READY ]; do
            case "$(slice queued-resources describe "$name" --format="value(state.state)" 2>/dev/null)" in
            FAILED | SUSPENDED) fail "the queued request for '$name' has failed; '$0 delete $name' ends it." ;;
            esac
            echo "$name is queued" >&2
            sleep "${ADADFQ_POLL:-60}"
        done
    else
        slice tpu-vm create "$name" --accelerator-type="$type" --version="$version" ${spot:+--spot}
    fi
}

delete_slice() {
    if [ -n "$queued" ]; then
        slice queued-resources delete "$name" --force --quiet
    else
        slice tpu-vm delete "$name" --quiet
    fi
}

set_up() {
    archive=$(mktemp)
    git -C "$root" archive --format=tar.gz --output="$archive" HEAD || return 1
    slice tpu-vm scp "$archive" "$name:adadfq_jax.tar.gz" --worker=all || return 1
    rm -f "$archive"
    on all "mkdir -p adadfq_jax && tar -xzf adadfq_jax.tar.gz -C adadfq_jax && adadfq_jax/launch/tpu_vm_setup.sh"
}

# Runs a command on worker $1 (or all).
on() {
    slice tpu-vm ssh "$name" --worker="$1" --command="$2"
}

# Says GONE only where the cloud says so itself: it may just not be reached for a while.
state() {
    if said=$(slice tpu-vm describe "$name" --format="value(state)" 2>&1); then
        echo "$said"
    else
        case "$said" in *NOT_FOUND*) echo GONE ;; *) echo UNKNOWN ;; esac
    fi
}

# Tells whether the cloud knows a slice of this name, or a request for one.
is_there() {
    slice tpu-vm describe "$name" --format="value(state)" >/dev/null 2>&1 && return
    [ -n "$queued" ] && slice queued-resources describe "$name" --format="value(state.state)" >/dev/null 2>&1
}

lost() {
    case "$(state)" in GONE | PREEMPTED | TERMINATED) return 0 ;; *) return 1 ;; esac
}

# The game itself, not a shell that has its words on its own command line.
player="pgrep -f '^[^ ]*python -m adadfq_jax (quantize|sweep)'"

start() {
    on all "cd adadfq_jax && rm -f run.code && (nohup setsid sh -c $(quoted "$game; echo \$? >run.code") >run.log 2>&1 </dev/null &)"
}

# Whether the user has stopped the game, or given the slice back, meanwhile.
ended() {
    [ -e "$memory.stopped" ] || [ ! -e "$memory" ]
}

# Tries again and again, until it is done or the game is ended.
insist() {
    until "$@"; do
        ! ended || return 1
        echo "$name: $1 failed" >&2
        sleep "${ADADFQ_POLL:-60}"
        ! lost || return 1
    done
}

# Waits for the game's end and returns its code; 75 where the slice is gone.
wait_for_code() {
    while :; do
        sleep "${ADADFQ_POLL:-60}"
        if lost; then
            return 75
        fi
        code=$(on 0 "cat adadfq_jax/run.code 2>/dev/null" 2>/dev/null || true)
        case "$code" in
        "" | *[!0-9]*) ;;
        *) return "$code" ;;
        esac
    done
}

if [ "$verb" = create ]; then
    zone="" project="" type="" version=v2-alpha-tpuv5-lite spot="" queued=""
    for argument in "$@"; do
        case "$argument" in
        --zone=*) zone=${argument#*=} ;;
        --project=*) project=${argument#*=} ;;
        --type=*) type=${argument#*=} ;;
        --version=*) version=${argument#*=} ;;
        --spot) spot=yes ;;
        --queued) queued=yes ;;
        --dry-run) dry=yes ;;
        *) fail "create knows no '$argument'." ;;
        esac
    done
    [ -n "$zone" ] && [ -n "$type" ] || fail "create needs --zone=ZONE and --type=TYPE."
    if [ -z "$dry" ]; then
        [ ! -e "$memory" ] || fail "'$name' is made already, as $memory says; '$0 delete $name' gives it back."
        # Before it is asked for, so that it can be given back whatever happens here.
        mkdir -p "$pods"
        printf 'zone=%s\nproject=%s\ntype=%s\nversion=%s\nspot=%s\nqueued=%s\n' \
            "$zone" "$project" "$type" "$version" "$spot" "$queued" >"$memory"
    fi
    code=0
    make_slice || code=$?
    if [ "$code" -ne 0 ] && [ -z "$dry" ] && ! is_there; then
        rm -f "$memory"
        echo "$0: '$name' was not made." >&2
    elif [ "$code" -ne 0 ] && [ -z "$dry" ]; then
        echo "$0: gcloud failed, but the cloud knows '$name'; '$0 delete $name' gives it back." >&2
    fi
    exit "$code"
fi

for argument in "$@"; do
    case "$argument" in --dry-run) dry=yes ;; esac
done
remember
if [ "$verb" = run ] || [ "$verb" = sweep ]; then
    case "${1:-}" in
    "" | -*) fail "$verb needs a configuration: $verb $name configs/FILE.py:BITS --workdir=DIR." ;;
    esac
    config=$1
    shift
    workdir=""
    case "$verb" in
    run) words="quantize --distributed" ;;
    sweep) words="sweep --jobs=0" ;;
    esac
    game=".venv/bin/python -m adadfq_jax $words --config=$(quoted "$config")"
    for argument in "$@"; do
        case "$argument" in
        --detach) detach=yes ;;
        --dry-run) ;;
        *)
            case "$argument" in --workdir=*) workdir=${argument#*=} ;; esac
            game="$game $(quoted "$argument")"
            ;;
        esac
    done
    [ -n "$workdir" ] || fail "$verb needs --workdir=DIR, in Cloud Storage or on a disk that all workers share."
    place=project check_call "$config" "$@"
    if [ -z "$dry" ] && on 0 "$player" >/dev/null 2>&1; then
        fail "a game is being played on '$name'; '$0 stop $name' ends it with a checkpoint."
    fi
    [ -n "$dry" ] || rm -f "$memory.stopped"
    start
    if [ -n "$detach" ] || [ -n "$dry" ]; then
        exit
    fi
    crashes=0
    while :; do
        code=0
        wait_for_code || code=$?
        if [ "$code" -ge 128 ]; then
            crashes=$((crashes + 1))
        fi
        if ended || { [ "$code" -ne 75 ] && [ "$code" -lt 128 ]; } || [ "$crashes" -gt 3 ]; then
            exit "$code"
        fi
        if lost; then
            echo "$name is gone; it is made again" >&2
            delete_slice || true
            until ended || make_slice; do
                echo "$name cannot be had now" >&2
                sleep "${ADADFQ_POLL:-60}"
            done
            insist set_up || {
                ! ended || exit 75
                continue
            }
        fi
        ! ended || exit 75
        echo "$name: the game is played on" >&2
        insist start || true
    done
fi

for argument in "$@"; do
    case "$argument" in
    --dry-run) dry=yes ;;
    *) fail "$verb knows no '$argument'." ;;
    esac
done
case "$verb" in
setup) set_up ;;
logs) on 0 "tail -n 100 -F adadfq_jax/run.log" ;;
status)
    echo "$name: $(state)"
    on 0 "cat adadfq_jax/run.code 2>/dev/null || echo playing, or never started"
    ;;
stop)
    # A `run` that waits here does not play it on.
    [ -n "$dry" ] || : >"$memory.stopped"
    # The oldest alone: a sweep hands it on to its jobs, and two would kill them.
    on all "pkill -TERM --oldest ${player#pgrep } || true"
    ;;
delete)
    # Forgotten first: a `run` that waits here does not make it again.
    [ -n "$dry" ] || mv "$memory" "$memory.deleted"
    delete_slice || {
        [ -n "$dry" ] || mv "$memory.deleted" "$memory"
        exit 1
    }
    [ -n "$dry" ] || rm -f "$memory.deleted" "$memory.stopped"
    ;;
esac

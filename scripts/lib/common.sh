# shellcheck shell=bash
# Sourced by every script: strict mode, the repository's root, and how the scripts speak.

set -euo pipefail

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 501)) || [[ $OSTYPE != linux* ]]; then
    printf 'error: these scripts need Linux and bash 5.1 or later; elsewhere, see compose.yaml\n' >&2
    exit 1
fi

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)

# Colour only where a person will see it.
if [[ -t 1 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
    bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else
    bold='' dim='' red='' green='' plain=''
fi
# Not every script uses every one of these.
: "$ROOT" "$bold" "$dim" "$red" "$green" "$plain"

# target_folder: where cargo puts what it builds here.
target_folder() {
    (cd "$ROOT" && cargo metadata --format-version 1 --no-deps --offline) |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

say() { printf '%s\n' "$*"; }

die() {
    printf '%serror:%s %s\n' "$red" "$plain" "$*" >&2
    exit 1
}

# usage_error TEXT: for bad arguments; 2 is the exit code the binary uses for them too.
usage_error() {
    printf '%serror:%s %s (see --help)\n' "$red" "$plain" "$*" >&2
    exit 2
}

# print_help FILE: the comment block at the top of FILE, without the marks.
print_help() {
    sed -n '2,/^$/ { /^#/!q; s/^# \{0,1\}//; p; }' "$1"
}

# step NAME COMMAND...: runs a command under a heading and prints how long it took.
step() {
    local name=$1 began=$EPOCHREALTIME status=0
    shift
    printf '\n%s==> %s%s\n' "$bold" "$name" "$plain"
    # Not `|| status=$?` around the command: that would switch `set -e` off inside it.
    set +e
    (
        set -e
        "$@"
    )
    status=$?
    set -e
    if ((status == 0)); then
        printf '%s    %s: %s%s\n' "$dim" "$name" "$(seconds_since "$began")" "$plain"
    else
        printf '%s    %s failed (exit %s) after %s%s\n' \
            "$red" "$name" "$status" "$(seconds_since "$began")" "$plain" >&2
        exit "$status"
    fi
}

# microseconds: the wall clock as a whole number.
microseconds() { printf '%s' "${EPOCHREALTIME/[.,]/}"; }

seconds_since() {
    local elapsed=$(($(microseconds) - ${1/[.,]/}))
    printf '%d.%d s' $((elapsed / 1000000)) $((elapsed % 1000000 / 100000))
}

# thousands 1234567: 1,234,567
thousands() {
    local number=$1 grouped=''
    while ((${#number} > 3)); do
        grouped=,${number: -3}$grouped
        number=${number:0:${#number}-3}
    done
    printf '%s%s' "$number" "$grouped"
}

# shellcheck shell=bash
# Chooses and finds the servers' programs, which distributions keep outside PATH.
#
# SERVERS_BIN, when it is set, names the one folder all of them are taken from; nothing else is
# looked at then. Scripts, the programs they start and the tests all obey it.
#
# Needs common.sh.

# servers_folder RELEASE: where the servers of a Debian release are kept.
servers_folder() { printf '%s' "$ROOT/.cache/servers/$1"; }

# servers_release NAME: the Debian release that a `--servers` argument stands for; nothing for
# `installed`, the system's own.
servers_release() {
    case $1 in
        installed) ;;
        newest) printf forky ;; # PostgreSQL 18 and RabbitMQ 4.3 in November 2026
        trixie) printf trixie ;; # PostgreSQL 17 and RabbitMQ 4.0
        *) usage_error "unknown servers \`$1\`; there are: installed, newest, trixie" ;;
    esac
}

# For whoever needs more than servers: `SETUP_OPTIONS=()`.
SETUP_OPTIONS=(--minimal)

# set_up [NAME]: installs what is missing, and chooses the servers for all that follows. Without
# a name it is SERVERS_BIN that decides, if it is set, and otherwise what is installed.
set_up() {
    local release
    if (($# == 0)); then
        "$ROOT/scripts/setup" "${SETUP_OPTIONS[@]}"
        return 0
    fi
    release=$(servers_release "$1")
    "$ROOT/scripts/setup" "${SETUP_OPTIONS[@]}" --servers "$1"
    unset SERVERS_BIN
    if [[ -n $release ]]; then
        SERVERS_BIN=$(servers_folder "$release")/bin
        export SERVERS_BIN
        # For root the servers run as another user, who may have no way into a home folder.
        if ((EUID == 0)) && ! setpriv --reuid 65534 --clear-groups test -x "$SERVERS_BIN/postgres"; then
            die "the servers run as a user of their own, who cannot enter $SERVERS_BIN;
       move this checkout to where other users can read it, for example under /srv"
        fi
    fi
}

# chosen_bin PROGRAM...: SERVERS_BIN, which must have every program that is asked for.
chosen_bin() {
    local program
    for program in "$@"; do
        if [[ ! -x $SERVERS_BIN/$program ]]; then
            printf 'SERVERS_BIN, %s, has no %s\n' "$SERVERS_BIN" "$program" >&2
            return 1
        fi
    done
    (cd -- "$SERVERS_BIN" && pwd)
}

# postgres_bin: the folder of the newest PostgreSQL that can both serve and run pgbench.
postgres_bin() {
    local folder folders
    if [[ -n ${SERVERS_BIN:-} ]]; then
        chosen_bin initdb postgres pgbench
        return
    fi
    mapfile -t folders < <(
        printf '%s\n' /usr/lib/postgresql/*/bin /usr/pgsql-*/bin | sort -rV
        printf '%s\n' "$(dirname -- "$(readlink -f -- "$(type -P initdb || true)")")"
    )
    for folder in "${folders[@]}"; do
        if [[ -x $folder/initdb && -x $folder/postgres && -x $folder/pgbench ]]; then
            printf '%s' "$folder"
            return 0
        fi
    done
    return 1
}

# rabbitmq_bin: the folder with the real rabbitmq-server. Debian puts a wrapper in PATH that
# insists on the system's own node, user and cookie; the real script lies beside the wrapper.
rabbitmq_bin() {
    local found folder
    if [[ -n ${SERVERS_BIN:-} ]]; then
        chosen_bin rabbitmq-server
        return
    fi
    found=$(type -P rabbitmq-server || true)
    for folder in "$(dirname -- "$(readlink -f -- "${found:-/}")")" /usr/lib/rabbitmq/bin; do
        if [[ -x $folder/rabbitmq-server ]]; then
            printf '%s' "$folder"
            return 0
        fi
    done
    return 1
}

# epmd_program: Erlang's port mapper, of the Erlang that RabbitMQ runs on.
epmd_program() {
    if [[ -n ${SERVERS_BIN:-} ]]; then
        printf '%s/epmd' "$(chosen_bin epmd)"
    else
        type -P epmd
    fi
}

# nats_program: the NATS server. Always the system's own: there is one for all releases.
nats_program() {
    local program
    program=$(type -P nats-server) || program=/usr/sbin/nats-server
    [[ -x $program ]] && printf '%s' "$program"
}

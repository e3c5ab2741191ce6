# shellcheck shell=bash
# Finds the servers' programs, which distributions keep outside PATH.

# postgres_bin: the folder of the newest PostgreSQL that can both serve and run pgbench.
postgres_bin() {
    local folder folders
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
    found=$(type -P rabbitmq-server || true)
    for folder in "$(dirname -- "$(readlink -f -- "${found:-/}")")" /usr/lib/rabbitmq/bin; do
        if [[ -x $folder/rabbitmq-server ]]; then
            printf '%s' "$folder"
            return 0
        fi
    done
    return 1
}

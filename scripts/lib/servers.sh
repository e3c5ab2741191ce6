# shellcheck shell=bash
# Private PostgreSQL, RabbitMQ and NATS servers in a temporary folder, on free ports of 127.0.0.1.
#
# Whoever sources this file gets a clean-up on every way out: normal end, error, Ctrl-C, TERM,
# hang-up, closed pipe. Even if the script itself is killed with -9, the kernel tells its
# children (only the temporary folder stays behind then).
#
# Needs common.sh and find.sh.

# shellcheck disable=SC2034 # the addresses it sets are for whoever sources it

# Where PostgreSQL and RabbitMQ listen. Only a script with a network to itself may open them to it.
SERVER_ADDRESS=127.0.0.1

WORK=''         # the temporary folder
STARTED=()      # "pid signal name", in the order of starting
LAST_PID=''     # the process started last

# open_work NAME: makes the temporary folder and arms the clean-up.
open_work() {
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap '[[ ! -t 1 ]] || printf "\n"; exit 130' INT
    trap 'exit 141' PIPE
    trap 'exit 143' TERM
    WORK=$(mktemp -d "${TMPDIR:-/tmp}/$1.XXXXXX")
    # The servers may run as another user: they must pass through, nobody else needs to list.
    chmod 711 "$WORK"
}

# Runs once, on every way out. Must not fail half-way, so nothing here is fatal, and nothing is
# printed: the terminal may be gone.
clean_up() {
    local status=$?
    set +e
    trap '' HUP INT PIPE TERM
    trap - EXIT
    exec 2>/dev/null # the shell would report what we kill
    local index
    for ((index = ${#STARTED[@]} - 1; index >= 0; index--)); do
        # shellcheck disable=SC2086 # three words on purpose
        stop_entry ${STARTED[index]}
    done
    [[ -n $WORK ]] && rm -rf -- "$WORK"
    exit "$status"
}

# start NAME SIGNAL LOG COMMAND...: runs a command in a session of its own, so that Ctrl-C
# reaches this script only and things stop in order. SIGNAL is how it is asked to stop. LOG may
# be `-` for standard error. Options for setpriv may come before the command.
start() {
    local name=$1 signal=$2 log=$3 out
    shift 3
    if [[ $log == - ]]; then exec {out}>&2; else exec {out}>>"$log"; fi
    setsid setpriv --pdeathsig "$signal" "$@" </dev/null >&"$out" 2>&1 {out}>&- &
    LAST_PID=$!
    exec {out}>&-
    STARTED+=("$LAST_PID $signal $name")
}

# await PID: waits until a started process ends by itself, and returns its exit status.
await() {
    local status=0
    wait "$1" 2>/dev/null || status=$?
    forget "$1"
    return "$status"
}

# stop PID: asks a started process to stop, waits, and returns its exit status.
stop() {
    local entry
    for entry in "${STARTED[@]}"; do
        if [[ ${entry%% *} == "$1" ]]; then
            # shellcheck disable=SC2086 # three words on purpose
            stop_entry $entry 2>/dev/null
        fi
    done
    await "$1"
}

# forget PID: it is gone, and its number may soon belong to somebody else.
forget() {
    local index
    for index in "${!STARTED[@]}"; do
        [[ ${STARTED[index]%% *} != "$1" ]] || unset "STARTED[index]"
    done
    STARTED=("${STARTED[@]}")
}

# stop_entry PID SIGNAL NAME: at most 30 s, then by force, with everything it has started.
stop_entry() {
    local pid=$1 signal=$2 tries
    kill -"$signal" "$pid" 2>/dev/null
    for ((tries = 0; tries < 600; tries++)); do
        running "$pid" || break
        sleep 0.05
    done
    kill -KILL -- "-$pid" 2>/dev/null
    return 0
}

running() { kill -0 "$1" 2>/dev/null; }

# wait_until SECONDS COMMAND...: true as soon as the command is, false when time is up.
wait_until() {
    local deadline=$(($(microseconds) + $1 * 1000000))
    shift
    until "$@"; do
        (($(microseconds) < deadline)) || return 1
        sleep 0.05
    done
}

# free_port: below the range the kernel hands out for outgoing connections.
free_port() {
    local port
    while :; do
        port=$((20000 + SRANDOM % 12000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            printf '%s' "$port"
            return 0
        fi
    done
}

# secret: a random password that is safe inside a URL.
secret() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

# server_user NAME...: fills AS_USER with the setpriv options for the first user that exists.
# Neither server should run as root (PostgreSQL refuses to).
server_user() {
    AS_USER=()
    SERVER_USER=$(id -un)
    ((EUID == 0)) || return 0
    for SERVER_USER in "$@" nobody; do
        if id -u "$SERVER_USER" >/dev/null 2>&1; then
            AS_USER=(--reuid "$SERVER_USER" --regid "$(id -g "$SERVER_USER")" --init-groups)
            return 0
        fi
    done
    die "cannot start servers as root without a user \`$1\` or \`nobody\`"
}

# server_folder NAME: a folder that belongs to the server's user alone.
server_folder() {
    install -d -m 700 -o "$SERVER_USER" "$WORK/$1"
    printf '%s' "$WORK/$1"
}

# log_tail FILE: the end of a log, for an error message.
log_tail() { tail -n 15 -- "$1" 2>/dev/null | sed 's/^/    /' >&2; }

# start_postgres: sets PG_BIN, PG_SOCKETS (socket folder; trusted, readable by its user and root
# only), PG_PORT and PG_URL (TCP with a password).
start_postgres() {
    PG_BIN=$(postgres_bin) || die 'PostgreSQL with pgbench not found; run scripts/setup'
    server_user postgres
    local data log=$WORK/postgres.log password attempt
    data=$(server_folder postgres)
    PG_SOCKETS=$data
    password=$(secret)

    install -m 400 -o "$SERVER_USER" /dev/stdin "$data/password" <<<"$password"
    (cd "$data" && setpriv "${AS_USER[@]}" "$PG_BIN/initdb" --pgdata "$data/data" --username bank \
        --auth-local trust --auth-host scram-sha-256 --pwfile "$data/password" \
        --encoding UTF8 --locale C --no-sync) >"$log" 2>&1 </dev/null || {
        log_tail "$log"
        die 'initdb failed'
    }
    # Durability stays on: every commit is flushed, as in production. The rest is kept small.
    cat >>"$data/data/postgresql.conf" <<CONF
listen_addresses = '$SERVER_ADDRESS'
unix_socket_directories = '$PG_SOCKETS'
unix_socket_permissions = 0700
fsync = on
synchronous_commit = on
full_page_writes = on
max_connections = 150
shared_buffers = 128MB
max_wal_size = 2GB
timezone = 'UTC'
log_min_messages = warning
CONF
    [[ $SERVER_ADDRESS == 127.0.0.1 ]] || printf 'host all all all scram-sha-256\n' >>"$data/data/pg_hba.conf"

    for attempt in 1 2 3; do # another program may take the port first
        PG_PORT=$(free_port)
        start postgres QUIT "$log" "${AS_USER[@]}" \
            "$PG_BIN/postgres" -D "$data/data" -p "$PG_PORT"
        if wait_until 30 postgres_decided "$LAST_PID" && running "$LAST_PID"; then
            PG_URL=postgresql://bank:$password@127.0.0.1:$PG_PORT/postgres
            return 0
        fi
        stop "$LAST_PID" || true
    done
    log_tail "$log"
    die "PostgreSQL did not start in $attempt attempts"
}

# Up or dead: either way there is nothing more to wait for.
postgres_decided() {
    ! running "$1" || "$PG_BIN/pg_isready" -q -h "$PG_SOCKETS" -p "$PG_PORT"
}

# sql [PSQL OPTIONS]: psql on the private server; bare values, stops at the first error.
sql() {
    "$PG_BIN/psql" -XqAt -v ON_ERROR_STOP=1 -h "$PG_SOCKETS" -p "$PG_PORT" -U bank -d postgres "$@"
}

# launch_rabbitmq: starts the broker without waiting (it takes seconds); sets RABBITMQ_PORT and
# RABBITMQ_URL. await_rabbitmq waits.
launch_rabbitmq() {
    local bin folder password epmd epmd_port
    bin=$(rabbitmq_bin) || die 'RabbitMQ not found; run scripts/setup'
    epmd=$(epmd_program) || die 'epmd (part of Erlang) not found; run scripts/setup'
    server_user rabbitmq
    folder=$(server_folder rabbitmq)
    RABBITMQ_LOG=$WORK/rabbitmq.log
    password=$(secret)
    epmd_port=$(free_port)
    RABBITMQ_PORT=$(free_port)
    RABBITMQ_URL=amqp://bank:$password@127.0.0.1:$RABBITMQ_PORT/%2f

    install -m 400 -o "$SERVER_USER" /dev/stdin "$folder/rabbitmq.conf" <<CONF
listeners.tcp.default = $SERVER_ADDRESS:$RABBITMQ_PORT
default_user = bank
default_pass = $password
log.console = true
log.console.level = warning
CONF
    printf '[].\n' >"$folder/enabled_plugins"

    # Erlang would start a port mapper of its own accord and leave it running for ever; one that
    # is already there is used instead, and this one we stop.
    start epmd TERM "$RABBITMQ_LOG" "${AS_USER[@]}" \
        "$epmd" -port "$epmd_port" -address 127.0.0.1
    wait_until 10 port_open "$epmd_port" || die "epmd did not start on port $epmd_port"

    # Killed rather than asked to stop: a clean stop takes seconds and saves what we throw away.
    # RUNNING_UNDER_SYSTEMD makes the script become the Erlang machine instead of its parent, so
    # that the process we know is the one that counts.
    start rabbitmq KILL "$RABBITMQ_LOG" "${AS_USER[@]}" \
        env -i PATH="$PATH" HOME="$folder" LANG=C.UTF-8 \
        ERL_EPMD_PORT="$epmd_port" ERL_EPMD_ADDRESS=127.0.0.1 \
        RABBITMQ_NODENAME="outrigger-$$@localhost" RABBITMQ_DIST_PORT="$(free_port)" \
        RABBITMQ_BASE="$folder" RABBITMQ_MNESIA_BASE="$folder/data" RABBITMQ_LOG_BASE="$folder/log" \
        RABBITMQ_LOGS=- RABBITMQ_CONFIG_FILE="$folder/rabbitmq.conf" \
        RABBITMQ_CONF_ENV_FILE=/dev/null RABBITMQ_ENABLED_PLUGINS_FILE="$folder/enabled_plugins" \
        RUNNING_UNDER_SYSTEMD=true "$bin/rabbitmq-server"
    RABBITMQ_PID=$LAST_PID
}

await_rabbitmq() {
    wait_until 90 rabbitmq_decided && running "$RABBITMQ_PID" && return 0
    log_tail "$RABBITMQ_LOG"
    die 'RabbitMQ did not start'
}

rabbitmq_decided() { ! running "$RABBITMQ_PID" || amqp_answers "$RABBITMQ_PORT"; }

# start_nats: a NATS server with JetStream; sets NATS_URL.
start_nats() {
    local program folder password port monitor attempt log=$WORK/nats.log
    program=$(nats_program) || die 'nats-server not found; run scripts/setup'
    server_user nats
    folder=$(server_folder nats)
    password=$(secret)
    for attempt in 1 2 3; do # another program may take a port first
        port=$(free_port)
        monitor=$(free_port)
        install -m 400 -o "$SERVER_USER" /dev/stdin "$folder/nats.conf" <<CONF
listen: "127.0.0.1:$port"
http: "127.0.0.1:$monitor"
authorization { user: "bank", password: "$password" }
jetstream { store_dir: "$folder/store" }
CONF
        start nats KILL "$log" "${AS_USER[@]}" "$program" --config "$folder/nats.conf"
        if wait_until 30 nats_decided "$LAST_PID" "$monitor" && running "$LAST_PID"; then
            NATS_URL=nats://bank:$password@127.0.0.1:$port
            return 0
        fi
        stop "$LAST_PID" || true
    done
    log_tail "$log"
    die "NATS did not start in $attempt attempts"
}

# For whoever wants speed, not a quick start and little memory.
KAFKA_JVM=(-Xms64m -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1)

# start_kafka: a node, broker and controller in one; sets KAFKA_BROKERS. Needs kafka.sh.
start_kafka() {
    local folder port controller attempt log=$WORK/kafka.log java
    java=(java "${KAFKA_JVM[@]}" -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$(kafka_folder)/jars/*")
    # Not as another user, who might be unable to read the jars.
    server_user "$(id -un)"
    folder=$(server_folder kafka)
    for attempt in 1 2 3; do # another program may take a port first
        port=$(free_port)
        controller=$(free_port)
        install -m 400 -o "$SERVER_USER" /dev/stdin "$folder/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:$controller
log.dirs=$folder/data
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
PROPERTIES
        # shellcheck disable=SC2016 # for that shell to expand
        start kafka KILL "$log" "${AS_USER[@]}" bash -c '
            "$@" kafka.tools.StorageTool format --ignore-formatted -t b3V0cmlnZ2VyLWRlbW9fXw -c "$0" || exit
            exec "$@" kafka.Kafka "$0"' "$folder/server.properties" "${java[@]}"
        if wait_until 60 kafka_decided "$LAST_PID" "$port" && running "$LAST_PID"; then
            KAFKA_BROKERS=127.0.0.1:$port
            return 0
        fi
        stop "$LAST_PID" || true
    done
    log_tail "$log"
    die "Kafka did not start in $attempt attempts"
}

kafka_decided() { ! running "$1" || port_open "$2"; }

# The port is open before JetStream serves; its health says when it does.
nats_decided() { ! running "$1" || nats_healthy "$2"; }
nats_healthy() (
    exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
    printf 'GET /healthz HTTP/1.0\r\n\r\n' >&3
    IFS= read -r -t 5 line <&3 && [[ $line == *' 200 '* ]]
)

port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# An open port is not yet a broker: it must answer the protocol header with a method frame.
amqp_answers() (
    exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
    printf 'AMQP\0\0\11\1' >&3
    IFS= LC_ALL=C read -r -t 5 -N 1 frame <&3 && [[ $frame == $'\1' ]]
)

# shellcheck shell=bash
# The demo's bank: pgbench's tables, a transaction that writes an event, and the comparison.
#
# Needs common.sh and servers.sh, and a started PostgreSQL.

# Few enough that every account changes often, so that order has a chance to go wrong.
BANK_ACCOUNTS=1000

# open_bank BRANCHES: pgbench's own tables with fewer accounts per branch, and a version on each
# account, which numbers its changes and so lets a consumer prove order and completeness.
open_bank() {
    "$PG_BIN/pgbench" -i -I dt -h "$PG_SOCKETS" -p "$PG_PORT" -U bank postgres \
        >"$WORK/pgbench.log" 2>&1 </dev/null || {
        log_tail "$WORK/pgbench.log"
        die 'pgbench could not create its tables'
    }
    sql -v branches="$1" -v accounts="$BANK_ACCOUNTS" <<'SQL'
ALTER TABLE pgbench_accounts ADD COLUMN version bigint NOT NULL DEFAULT 0;
INSERT INTO pgbench_branches (bid, bbalance) SELECT b, 0 FROM generate_series(1, :branches) b;
INSERT INTO pgbench_tellers (tid, bid, tbalance)
    SELECT t, (t - 1) / 10 + 1, 0 FROM generate_series(1, :branches * 10) t;
INSERT INTO pgbench_accounts (aid, bid, abalance, filler)
    SELECT a, a % :branches + 1, 0, '' FROM generate_series(1, :accounts) a;
ALTER TABLE pgbench_branches ADD PRIMARY KEY (bid);
ALTER TABLE pgbench_tellers ADD PRIMARY KEY (tid);
ALTER TABLE pgbench_accounts ADD PRIMARY KEY (aid);
SQL
    # The event is a plain INSERT. It comes after the account's row is locked by the UPDATE, so
    # the order of the outbox is the order of the commits for that account.
    cat >"$WORK/transfer.sql" <<SQL
\\set aid random(1, $BANK_ACCOUNTS)
\\set tid random(1, $1 * 10)
\\set bid random(1, $1)
\\set delta random(-5000, 5000)
\\set fate random(1, 100)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta, version = version + 1
    WHERE aid = :aid RETURNING version \\gset
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime)
    VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
INSERT INTO outbox (type, key, data)
    VALUES ('bank.account.changed', :aid::bigint::text, jsonb_build_object(
        'account', :aid::bigint, 'delta', :delta::bigint, 'version', :version::bigint,
        'teller', :tid::bigint, 'branch', :bid::bigint, 'written_at', clock_timestamp()));
\\if :fate = 1
ROLLBACK;
\\else
COMMIT;
\\endif
SQL
    chmod 644 "$WORK/transfer.sql"
}

# start_pgbench SECONDS CLIENTS RATE: RATE may be empty.
start_pgbench() {
    local limit=()
    [[ -z $3 ]] || limit=(--rate "$3")
    start pgbench TERM "$WORK/pgbench.log" "$PG_BIN/pgbench" --no-vacuum --protocol prepared \
        --time "$1" --client "$2" --jobs "$(($2 < 2 ? 1 : 2))" "${limit[@]}" \
        --file "$WORK/transfer.sql" -h "$PG_SOCKETS" -p "$PG_PORT" -U bank postgres
}

count_written() { sql -c 'SELECT count(*) FROM outbox'; }

# progress_of NAME and summary_of NAME: a number that the consumer has written to the folder `report` while it runs, and
# at its end.
# shellcheck disable=SC2154 # the caller's
progress_of() { sed -n "s/^$1 //p" "$report/progress"; }
# shellcheck disable=SC2154
summary_of() { sed -n "s/^$1 //p" "$report/summary"; }

# compare_bank REPORT: sets transfers, published, rolled_back, lost, phantom, wrong_balances and
# accounts_used, from the database and the consumer's report.
compare_bank() {
    local answer
    answer=$(
        sql -F ' ' <<SQL
CREATE TEMP TABLE delivered (id uuid PRIMARY KEY, times int);
CREATE TEMP TABLE rebuilt (account bigint PRIMARY KEY, version bigint, balance bigint);
\\copy delivered FROM '$1/events.tsv'
\\copy rebuilt FROM '$1/balances.tsv'
SELECT
    (SELECT count(*) FROM pgbench_history),
    (SELECT count(*) FROM outbox WHERE published_at IS NOT NULL),
    -- Sequence values are never given back, so each missing one is a rollback.
    (SELECT coalesce(max(seq), 0) - count(*) FROM outbox),
    (SELECT count(*) FROM outbox WHERE NOT EXISTS (SELECT FROM delivered d WHERE d.id = outbox.id)),
    (SELECT count(*) FROM delivered d WHERE NOT EXISTS (SELECT FROM outbox WHERE outbox.id = d.id)),
    (SELECT count(*) FROM pgbench_accounts FULL JOIN rebuilt ON account = aid
        WHERE aid IS NULL OR (abalance, pgbench_accounts.version)
            IS DISTINCT FROM (coalesce(balance, 0), coalesce(rebuilt.version, 0))),
    (SELECT count(*) FROM rebuilt);
SQL
    )
    # shellcheck disable=SC2034 # the caller's
    read -r transfers published rolled_back lost phantom wrong_balances accounts_used <<<"$answer"
    [[ -n ${accounts_used:-} ]] || die "the comparison gave no answer: $answer"
}

//! A database whose sessions end, whose table changes, and in which others hold things open.

use std::time::{Duration, Instant};

use outrigger::store::postgres::{Mapping, OutboxSettings, grants};

use crate::play::{Counts, LEASE, Play, Run, WINDOW};
use crate::scenario::{Scenario, shared};
use crate::support::pgbouncer::PgBouncer;
use crate::support::postgres::server_user_shell;
use crate::support::writers::CHANGE;
use crate::support::{PATIENCE, within};

pub(crate) const SCENARIOS: &[Scenario] = &[
    shared!(
        "database-permission-revoked",
        "12",
        "the relays' role may no longer mark rows, later it may again",
        permission_revoked
    ),
    shared!(
        "sessions-terminated",
        "13",
        "pg_terminate_backend for every session of the relays, again and again",
        sessions_terminated
    ),
    shared!(
        "connection-limit",
        "13",
        "all sessions end and no new ones are allowed, for longer than the lease",
        connection_limit
    ),
    shared!(
        "listener-terminated",
        "16",
        "the idle relays' LISTEN sessions are terminated, again and again",
        listener_terminated
    ),
    shared!(
        "through-pgbouncer",
        "17",
        "everything through PgBouncer in transaction mode, whose server sessions are terminated",
        through_pgbouncer
    ),
    shared!(
        "snapshot-held",
        "18",
        "an old snapshot and an idle transaction stay open all the time",
        snapshot_held
    ),
    shared!(
        "prepared-transaction",
        "18, 19",
        "a transaction with events stays prepared while others commit, and is committed late",
        prepared_transaction
    ),
    shared!(
        "late-commits",
        "19",
        "transactions draw their sequence numbers early and commit late; savepoints roll back",
        late_commits
    ),
    shared!(
        "table-altered",
        "20",
        "columns added, dropped, renamed and back; type changed; table renamed and back, rewritten; index dropped",
        table_altered
    ),
    shared!(
        "disk-full",
        "22",
        "no file of the relays' sessions may grow (RLIMIT_FSIZE), so rows cannot be marked",
        disk_full
    ),
];

/// A role of the relays' own, with the documented privileges.
async fn with_role(run: Run) -> Play {
    let mut play = Play::open(run).await;
    // Roles belong to the whole server.
    play.role = format!("relay_{}", play.stage.database);
    let (role, writer) = (&play.role, format!("writer_{}", play.stage.database));
    let mapping = Mapping::new(&OutboxSettings::default()).expect("the native table");
    let create = format!("create role {role} login; create role {writer}");
    play.stage.run(&create).await;
    play.stage.run(&grants(&mapping, &writer, role)).await;
    play
}

/// Ends the relays' sessions, as far as `which` says.
async fn terminate(play: &Play, which: &str) {
    let terminate = format!(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity \
         where datname = current_database() and application_name = 'outrigger' and {which}"
    );
    play.stage.count(&terminate).await;
}

async fn permission_revoked(run: Run) -> Counts {
    let length = run.last(2, 20);
    let mut play = with_role(run).await;
    play.begin(|settings| settings).await;
    let role = play.role.clone();
    let revoke = format!(
        "revoke update on outbox from {role}; revoke update (published_at) on outbox from {role}"
    );
    play.stage.run(&revoke).await;
    // Its length is the fault.
    tokio::time::sleep(length).await;
    play.stage
        .run(&format!("grant update (published_at) on outbox to {role}"))
        .await;
    play.recovered().await;
    play.published(200).await;
    play.finish(2 * WINDOW).await
}

async fn sessions_terminated(run: Run) -> Counts {
    let length = run.last(3, 30);
    let mut play = Play::under_load(run).await;
    let began = Instant::now();
    while began.elapsed() < length {
        terminate(&play, "true").await;
        play.pause_ms(20..=300).await;
    }
    play.recovered().await;
    play.stage.await_owned(2).await;
    play.published(200).await;
    // Rows of a lost session are marked by the next; only a lost lease lets the other relay repeat them.
    let losses = (length.as_secs() / LEASE.as_secs()) as usize + 1;
    play.finish(losses * 2 * WINDOW).await
}

async fn connection_limit(run: Run) -> Counts {
    let length = run.last(4, 30);
    let mut play = with_role(run).await;
    play.begin(|settings| settings).await;
    let limit = |number: i32| format!("alter role {} connection limit {number}", play.role);
    let (none, any) = (limit(0), limit(-1));
    play.stage.run(&none).await;
    terminate(&play, "true").await;
    tokio::time::sleep(length).await;
    play.stage.run(&any).await;
    play.recovered().await;
    play.published(200).await;
    play.finish(2 * WINDOW).await
}

async fn listener_terminated(run: Run) -> Counts {
    let mut play = Play::under_load(run).await;
    play.silence().await;
    play.stage.await_settled().await;
    for _ in 0..3 {
        terminate(&play, "query ilike 'listen%'").await;
        play.pause_ms(0..=500).await;
        play.backlog(10).await;
        play.recovered().await;
    }
    // No event may wait for a notification that nobody hears.
    assert!(play.longest_recovery() < Duration::from_secs(10));
    play.finish(0).await
}

async fn through_pgbouncer(run: Run) -> Counts {
    let mut play = Play::open(run).await;
    let pooler = PgBouncer::start(&play.stage.postgres, 3).await;
    play.database_port = pooler.port();
    play.begin(|settings| settings).await;
    for _ in 0..3 {
        terminate(&play, "true").await;
        play.recovered().await;
        play.published(100).await;
    }
    play.finish(6 * WINDOW).await
}

async fn snapshot_held(run: Run) -> Counts {
    let length = run.last(3, 120);
    let mut play = Play::open(run).await;
    play.stage.run("create table other (n int)").await;
    let reader = play.stage.client().await;
    let idle = play.stage.client().await;
    let snapshot = "begin isolation level repeatable read; select count(*) from outbox";
    reader.batch_execute(snapshot).await.expect("a snapshot");
    let writing = "begin; insert into other values (1)";
    idle.batch_execute(writing).await.expect("a transaction");
    play.begin(|settings| settings).await;
    let began = Instant::now();
    while began.elapsed() < length {
        play.recovered().await;
        play.published(300).await;
    }
    idle.batch_execute("rollback").await.expect("rolled back");
    reader.batch_execute("rollback").await.expect("rolled back");
    play.finish(0).await
}

async fn prepared_transaction(run: Run) -> Counts {
    let mut play = Play::open(run).await;
    // PostgreSQL prepares no transaction that notifies; such services leave the trigger out.
    let quiet = "select outrigger.attach('outbox', false)";
    play.stage.run(quiet).await;
    play.begin(|settings| {
        settings
            .set("RELAY_WAKE", "poll")
            .set("RELAY_POLL_INTERVAL", "20ms")
    })
    .await;
    let service = play.stage.client().await;
    for round in 0..2 {
        let name = format!("prepared-{}-{round}", play.stage.database);
        let key = format!("late{round}");
        service.batch_execute("begin").await.expect("begin");
        for _ in 0..3 {
            let change = service.execute(CHANGE, &[&key, &"x"]).await;
            change.expect("a change");
        }
        let prepare = format!("prepare transaction '{name}'");
        service.batch_execute(&prepare).await.expect("prepared");
        let more = play.random(100..=1_500) as u64;
        play.writers().await_more(more).await;
        play.published(200).await;
        let commit = format!("commit prepared '{name}'");
        service.batch_execute(&commit).await.expect("committed");
        let change = service.execute(CHANGE, &[&key, &"x"]).await;
        change.expect("a change");
        play.recovered().await;
    }
    play.finish(0).await
}

async fn late_commits(run: Run) -> Counts {
    let (rounds, most) = (run.rounds(3, 6), run.rounds(800, 6_000));
    let mut play = Play::under_load(run).await;
    for round in 0..rounds {
        let key = format!("late{round}");
        let early = play.stage.client().await;
        let next = play.stage.client().await;
        early.batch_execute("begin").await.expect("begin");
        early
            .execute(CHANGE, &[&key, &"x"])
            .await
            .expect("a change");
        early.batch_execute("savepoint s").await.expect("savepoint");
        early
            .execute(CHANGE, &[&key, &"x"])
            .await
            .expect("a change");
        let back = early.batch_execute("rollback to savepoint s").await;
        back.expect("rolled back");
        let more = play.random(50..=most) as u64;
        play.writers().await_more(more).await;
        // The next writer of the key waits for the lock, and commits right behind.
        let waiting = tokio::spawn(async move { next.execute(CHANGE, &[&key, &"x"]).await });
        early
            .execute(CHANGE, &[&"other", &"x"])
            .await
            .expect("a change");
        early.batch_execute("commit").await.expect("committed");
        let second = within("the next writer commits", PATIENCE, waiting).await;
        second.expect("it ran").expect("a change");
        play.recovered().await;
    }
    play.finish(0).await
}

async fn table_altered(run: Run) -> Counts {
    let mut play = Play::under_load(run).await;
    for statement in [
        "alter table outbox add column extra text default 'x'",
        "alter table outbox drop column extra",
        "alter table outbox alter column type type varchar(200)",
        "alter table outbox alter column type type text",
        "alter table outbox rename column key to other",
        "alter table outbox rename column other to key",
        "alter table outbox rename to elsewhere",
        "alter table elsewhere rename to outbox",
        "drop index outbox_pending",
        "create index outbox_pending on outbox (seq) where published_at is null",
        "vacuum full outbox",
        "analyze outbox",
    ] {
        play.stage.run(statement).await;
        play.pause_ms(50..=600).await;
    }
    play.recovered().await;
    play.published(200).await;
    play.finish(2 * WINDOW).await
}

/// Sets the largest file that the relays' sessions may write. Only the server's own user may do that.
async fn limit_files(play: &Play, largest: &str) {
    let sessions = "select pid::text from pg_stat_activity \
        where datname = current_database() and application_name = 'outrigger'";
    let sessions = play.stage.texts(sessions).await;
    // Fails when a session has ended meanwhile.
    let script = "for pid in PIDS; do prlimit --pid $pid --fsize=LARGEST: 2>/dev/null; done; true"
        .replace("PIDS", &sessions.join(" "))
        .replace("LARGEST", largest);
    let status = server_user_shell(&script).status().expect("a shell runs");
    assert!(status.success(), "{script}");
}

async fn disk_full(run: Run) -> Counts {
    let length = run.last(3, 30);
    let mut play = Play::under_load(run).await;
    // Rows published long ago make the table larger than a segment of the write-ahead log, which must still be written.
    let history = "insert into outbox (type, data, published_at) \
        select 'history', jsonb_build_object('p', repeat('x', 1000)), now() from generate_series(1, 20000)";
    play.stage.run(history).await;
    let size = play.stage.count("select pg_relation_size('outbox')").await;
    assert!(size > 17 << 20, "{size} bytes");
    // A session meets the limit when the next version of a row finds no room in the pages that are there: now and then.
    let noticed = |play: &Play| {
        let mut relays = play.replicas.iter().map(|replica| replica.relay());
        relays.any(|relay| relay.log().contains("extend file"))
    };
    let began = Instant::now();
    while began.elapsed() < length || !noticed(&play) {
        assert!(began.elapsed() < PATIENCE, "nobody noticed");
        limit_files(&play, &size.to_string()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    limit_files(&play, "unlimited").await;
    play.recovered().await;
    play.published(200).await;
    play.finish(2 * WINDOW).await
}

//! Rows that the relay cannot see, cannot read, or must not read whole.

use std::time::Duration;

use lapin::ExchangeKind;
use outrigger::store::postgres::{Mapping, OutboxSettings, grants};

use crate::support::{PATIENCE, Stage};
use crate::{servers, shared};

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_policy_begins_to_hide_are_an_error_until_it_ends() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    let role = format!("relay_{}", stage.database);
    let mapping = Mapping::new(&OutboxSettings::default()).unwrap();
    stage
        .run(&format!(
            "create role {role} login; {}",
            grants(&mapping, &role, &role)
        ))
        .await;
    let url = stage.postgres.url_as(&role, &stage.database);
    let settings = stage.settings().set("DATABASE_URL", url);
    let relay = settings.start();
    let before = stage.insert("type", "'before'").await;
    consumer.await_id(&before, PATIENCE).await;
    stage
        .run("alter table outbox enable row level security")
        .await;
    let words = "row-level security of table public.outbox may hide rows from role";
    relay.await_log(words).await;
    let hidden = stage.insert("type", "'hidden'").await;
    // Everywhere a person looks.
    let ready = "[-]schema failed: row-level security";
    relay.await_answer("/readyz?verbose", &[ready]).await;
    relay
        .await_answer("/metrics", &["\noutrigger_database_up 0"])
        .await;
    let page = ["Not publishing", "row-level security"];
    relay.await_answer("/status", &page).await;
    for command in ["status", "check"] {
        let output = settings.output(&[command]).await;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(
            !output.status.success() && said.contains("row-level security"),
            "{command}: {said}"
        );
    }
    stage
        .run(&format!(
            "create policy outrigger on outbox to {role} using (true) with check (true)"
        ))
        .await;
    consumer.await_id(&hidden, PATIENCE).await;
    stage.await_settled().await;
    relay.stop().await;
}

/// The charts' default.
const MEMORY: u64 = 128 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn huge_rows_are_dead_unread_and_large_ones_fit_into_the_charts_memory() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    stage
        .run(
            "insert into outbox (type, key, data_binary) values ('huge', 'k1', decode(repeat('ab', 64000000), 'hex')); \
             insert into outbox (type, key, headers) values ('huge', 'k2', jsonb_build_object('h', repeat('x', 30000000))); \
             insert into outbox (type, key, data) values ('huge', 'k3', to_jsonb(repeat('x', 200000000))); \
             insert into outbox (type, key, subject) values ('huge', 'k4', repeat('x', 100000000)); \
             insert into outbox (type, key, data_binary) values ('large', 'k1', decode(repeat('ab', 15000000), 'hex')); \
             insert into outbox (type, key, data) select 'large', 'k' || g, to_jsonb(repeat('x', 1000000)) from generate_series(1, 40) g; \
             insert into outbox (type, key, data) select 'small', 'k' || g % 20, to_jsonb(g) from generate_series(1, 500) g",
        )
        .await;
    let mut relay = stage
        .settings()
        .set("EVENT_MODE", "binary")
        .limited(MEMORY)
        .start();
    consumer.await_different(541).await;
    stage
        .await_count(
            "the huge ones are dead",
            "select count(*) from outrigger.failures where state = 'dead' and reason = 'too_large' and event_type = 'huge' \
             and error like '%OUTRIGGER_RELAY_MAX_EVENT_SIZE%'",
            4,
        )
        .await;
    stage
        .await_count(
            "the others are published",
            "select count(*) from outbox where published_at is null",
            4,
        )
        .await;
    relay.assert_running();
    let peak = relay.peak_kib();
    println!("peak {peak} KiB, now {} KiB", relay.resident_kib());
    assert!(peak < (MEMORY >> 10), "{peak} KiB");
    relay.stop().await;
    assert_eq!(consumer.finish().await.len(), 541, "nothing is repeated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_ends_the_process_while_it_is_read_is_found() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    stage
        .run(
            "insert into outbox (type, key, data_binary) values ('deadly', 'k1', decode(repeat('ab', 64000000), 'hex')); \
             insert into outbox (type, key, data) select 'small', 'k' || g % 20, to_jsonb(g) from generate_series(1, 500) g",
        )
        .await;
    // As if no limit were set that fits the memory.
    let settings = stage
        .settings()
        .set("RELAY_MAX_EVENT_SIZE", "100MiB")
        .set("RELAY_LEASE_TTL", "2s")
        .limited(100 << 20);
    let poison = "select count(*) from outrigger.failures where state = 'dead' and reason = 'poison' and event_type = 'deadly'";
    let mut deaths = 0;
    let relay = 'found: loop {
        let mut relay = settings.start();
        loop {
            if stage.count(poison).await == 1 {
                break 'found relay;
            }
            if relay.has_ended() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        deaths += 1;
        assert!(deaths < 8, "{}", relay.log());
    };
    assert!(deaths >= 2, "{deaths}");
    consumer.await_different(500).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_letter_of_a_row_that_is_too_large_or_unreadable_says_what_is_known_of_it() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let dead_letters = format!("{}-dead", stage.name);
    let admin = &stage.admin;
    admin.exchange(&dead_letters, ExchangeKind::Topic).await;
    admin.queue(&dead_letters, &[]).await;
    admin.bind(&dead_letters, &dead_letters, "#", &[]).await;
    let graveyard = stage.consumer_of(&dead_letters).await;
    stage
        .run(
            "create type fragile as enum ('gone'); \
             alter table outbox alter column subject type fragile using null",
        )
        .await;
    stage
        .run(
            "begin; set local allow_system_table_mods = on; \
             insert into outbox (type, key, data) values ('unread', 'k1', to_jsonb(repeat('x', 3000000))); \
             insert into outbox (type, key, data) values ('refused', 'k2', to_jsonb(repeat('x', 300000))); \
             insert into outbox (type, key, subject, data) values ('gone', 'k3', 'gone', '1'); \
             delete from pg_enum where enumlabel = 'gone'; commit",
        )
        .await;
    let relay = stage
        .settings()
        .set("EVENT_MODE", "binary")
        .set("RELAY_MAX_EVENT_SIZE", "1MiB")
        .set("RABBITMQ_MAX_MESSAGE_SIZE", "100KiB")
        .set("RETRY_DEAD_LETTER_DESTINATION", &dead_letters)
        .start();
    for (kind, reason, known) in [
        ("unread", "too_large", "OUTRIGGER_RELAY_MAX_EVENT_SIZE"),
        ("refused", "too_large", "300002 bytes"),
        ("gone", "unreadable", "`subject` cannot be read"),
    ] {
        let id = format!("select id::text from outbox where type = '{kind}'");
        let id = stage.texts(&id).await.remove(0);
        let letter = graveyard.await_id(&id, PATIENCE).await;
        assert_eq!(letter.text(), "", "{kind}");
        assert_eq!(letter.header("ce-type").as_deref(), Some(kind));
        assert_eq!(letter.header("x-outrigger-reason").as_deref(), Some(reason));
        let error = letter.header("x-outrigger-error").unwrap_or_default();
        assert!(error.contains(known), "{kind}: {error}");
    }
    let dead = "select count(*) from outrigger.failures where state = 'dead' and error not like '%dead letter was refused%'";
    stage.await_count("they are dead", dead, 3).await;
    relay.stop().await;
    assert_eq!(graveyard.finish().await.len(), 3);
}

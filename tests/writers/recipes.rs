//! The statements that the documents tell people to copy, run as they stand there.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use crate::{Shop, server};

/// The fenced `sql` blocks of a document, in their order.
fn statements(document: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(document);
    let text = fs::read_to_string(path).unwrap();
    let mut blocks = Vec::new();
    let mut block: Option<String> = None;
    for line in text.lines() {
        match (line.trim(), &mut block) {
            ("```sql", None) => block = Some(String::new()),
            ("```", Some(_)) => blocks.extend(block.take()),
            (line, Some(block)) => *block += &format!("{line}\n"),
            _ => {}
        }
    }
    blocks
}

/// The one block that contains `part`.
fn statement(document: &str, part: &str) -> String {
    let mut found = statements(document);
    found.retain(|statement| statement.contains(part));
    assert_eq!(found.len(), 1, "`{part}` in {document}");
    found.remove(0)
}

fn inbox(part: &str) -> String {
    statement("idempotent-consumers.md", part)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inbox_lets_an_event_act_once() {
    let shop = Shop::new().await;
    let client = &shop.client;
    client
        .batch_execute(&inbox("create table inbox"))
        .await
        .unwrap();
    client
        .batch_execute("create table shipment (order_id bigint not null)")
        .await
        .unwrap();

    let remember = inbox("insert into inbox (source, id) values ($1, $2) on conflict do nothing;");
    let remember = remember.trim_end().trim_end_matches(';');
    let event: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&"/services/orders", &"a"];
    assert_eq!(client.execute(remember, &event).await.unwrap(), 1);
    assert_eq!(client.execute(remember, &event).await.unwrap(), 0);
    // The same id of another source is another event.
    assert_eq!(
        client
            .execute(remember, &[&"/services/stock", &"a"])
            .await
            .unwrap(),
        1
    );

    let ship = inbox("insert into shipment");
    let ship = ship.trim_end().trim_end_matches(';');
    for shipped in [1, 0] {
        let done = client
            .execute(ship, &[&"/services/orders", &"b", &42_i64])
            .await
            .unwrap();
        assert_eq!(done, shipped);
    }

    let clean = inbox("delete from inbox");
    let clean = clean.trim_end().trim_end_matches(';');
    assert_eq!(client.execute(clean, &[]).await.unwrap(), 0);
    client
        .execute(
            "update inbox set received_at = now() - interval '31 days' where id = 'b'",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(client.execute(clean, &[]).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_consumers_with_the_same_event_one_acts() {
    let shop = Shop::new().await;
    shop.client
        .batch_execute(&inbox("create table inbox"))
        .await
        .unwrap();
    for (end, left_for_the_second) in [("commit", 0), ("rollback", 1)] {
        let first = server().await.client(&shop.name).await;
        let second = server().await.client(&shop.name).await;
        let remember =
            format!("insert into inbox (source, id) values ('/s', '{end}') on conflict do nothing");
        first.batch_execute("begin").await.unwrap();
        assert_eq!(first.execute(&remember, &[]).await.unwrap(), 1);
        let waiting = tokio::spawn(async move { second.execute(&remember, &[]).await.unwrap() });
        wait_until_one_waits(&shop).await;
        first.batch_execute(end).await.unwrap();
        assert_eq!(waiting.await.unwrap(), left_for_the_second, "{end}");
    }
}

/// Until a connection of this database waits for another one's transaction.
async fn wait_until_one_waits(shop: &Shop) {
    let waiting = "select count(*) from pg_stat_activity \
                   where datname = current_database() and wait_event_type = 'Lock'";
    let look = async {
        while shop
            .client
            .query_one(waiting, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
            == 0
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), look)
        .await
        .expect("the second consumer does not wait for the first");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_lets_only_newer_events_act() {
    let shop = Shop::new().await;
    let client = &shop.client;
    client
        .batch_execute(&inbox("create table order_view"))
        .await
        .unwrap();
    let apply = inbox("insert into order_view");
    let apply = apply.trim_end().trim_end_matches(';');
    // In order, repeated, and late.
    let events = [
        (1_i64, "placed", 1),
        (2, "paid", 1),
        (2, "paid", 0),
        (1, "placed", 0),
    ];
    for (version, status, changed) in events {
        let done = client
            .execute(apply, &[&42_i64, &status, &version])
            .await
            .unwrap();
        assert_eq!(done, changed, "{version}");
    }
    let row = client
        .query_one("select status from order_view", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), "paid");
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_copied_for_another_destination() {
    let shop = Shop::new().await;
    let client = &shop.client;
    client
        .batch_execute(
            "insert into outbox (type, key, data, published_at) \
             values ('order.placed', 'k', '1', now()), ('order.paid', 'k', '2', now()), \
                    ('stock.low', 'k', '3', now()), ('order.placed', 'k', '4', now() - interval '3 hours'), \
                    ('order.placed', 'k', '5', null)",
        )
        .await
        .unwrap();
    let copy = statement("delivery.md", "'archive'");
    for copies in [2, 2] {
        // Copies are new rows and stay where they are sent: repeating it copies the originals only.
        let done = client
            .execute(copy.trim_end().trim_end_matches(';'), &[])
            .await
            .unwrap();
        assert_eq!(done, copies);
        client
            .batch_execute("update outbox set published_at = now() where destination = 'archive'")
            .await
            .unwrap();
    }
    let same = "select count(*) from outbox a join outbox b using (id, type, key, data) \
                where a.destination = 'archive' and a.routing_key = 'replayed.' || a.type \
                and b.destination is null";
    assert_eq!(
        client.query_one(same, &[]).await.unwrap().get::<_, i64>(0),
        4
    );
}

/// The tables of a service that has used Debezium's event router so far, and two of its events.
const ROUTER_TABLE: &str = "
    create table outboxevent (
        id             uuid primary key default gen_random_uuid(),
        aggregatetype  text not null,
        aggregateid    text not null,
        type           text not null,
        payload        jsonb
    );
    insert into outboxevent (aggregatetype, aggregateid, type, payload)
    values ('order', '1', 'placed', '{\"n\": 1}'), ('order', '2', 'placed', '{\"n\": 2}');";

#[tokio::test(flavor = "multi_thread")]
async fn a_move_from_debezium_publishes_what_was_not_published() {
    let shop = Shop::new().await;
    let client = &shop.client;
    let document = "from-debezium.md";
    let run = async |sql: &str| client.batch_execute(sql).await.unwrap();
    run(ROUTER_TABLE).await;
    run(&statement(document, "add column seq")).await;
    // Written after the column was added, and published by the connector.
    run("insert into outboxevent (aggregatetype, aggregateid, type, payload) values ('order', '1', 'paid', '{\"n\": 3}')").await;
    run(&statement(document, "create table outbox_cutover")).await;
    // Written after the cut, before the connector stopped and after it.
    run("insert into outboxevent (aggregatetype, aggregateid, type, payload) values ('order', '2', 'paid', '{\"n\": 4}')").await;
    run(&statement(document, "delete from outboxevent")).await;
    let settings = [
        ("OUTRIGGER_OUTBOX_TABLE", "outboxevent"),
        ("OUTRIGGER_OUTBOX_PRESET", "debezium"),
        ("OUTRIGGER_OUTBOX_COLUMN_SEQ", "seq"),
        ("OUTRIGGER_OUTBOX_AFTER_PUBLISH", "delete"),
        ("OUTRIGGER_ROUTE_KEY", "{{ aggregatetype }}.{{ type }}"),
        ("OUTRIGGER_EVENT_SOURCE", "/services/orders"),
        ("OUTRIGGER_SINK", "stdout"),
    ];
    // What the page tells people to set is what is tried here.
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/from-debezium.md"))
            .unwrap();
    for (name, value) in &settings[..5] {
        assert!(
            page.contains(&format!("{name}={value}"))
                || page.contains(&format!("{name}='{value}'")),
            "{name}"
        );
    }
    let url = server().await.url(&shop.name);
    let outrigger = |command: &str| -> Output {
        Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .arg(command)
            .env_clear()
            .env("OUTRIGGER_DATABASE_URL", &url)
            .envs(settings)
            .output()
            .unwrap()
    };
    let migrated = outrigger("migrate");
    assert!(migrated.status.success(), "{migrated:?}");
    let checked = outrigger("check");
    assert!(checked.status.success(), "{checked:?}");

    // The marker's own event and the one after the cut; not the three before it.
    let mut left = Vec::new();
    for row in client
        .query(
            "select aggregateid, type from outboxevent order by seq",
            &[],
        )
        .await
        .unwrap()
    {
        left.push((row.get::<_, String>(0), row.get::<_, String>(1)));
    }
    let pair = |key: &str, kind: &str| (key.to_owned(), kind.to_owned());
    assert_eq!(left, [pair("cutover", "cutover"), pair("2", "paid")]);
}

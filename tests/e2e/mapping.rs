//! Tables that were there before, and where their events go.

use lapin::ExchangeKind;
use lapin::types::AMQPValue;
use outrigger::store::postgres::{AfterPublish, OutboxSettings, Preset};

use crate::support::{PATIENCE, Stage};
use crate::{servers, shared};

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debezium_table_is_drained() {
    let _turn = shared().await;
    let outbox = OutboxSettings {
        table: some("outboxevent"),
        preset: Preset::Debezium,
        after_publish: Some(AfterPublish::Delete),
        extra: vec!["aggregatetype".into()],
        ..OutboxSettings::default()
    };
    let ddl = "create table outboxevent (id uuid primary key, aggregatetype varchar(255) not null, \
        aggregateid varchar(255) not null, type varchar(255) not null, payload jsonb)";
    let stage = Stage::bare(servers().await, ddl, &outbox).await;
    stage.route("Order.#").await;
    let consumer = stage.consumer().await;
    stage
        .run(
            "insert into outboxevent select gen_random_uuid(), 'Order', 'o' || g % 7, 'OrderPlaced', \
             jsonb_build_object('n', g) from generate_series(1, 200) g",
        )
        .await;
    let mut written = stage.texts("select id::text from outboxevent").await;
    let relay = stage
        .settings()
        .set("OUTBOX_TABLE", "outboxevent")
        .set("OUTBOX_PRESET", "debezium")
        .set("OUTBOX_AFTER_PUBLISH", "delete")
        .set("RELAY_ORDERING", "none")
        .set("ROUTE_KEY", "{{ aggregatetype }}.{{ type }}")
        .start();
    consumer.await_different(200).await;
    // Written while it runs.
    stage
        .run("insert into outboxevent values (gen_random_uuid(), 'Order', 'late', 'OrderPaid', null)")
        .await;
    written.extend(
        stage
            .texts("select id::text from outboxevent where aggregateid = 'late'")
            .await,
    );
    consumer.await_different(201).await;
    stage
        .await_count(
            "every row is deleted",
            "select count(*) from outboxevent",
            0,
        )
        .await;
    relay.stop().await;
    let deliveries = consumer.finish().await;
    let mut ids: Vec<_> = deliveries.iter().map(|d| d.id.clone()).collect();
    let late = deliveries.last().unwrap();
    assert_eq!(late.routing_key, "Order.OrderPaid");
    assert!(late.text().contains(r#""partitionkey":"late""#));
    written.sort();
    written.dedup();
    ids.sort();
    assert_eq!(ids, written);
}

#[tokio::test(flavor = "multi_thread")]
async fn own_column_names_a_boolean_mark_and_templates_over_further_columns() {
    let _turn = shared().await;
    // What the same payload becomes in columns of different types.
    for (column_type, content_type, data) in [
        ("text", "application/json", r#""data":{"n":1}}"#),
        ("json", "application/json", r#""data":{"n":1}}"#),
        ("jsonb", "application/json", r#""data":{"n": 1}}"#),
        ("text", "text/plain", r#""data":"{\"n\":1}"}"#),
        (
            "bytea",
            "application/octet-stream",
            r#""data_base64":"eyJuIjoxfQ=="}"#,
        ),
    ] {
        let outbox = OutboxSettings {
            table: some("shop.Events"),
            column_seq: some("No"),
            column_id: some("uid"),
            column_type: some("kind"),
            column_key: some("order_id"),
            column_data: some("body"),
            column_content_type: some("mime"),
            column_published_at: some("sent"),
            extra: vec!["service".into(), "entity".into(), "action".into()],
            ..OutboxSettings::default()
        };
        let ddl = format!(
            "create schema shop; create table shop.\"Events\" (\"No\" bigint generated always as identity primary key, \
             uid varchar(40) not null, kind text not null, order_id int, body {column_type}, mime text, \
             sent boolean not null default false, service text, entity text, action text)"
        );
        let stage = Stage::bare(servers().await, &ddl, &outbox).await;
        stage.route("#").await;
        let consumer = stage.consumer().await;
        let body = if column_type == "bytea" {
            "convert_to('{\"n\":1}', 'UTF8')"
        } else {
            "'{\"n\":1}'"
        };
        stage
            .run(&format!(
                "insert into shop.\"Events\" (uid, kind, order_id, body, mime, service, entity, action) \
                 values ('u-1', 'placed', 7, {body}, '{content_type}', 'shop', 'order', 'placed')"
            ))
            .await;
        let relay = stage
            .settings()
            .set("OUTBOX_TABLE", "shop.Events")
            .set("OUTBOX_COLUMN_SEQ", "No")
            .set("OUTBOX_COLUMN_ID", "uid")
            .set("OUTBOX_COLUMN_TYPE", "kind")
            .set("OUTBOX_COLUMN_KEY", "order_id")
            .set("OUTBOX_COLUMN_DATA", "body")
            .set("OUTBOX_COLUMN_CONTENT_TYPE", "mime")
            .set("OUTBOX_COLUMN_PUBLISHED_AT", "sent")
            .set(
                "ROUTE_KEY",
                "{{ service }}.{{ entity }}.{{ id }}.{{ action }}",
            )
            .start();
        let delivery = consumer.await_id("u-1", PATIENCE).await;
        assert_eq!(delivery.routing_key, "shop.order.u-1.placed");
        assert!(
            delivery.text().ends_with(data),
            "{column_type}: {}",
            delivery.text()
        );
        assert!(delivery.text().contains(r#""partitionkey":"7""#));
        stage
            .await_count(
                "the row is marked",
                "select count(*) from shop.\"Events\" where sent",
                1,
            )
            .await;
        relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_names_its_own_destination_and_routing_key() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let other = format!("{}-other", stage.name);
    stage.admin.exchange(&other, ExchangeKind::Direct).await;
    stage.admin.queue(&other, &[]).await;
    stage.admin.bind(&other, &other, "mine", &[]).await;
    let (consumer, elsewhere) = (stage.consumer().await, stage.consumer_of(&other).await);
    let by_template = stage.insert("type", "'t.plain'").await;
    let by_key = stage.insert("type, routing_key", "'t', 'own.key'").await;
    let both = stage
        .insert(
            "type, destination, routing_key",
            &format!("'t', '{other}', 'mine'"),
        )
        .await;
    // The default exchange routes by queue name.
    let default_exchange = stage
        .insert(
            "type, destination, routing_key",
            &format!("'t', '', '{other}'"),
        )
        .await;
    let relay = stage.settings().start();
    assert_eq!(
        consumer.await_id(&by_template, PATIENCE).await.routing_key,
        "t.plain"
    );
    assert_eq!(
        consumer.await_id(&by_key, PATIENCE).await.routing_key,
        "own.key"
    );
    assert_eq!(elsewhere.await_id(&both, PATIENCE).await.exchange, other);
    assert_eq!(
        elsewhere
            .await_id(&default_exchange, PATIENCE)
            .await
            .exchange,
        ""
    );
    stage.await_settled().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_route_on_a_headers_exchange() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let exchange = format!("{}-headers", stage.name);
    stage.admin.exchange(&exchange, ExchangeKind::Headers).await;
    let queues = ["blue", "big"].map(|queue| format!("{}-{queue}", stage.name));
    let matches = [
        [("tenant", AMQPValue::LongString("blue".into()))],
        [("size", AMQPValue::LongInt(100))],
    ];
    for (queue, arguments) in queues.iter().zip(&matches) {
        stage.admin.queue(queue, &[]).await;
        stage.admin.bind(queue, &exchange, "", arguments).await;
    }
    let blue = stage.consumer_of(&queues[0]).await;
    let big = stage.consumer_of(&queues[1]).await;
    let first = stage
        .insert("type, headers", "'t', '{\"tenant\":\"blue\",\"size\":1}'")
        .await;
    let second = stage
        .insert("type, headers", "'t', '{\"tenant\":\"red\",\"size\":100}'")
        .await;
    let relay = stage.settings().set("ROUTE_DESTINATION", &exchange).start();
    blue.await_id(&first, PATIENCE).await;
    big.await_id(&second, PATIENCE).await;
    stage.await_settled().await;
    relay.stop().await;
    assert_eq!(blue.finish().await.len(), 1);
    assert_eq!(big.finish().await.len(), 1);
}

//! Rows whose payload is large, too large, or cannot be read.

use outrigger::error::ReasonCode;
use outrigger::event::{Content, Data, Record};
use outrigger::store::postgres::{AfterPublish, OutboxSettings, PostgresStore};
use outrigger::store::{FetchBatch, FetchRequest, ReadKind, ReadRequest, Settle, Settled};

use crate::fixture::{Fixture, database, from_start, request, row_settled, server};

const KIB: usize = 1 << 10;

/// Rows of at most 4 KiB come whole, of more than 64 KiB not at all.
fn sized(kind: ReadKind) -> ReadRequest {
    ReadRequest {
        whole: 4 * KIB,
        max_event: 64 * KIB,
        ..request(kind)
    }
}

fn main_read() -> ReadRequest {
    sized(ReadKind::Main { after: None })
}

fn of(rows: &[Record], byte_limit: usize) -> FetchRequest {
    FetchRequest {
        rows: rows.iter().map(row_settled).collect(),
        source: None,
        byte_limit,
        max_event: 64 * KIB,
    }
}

fn refusal(record: &Record) -> (ReasonCode, &str) {
    let Content::Refused(refusal) = &record.content else {
        panic!("{record:?}")
    };
    assert!(!refusal.may_pass);
    (refusal.reason.code, &refusal.reason.detail)
}

async fn fetched(store: &PostgresStore, rows: &[Record]) -> FetchBatch {
    store.fetch(&of(rows, 1 << 20)).await.unwrap()
}

#[tokio::test]
async fn a_rows_size_is_known_before_its_payload_is_read() {
    let f = Fixture::new().await;
    f.sql(
        "insert into outbox (type, key, data) values ('small', 'k', '1'); \
         insert into outbox (type, key, data) values ('json', 'k', to_jsonb(repeat('x', 10000))); \
         insert into outbox (type, key, data_binary) values ('bytes', 'k', decode(repeat('ab', 20000), 'hex')); \
         insert into outbox (type, key, headers) values ('headers', 'k', jsonb_build_object('h', repeat('x', 30000))); \
         insert into outbox (type, key, subject) values ('subject', 'k', repeat('x', 5000)); \
         insert into outbox (type, key, data) values ('numbers', 'k', (select jsonb_agg(1e131000::numeric) from generate_series(1, 100))); \
         insert into outbox (type, key, data) values ('packed', 'k', to_jsonb(repeat('x', 50000000))); \
         insert into outbox (type, key, data) values ('random', 'k', (select jsonb_agg(md5(g::text)) from generate_series(1, 100000) g)); \
         insert into outbox (type, key, data_binary) values ('huge', 'k', decode(repeat('ab', 1000000), 'hex'))",
    )
    .await;
    let rows = f.store.read(&main_read()).await.unwrap().rows;
    let found: Vec<(&str, &Content)> = rows
        .iter()
        .map(|row| (row.event_type.as_str(), &row.content))
        .collect();
    let left = |bytes| Content::Left { bytes };
    // Id, type and key besides.
    assert_eq!(found[0], ("small", &Content::Whole));
    assert_eq!(found[1], ("json", &left(10_002 + 36 + 4 + 1)));
    assert_eq!(found[2], ("bytes", &left(20_000 + 36 + 5 + 1)));
    assert_eq!(found[3], ("headers", &left(30_009 + 36 + 7 + 1)));
    assert_eq!(found[4], ("subject", &left(5_000 + 36 + 7 + 1)));
    for (row, (kind, bytes)) in rows[5..].iter().zip([
        ("numbers", "13100"),
        ("packed", "572"),
        ("random", ""),
        ("huge", "1000041"),
    ]) {
        assert_eq!(row.event_type, kind);
        assert_eq!(row.key.as_deref(), Some("k"), "for its failure record");
        let (code, detail) = refusal(row);
        assert_eq!(code, ReasonCode::TooLarge, "{kind}");
        assert!(detail.contains(bytes), "{kind}: {detail}");
        assert!(
            detail.contains("OUTRIGGER_RELAY_MAX_EVENT_SIZE"),
            "{detail}"
        );
    }
    // What is left counts as if it were there.
    assert!(rows[2].weight() > 20_000);

    let large = fetched(&f.store, &rows[1..5]).await;
    assert!(large.gone.is_empty());
    let [json, bytes, headers, subject] = large.rows.as_slice() else {
        panic!("{large:?}")
    };
    assert_eq!(json.data.len(), 10_002);
    assert!(matches!(json.data, Data::Json(_)));
    assert_eq!(bytes.data, Data::Binary(vec![0xab; 20_000].into()));
    assert_eq!(headers.headers.as_ref().unwrap().len(), 30_009);
    assert_eq!(subject.subject.as_ref().unwrap().len(), 5_000);
    assert!(large.rows.iter().all(|row| row.content == Content::Whole));

    // As many as fit, but one in any case; the others are asked for again.
    let some = f.store.fetch(&of(&rows[1..5], 1)).await.unwrap();
    assert_eq!((some.rows.len(), some.gone.len()), (1, 0));
    // Settled or deleted meanwhile.
    let settle = Settle {
        rows: vec![row_settled(&rows[1])],
        ..Settle::default()
    };
    f.store.settle(&settle).await.unwrap();
    let gone = fetched(&f.store, &rows[1..3]).await.gone;
    assert_eq!(gone, [row_settled(&rows[1])]);
    // Other numbers of another server.
    let elsewhere = FetchRequest {
        source: Some(1),
        ..of(&rows[1..3], 1 << 20)
    };
    assert!(f.store.fetch(&elsewhere).await.is_err());
}

#[tokio::test]
async fn nothing_is_read_whole_where_that_is_not_wanted() {
    let f = Fixture::new().await;
    f.insert(3, 3).await;
    let careful = ReadRequest {
        whole: 0,
        ..main_read()
    };
    let rows = f.store.read(&careful).await.unwrap().rows;
    assert_eq!(rows.len(), 3);
    for row in &rows {
        assert!(row.content.is_left() && row.data == Data::None, "{row:?}");
        assert!(row.keyed && row.key.is_some());
    }
    let whole = fetched(&f.store, &rows).await.rows;
    assert_eq!(whole[2].data, Data::Json(r#"{"n": 3}"#.into()));
}

#[tokio::test]
async fn a_row_of_no_text_is_found_and_the_others_are_read() {
    for (column, value) in [
        ("type", r"E'caf\351'"),
        ("key", r"E'caf\351'"),
        ("subject", r"E'caf\351'"),
        ("headers", r#"E'{"a": "caf\351"}'"#),
        ("data", r#"E'"caf\351"'"#),
    ] {
        let f = Fixture::of_bytes().await;
        f.sql("set client_encoding = 'SQL_ASCII'").await;
        f.sql(&format!(
            "insert into outbox (type, key, data) select 't', 'k' || g, to_jsonb(g) from generate_series(1, 9) g; \
             insert into outbox ({}{column}) values ({}{value}); \
             insert into outbox (type, key, data) values ('t', E'caf\\303\\251', '11')",
            if column == "type" { "" } else { "type, " },
            if column == "type" { "" } else { "'odd', " },
        ))
        .await;
        for kind in [
            ReadKind::Main { after: None },
            ReadKind::Sweep {
                after: 0,
                up_to: 99,
            },
        ] {
            let batch = f.store.read(&sized(kind)).await.unwrap();
            assert_eq!(batch.rows.len(), 11, "{column}");
            let fetched = fetched(&f.store, &batch.rows).await;
            assert_eq!(fetched.rows.len(), 11, "{column}");
            let (odd, others): (Vec<_>, Vec<_>) =
                fetched.rows.iter().partition(|row| row.seq == 10);
            assert!(others.iter().all(|row| row.content == Content::Whole));
            assert_eq!(others[9].key.as_deref(), Some("caf\u{e9}"));
            let (code, detail) = refusal(odd[0]);
            assert_eq!(code, ReasonCode::Unreadable);
            let words = format!(
                "column `{column}` cannot be read: it holds bytes that are not valid UTF-8"
            );
            assert!(detail.starts_with(&words), "{detail}");
            let kind = if column == "type" { "" } else { "odd" };
            assert_eq!(odd[0].event_type, kind);
        }
        let without = ReadRequest {
            known: vec![10],
            ..main_read()
        };
        let rows = f.store.read(&without).await.unwrap().rows;
        assert!(rows.iter().all(|row| row.content == Content::Whole));
        let shown = f.store.tail(0, 20).await.unwrap();
        assert_eq!(shown.len(), 11);
        assert_eq!(shown[0].record.event_type, "t");
        assert!(shown[9].record.content.refusal().is_some());
    }
}

#[tokio::test]
async fn an_id_that_cannot_be_read_still_names_its_row() {
    let f = Fixture::of_bytes().await;
    f.sql("set client_encoding = 'SQL_ASCII'").await;
    f.sql(
        "drop table outbox; \
         create table outbox (seq bigint generated always as identity primary key, id text, type text, published_at timestamptz); \
         insert into outbox (id, type) values ('a', 't'), (E'caf\\351', 't'), (E'caf\\303\\251', 't'), (repeat('x', 5000), 't'), (null, 't')",
    )
    .await;
    let settings = OutboxSettings {
        after_publish: Some(AfterPublish::Mark),
        ..OutboxSettings::default()
    };
    let url = crate::fixture::server().await.url(&f.name);
    let store = crate::fixture::database(&url, &settings)
        .open()
        .await
        .unwrap();
    let rows = store.read(&from_start()).await.unwrap().rows;
    let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    assert_eq!((ids[0], ids[2], ids[4]), ("a", "caf\u{e9}", ""));
    for row in [&rows[1], &rows[3]] {
        assert!(row.id.starts_with("hash:"), "{row:?}");
        assert_eq!(refusal(row).0, ReasonCode::Unreadable);
    }
    let settle = Settle {
        rows: rows.iter().map(row_settled).collect::<Vec<Settled>>(),
        ..Settle::default()
    };
    assert_eq!(store.settle(&settle).await.unwrap(), []);
}

/// Such JSON is rendered in seconds: not for each half that is looked through.
#[tokio::test]
async fn json_that_is_long_as_stored_is_rendered_once_and_for_its_row_alone() {
    let f = Fixture::new().await;
    f.sql(
        "create type fragile as enum ('gone'); alter table outbox alter column subject type fragile using null; \
         insert into outbox (type, subject) values ('gone', 'gone'); \
         insert into outbox (type, data) select 'small', '1' from generate_series(1, 3); \
         insert into outbox (type, data) values ('huge', to_jsonb(repeat('x', 100000000))); \
         insert into outbox (type, data) select 'small', '1' from generate_series(1, 3); \
         set allow_system_table_mods = on; delete from pg_enum where enumlabel = 'gone'",
    )
    .await;
    let url = server().await.url(&f.name);
    let store = database(&url, &OutboxSettings::default())
        .open()
        .await
        .unwrap();
    let request = ReadRequest {
        whole: 64 * KIB,
        max_event: 16 << 20,
        ..request(ReadKind::Main { after: None })
    };
    let rows = store.read(&request).await.unwrap().rows;
    assert!(
        rows.iter()
            .all(|row| row.content == Content::Left { bytes: 0 })
    );
    let mut of = of(&rows, 1 << 20);
    of.max_event = 16 << 20;
    let (mut found, mut left) = (Vec::new(), rows.len());
    while left > 0 {
        let batch = store.fetch(&of).await.unwrap();
        of.rows
            .retain(|row| batch.rows.iter().all(|came| came.seq != row.seq));
        assert!(of.rows.len() < left && batch.gone.is_empty());
        left = of.rows.len();
        found.extend(batch.rows);
    }
    let fates: Vec<(i64, Option<ReasonCode>)> = found
        .iter()
        .map(|row| {
            (
                row.seq,
                row.content.refusal().map(|refusal| refusal.reason.code),
            )
        })
        .collect();
    let mut wanted = vec![(1, Some(ReasonCode::Unreadable))];
    wanted.extend([2, 3, 4, 6, 7, 8].map(|seq| (seq, None)));
    wanted.push((5, Some(ReasonCode::TooLarge)));
    assert_eq!(fates, wanted, "the long one comes last");
}

//! `check` predicts rows that cannot be settled.

use crate::check::{alone, check, only, says};
use crate::tool::Tool;

const ROW: &str = "insert into outbox (type) values ('t')";
const NOTHING: &str =
    "create function nothing() returns trigger language plpgsql as $$ begin return null; end $$";

#[tokio::test]
async fn a_row_is_tried_and_left_as_it_was() {
    let tool = alone(&Tool::new().await).await;
    says(
        &check(&tool, 0, &[]),
        "ok",
        "not tried: no row is available",
    );
    tool.sql(ROW).await;
    says(
        &check(&tool, 0, &[]),
        "ok",
        "a row can be marked as published (tried with one and rolled back)",
    );
    // A published one does as well.
    tool.sql("update outbox set published_at = 'epoch'").await;
    says(&check(&tool, 0, &[]), "ok", "tried with one");
    assert_eq!(tool.count("outbox where published_at = 'epoch'").await, 1);
}

#[tokio::test]
async fn what_keeps_rows_from_being_marked_is_named() {
    for (ddl, name) in [
        (
            "create trigger \"No Marks\" before update on outbox for each row execute function nothing()",
            "trigger \"No Marks\" of outbox",
        ),
        (
            "create rule keep as on update to outbox do instead nothing",
            "rule keep of outbox",
        ),
        (
            "create function undo() returns trigger language plpgsql as $$ begin if pg_trigger_depth() = 1 then \
               update outbox set published_at = null; end if; return null; end $$; \
             create constraint trigger late after update on outbox deferrable initially deferred \
               for each row execute function undo()",
            "trigger late of outbox",
        ),
        (
            "create function refuse() returns trigger language plpgsql as $$ begin raise 'audited'; end $$; \
             create trigger refuse before update on outbox for each row execute function refuse()",
            "trigger refuse of outbox",
        ),
    ] {
        let tool = alone(&Tool::new().await).await;
        tool.sql(&format!("{NOTHING}; {ddl}")).await;
        // Without a row it can only be guessed.
        says(&check(&tool, 0, &[]), "warning", name);
        for published in ["null", "now()"] {
            tool.sql(&format!(
                "alter table outbox disable trigger user; delete from outbox; \
                 insert into outbox (type, published_at) values ('t', {published}); \
                 alter table outbox enable trigger user"
            ))
            .await;
            only(
                &check(&tool, 3, &[]),
                "failed",
                "a row cannot be marked as published",
                name,
            );
        }
    }
}

#[tokio::test]
async fn a_trigger_that_only_watches_is_named_and_no_problem() {
    let tool = alone(&Tool::new().await).await;
    tool.sql(&format!(
        "{ROW}; create function touch() returns trigger language plpgsql as $$ begin new.subject := 'x'; return new; end $$; \
         create trigger touch before update on outbox for each row execute function touch()"
    ))
    .await;
    says(
        &check(&tool, 0, &[]),
        "ok",
        "a row can be marked as published, with trigger touch of outbox",
    );
}

#[tokio::test]
async fn rows_that_others_refer_to_are_predicted_where_rows_are_deleted() {
    let tool = alone(&Tool::new().await).await;
    tool.sql(&format!(
        "{ROW}; create table note (o bigint constraint about references outbox (seq))"
    ))
    .await;
    assert!(!check(&tool, 0, &[]).to_string().contains("about"));
    let deleting = tool
        .with(&[("OUTRIGGER_OUTBOX_AFTER_PUBLISH", "delete")])
        .await;
    let json = check(&deleting, 0, &[]);
    says(&json, "warning", "foreign key about of note");
    says(&json, "ok", "a row can be deleted once it is published");
    tool.sql("insert into note select seq from outbox").await;
    says(
        &check(&deleting, 3, &[]),
        "failed",
        "a row cannot be deleted",
    );
    tool.sql(
        "alter table note drop constraint about, \
         add constraint about foreign key (o) references outbox (seq) on delete cascade",
    )
    .await;
    assert!(!check(&deleting, 0, &[]).to_string().contains("about"));
    assert_eq!(tool.count("note").await, 1);
}

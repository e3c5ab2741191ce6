//! Rows that the relay cannot see or cannot read.

use outrigger::store::postgres::{Mapping, OutboxSettings, grants};

use crate::support::{PATIENCE, Stage, until};
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
    let relay = stage.settings().set("DATABASE_URL", url).start();
    let before = stage.insert("type", "'before'").await;
    consumer.await_id(&before, PATIENCE).await;
    stage
        .run("alter table outbox enable row level security")
        .await;
    let words = "row-level security of table public.outbox may hide rows from role";
    relay.await_log(words).await;
    let hidden = stage.insert("type", "'hidden'").await;
    let ready = "[-]schema failed: row-level security";
    until("it is not ready", PATIENCE, || async {
        let answer = relay.get("/readyz?verbose").unwrap_or_default();
        if answer.contains(ready) {
            Ok(())
        } else {
            Err(answer)
        }
    })
    .await;
    stage
        .run(&format!(
            "create policy outrigger on outbox to {role} using (true) with check (true)"
        ))
        .await;
    consumer.await_id(&hidden, PATIENCE).await;
    stage.await_settled().await;
    relay.stop().await;
}

//! Whether rows can be settled, for `check`: what could prevent it, and a trial with one row.

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Transaction};

use super::error::StoreError;
use super::inspect::Table;
use super::session::begin;
use super::settle::no_effect;
use super::sql::{DELETE_TRIGGER, FOREIGN_TRIGGER, Sql, UPDATE_TRIGGER};

/// What is known about settling before anything is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettleFacts {
    /// `UPDATE` or `DELETE`: what settles a row.
    pub command: &'static str,
    /// Triggers and rules that the statement fires, by kind and name.
    pub takes_part: Vec<String>,
    /// Foreign keys that keep a row from being deleted while another row refers to it.
    pub references: Vec<String>,
    /// The outcome of settling one row.
    pub trial: Trial,
}

/// The outcome of settling one row in a transaction that is then rolled back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trial {
    /// It was settled.
    Settled,
    /// It was not, for this reason.
    Failed(String),
    /// Not tried: there is no row, or another session holds locks.
    NoRow,
    /// Not tried: a privilege is missing, or the server accepts no writes. Both are reported separately.
    Impossible,
}

/// Asks the catalog, and tries.
pub(super) async fn facts(
    client: &mut Client,
    table: &Table,
    allowed: bool,
) -> Result<SettleFacts, StoreError> {
    let sql = Sql::new(table, false);
    let takes_part = names(client, &taking_part(table, &sql)).await?;
    let references = match sql.marks {
        true => Vec::new(),
        false => names(client, &references(table)).await?,
    };
    let trial = match allowed {
        true => attempt(client, &sql).await?,
        false => Trial::Impossible,
    };
    Ok(SettleFacts {
        command: sql.settle_command(),
        takes_part,
        references,
        trial,
    })
}

async fn names(client: &Client, text: &str) -> Result<Vec<String>, StoreError> {
    let rows = client.query_typed(text, &[]).await?;
    let names = rows.iter().map(|row| row.try_get(0));
    Ok(names.collect::<Result<_, _>>()?)
}

/// Triggers and rules, but for our own and those behind foreign keys.
fn taking_part(table: &Table, sql: &Sql) -> String {
    // `pg_trigger.tgtype` and `pg_rewrite.ev_type`.
    let (bit, event) = match sql.marks {
        true => (UPDATE_TRIGGER, '2'),
        false => (DELETE_TRIGGER, '4'),
    };
    format!(
        "select distinct what from ( \
           select format('trigger %I of %s', g.tgname, g.tgrelid::regclass) as what from pg_trigger g \
             where g.tgrelid in ({tree}) and g.tgtype & {bit} <> 0 and {FOREIGN_TRIGGER} \
           union all select format('rule %I of %s', r.rulename, r.ev_class::regclass) from pg_rewrite r \
             where r.ev_class in ({tree}) and r.ev_type = '{event}' and r.ev_enabled <> 'D') t order by 1",
        tree = table.tree(),
    )
}

fn references(table: &Table) -> String {
    format!(
        "select format('%I of %s', c.conname, c.conrelid::regclass) from pg_constraint c \
         where c.contype = 'f' and c.confrelid = {}::oid and c.confdeltype in ('a', 'r') order by 1",
        table.regclass()
    )
}

/// Settles one row and rolls back, because the catalog lists triggers but not what they do. It briefly locks one row and
/// writes a little WAL; the caller's time limit applies. Whatever a trigger does outside the transaction is not undone, but the
/// relay will make it do the same for every event.
async fn attempt(client: &mut Client, sql: &Sql) -> Result<Trial, StoreError> {
    let transaction = begin(client).await?;
    let result = settle_one(&transaction, sql).await;
    transaction.rollback().await?;
    match result {
        Err(error) if error.sqlstate().is_none() => Err(error),
        Err(error) if error.is_read_only() => Ok(Trial::Impossible),
        // Another session is using the row or the table.
        Err(error) if error.sqlstate() == Some("55P03") => Ok(Trial::NoRow),
        Err(error) => Ok(Trial::Failed(format!("the database refuses it: {error}"))),
        Ok(trial) => Ok(trial),
    }
}

async fn settle_one(transaction: &Transaction<'_>, sql: &Sql) -> Result<Trial, StoreError> {
    transaction
        .batch_execute("set local lock_timeout = '1s'")
        .await?;
    // A pending row is the best test; without one, settle a published row again.
    let mut found = None;
    for pending in [true, false] {
        if found.is_none() && (pending || sql.marks) {
            let text = sql.some_row(pending);
            let row = transaction.query_typed_opt(&text, &[]).await?;
            found = row.map(|row| (row, pending));
        }
    }
    let Some((row, was_pending)) = found else {
        return Ok(Trial::NoRow);
    };
    let (seqs, ids): ([i64; 1], [String; 1]) = ([row.try_get(0)?], [row.try_get(1)?]);
    let those = [
        (&&seqs[..] as &(dyn ToSql + Sync), Type::INT8_ARRAY),
        (&&ids[..], Type::TEXT_ARRAY),
    ];
    let changed = transaction
        .execute_typed(&sql.settle_again(), &those)
        .await?;
    // Fire deferred triggers now; there is no commit.
    transaction
        .batch_execute("set constraints all immediate")
        .await?;
    let pending = transaction
        .query_typed(&sql.still_pending(), &those)
        .await?;
    Ok(match pending.is_empty() && (was_pending || changed > 0) {
        true => Trial::Settled,
        false => Trial::Failed(no_effect(sql)),
    })
}

//! Finishing rows.

use tokio_postgres::types::Type;

use super::error::StoreError;
use super::session::{Params, Session};
use super::sql::Sql;
use crate::store::Settle;

/// Marks or deletes rows and removes their failure records: one statement, so one transaction. Not fenced: a confirmed
/// event is a fact, whoever reports it.
pub(super) async fn settle(
    session: &Session<'_>,
    sql: &Sql,
    settle: &Settle,
) -> Result<u64, StoreError> {
    if settle.rows.is_empty() {
        return Ok(0);
    }
    let seqs: Vec<i64> = settle.rows.iter().map(|row| row.seq).collect();
    let ids: Vec<&str> = settle.rows.iter().map(|row| row.id.as_str()).collect();
    let mut params: Params<'_> = vec![(&seqs, Type::INT8_ARRAY), (&ids, Type::TEXT_ARRAY)];
    if settle.failed_before.is_empty() {
        return Ok(session.execute(&sql.settle(), params).await?);
    }
    params.push((&settle.failed_before, Type::INT8_ARRAY));
    Ok(session.execute(&sql.settle_with_failures(), params).await?)
}

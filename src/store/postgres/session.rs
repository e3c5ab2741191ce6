//! One pooled connection, and statements it may keep.
//!
//! Parsing and planning cost more than a read or a settle of a few rows. A statement that the session keeps, with one
//! plan for all values, costs neither. But a session is ours alone only if no transaction pooler sits in between, or a
//! name may mean another client's statement. So nothing is kept until the [listener](super::listen) has *proven*
//! it: it was told something while it was idle, which a pooler cannot do.
//!
//! A plan made for all values must not be a plan made for a small table: it would be kept while the table grows. So
//! the session is told to use indexes wherever there are any. Whatever goes wrong, its statements are forgotten, and
//! made again as the table is then.

use deadpool_postgres::Object;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, IsolationLevel, Row, RowStream, Statement, Transaction};

/// Parameters with their types.
pub(super) type Params<'a> = Vec<(&'a (dyn ToSql + Sync), Type)>;

/// JIT compilation would see the penalty on sequential scans as the cost of a statement worth compiling.
const PLANS: &str = "set plan_cache_mode = force_generic_plan; set enable_seqscan = off; \
                     set enable_bitmapscan = off; set jit = off";

/// Begins a transaction in which every statement takes a fresh snapshot, whatever the server's default is.
pub(super) async fn begin(client: &mut Client) -> Result<Transaction<'_>, Error> {
    client
        .build_transaction()
        .isolation_level(IsolationLevel::ReadCommitted)
        .start()
        .await
}

/// A connection on loan from the pool.
pub(super) struct Session<'a> {
    object: &'a Object,
    /// Proven to be ours alone.
    keeps: bool,
}

/// A statement, ready to run: named and planned, or as text.
pub(super) enum Prepared<'a> {
    Kept(Statement),
    Text(&'a str),
}

impl<'a> Session<'a> {
    pub(super) fn new(object: &'a Object, keeps: bool) -> Self {
        Self { object, keeps }
    }

    pub(super) fn client(&self) -> &'a Client {
        self.object
    }

    /// Makes a statement ready. At most one round trip (the first time in this session), mostly none.
    pub(super) async fn prepare<'t>(
        &self,
        text: &'t str,
        params: &Params<'_>,
    ) -> Result<Prepared<'t>, Error> {
        if !self.keeps {
            return Ok(Prepared::Text(text));
        }
        let kept = &self.object.statement_cache;
        if kept.size() == 0 {
            self.client().batch_execute(PLANS).await?;
        }
        let types: Vec<Type> = params.iter().map(|(_, kind)| kind.clone()).collect();
        let statement = kept.prepare_typed(self.client(), text, &types).await?;
        Ok(Prepared::Kept(statement))
    }

    /// Sends a statement when first polled, so that of two joined futures the first is run first.
    pub(super) async fn rows(
        &self,
        statement: &Prepared<'_>,
        params: Params<'_>,
    ) -> Result<RowStream, Error> {
        match statement {
            Prepared::Kept(statement) => {
                let values = params.into_iter().map(|(value, _)| value);
                self.client().query_raw(statement, values).await
            }
            Prepared::Text(text) => self.client().query_typed_raw(text, params).await,
        }
    }

    /// Prepares and runs a query of few rows.
    pub(super) async fn query(&self, text: &str, params: Params<'_>) -> Result<Vec<Row>, Error> {
        match self.prepare(text, &params).await? {
            Prepared::Kept(statement) => {
                let values: Vec<_> = params.into_iter().map(|(value, _)| value).collect();
                self.client().query(&statement, &values).await
            }
            Prepared::Text(text) => self.client().query_typed(text, &params).await,
        }
    }

    /// Prepares and runs a statement; the number of rows it changed.
    pub(super) async fn execute(&self, text: &str, params: Params<'_>) -> Result<u64, Error> {
        match self.prepare(text, &params).await? {
            Prepared::Kept(statement) => {
                let values: Vec<_> = params.into_iter().map(|(value, _)| value).collect();
                self.client().execute(&statement, &values).await
            }
            Prepared::Text(text) => self.client().execute_typed(text, &params).await,
        }
    }
}

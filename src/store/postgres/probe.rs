//! What `check` asks the database: facts, no judgement.

use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::error::{StoreError, StoreErrorKind};
use super::inspect::{self, Capabilities};
use super::mapping::{AfterPublish, Field, literal};
use super::{Database, migrate};

/// Facts about the server and the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// `server_version_num`, such as 150018.
    pub version: i32,
    /// `server_version`, for people.
    pub version_text: String,
    /// The server is a standby.
    pub in_recovery: bool,
    /// Sessions are read-only by default.
    pub read_only: bool,
    /// The role that logged in.
    pub role: String,
    /// The database.
    pub database: String,
    /// Address and port of the server, as it knows them itself; `None` on a Unix socket.
    pub address: Option<String>,
    /// The TLS version in use, if any (as the server sees it, which behind a pooler is not our connection).
    pub tls: Option<String>,
    /// `max_connections`.
    pub max_connections: i32,
    /// `max_prepared_transactions`: above zero, services may use two-phase commit, which the wake-up trigger forbids.
    pub max_prepared_transactions: i32,
    /// True when connections were seen to share sessions: a transaction pooler sits in between, and LISTEN cannot work.
    /// A pooler with many idle sessions may go unnoticed.
    pub pooled: bool,
    /// Age in seconds of the oldest transaction of this database that this role may see, prepared ones included.
    pub oldest_transaction: Option<i64>,
    /// Seconds the database's clock is ahead of ours.
    pub clock_ahead: i64,
    /// Version of the schema `outrigger`; `None`: not migrated, or hidden from this role.
    pub schema_version: Option<i32>,
}

/// Facts about the outbox table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableFacts {
    /// The mapped columns: the setting that names each, its name, and its type.
    pub columns: Vec<(String, String, String)>,
    /// What the table allows.
    pub capabilities: Capabilities,
    /// Registered with `outrigger.attach`.
    pub registered: bool,
    /// The wake-up trigger is installed and enabled.
    pub trigger: bool,
    /// A usable index begins with the order column (or, without one, with `hashtextextended(id::text, 0)`).
    pub order_index: bool,
    /// A partial index covers the pending rows alone; without a published column none is needed.
    pub pending_index: bool,
    /// The order column's sequence hands out numbers in blocks (CACHE above 1), which breaks the order.
    pub sequence_cached: bool,
    /// Publications for which the server refuses to mark or delete rows: the table has no replica identity.
    pub unidentified: Vec<String>,
    /// GRANT statements that are missing for the role logged in.
    pub missing_grants: Vec<String>,
}

impl Database {
    /// Why the last connection is not encrypted although TLS was tried first, as `sslmode=prefer` allows. `None`: it is
    /// encrypted, or was not meant to be, or the server offers no TLS.
    pub fn tls_fallback(&self) -> Option<String> {
        self.connector.fallback()
    }

    /// Asks about server and session.
    pub async fn server_facts(&self) -> Result<ServerFacts, StoreError> {
        let mut lease = self.lease().await?;
        let client = lease.client();
        let result = timeout(self.timeout, async {
            let (other, connection) = self.connector.open().await?;
            let driver = tokio::spawn(connection);
            let facts = server(client, &other).await;
            drop(other);
            driver.abort();
            facts
        })
        .await;
        lease.finish(result)
    }

    /// Asks about the table. Fails if it does not fit the mapping.
    pub async fn table_facts(&self) -> Result<TableFacts, StoreError> {
        let mut lease = self.lease().await?;
        let client = lease.client();
        let result = timeout(self.timeout, table(client, self)).await;
        lease.finish(result)
    }
}

async fn server(client: &Client, other: &Client) -> Result<ServerFacts, StoreError> {
    let row = client
        .query_typed_one(
            "select current_setting('server_version_num')::int4, current_setting('server_version'), pg_is_in_recovery(), \
               current_setting('default_transaction_read_only')::bool, current_user::text, current_database()::text, \
               (select s.version from pg_stat_ssl s where s.pid = pg_backend_pid() and s.ssl), \
               current_setting('max_connections')::int4, current_setting('max_prepared_transactions')::int4, \
               clock_timestamp(), \
               (select extract(epoch from clock_timestamp() - min(t.began))::int8 from ( \
                  select a.xact_start from pg_stat_activity a where a.datname = current_database() \
                    and a.backend_type = 'client backend' and a.pid <> pg_backend_pid() \
                  union all select p.prepared from pg_prepared_xacts p where p.database = current_database() \
                ) t (began)), \
               host(inet_server_addr()) || ':' || inet_server_port()",
            &[],
        )
        .await?;
    let server_clock: jiff::Timestamp = row.try_get(9)?;
    Ok(ServerFacts {
        version: row.try_get(0)?,
        version_text: row.try_get(1)?,
        in_recovery: row.try_get(2)?,
        read_only: row.try_get(3)?,
        role: row.try_get(4)?,
        database: row.try_get(5)?,
        tls: row.try_get(6)?,
        max_connections: row.try_get(7)?,
        max_prepared_transactions: row.try_get(8)?,
        pooled: shares_sessions(client, other).await?,
        clock_ahead: server_clock.as_second() - jiff::Timestamp::now().as_second(),
        oldest_transaction: row.try_get(10)?,
        address: row.try_get(11)?,
        schema_version: migrate::version(client).await?,
    })
}

/// Rounds of questions that tell a pooler: one that hands out idle sessions by chance shows itself in most of them.
const ROUNDS: usize = 3;

/// Whether two connections, both open all the time, were served by one session, or one connection by two: both
/// impossible without a transaction pooler in between.
///
/// They are asked in turns, each question a transaction of its own. So neither ever holds a session while it waits for
/// another, which in a small or busy pool would take the service's last one. A pooler with many idle sessions may go
/// unnoticed.
pub(super) async fn shares_sessions(one: &Client, other: &Client) -> Result<bool, StoreError> {
    let mut seen: [Option<i32>; 2] = [None, None];
    for round in 0..ROUNDS {
        // One, other, other, one: a pooler that goes round its sessions never shows each the same.
        let turn = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for who in turn {
            let client = [one, other][who];
            let row = client
                .query_typed_one("select pg_backend_pid()", &[])
                .await?;
            let pid: i32 = row.try_get(0)?;
            if seen[who].replace(pid).is_some_and(|before| before != pid)
                || seen[1 - who] == Some(pid)
            {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

async fn table(client: &Client, database: &Database) -> Result<TableFacts, StoreError> {
    let table = inspect::inspect(client, database.mapping()).await?;
    let registered = match client
        .query_typed_one(
            "select exists (select from outrigger.outboxes where outbox = $1)",
            &[(&table.name, Type::TEXT)],
        )
        .await
        .map_err(StoreError::from)
    {
        Ok(row) => row.try_get(0)?,
        // Not migrated, or hidden; the missing grants tell which.
        Err(error)
            if matches!(
                error.kind(),
                StoreErrorKind::Schema | StoreErrorKind::Permission
            ) =>
        {
            false
        }
        Err(error) => return Err(error),
    };
    let order = table.column(Field::Seq).map(|column| column.name.clone());
    let first_column = match &order {
        Some(_) => {
            "(select attname::text = $1 from pg_attribute where attrelid = i.indrelid and attnum = i.indkey[0])"
        }
        None => {
            "(i.indkey[0] = 0 and $1 is null and pg_get_indexdef(i.indexrelid, 1, true) like '%hashtextextended(%')"
        }
    };
    let class = table.regclass();
    let text = format!(
        "select exists (select from pg_trigger t where t.tgrelid = {class} and t.tgname = 'outrigger_wake_up' \
             and t.tgenabled <> 'D') as trigger, \
           exists (select from pg_index i where i.indrelid = {class} and i.indisvalid and i.indpred is null \
             and {first_column}) as order_index, \
           exists (select from pg_index i where i.indrelid = {class} and i.indisvalid and i.indpred is not null \
             and {first_column} and pg_get_expr(i.indpred, i.indrelid) like '%' || $2 || '%') as pending_index, \
           coalesce((select s.seqcache > 1 from pg_sequence s \
             where s.seqrelid = pg_get_serial_sequence({}, $1)::regclass), false) as cached",
        literal(&table.name)
    );
    let published = table
        .column(Field::PublishedAt)
        .map(|column| column.name.clone());
    let row = client
        .query_typed_one(&text, &[(&order, Type::TEXT), (&published, Type::TEXT)])
        .await?;
    Ok(TableFacts {
        registered,
        trigger: row.try_get("trigger")?,
        order_index: row.try_get("order_index")?,
        pending_index: published.is_none() || row.try_get("pending_index")?,
        sequence_cached: row.try_get("cached")?,
        unidentified: unidentified(client, &table).await?,
        missing_grants: missing_grants(client, &table).await?,
        columns: table
            .columns
            .iter()
            .map(|(field, column)| {
                (
                    field.setting(),
                    column.name.clone(),
                    column.type_name.clone(),
                )
            })
            .collect(),
        capabilities: table.capabilities(),
    })
}

/// Publications of updates or deletes that cover the table, if it or a partition of it has no replica identity.
/// Retention deletes what was marked, so both matter then.
async fn unidentified(client: &Client, table: &inspect::Table) -> Result<Vec<String>, StoreError> {
    let refused = match table.after_publish {
        AfterPublish::Mark => "(p.pubupdate or p.pubdelete)",
        AfterPublish::Delete => "p.pubdelete",
    };
    let text = format!(
        "with recursive tree as (select {class}::oid as oid union \
           select i.inhrelid from pg_inherits i join tree on i.inhparent = tree.oid) \
         select distinct p.pubname::text from pg_publication p \
           join pg_publication_tables t on t.pubname = p.pubname \
           join pg_namespace n on n.nspname = t.schemaname \
           join pg_class c on c.relnamespace = n.oid and c.relname = t.tablename \
         where {refused} and c.oid in (select oid from tree) and exists (select from pg_class m \
           where m.oid in (select oid from tree) and m.relkind = 'r' and case m.relreplident \
             when 'f' then false \
             when 'd' then not exists (select from pg_index i where i.indrelid = m.oid and i.indisprimary) \
             when 'i' then not exists (select from pg_index i where i.indrelid = m.oid and i.indisreplident) \
             else true end) order by 1",
        class = table.regclass()
    );
    let rows = client.query_typed(&text, &[]).await?;
    let names = rows.iter().map(|row| row.try_get(0));
    Ok(names.collect::<Result<_, _>>()?)
}

async fn missing_grants(
    client: &Client,
    table: &inspect::Table,
) -> Result<Vec<String>, StoreError> {
    let class = table.regclass();
    let mark = table
        .column(Field::PublishedAt)
        .filter(|_| table.after_publish == AfterPublish::Mark);
    let mut wanted = vec![
        (
            format!("has_table_privilege({class}, 'select')"),
            format!("grant select on {}", table.name),
        ),
        (
            format!("has_table_privilege({class}, 'delete')"),
            format!("grant delete on {}", table.name),
        ),
    ];
    if let Some(column) = mark {
        wanted.push((
            format!(
                "has_column_privilege({class}, {}, 'update')",
                literal(&column.name)
            ),
            format!(
                "grant update ({}) on {}",
                super::mapping::quote(&column.name),
                table.name
            ),
        ));
    }
    // Names are resolved only where they exist and may be looked up.
    let row = client
        .query_typed_one(
            "select n.oid is not null, coalesce(has_schema_privilege(n.oid, 'usage'), false) \
             from (values (1)) one left join pg_namespace n on n.nspname = 'outrigger'",
            &[],
        )
        .await?;
    let (exists, usage): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    let mut missing = Vec::new();
    if exists && !usage {
        missing.push("grant usage on schema outrigger".to_owned());
    }
    if exists && usage {
        for (tables, privileges) in [
            (&["migrations"][..], &["select"][..]),
            (&["outboxes"], &["select", "update"]),
            (
                &["replicas", "partitions", "failures"],
                &["select", "insert", "update", "delete"],
            ),
        ] {
            for (name, privilege) in tables
                .iter()
                .flat_map(|t| privileges.iter().map(move |p| (t, p)))
            {
                wanted.push((
                    format!("coalesce(has_table_privilege(to_regclass('outrigger.{name}'), '{privilege}'), true)"),
                    format!("grant {privilege} on outrigger.{name}"),
                ));
            }
        }
    }
    if exists && usage {
        for privilege in ["select", "update"] {
            let sequence = format!("to_regclass({})", literal(&table.awake));
            wanted.push((
                format!("coalesce(has_sequence_privilege({sequence}, '{privilege}'), true)"),
                format!("grant {privilege} on sequence {}", table.awake),
            ));
        }
    }
    let role: String = client
        .query_typed_one("select quote_ident(current_user)", &[])
        .await?
        .try_get(0)?;
    let checks: Vec<&str> = wanted.iter().map(|(check, _)| check.as_str()).collect();
    let row = client
        .query_typed_one(&format!("select array[{}]", checks.join(", ")), &[])
        .await?;
    let granted: Vec<bool> = row.try_get(0)?;
    missing.extend(
        wanted
            .into_iter()
            .zip(granted)
            .filter(|(_, ok)| !ok)
            .map(|((_, grant), _)| grant),
    );
    Ok(missing
        .into_iter()
        .map(|grant| format!("{grant} to {role}"))
        .collect())
}

//! What `check` asks the database: facts, no judgement.

use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::error::{StoreError, StoreErrorKind};
use super::inspect::{self, Capabilities};
use super::mapping::{AfterPublish, Field, literal, quote};
use super::mark::Mark;
use super::session::begin;
use super::sql::Sql;
use super::trial::{self, SettleFacts};
use super::{Database, migrate, misfit, security};

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
    /// Whose connections are limited besides, as `role x` or `database y`, and how many may be open. Superusers are exempt.
    pub connection_limits: Vec<(String, i32)>,
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
    /// The wake-up trigger of this table is installed and enabled.
    pub trigger: bool,
    /// Roles that may write events and not read the promise to poll, so that each of their inserts notifies; a few of them.
    pub writers_in_the_dark: Vec<String>,
    /// The sequence that holds that promise.
    pub awake: String,
    /// The order column's sequence is behind the highest number in the table: last value and highest number.
    pub sequence_behind: Option<(i64, i64)>,
    /// A usable index begins with the order column (or, without one, with `hashtextextended(id::text, 0)`).
    pub order_index: bool,
    /// The relay's reads can use an index of the pending rows alone; without a published column none is needed.
    pub pending_index: bool,
    /// The statements that create the indexes that are missing.
    pub missing_indexes: Vec<String>,
    /// Columns that are not mapped and look as if they should be: the setting, and the column.
    pub looks_like: Vec<(String, String)>,
    /// The order column's sequence hands out numbers in blocks (CACHE above 1), which breaks the order.
    pub sequence_cached: bool,
    /// Publications for which the server refuses to mark or delete rows: the table has no replica identity.
    pub unidentified: Vec<String>,
    /// Pending rows whose order number is null, up to a limit; they are never read.
    pub unnumbered: i64,
    /// GRANT statements that are missing for the role logged in.
    pub missing_grants: Vec<String>,
    /// Whether a row can be settled.
    pub settling: SettleFacts,
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
               host(inet_server_addr()) || ':' || inet_server_port(), \
               (select r.rolconnlimit from pg_roles r where r.rolname = session_user and not r.rolsuper), \
               'role ' || quote_ident(session_user), \
               (select d.datconnlimit from pg_database d join pg_roles r on r.rolname = session_user \
                  where d.datname = current_database() and not r.rolsuper), \
               'database ' || quote_ident(current_database())",
            &[],
        )
        .await?;
    let server_clock: jiff::Timestamp = row.try_get(9)?;
    let mut limits = Vec::new();
    for column in [12, 14] {
        let limit: Option<i32> = row.try_get(column)?;
        // Negative: none.
        if let Some(limit) = limit.filter(|limit| *limit >= 0) {
            limits.push((row.try_get(column + 1)?, limit));
        }
    }
    Ok(ServerFacts {
        version: row.try_get(0)?,
        version_text: row.try_get(1)?,
        in_recovery: row.try_get(2)?,
        read_only: row.try_get(3)?,
        role: row.try_get(4)?,
        database: row.try_get(5)?,
        tls: row.try_get(6)?,
        max_connections: row.try_get(7)?,
        connection_limits: limits,
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

async fn table(client: &mut Client, database: &Database) -> Result<TableFacts, StoreError> {
    let table = inspect::inspect(client, database.mapping()).await?;
    security::check(client, &table).await?;
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
             and t.tgenabled in ('O', 'A') and strpos(pg_get_triggerdef(t.oid), {channel}) > 0 \
             and strpos(pg_get_triggerdef(t.oid), 'has_sequence_privilege') > 0) as trigger, \
           array(select quote_ident(r.rolname) from pg_roles r, pg_class c \
             join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'outrigger' and c.relname = {awake} \
               and c.relkind = 'S' and not starts_with(r.rolname, 'pg_') \
               and (has_table_privilege(r.oid, {class}, 'insert') or has_any_column_privilege(r.oid, {class}, 'insert')) \
               and not has_sequence_privilege(r.oid, c.oid, 'select, usage') order by 1 limit 5) as in_the_dark, \
           exists (select from pg_index i where i.indrelid = {class} and i.indisvalid and i.indpred is null \
             and {first_column}) as order_index, \
           coalesce((select s.seqcache > 1 from pg_sequence s \
             where s.seqrelid = pg_get_serial_sequence({}, $1)::regclass), false) as cached",
        literal(&table.name),
        channel = literal(&format!("wake_up({})", literal(&table.channel))),
        awake = literal(&table.awake_name),
    );
    let row = client
        .query_typed_one(&text, &[(&order, Type::TEXT)])
        .await?;
    let order_index: bool = row.try_get("order_index")?;
    let missing_grants = missing_grants(client, &table).await?;
    // Without privileges the planner cannot be asked.
    let pending_index = !table.has_mark()
        || !missing_grants.is_empty()
        || uses_partial_index(client, &table).await?;
    let unidentified = unidentified(client, &table).await?;
    Ok(TableFacts {
        registered,
        trigger: row.try_get("trigger")?,
        writers_in_the_dark: row.try_get("in_the_dark")?,
        awake: table.awake.clone(),
        sequence_behind: match order_index {
            true => sequence_behind(client, &table).await?,
            // Without an index the whole table would have to be read.
            false => None,
        },
        order_index,
        pending_index,
        missing_indexes: missing_indexes(&table, order_index, pending_index),
        looks_like: looks_like(client, database, &table).await?,
        sequence_cached: row.try_get("cached")?,
        settling: {
            let allowed = missing_grants.is_empty() && unidentified.is_empty();
            trial::facts(client, &table, allowed).await?
        },
        unidentified,
        unnumbered: match missing_grants.is_empty() {
            true => unnumbered(client, &table).await?,
            false => 0,
        },
        missing_grants,
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
        "with tree (oid) as ({tree}) \
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
        tree = table.tree()
    );
    let rows = client.query_typed(&text, &[]).await?;
    let names = rows.iter().map(|row| row.try_get(0));
    Ok(names.collect::<Result<_, _>>()?)
}

/// Counts pending rows that have no number.
async fn unnumbered(client: &Client, table: &inspect::Table) -> Result<i64, StoreError> {
    let sql = Sql::new(table, false);
    if sql.numbered.is_none() {
        return Ok(0);
    }
    let text = format!(
        "select count(*) from (select from {} o where {} is null and {} limit 1000) unnumbered",
        sql.table, sql.seq, sql.pending
    );
    Ok(client.query_typed_one(&text, &[]).await?.try_get(0)?)
}

/// Whether the planner finds an index of the pending rows for what the relay asks. It alone knows which conditions follow from
/// which.
async fn uses_partial_index(
    client: &mut Client,
    table: &inspect::Table,
) -> Result<bool, StoreError> {
    let sql = Sql::new(table, false);
    let order = match sql.has_order {
        true => format!("order by {}", sql.seq),
        false => String::new(),
    };
    let question = format!(
        "explain (costs off, format json) select from {} o where {} {order} limit 1",
        sql.table, sql.pending
    );
    let transaction = begin(client).await?;
    transaction
        .batch_execute(
            "set local enable_seqscan = off; set local enable_bitmapscan = off; set local enable_sort = off",
        )
        .await?;
    let plan: serde_json::Value = transaction
        .query_typed_one(&question, &[])
        .await?
        .try_get(0)?;
    let mut names = Vec::new();
    index_names(&plan, &mut names);
    let row = transaction
        .query_typed_one(
            "select exists (select from pg_class c join pg_index i on i.indexrelid = c.oid \
               where c.relname = any($1) and i.indpred is not null)",
            &[(&names, Type::TEXT_ARRAY)],
        )
        .await?;
    Ok(row.try_get(0)?)
}

fn index_names(plan: &serde_json::Value, names: &mut Vec<String>) {
    match plan {
        serde_json::Value::Object(members) => {
            for (name, value) in members {
                match value.as_str() {
                    Some(index) if name == "Index Name" => names.push(index.to_owned()),
                    _ => index_names(value, names),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|v| index_names(v, names)),
        _ => {}
    }
}

fn missing_indexes(table: &inspect::Table, order_index: bool, pending_index: bool) -> Vec<String> {
    let id = || table.column(Field::Id).map_or("id", |id| &id.name);
    let (by_order, any) = match table.column(Field::Seq) {
        Some(seq) => (quote(&seq.name), quote(&seq.name)),
        None => (
            format!("hashtextextended({}::text, 0)", quote(id())),
            quote(id()),
        ),
    };
    let mut statements = Vec::new();
    if !order_index {
        statements.push(format!(
            "create index concurrently on {} ({by_order});",
            table.name
        ));
    }
    if !pending_index {
        statements.push(format!(
            "create index concurrently on {} ({any}) where {};",
            table.name,
            Mark::of(table).index_condition()
        ));
    }
    statements
}

/// What an event could carry and does not.
async fn looks_like(
    client: &Client,
    database: &Database,
    table: &inspect::Table,
) -> Result<Vec<(String, String)>, StoreError> {
    let found = inspect::columns(client, table).await?;
    let mapped = |name: &str| table.columns.values().any(|column| column.name == name);
    let mut alike = Vec::new();
    for field in [Field::Data, Field::Key, Field::CreatedAt] {
        let has = |field| table.column(field).is_some();
        if has(field)
            || database.mapping().left_out.contains(&field)
            || field == Field::Data && has(Field::DataBinary)
        {
            continue;
        }
        let usual = misfit::usual(field, &found);
        if let Some(name) = usual.into_iter().find(|name| !mapped(name)) {
            alike.push((field.setting(), name));
        }
    }
    Ok(alike)
}

/// Restores and replication of the data alone leave the sequence behind. Nothing if this role may not read it.
async fn sequence_behind(
    client: &Client,
    table: &inspect::Table,
) -> Result<Option<(i64, i64)>, StoreError> {
    let Some(order) = table.column(Field::Seq) else {
        return Ok(None);
    };
    // Privileges first: a query that names what may not be read is refused as a whole.
    let sequence = format!(
        "select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
           join pg_sequence s on s.seqrelid = c.oid \
         where c.oid = pg_get_serial_sequence({}, {})::regclass and s.seqincrement > 0 \
           and has_sequence_privilege(c.oid, 'select, usage') and has_table_privilege({}, 'select')",
        literal(&table.name),
        literal(&order.name),
        table.regclass(),
    );
    let Some(sequence) = client.query_typed_opt(&sequence, &[]).await? else {
        return Ok(None);
    };
    let text = format!(
        "select last, highest from (select coalesce(pg_sequence_last_value({}::regclass), 0) as last, \
           (select max(o.{})::int8 from {} o) as highest) found where highest > last",
        literal(sequence.try_get(0)?),
        quote(&order.name),
        table.name,
    );
    match client.query_typed_opt(&text, &[]).await? {
        Some(row) => Ok(Some((row.try_get(0)?, row.try_get(1)?))),
        None => Ok(None),
    }
}

async fn missing_grants(
    client: &Client,
    table: &inspect::Table,
) -> Result<Vec<String>, StoreError> {
    let class = table.regclass();
    let marks = [Field::PublishedAt, Field::Status]
        .into_iter()
        .filter(|_| table.after_publish == AfterPublish::Mark)
        .filter_map(|field| table.column(field));
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
    for column in marks {
        wanted.push((
            format!(
                "has_column_privilege({class}, {}, 'update')",
                literal(&column.name)
            ),
            format!("grant update ({}) on {}", quote(&column.name), table.name),
        ));
    }
    // By their number in the catalog: a name is resolved only for a role that may look into the schema, and everything
    // that is missing shall be told at once.
    let relation = |name: &str| {
        format!(
            "(select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace \
               where n.nspname = 'outrigger' and c.relname = {})",
            literal(name)
        )
    };
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
    if exists {
        for (tables, privileges) in [
            (&["migrations"][..], &["select"][..]),
            (&["outboxes"], &["select", "update"]),
            (&["parked"], &["select", "insert", "delete"]),
            (
                &["replicas", "partitions", "failures", "unpublished"],
                &["select", "insert", "update", "delete"],
            ),
        ] {
            for (name, privilege) in tables
                .iter()
                .flat_map(|t| privileges.iter().map(move |p| (t, p)))
            {
                wanted.push((
                    format!(
                        "coalesce(has_table_privilege({}, '{privilege}'), true)",
                        relation(name)
                    ),
                    format!("grant {privilege} on outrigger.{name}"),
                ));
            }
        }
    }
    if exists {
        for privilege in ["select", "update"] {
            let sequence = relation(&table.awake_name);
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

//! Row-level security: whether policies may hide rows from this role.
//!
//! A hidden row is not an error: a read does not bring it, and a settle does not change it. So nothing can be learned
//! from how a statement ends, and `set row_security = off` would not last behind a transaction pooler. The catalog tells,
//! whatever is in between.
//!
//! Only the parent's policies count for a table that is read by its parent's name, so children are not asked.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::error::StoreError;
use super::inspect::Table;
use super::mapping::literal;

/// Our own tables, each with what the relay does to it, as `pg_policy.polcmd` spells it.
const OURS: [(&str, &[&str]); 7] = [
    ("migrations", &["r"]),
    ("outboxes", &["r", "w"]),
    ("replicas", &["r", "a", "w", "d"]),
    ("partitions", &["r", "a", "w", "d"]),
    ("failures", &["r", "a", "w", "d"]),
    ("unpublished", &["r", "a", "w", "d"]),
    ("parked", &["r", "a", "d"]),
];

/// Whether policies apply to this role at all, as a cheap expression: it asks the server's caches alone.
pub(super) fn applies(table: &Table) -> String {
    let ours = OURS.map(|(name, _)| format!("'outrigger.{name}'::regclass"));
    let all = [table.regclass()].into_iter().chain(ours);
    let active: Vec<String> = all
        .map(|class| format!("row_security_active({class}::oid)"))
        .collect();
    format!("({})", active.join(" or "))
}

/// Fails if policies may hide rows from this role. Policies that let the role see and change every row are as good as
/// none, if that can be told from their text: `true`, and no restrictive policy besides.
pub(super) async fn check(client: &Client, table: &Table) -> Result<(), StoreError> {
    const COMMANDS: [&str; 3] = ["r", "w", "d"];
    let (mut names, mut commands) = (Vec::new(), Vec::new());
    for command in COMMANDS {
        names.push(table.name.clone());
        commands.push(command);
    }
    for (name, wanted) in OURS {
        for command in wanted {
            names.push(format!("outrigger.{name}"));
            commands.push(command);
        }
    }
    let rows = client
        .query_typed(
            &hidden(table),
            &[(&names, Type::TEXT_ARRAY), (&commands, Type::TEXT_ARRAY)],
        )
        .await?;
    let Some(row) = rows.first() else {
        return Ok(());
    };
    let (name, role, commands): (&str, &str, &str) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    Err(StoreError::schema(format!(
        "row-level security of table {name} may hide rows from role {role} ({commands}), and hidden events would wait \
         for ever: `alter role {role} bypassrls` (as a superuser), or let the role own the table (without FORCE ROW LEVEL \
         SECURITY), or `create policy outrigger on {name} to {role} using (true) with check (true)` where no restrictive \
         policy applies to it"
    )))
}

/// Tables and what policies may keep this role from doing to some of their rows.
fn hidden(table: &Table) -> String {
    // An omitted list of roles means everybody, which is role 0.
    const FOR_US: &str = "p.polrelid = t.class and p.polcmd in ('*', t.command) and exists (select from unnest(p.polroles) r \
         where case when r = 0 then true else pg_has_role(r, 'usage') end)";
    const USING: &str = "pg_get_expr(p.polqual, p.polrelid)";
    const CHECK: &str = "pg_get_expr(p.polwithcheck, p.polrelid)";
    format!(
        "with wanted as (select * from unnest($1, $2) as w (name, command)), \
         t as (select w.name, w.command, c.oid as class from wanted w join pg_class c \
             on c.oid = case when w.name = {outbox} then {class}::oid end \
           union all select w.name, w.command, c.oid from wanted w join pg_class c on w.name = 'outrigger.' || c.relname \
             join pg_namespace n on n.oid = c.relnamespace and n.nspname = 'outrigger'), \
         h as (select t.name, t.command from t where row_security_active(t.class) and ( \
             not exists (select from pg_policy p where {FOR_US} and p.polpermissive \
               and (t.command = 'a' or {USING} = 'true') \
               and (t.command in ('r', 'd') or coalesce({CHECK}, {USING}) = 'true')) \
             or exists (select from pg_policy p where {FOR_US} and not p.polpermissive \
               and not (coalesce({USING}, 'true') = 'true' and coalesce({CHECK}, 'true') = 'true')))) \
         select name, quote_ident(current_user), string_agg(case command when 'r' then 'select' when 'a' then 'insert' \
             when 'w' then 'update' else 'delete' end, ', ' order by strpos('rawd', command)) \
         from h group by name order by name = {outbox} desc, name limit 1",
        outbox = literal(&table.name),
        class = table.regclass(),
    )
}

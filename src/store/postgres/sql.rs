//! The statements whose text depends on the mapping, built once per connect.
//!
//! Their texts vary little, so that sessions can keep them; what varies is a parameter. Our own tables are addressed
//! by the outbox's name as a constant.

use std::time::Duration;

use super::inspect::{Kind, Table};
use super::mapping::{AfterPublish, Field, literal, quote};
use super::mark::Mark;
use super::select::{self, Select};

/// Fragments and statements for one outbox table.
#[derive(Debug)]
pub(super) struct Sql {
    /// `"schema"."table"`.
    pub(super) table: String,
    /// The outbox's name as a constant.
    pub(super) outbox: String,
    /// The order column, raw, for comparisons an index can serve; or the identity hash.
    pub(super) seq: String,
    /// Whether `seq` is a real column, so that bounds and order mean something.
    pub(super) has_order: bool,
    /// True for rows that have a number, where the order column may be null: one without cannot be told from others.
    pub(super) numbered: Option<String>,
    /// Placement hash.
    pub(super) hash: String,
    /// True for rows not published yet.
    pub(super) pending: String,
    /// True for published rows.
    pub(super) published: String,
    /// The delay column and the current time in its type.
    pub(super) available: Option<(String, String)>,
    /// Everything a [`Record`](crate::event::Record) needs but its failure counts.
    pub(super) select: Select,
    /// Attempts and crashes of a row that may be a suspect, packed.
    pub(super) counts: String,
    /// True for rows without a failure record that holds them up.
    pub(super) not_failing: String,
    /// True for rows whose key is not parked.
    pub(super) not_parked: String,
    /// True for rows that are not given up, and not published without being settled.
    pub(super) not_dead: String,
    /// Joins `outrigger.failures f` to its row `o`: by number and id, since a number may be drawn again for another event.
    pub(super) failure_join: String,
    /// Tells servers and tables apart, see [`Holders::source`](crate::store::Holders::source).
    pub(super) source: String,
    /// The sequence that holds the promise to poll, as a constant.
    pub(super) awake: String,
    /// For how many microseconds more polling is promised; never negative.
    pub(super) awake_for: String,
    /// Who may still insert.
    pub(super) holders: String,
    /// The id as a [`Record`](crate::event::Record) has it.
    pub(super) id_text: String,
    /// The type and the key, for our own records.
    type_text: String,
    key_text: String,
    /// What is before and after the condition on the rows to settle.
    settle_around: (String, String),
    /// True if AFTER triggers exist, which may undo a settle.
    undone: String,
    /// True for a row that was settled, as its triggers left it.
    pub(super) over: String,
    /// Rows are marked, not deleted.
    pub(super) marks: bool,
}

/// The current time in a column's type.
pub(super) fn now(kind: Kind) -> &'static str {
    match kind {
        Kind::Timestamp => "(now() at time zone 'UTC')",
        _ => "now()",
    }
}

/// Milliseconds since 1970, the unit of the promise to poll.
pub(super) const NOW_MS: &str = "(extract(epoch from clock_timestamp()) * 1000)::int8";

/// The end of the year 9999 in that unit: what is later was set by hand, and would not fit.
const NEVER_MS: &str = "253402300799000";

/// A pattern of people, in which only `*` is special, as a pattern of LIKE.
pub(super) fn like(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    for c in pattern.chars() {
        match c {
            '*' => out.push('%'),
            '%' | '_' | '\\' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

impl Sql {
    /// `total`: all rows are one ordered sequence, whatever their key.
    pub(super) fn new(t: &Table, total: bool) -> Self {
        let outbox = literal(&t.name);
        let order = t.sql(Field::Seq);
        let id = t.sql(Field::Id).unwrap_or_default();
        let identity = format!("hashtextextended({id}::text, 0)");
        let seq = order.clone().unwrap_or_else(|| identity.clone());
        let hash = match t.sql(Field::Key) {
            _ if total => "0::int8".to_owned(),
            Some(key) => format!(
                "coalesce(hashtextextended({key}::text, 0), hashint8extended({seq}::int8, 0))"
            ),
            None => format!("hashint8extended({seq}::int8, 0)"),
        };
        let mark = Mark::of(t);
        let available = t.column(Field::AvailableAt).map(|column| {
            (
                format!("o.{}", quote(&column.name)),
                now(column.kind).to_owned(),
            )
        });
        let select = Select::new(t, &seq, &hash, total);
        // The first EXISTS is evaluated once per statement, so healthy outboxes pay nothing per row. Under
        // OR, the planner keeps the second one as a probe per row instead of a join, which would have to sort.
        // A suspect is read in its place: only its crash count matters.
        let any = format!("exists (select from outrigger.failures f where f.outbox = {outbox})");
        // A record says nothing about another event with the same number.
        let (id_text, _) = select::id(t);
        let row = format!(
            "from outrigger.failures f where f.outbox = {outbox} and f.seq = {seq} and f.event_id = {id_text}"
        );
        let not_failing =
            format!("(not {any} or not exists (select {row} and f.state <> 'suspect'))");
        // In the same way, this costs nothing per row while no key is parked, which is the normal case.
        let parked = format!("from outrigger.parked p where p.outbox = {outbox}");
        let not_parked = format!(
            "(not exists (select {parked}) or not exists (select {parked} and p.hash = {hash}))"
        );
        let not_dead = format!(
            "(not {any} or not exists (select {row} and f.state in ('dead', 'unsettled')))"
        );
        let counts =
            format!("case when {any} then (select (f.attempts::int8 << 32) | f.crashes {row}) end");
        let failure_join = match (&order, t.column(Field::Id)) {
            (None, Some(column)) if column.type_name == "uuid" => {
                format!("{id} = f.event_id::uuid")
            }
            (None, Some(column)) if column.type_name == "text" => format!("{id} = f.event_id"),
            _ => format!("{seq} = f.seq and {id_text} = f.event_id"),
        };
        let awake = format!("{}::regclass", literal(&t.awake));
        let marks = t.after_publish == AfterPublish::Mark && !mark.set.is_empty();
        Self {
            over: if marks {
                format!("not ({})", mark.pending)
            } else {
                "true".into()
            },
            marks,
            awake_for: format!(
                "1000 * greatest(0, least(coalesce(pg_sequence_last_value({awake}), 0), {NEVER_MS}) - {NOW_MS})"
            ),
            awake,
            holders: holders(t),
            settle_around: settle(t, &mark),
            undone: runs_after(t, marks),
            source: source(t),
            id_text,
            type_text: match t.sql(Field::Type) {
                Some(of) => format!("coalesce({of}::text, '')"),
                None => "''".into(),
            },
            key_text: match t.sql(Field::Key) {
                Some(of) => format!("{of}::text"),
                None => "null::text".into(),
            },
            table: t.name.clone(),
            outbox,
            has_order: order.is_some(),
            numbered: t
                .column(Field::Seq)
                .filter(|column| column.nullable)
                .map(|column| format!("o.{} is not null", quote(&column.name))),
            seq,
            hash,
            pending: mark.pending,
            published: mark.published,
            available,
            select,
            counts,
            not_failing,
            not_parked,
            not_dead,
            failure_join,
        }
    }

    /// Rows of one of the given partitions; `owned` is a placeholder for an `int8[]`.
    pub(super) fn in_partitions(hash: &str, count: i32, owned: &str) -> String {
        format!("(({hash} % {count}::int8) + {count}::int8) % {count}::int8 = any({owned})")
    }

    /// Marks or deletes the rows with one of the `seq`s (an array) and one of the ids (a subquery). Rows are found by
    /// `seq`, as an array and not as a join: a plan that merges would walk all dead entries of the index. `is true` keeps
    /// the ids from becoming a join, too: made while the table was small, its plan compares each row with each id.
    pub(super) fn settle_those(&self, seqs: &str, ids: &str) -> String {
        let (head, tail) = &self.settle_around;
        format!(
            "{head} where {} = any({seqs}) and ({} in ({ids})) is true{tail}",
            self.seq, self.id_text
        )
    }

    /// Marks or deletes the rows with `seq` in `$1` and id in `$2`, and nothing else: also where a rule forbids more.
    pub(super) fn settle_plainly(&self) -> String {
        self.settle_those("$1", THOSE)
    }

    /// The same, and returns how many of them are no longer pending, as BEFORE triggers left them, and whether there are
    /// AFTER triggers, which may have changed them again. `patience`: how long to wait for another session's lock.
    pub(super) fn settle(&self, patience: Duration) -> String {
        format!(
            "with done as ({}{} returning {} as over) {}",
            self.settle_plainly(),
            impatient(patience),
            self.over,
            self.how_many()
        )
    }

    /// The settle statement, with the removal of failure records (those of `$3`), if their rows are settled.
    pub(super) fn settle_with_failures(&self, patience: Duration) -> String {
        format!(
            "with done as ({}{} returning {} as over, {}::int8 as seq), cleared as ({}) {}",
            self.settle_plainly(),
            impatient(patience),
            self.over,
            self.seq,
            self.clear_done(),
            self.how_many()
        )
    }

    /// Removes failure records (those of `$3`) of rows that are `done`, or were before.
    fn clear_done(&self) -> String {
        format!(
            "delete from outrigger.failures f where f.outbox = {} and f.seq = any($3) and (f.event_id in ({THOSE})) is true \
             and (f.seq in (select seq from done where over) or {})",
            self.outbox,
            self.row_is_over()
        )
    }

    fn how_many(&self) -> String {
        format!(
            "select count(*) filter (where over), {} from done",
            self.undone
        )
    }

    /// Settles the rows with `seq` in `$1` and id in `$2`, also those that are settled.
    pub(super) fn settle_again(&self) -> String {
        let (head, _) = &self.settle_around;
        format!(
            "{head} where {} = any($1) and ({} in ({THOSE})) is true",
            self.seq, self.id_text
        )
    }

    /// What settles a row.
    pub(super) fn settle_command(&self) -> &'static str {
        if self.marks { "UPDATE" } else { "DELETE" }
    }

    /// `seq` and id of one row, pending or published; locked where settling needs the same privilege anyway.
    pub(super) fn some_row(&self, pending: bool) -> String {
        let kind = if pending {
            &self.pending
        } else {
            &self.published
        };
        let order = match self.has_order {
            true => format!(" order by {}", self.seq),
            false => String::new(),
        };
        let lock = match self.marks {
            true => " for update skip locked",
            false => "",
        };
        let numbered = match &self.numbered {
            Some(numbered) => format!(" and {numbered}"),
            None => String::new(),
        };
        format!(
            "select {}::int8, {} from {} o where {kind}{numbered}{order} limit 1{lock}",
            self.seq, self.id_text, self.table
        )
    }

    /// The settle statement for rows of which some expired (`$4`): that they were not published is recorded, with what is known
    /// of their failures.
    pub(super) fn settle_with_expired(&self, patience: Duration) -> String {
        format!(
            "with done as ({}{} returning {} as over, {}), \
             cleared as ({}), \
             kept as (insert into outrigger.unpublished as u {} from done d {} where d.seq = any($4) {}) {}",
            self.settle_plainly(),
            impatient(patience),
            self.over,
            self.described(),
            self.clear_done(),
            self.ended("d", "'expired'"),
            self.failure_of("d"),
            REPLACE,
            self.how_many()
        )
    }

    /// Records that those of the rows that are pending (`seq` in `$1`, id in `$2`) expire.
    pub(super) fn record_expired(&self) -> String {
        format!(
            "with d as (select {} from {} o where {} = any($1) and ({} in ({THOSE})) is true and {}) \
             insert into outrigger.unpublished as u {} from d {} where true {}",
            self.described(),
            self.table,
            self.seq,
            self.id_text,
            self.pending,
            self.ended("d", "'expired'"),
            self.failure_of("d"),
            REPLACE
        )
    }

    /// What identifies and describes a row, under the names of our own tables.
    pub(super) fn described(&self) -> String {
        format!(
            "{}::int8 as seq, {} as event_id, {} as event_type, {} as key",
            self.seq, self.id_text, self.type_text, self.key_text
        )
    }

    /// Columns and values of records in `outrigger.unpublished` for rows `row`, joined to their failure records `f`.
    pub(super) fn ended(&self, row: &str, state: &str) -> String {
        format!(
            "(outbox, seq, event_id, event_type, key, state, attempts, crashes, reason, error, first_failed_at) \
             select {}, {row}.seq, {row}.event_id, {row}.event_type, {row}.key, {state}, coalesce(f.attempts, 0), \
               coalesce(f.crashes, 0), f.reason, f.error, f.first_failed_at",
            self.outbox
        )
    }

    fn failure_of(&self, row: &str) -> String {
        format!(
            "left join outrigger.failures f on f.outbox = {} and f.seq = {row}.seq and f.event_id = {row}.event_id",
            self.outbox
        )
    }

    /// True for a failure record `f` whose row is not pending any more.
    pub(super) fn row_is_over(&self) -> String {
        format!(
            "not exists (select from {} o where {} and {})",
            self.table, self.failure_join, self.pending
        )
    }

    /// Removes the failure records of those rows, as far as they are settled.
    pub(super) fn clear_settled(&self) -> String {
        format!(
            "delete from outrigger.failures f where f.outbox = {} and f.seq = any($1) \
             and (f.event_id in ({THOSE})) is true and {}",
            self.outbox,
            self.row_is_over()
        )
    }

    /// Those of the rows that are still pending, by `seq`.
    pub(super) fn still_pending(&self) -> String {
        format!(
            "select {0}::int8 from {1} o where {0} = any($1) and ({2} in ({THOSE})) is true and {3}",
            self.seq, self.table, self.id_text, self.pending
        )
    }

    /// The same, without those that somebody else has locked; locks the others.
    pub(super) fn lock_pending(&self) -> String {
        format!("{} for update skip locked", self.still_pending())
    }
}

/// Bits of `pg_trigger.tgtype`.
pub(super) const BEFORE_TRIGGER: i16 = 2;
pub(super) const DELETE_TRIGGER: i16 = 8;
pub(super) const UPDATE_TRIGGER: i16 = 16;

/// True for a trigger `g` that is not ours, does not implement a foreign key, and fires in an ordinary session.
pub(super) const FOREIGN_TRIGGER: &str =
    "not g.tgisinternal and g.tgenabled in ('O', 'A') and g.tgname <> 'outrigger_wake_up'";

/// True if there are triggers of others that run after an update or a delete.
fn runs_after(t: &Table, marks: bool) -> String {
    let event = match marks {
        true => UPDATE_TRIGGER,
        false => DELETE_TRIGGER,
    };
    format!(
        "exists (select from pg_trigger g where g.tgrelid in ({}) and g.tgtype & {event} <> 0 \
         and g.tgtype & {BEFORE_TRIGGER} = 0 and {FOREIGN_TRIGGER})",
        t.tree()
    )
}

/// A condition that is always true and limits how long the statement waits for other sessions' locks. A statement that is
/// slow for any other reason is not cut short. It applies until the transaction ends, so it works through any pooler.
fn impatient(patience: Duration) -> String {
    format!(
        " and (select set_config('lock_timeout', '{}', true)) is not null",
        patience.as_millis().max(1)
    )
}

/// The ids of the rows to settle.
const THOSE: &str = "select unnest($2)";

/// An older record of the same number is that of an event whose row is gone.
pub(super) const REPLACE: &str = "on conflict (outbox, seq) do update set event_id = excluded.event_id, \
     event_type = excluded.event_type, key = excluded.key, state = excluded.state, attempts = excluded.attempts, \
     crashes = excluded.crashes, reason = excluded.reason, error = excluded.error, \
     first_failed_at = excluded.first_failed_at, ended_at = excluded.ended_at, ended_by = excluded.ended_by";

/// Transactions holding a lock that an INSERT into the table takes, with the transaction id if they have one. A
/// transaction with subtransactions holds several ids; the oldest is its own. A prepared transaction has no process; it keeps
/// the name of the session that prepared it until the server restarts, so it is named by its id instead.
fn holders(t: &Table) -> String {
    let relations = match t.has_children {
        true => format!("in ({})", t.tree()),
        false => format!("= {}::oid", t.regclass()),
    };
    format!(
        "with l as materialized (select * from pg_locks where granted and locktype in ('relation', 'transactionid')), \
         h as (select distinct virtualtransaction, pid from l where locktype = 'relation' \
           and database = (select oid from pg_database where datname = current_database()) \
           and relation {relations} \
           and mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')), \
         t as (select h.virtualtransaction, h.pid, (select x.transactionid from l x \
             where x.locktype = 'transactionid' and x.mode = 'ExclusiveLock' \
               and x.virtualtransaction = h.virtualtransaction and x.pid is not distinct from h.pid \
             order by age(x.transactionid) desc limit 1)::text::int8 as xid from h) \
         select case when pid is null then '-1/' || xid else virtualtransaction end, xid from t"
    )
}

/// When the server was started, and the file that holds the table: TRUNCATE, DROP and a swap of tables give it another one.
/// A partitioned table has none of its own.
fn source(t: &Table) -> String {
    format!(
        "{SERVER_START} # (coalesce(pg_relation_filenode(to_regclass({})), 0)::int8 << 32)",
        literal(&t.name)
    )
}

/// Tells servers apart, and a server from itself after a crash. Also behind a pooler, where connections do not.
pub(super) const SERVER_START: &str =
    "(extract(epoch from pg_postmaster_start_time()) * 1000000)::int8";

/// Only rows still pending are marked, so settling twice changes nothing and keeps the first time.
fn settle(t: &Table, mark: &Mark) -> (String, String) {
    let table = &t.name;
    match t.after_publish {
        AfterPublish::Mark if !mark.set.is_empty() => (
            format!("update {table} o set {}", mark.set),
            format!(" and {}", mark.pending),
        ),
        _ => (format!("delete from {table} o"), String::new()),
    }
}

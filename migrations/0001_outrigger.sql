-- 0001: the schema "outrigger".
--
-- Previous binary: there is none, this is the first version of the schema.
--
-- Everything here is cold: rows change once a second or once per failure, never once per batch or per
-- event. Under a snapshot that somebody holds open for hours, a row that is updated per batch leaves
-- thousands of dead versions behind and slows every reader down. Hence the low fill factors (updates
-- stay on their page) and the absence of secondary indexes on anything a heartbeat touches.

create schema if not exists outrigger;
comment on schema outrigger is 'Outrigger, the transactional-outbox relay: leases, failures, wake-up state. Not the events.';

create table outrigger.migrations (
    version     int primary key,
    name        text not null,
    checksum    text not null,
    applied_at  timestamptz not null default now()
);

create table outrigger.outboxes (
    outbox            text primary key,
    -- Set by the first relay that registers, from its settings; the stored value wins from then on.
    partitions        int check (partitions between 1 and 4096),
    paused_at         timestamptz,
    -- Until then, every replica gives its partitions back and takes none: their number is being changed.
    repartition_until timestamptz,
    pause_reason      text,
    -- Raised whenever something changed that the relay's bounded reads may not show: look again.
    failures_version  bigint not null default 0
) with (fillfactor = 50);
comment on table outrigger.outboxes is 'One row per outbox table served, by its quoted, schema-qualified name';

create table outrigger.replicas (
    outbox         text not null references outrigger.outboxes on delete cascade,
    replica        uuid not null,
    name           text not null,
    version        text not null,
    lease_ttl      interval not null,
    registered_at  timestamptz not null default clock_timestamp(),
    -- Set by the first heartbeat, so never before the row was visible to everybody.
    visible_since  timestamptz,
    lease_until    timestamptz not null,
    -- Where and as what it sends events, readable. Replicas that differ in it are told so.
    configuration  jsonb not null default '{}',
    -- The part of it that splits the outbox: replicas with different ones never own partitions side by side. Null for
    -- what publishes nothing.
    identity       text,
    -- When that identity came, lower is earlier: the earliest living one has the partitions.
    rank           bigint not null default 1,
    -- What it says of itself with a heartbeat: why it does not publish (null: nothing keeps it from that), events per
    -- second of late, and when it published last.
    waits_for      text,
    rate           float8 not null default 0,
    published_at   timestamptz,
    primary key (outbox, replica)
) with (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100);

create table outrigger.partitions (
    outbox       text not null references outrigger.outboxes on delete cascade,
    partition    int not null,
    -- Null after a clean release. No foreign key: an owner whose row is gone is a dead owner.
    owner        uuid,
    owned_since  timestamptz,
    primary key (outbox, partition)
) with (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

create table outrigger.failures (
    outbox           text not null references outrigger.outboxes on delete cascade,
    seq              bigint not null,
    hash             bigint not null,
    keyed            boolean not null,
    event_id         text not null,
    event_type       text not null,
    key              text,
    state            text not null check (state in ('retrying', 'blocked', 'dead', 'suspect', 'unsettled')),
    attempts         int not null,
    crashes          int not null,
    reason           text,
    error            text,
    first_failed_at  timestamptz not null default clock_timestamp(),
    last_failed_at   timestamptz not null default clock_timestamp(),
    next_attempt_at  timestamptz,
    primary key (outbox, seq)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
create index failures_due on outrigger.failures (outbox, next_attempt_at) where state in ('retrying', 'unsettled');
create index failures_unsettled on outrigger.failures (outbox) where state = 'unsettled';

-- Events that are over without having been published. Their rows are marked or deleted like published ones, so this is what
-- tells them apart. A table of its own: what fails concerns every read, and this concerns none.
create table outrigger.unpublished (
    outbox           text not null references outrigger.outboxes on delete cascade,
    seq              bigint not null,
    event_id         text not null,
    event_type       text not null,
    key              text,
    state            text not null check (state in ('discarded', 'expired')),
    -- What was known of its failures by then.
    attempts         int not null,
    crashes          int not null,
    reason           text,
    error            text,
    first_failed_at  timestamptz,
    ended_at         timestamptz not null default clock_timestamp(),
    -- The role that ended it: the operator's, or the relay's.
    ended_by         text not null default session_user,
    primary key (outbox, seq)
);
comment on table outrigger.unpublished is 'Events that were discarded or expired: over, and never published';

-- Keys with failing or blocked events that are too many for the relay's memory, by placement hash. Reads of new rows leave
-- them out. Only the owner of its partition takes a key out again, after it has caught up with it.
create table outrigger.parked (
    outbox  text not null references outrigger.outboxes on delete cascade,
    hash    bigint not null,
    primary key (outbox, hash)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- The name under which an outbox is registered. Quoted and schema-qualified whatever the search path.
create function outrigger.outbox_name(outbox regclass) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('%I.%I', n.nspname, c.relname)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.oid = outbox
$$;

-- The notification channel of an outbox: its name, or a digest where the name is too long for one.
create function outrigger.channel(outbox text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select case when octet_length('outrigger:' || outbox) <= 63
                then 'outrigger:' || outbox else 'outrigger:' || md5(outbox) end
$$;

-- The sequence that says until when the relay polls by itself (milliseconds since 1970), so that writers need
-- not notify it. A sequence and not a row: it is read without a query, by the condition of the trigger below, and
-- leaves no dead versions behind. Named like the outbox, or by a digest where that is too long.
create function outrigger.awake_sequence(outbox text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select format('outrigger.%I', case when octet_length('awake:' || outbox) <= 63
                                       then 'awake:' || outbox else 'awake:' || md5(outbox) end)
$$;

-- Wakes the relay after an insert. NOTIFY holds a lock on the whole cluster from before commit until after it,
-- so it undoes group commit: the trigger's condition calls this only while the relay does not poll anyway.
--
-- It runs inside the service's transactions, so nothing that happens here may make one fail: not a privilege that is
-- missing, and not a queue of notifications that fills up because someone's listener stopped reading (at its end every
-- transaction that notifies fails). The relay then finds the row by polling.
--
-- PostgreSQL refuses PREPARE TRANSACTION after a NOTIFY. Services that use two-phase commit attach the outbox
-- without the trigger, and the relay polls (OUTRIGGER_RELAY_WAKE=poll).
create function outrigger.wake_up() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    begin
        if pg_notification_queue_usage() < 0.5 then
            perform pg_notify(tg_argv[0], '');
        end if;
    exception when others then
        null;
    end;
    return null;
end
$$;

-- Registers an outbox table and, unless told otherwise, installs its wake-up trigger. Repeatable.
--
-- A trigger needs a lock that waits for every open transaction that has written to the table, and later writers wait
-- behind it. So it is waited for briefly; `outrigger migrate` tries again.
create function outrigger.attach(outbox regclass, with_trigger boolean default true) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
declare
    outbox_name text := outrigger.outbox_name(attach.outbox);
    awake       text := outrigger.awake_sequence(outbox_name);
    channel     text := outrigger.channel(outbox_name);
    installed   text;
begin
    insert into outrigger.outboxes (outbox) values (outbox_name) on conflict do nothing;
    execute format('create sequence if not exists %s', awake);
    -- Read by the trigger with the writer's privileges, whoever that is. Without this every insert notifies.
    execute format('grant select on sequence %s to public', awake);
    select pg_get_triggerdef(t.oid) into installed
    from pg_trigger t
    where t.tgrelid = attach.outbox and t.tgname = 'outrigger_wake_up' and not t.tgisinternal;
    if installed is not null and (not with_trigger or strpos(installed, format('wake_up(%L)', channel)) = 0
                                  or strpos(installed, format('%L', awake)) = 0
                                  or strpos(installed, 'has_sequence_privilege') = 0) then
        execute format('drop trigger outrigger_wake_up on %s', outbox_name);
        installed := null;
    end if;
    if with_trigger and installed is null then
        -- A sequence that was never set is null, which means "notify". clock_timestamp(), since a transaction
        -- may have begun long before. The privilege is asked for first, because a dump may have been restored
        -- without it, and no value may be out of a time's range: the service's inserts must not fail.
        execute format(
            'create trigger outrigger_wake_up after insert on %1$s for each statement when ('
            'case when has_sequence_privilege(%2$L::regclass, ''select, usage'') then clock_timestamp() > '
            'to_timestamp(least(coalesce(pg_sequence_last_value(%2$L::regclass), 0), 253402300799000)::float8 / 1000) '
            'else true end) '
            'execute function outrigger.wake_up(%3$L)', outbox_name, awake, channel);
    end if;
    return outbox_name;
end
$$;

-- The only registered outbox. SECURITY DEFINER, so that writers need no privilege on outrigger's tables.
create function outrigger.default_outbox() returns regclass
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    names text[];
begin
    select array_agg(o.outbox order by o.outbox) into names from outrigger.outboxes o;
    if names is null then
        raise exception 'no outbox is registered' using errcode = 'undefined_table',
            hint = 'run "outrigger migrate"';
    elsif cardinality(names) > 1 then
        raise exception 'several outboxes are registered: %', array_to_string(names, ', ')
            using errcode = 'ambiguous_parameter', hint = 'name one: emit(..., outbox => ''schema.table'')';
    end if;
    return names[1]::regclass;
end
$$;

-- Adds an event to a native outbox table and returns its id. For convenience: a plain INSERT does as well.
--
-- Takes a lock on the key until the transaction ends, *before* it draws the sequence number, so that for
-- writers using it the order of one key is the commit order. Writers that lock their aggregate anyway pass
-- lock_key => false. The id is generated here, so that no SELECT privilege is needed to return it.
create function outrigger.emit(
    type          text,
    data          jsonb       default null,
    key           text        default null,
    id            uuid        default null,
    source        text        default null,
    subject       text        default null,
    data_binary   bytea       default null,
    content_type  text        default null,
    schema        text        default null,
    extensions    jsonb       default null,
    headers       jsonb       default null,
    destination   text        default null,
    routing_key   text        default null,
    available_at  timestamptz default null,
    expires_at    timestamptz default null,
    outbox        regclass    default null,
    lock_key      boolean     default true
) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    target   regclass := coalesce(emit.outbox, outrigger.default_outbox());
    event_id uuid     := coalesce(emit.id, gen_random_uuid());
begin
    if lock_key and emit.key is not null then
        perform pg_advisory_xact_lock(hashtextextended(emit.key, target::oid::bigint));
    end if;
    execute format(
        'insert into %s (id, type, source, subject, key, data, data_binary, content_type, schema, extensions, '
        'headers, destination, routing_key, available_at, expires_at) '
        'values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)', target)
    using event_id, emit.type, emit.source, emit.subject, emit.key, emit.data, emit.data_binary,
          emit.content_type, emit.schema, emit.extensions, emit.headers, emit.destination,
          emit.routing_key, emit.available_at, emit.expires_at;
    return event_id;
end
$$;

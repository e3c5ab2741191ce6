-- The native outbox table. Not a numbered step: its name is a setting, and an existing table is left alone.
create table {table} (
    -- Drawn by the database at INSERT, one by one (no CACHE): the order of events.
    seq           bigint generated always as identity primary key,
    id            uuid not null default gen_random_uuid(),
    type          text not null,
    source        text,
    subject       text,
    key           text,
    data          jsonb,
    data_binary   bytea,
    content_type  text,
    schema        text,
    extensions    jsonb,
    headers       jsonb,
    destination   text,
    routing_key   text,
    created_at    timestamptz not null default now(),
    available_at  timestamptz,
    expires_at    timestamptz,
    published_at  timestamptz,
    constraint {one_payload} check (num_nonnulls(data, data_binary) <= 1)
) with (
    -- A queue's dead rows lie at its head, where the next read begins. The defaults wait until a fifth of the
    -- table has changed, which a large history never does; fixed thresholds and no throttling keep up.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000,
    autovacuum_vacuum_cost_delay = 0
);
create index {pending} on {table} (seq) where published_at is null;
create index {delayed} on {table} (available_at)
    where published_at is null and available_at is not null;
-- The relay tells by this comment that the table was made for it: only then are published rows deleted by default.
comment on column {table}.published_at is 'Set by the relay. Created by outrigger migrate, so the row is deleted OUTRIGGER_OUTBOX_RETENTION later.';

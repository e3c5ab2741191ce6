//! Rows that can never be published.

/// A column, its value as SQL, and the reason that is recorded.
pub type Poison = (&'static str, &'static str, &'static str);

/// What no sink publishes. The column `data` must be a text, and bodies be limited to 64 KiB.
pub const ANY: &[Poison] = &[
    ("headers", "'{\"a\":[1]}'", "invalid_header"),
    ("headers", "'[1]'", "invalid_header"),
    ("data", "'\"' || repeat('x', 65536) || '\"'", "too_large"),
    ("data", "'{not json'", "invalid_event"),
    ("subject", "''", "invalid_event"),
    ("subject", "E'a\\u0001b'", "invalid_event"),
    ("source", "'not a uri'", "invalid_event"),
    ("schema", "'/relative'", "invalid_event"),
    ("content_type", "'json'", "invalid_event"),
    ("extensions", "'{\"Bad-Name\":1}'", "invalid_event"),
    ("extensions", "'{\"half\":0.5}'", "invalid_event"),
];

/// What RabbitMQ does not take besides. The routing key `nowhere` must lead to no queue.
pub const RABBITMQ: &[Poison] = &[
    ("routing_key", "repeat('x', 256)", "invalid_route"),
    ("routing_key", "E'a\\nb'", "invalid_route"),
    ("routing_key", "'nowhere'", "unroutable"),
    ("destination", "repeat('x', 256)", "invalid_route"),
    ("destination", "'no-such-exchange'", "unknown_destination"),
    (
        "headers",
        "jsonb_build_object('h', repeat('x', 140000))",
        "invalid_header",
    ),
    ("headers", "'{\"CC\":\"other\"}'", "invalid_header"),
];

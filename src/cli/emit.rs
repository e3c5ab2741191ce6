//! `outrigger emit`: insert an event.

use std::io::{self, Read as _};

use bytes::Bytes;
use jiff::Timestamp;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::Failure;
use super::args::Emit;
use super::connect::explain;
use super::output::print_line;
use crate::assemble;
use crate::event::envelope::Envelope;
use crate::event::{Data, Record};
use crate::settings::Settings;
use crate::store::postgres::emit::NewEvent;
use crate::store::postgres::mapping::Field;
use crate::store::postgres::{Database, StoreError, StoreErrorKind};

/// Stands for an id that the store draws.
const DRAWN: &str = "drawn by the store";

/// Stands for the setting `event.source` where it is not set: a service knows it, a shell need not.
const ANY_SOURCE: &str = "/";

/// Inserts the event and prints its id, or prints the INSERT.
pub(super) async fn run(args: Emit, settings: &Settings) -> Result<(), Failure> {
    let record = record(&args)?;
    let source = Some(settings.event.source.as_str()).filter(|source| !source.is_empty());
    // Better refused here than dead in the table.
    Envelope::new(&record, source.unwrap_or(ANY_SOURCE))
        .map_err(|reason| Failure::usage(reason.to_string()))?;
    let now = Timestamp::now();
    let times = [
        (Field::AvailableAt, args.available_at),
        (Field::ExpiresAt, args.expires_at),
    ];
    let times = times
        .into_iter()
        .filter_map(|(field, time)| Some((field, time?.at(now).to_string())));
    let event = NewEvent {
        fields: fields(record, args.id).into_iter().chain(times).collect(),
    };
    let database = assemble::database(settings)?;
    let refused = |error| refused(error, &database);
    let store = database.open().await.map_err(refused)?;
    if args.write.dry_run {
        return print_line(&store.insert_statement(&event)?);
    }
    print_line(&store.emit(&event).await.map_err(refused)?)
}

/// This command needs a privilege that a relay does not.
fn refused(error: StoreError, database: &Database) -> Failure {
    let is_privilege = error.kind() == StoreErrorKind::Permission;
    let failure = explain(error, database);
    match is_privilege {
        true => failure.hint(
            "writing events requires INSERT on the outbox, which a relay's role does not need, in addition to what `outrigger check` \
             lists; `outrigger check --grants WRITER RELAY` prints both",
        ),
        false => failure,
    }
}

fn record(args: &Emit) -> Result<Record, Failure> {
    let data = args.data.as_deref().map(payload).transpose()?;
    Ok(Record {
        id: args.id.clone().unwrap_or_else(|| DRAWN.to_owned()),
        content_type: args.content_type.clone(),
        event_type: args.event_type.clone(),
        source: args.source.clone(),
        subject: args.subject.clone(),
        key: args.key.clone(),
        data: data.map_or(Data::None, |text| Data::Json(Bytes::from(text))),
        extensions: object(&args.extensions, "--extension")?,
        headers: object(&args.headers, "--header")?,
        destination: args.destination.clone(),
        routing_key: args.routing_key.clone(),
        ..Record::default()
    })
}

/// The payload: the text itself, `@FILE`, or `-`.
fn payload(argument: &str) -> Result<String, Failure> {
    let text = if argument == "-" {
        let mut text = String::new();
        io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| format!("cannot read the payload from standard input: {error}"))?;
        text
    } else if let Some(file) = argument.strip_prefix('@') {
        std::fs::read_to_string(file)
            .map_err(|error| format!("cannot read the payload from `{file}`: {error}"))?
    } else {
        argument.to_owned()
    };
    // The parser's message quotes nothing but positions.
    serde_json::from_str::<IgnoredAny>(&text)
        .map_err(|error| Failure::usage(format!("--data is not JSON: {error}")))?;
    Ok(text)
}

/// Pairs as a JSON object.
fn object(pairs: &[(String, String)], option: &str) -> Result<Option<String>, Failure> {
    if pairs.is_empty() {
        return Ok(None);
    }
    let mut object = serde_json::Map::new();
    for (name, value) in pairs {
        let before = object.insert(name.clone(), Value::String(value.clone()));
        if before.is_some() {
            return Err(Failure::usage(format!("{option} {name} is given twice")));
        }
    }
    Ok(Some(Value::Object(object).to_string()))
}

fn fields(record: Record, id: Option<String>) -> Vec<(Field, String)> {
    let data = match record.data {
        Data::Json(text) => Some(String::from_utf8_lossy(&text).into_owned()),
        _ => None,
    };
    [
        (Field::Id, id),
        (Field::Type, Some(record.event_type)),
        (Field::Source, record.source),
        (Field::Subject, record.subject),
        (Field::Key, record.key),
        (Field::Data, data),
        (Field::ContentType, record.content_type),
        (Field::Extensions, record.extensions),
        (Field::Headers, record.headers),
        (Field::Destination, record.destination),
        (Field::RoutingKey, record.routing_key),
    ]
    .into_iter()
    .filter_map(|(field, text)| Some((field, text?)))
    .collect()
}

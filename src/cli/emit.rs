//! `outrigger emit`: insert an event.

use std::io::{self, Read as _};

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::Failure;
use super::args::Emit;
use super::connect::store;
use super::output::print_line;
use crate::event::envelope::Envelope;
use crate::event::{Data, Record};
use crate::settings::Settings;
use crate::store::postgres::emit::NewEvent;
use crate::store::postgres::mapping::Field;

/// Stands for the setting `event.source` where it is not set: a service knows it, a shell need not.
const ANY_SOURCE: &str = "/";

/// Inserts the event and prints its id, or prints the INSERT.
pub(super) async fn run(args: Emit, settings: &Settings) -> Result<(), Failure> {
    let record = record(&args)?;
    let source = Some(settings.event.source.as_str()).filter(|source| !source.is_empty());
    // Better refused here than dead in the table.
    Envelope::new(&record, source.unwrap_or(ANY_SOURCE))
        .map_err(|reason| Failure::usage(reason.to_string()))?;
    let event = NewEvent {
        fields: fields(record),
    };
    let store = store(settings).await?;
    if args.write.dry_run {
        return print_line(&store.insert_statement(&event)?);
    }
    print_line(&store.emit(&event).await?)
}

fn record(args: &Emit) -> Result<Record, Failure> {
    let data = args.data.as_deref().map(payload).transpose()?;
    Ok(Record {
        id: "drawn by the store".to_owned(),
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

fn fields(record: Record) -> Vec<(Field, String)> {
    let data = match record.data {
        Data::Json(text) => Some(String::from_utf8_lossy(&text).into_owned()),
        _ => None,
    };
    [
        (Field::Type, Some(record.event_type)),
        (Field::Source, record.source),
        (Field::Subject, record.subject),
        (Field::Key, record.key),
        (Field::Data, data),
        (Field::Extensions, record.extensions),
        (Field::Headers, record.headers),
        (Field::Destination, record.destination),
        (Field::RoutingKey, record.routing_key),
    ]
    .into_iter()
    .filter_map(|(field, text)| Some((field, text?)))
    .collect()
}

//! `outrigger check`: what is wrong with settings, database and broker, and what to do about it.

mod database;
#[cfg(feature = "eventbridge")]
mod eventbridge;
mod history;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "nats")]
mod nats;
#[cfg(any(
    feature = "rabbitmq",
    feature = "nats",
    feature = "http",
    feature = "kafka",
    feature = "eventbridge"
))]
#[cfg_attr(not(feature = "default"), allow(dead_code))]
mod probe;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
mod relays;
mod report;
mod settling;

use self::report::Report;
use super::args::{Check, Output};
use super::output::{Style, print};
use super::{CHECK_FAILED, Failure};
use crate::assemble;
use crate::settings::{AfterPublish, Loaded, Need, Problem, Settings, SinkKind};
use crate::store::postgres::grants;

/// Checks everything that the settings leave to check. Broken settings are findings like any other.
pub async fn run(args: &Check, loaded: &Loaded) -> Result<(), Failure> {
    let settings = loaded.provisional();
    if let Some([writer, relay]) = args.grants.as_deref() {
        return print(&grants(&assemble::mapping(settings)?, writer, relay));
    }
    let style = Style::stdout(settings.log.color);
    let mut report = Report::new(match args.read.output {
        Output::Table => Some(style),
        Output::Json => None,
    });
    let problems = match loaded.settings(Need::Relay) {
        Ok(_) => Vec::new(),
        Err(report) => report.problems,
    };
    let sound = check_settings(&mut report, loaded, settings, &problems);
    if !sound && problems.is_empty()
        || touched(
            &problems,
            &["database", "outbox", "pg", "route", "retry_dead"],
        )
    {
        report.area("database");
        report.warning(
            "skipped: invalid settings",
            "correct the settings above first",
        );
    } else {
        Box::pin(database::check(&mut report, settings)).await;
        if problems.is_empty() && !report.has_failed(&["database", "outbox"]) {
            Box::pin(relays::check(&mut report, settings)).await;
        }
    }
    let sections: &[&str] = match settings.sink {
        SinkKind::RabbitMq => &["rabbitmq", "amqp", "sink", "route"],
        SinkKind::Nats => &["nats", "sink", "route", "event_header_prefix"],
        SinkKind::Http => &["http", "sink", "route", "event_header_prefix"],
        SinkKind::Kafka => &["kafka", "sink", "route", "event_", "retry_dead"],
        SinkKind::EventBridge => &["eventbridge", "sink", "route", "event_", "retry_dead"],
        SinkKind::Stdout => &[],
    };
    if !sound && problems.is_empty() || touched(&problems, sections) {
        report.area("broker");
        report.warning(
            "skipped: invalid settings",
            "correct the settings above first",
        );
    } else {
        let probe = args.probe.as_deref();
        match settings.sink {
            #[cfg(feature = "rabbitmq")]
            SinkKind::RabbitMq => Box::pin(rabbitmq::check(&mut report, probe, settings)).await,
            #[cfg(feature = "nats")]
            SinkKind::Nats => Box::pin(nats::check(&mut report, probe, settings)).await,
            #[cfg(feature = "http")]
            SinkKind::Http => Box::pin(http::check(&mut report, probe, settings)).await,
            #[cfg(feature = "kafka")]
            SinkKind::Kafka => Box::pin(kafka::check(&mut report, probe, settings)).await,
            #[cfg(feature = "eventbridge")]
            SinkKind::EventBridge => {
                Box::pin(eventbridge::check(&mut report, probe, settings)).await;
            }
            // One that was not built in is a problem of the settings.
            _ => {}
        }
    }
    if args.probe.is_none() && settings.sink != SinkKind::Stdout {
        report.not_tried(
            "publishing itself",
            "outrigger check --probe=TYPE sends one event",
        );
    }
    if report.finish()? {
        Ok(())
    } else {
        Err(Failure::silent(CHECK_FAILED))
    }
}

/// Whether a problem lies in one of these sections.
fn touched(problems: &[Problem], sections: &[&str]) -> bool {
    problems.iter().any(|problem| {
        let name = problem.name.to_lowercase().replace('.', "_");
        let name = name.strip_prefix("outrigger_").unwrap_or(&name);
        sections.iter().any(|section| name.starts_with(section))
    })
}

/// False if something is wrong with them.
fn check_settings(
    report: &mut Report,
    loaded: &Loaded,
    settings: &Settings,
    problems: &[Problem],
) -> bool {
    report.area("settings");
    for problem in problems {
        let told = Problem {
            hint: None,
            ..problem.clone()
        };
        report.failed(
            told.to_string(),
            problem.hint.as_deref().unwrap_or_default(),
        );
    }
    for warning in loaded.warnings() {
        report.warning(warning, "");
    }
    if !problems.is_empty() {
        return false;
    }
    if let Err(failure) = assemble::encoder(settings) {
        let text = failure.error.map(|error| error.to_string());
        report.failed(text.unwrap_or_default(), "");
        return false;
    }
    let set = loaded
        .shown()
        .iter()
        .filter(|line| line.origin != crate::settings::Origin::Default)
        .count();
    let ordering = settings.relay.ordering.as_str();
    let after = match settings.outbox.after_publish {
        AfterPublish::Mark => "marked",
        AfterPublish::Delete => "deleted",
    };
    report.ok(format!(
        "{set} settings given; ordering {ordering}, published rows are {after}, to `{}` with key `{}`",
        settings.route.destination, settings.route.key
    ));
    let place = match (settings.sink, assemble::target(settings)) {
        (SinkKind::Stdout, _) => {
            ": events are printed and marked as published, and go nowhere else".to_owned()
        }
        (_, target) => format!(" at {target}, source `{}`", settings.event.source),
    };
    report.ok(format!("sink {}{place}", settings.sink.name()));
    true
}

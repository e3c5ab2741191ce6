//! Whether published rows can be marked or deleted.

use super::report::Report;
use crate::store::postgres::probe::TableFacts;
use crate::store::postgres::trial::Trial;

/// Reports what may keep rows from being marked or deleted, and the result of a trial.
pub(super) fn report(report: &mut Report, table: &TableFacts) {
    let facts = &table.settling;
    let outbox = &table.capabilities.outbox;
    let done = match facts.command {
        "UPDATE" => "marked as published",
        _ => "deleted once it is published",
    };
    let with = match facts.takes_part.is_empty() {
        true => String::new(),
        false => format!(", with {}", facts.takes_part.join(", ")),
    };
    for constraint in &facts.references {
        report.warning(
            format!("a row of {outbox} that another row refers to cannot be deleted: foreign key {constraint}"),
            "recreate the constraint with `on delete cascade` or `on delete set null`, or keep published rows: \
             OUTRIGGER_OUTBOX_AFTER_PUBLISH=mark",
        );
    }
    match &facts.trial {
        Trial::Settled => {
            report.ok(format!(
                "a row can be {done}{with} (tried with one and rolled back)"
            ));
        }
        Trial::Failed(reason) => report.failed(
            format!("a row cannot be {done}: {reason}"),
            &match facts.takes_part.is_empty() {
                true => format!(
                    "let the relay's role {} rows of {outbox}",
                    facts.command.to_lowercase()
                ),
                false => format!(
                    "change or drop what the {} fires: {}",
                    facts.command,
                    facts.takes_part.join(", ")
                ),
            },
        ),
        // The reason was reported.
        Trial::Impossible => {}
        Trial::NoRow if facts.takes_part.is_empty() => report.ok(format!(
            "nothing should keep a row from being {done} (not tried: no row is available)"
        )),
        Trial::NoRow => report.warning(
            format!(
                "could not try whether a row can be {done}: no row is available; {} may prevent it",
                facts.takes_part.join(", ")
            ),
            "insert an event and run `outrigger check` again",
        ),
    }
}

//! The relays of this outbox: whether one with these settings would fit in, and whether any is there.

use super::report::Report;
use crate::assemble;
use crate::cli::connect::remedy;
use crate::cli::output::{duration, events};
use crate::settings::Settings;
use crate::store::configuration::{Difference, described};

/// Compares these settings with those of the living relays, and looks whether events wait for one.
pub(super) async fn check(report: &mut Report, settings: &Settings) {
    report.area("relays");
    // What is wrong with these settings was said with the database.
    let Ok(database) = assemble::database(settings) else {
        return;
    };
    let status = match database.open().await {
        Ok(store) => store.status().await,
        Err(error) => Err(error),
    };
    let status = match status {
        Ok(status) => status,
        Err(error) => return report.warning(error.to_string(), &remedy(&error, &database)),
    };
    let ours = assemble::configuration(settings);
    let living: Vec<_> = status
        .replicas
        .iter()
        .filter(|replica| replica.publishes() && status.lives(replica))
        .collect();
    let mut agree = true;
    for replica in &living {
        let differences = ours.differences(&replica.configuration);
        if differences.is_empty() {
            continue;
        }
        agree = false;
        let told = described(&differences);
        let name = &replica.name;
        if differences.iter().any(Difference::splits) {
            report.warning(
                format!("a relay with these settings would take no partition while `{name}` runs: {told}"),
                "an update goes through: the new relays begin when the old ones have stopped. If both are to run, give \
                 each a table of its own",
            );
        } else {
            report.warning(
                format!("`{name}` shares the events of this outbox and has other settings: {told}"),
                "give all relays of one outbox the same settings",
            );
        }
    }
    let mut publish = true;
    for replica in &living {
        if let Some(what) = &replica.waits_for {
            publish = false;
            report.warning(
                format!("`{}` does not publish: {what}", replica.name),
                "`outrigger status` shows what waits, and the relay's log has more",
            );
        }
    }
    if living.is_empty() && status.pending > 0 && status.paused.is_none() {
        let oldest = status.oldest_pending;
        let oldest = oldest.map(|age| format!(", the oldest for {}", duration(age)));
        let waits = if status.pending == 1 { "waits" } else { "wait" };
        report.warning(
            format!(
                "{} {waits}{}, and no relay runs",
                events(status.pending),
                oldest.unwrap_or_default()
            ),
            "start `outrigger run`",
        );
    } else if agree && publish {
        report.ok(match living.len() {
            0 => "none runs".to_owned(),
            1 => "one runs, with the same settings".to_owned(),
            n => format!("{n} run, all with the same settings"),
        });
    }
}

//! EventBridge: who we are there, the buses that are known beforehand, and a test event.

use super::probe::{self, Words};
use super::report::Report;
use crate::assemble;
use crate::settings::Settings;
use crate::sink::eventbridge::EventBridgeSettings;
use crate::sink::eventbridge::check::{Bus, Probe};

/// Checks everything about EventBridge.
pub(super) async fn check(report: &mut Report, event_type: Option<&str>, settings: &Settings) {
    report.area("broker");
    let eventbridge = assemble::eventbridge(settings);
    if !probe::settings_are_sound(report, eventbridge.validate()) {
        return;
    }
    let connection = match Probe::connect(&eventbridge).await {
        Ok(connection) => connection,
        Err(error) => {
            let remedy = "check the region, the network and the credentials (AWS_PROFILE, AWS_ROLE_ARN, \
                          OUTRIGGER_EVENTBRIDGE_CREDENTIALS_FILE)";
            let (error, remedy) = probe::advised(error, remedy);
            report.failed(error, &remedy);
            return;
        }
    };
    introduce(report, &eventbridge, &connection);
    let look = async |report: &mut Report, what: &str, name: &str| {
        let bus = connection.bus(name).await?;
        Ok(tell(report, what, name, bus))
    };
    if !probe::look_at_destinations(report, settings, "bus", look).await {
        return;
    }
    let Some(event_type) = event_type else { return };
    let words = Words {
        destination: "bus",
        key: "detail-type",
        confirmed: "taken by EventBridge",
        unroutable: "",
    };
    let why_silent = || {
        let looks = connection
            .trouble()
            .unwrap_or_else(|| "no answer".to_owned());
        (looks, "check the quotas of PutEvents, and the network")
    };
    let send = |message| connection.publish(message);
    probe::publish(report, settings, event_type, words, send, why_silent).await;
}

fn introduce(report: &mut Report, eventbridge: &EventBridgeSettings, connection: &Probe) {
    let region = connection.region();
    let endpoint = eventbridge.endpoint.as_deref();
    let who = match endpoint {
        Some(endpoint) => format!("EventBridge in {region}, by {endpoint}"),
        None => format!("EventBridge in {region}"),
    };
    let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let how = (!plain).then_some("encrypted");
    let remedy = "use https:// in OUTRIGGER_EVENTBRIDGE_ENDPOINT";
    probe::introduce(report, &who, &[endpoint.unwrap_or_default()], how, remedy);
}

/// False when a test event makes no sense any more.
fn tell(report: &mut Report, what: &str, name: &str, bus: Bus) -> bool {
    let named = match name {
        "" => "the default bus".to_owned(),
        name => format!("bus `{name}`"),
    };
    match bus {
        Bus::Exists => {
            report.ok(format!("{what}: {named}"));
            true
        }
        Bus::Missing(reason) => {
            report.failed(format!("{what}: {reason}"), "");
            false
        }
        Bus::Unknown => {
            report.warning(
                format!("{what}: this user may not ask about {named}"),
                "allow events:DescribeEventBus: EventBridge takes events for a bus that does not exist, and drops them",
            );
            true
        }
    }
}

//! http: the connection to the service, and a test event.

use super::probe::{self, Words};
use super::report::Report;
use crate::assemble;
use crate::settings::Settings;
use crate::sink::http::check::Probe;

/// Checks everything about the service. Without a test event nothing is posted.
pub(super) async fn check(report: &mut Report, event_type: Option<&str>, settings: &Settings) {
    report.area("broker");
    let http = assemble::http(settings);
    if !probe::settings_are_sound(report, http.validate()) {
        return;
    }
    let connection = match Probe::connect(&http).await {
        Ok(connection) => connection,
        Err(error) => {
            let (error, remedy) =
                probe::advised(error, "check OUTRIGGER_HTTP_URL: host, port, TLS");
            report.failed(error, &remedy);
            return;
        }
    };
    let address = connection.address();
    let how = connection.is_encrypted().then_some("encrypted");
    let remedy = "use https:// in OUTRIGGER_HTTP_URL";
    probe::introduce(
        report,
        &format!("service at {address}"),
        &[address],
        how,
        remedy,
    );
    let Some(event_type) = event_type else { return };
    let words = Words {
        destination: "path",
        key: "",
        confirmed: "the service took it",
        unroutable: "",
    };
    let why_silent = || match connection.trouble() {
        Some(reason) => reason,
        None => "no answer, or an error of the service".to_owned(),
    };
    let why_silent = || (why_silent(), "see the service's log");
    let send = |message| connection.publish(message);
    probe::publish(report, settings, event_type, words, send, why_silent).await;
}

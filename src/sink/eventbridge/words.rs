//! What AWS's SDK says when no answer came, in a sentence with a remedy.

use std::error::Error;

use crate::error::with_causes;

/// Parts of an error; what happened; what to do about it.
const KNOWN: &[(&[&str], &str, &str)] = &[
    (
        &[
            "providers in chain",
            "loading credentials",
            "load credentials",
            "credentials provider",
        ],
        "no AWS credentials can be obtained",
        "give this process a role (AWS_ROLE_ARN with a web identity, an instance or a task role), AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY, or a file (AWS_PROFILE, OUTRIGGER_EVENTBRIDGE_CREDENTIALS_FILE), or check those that it has",
    ),
    (
        &["dns error", "failed to lookup"],
        "the name of its endpoint cannot be resolved",
        "check the region (OUTRIGGER_EVENTBRIDGE_REGION), OUTRIGGER_EVENTBRIDGE_ENDPOINT, and DNS",
    ),
    (
        &["onnection refused"],
        "Connection refused",
        "check OUTRIGGER_EVENTBRIDGE_ENDPOINT, and proxies in between",
    ),
    (
        &["invalid HTTP", "(SendRequest)", "connection closed"],
        "what answers there is not EventBridge",
        "check OUTRIGGER_EVENTBRIDGE_ENDPOINT, and proxies in between",
    ),
    (
        &["peer certificate", "UnknownIssuer", "certificate"],
        "its certificate is not accepted",
        "does a proxy in between end TLS? The system must trust the authority that signed its certificate",
    ),
    (
        &["timed out", "timeout", "TimedOut"],
        "no answer in time",
        "check the network (a VPC without a route or an endpoint for EventBridge?), or raise OUTRIGGER_EVENTBRIDGE_TIMEOUT",
    ),
];

/// A sentence with a remedy about a request without an answer. The parts of the SDK's errors never hold a payload when they
/// are displayed.
pub(super) fn explain(error: &dyn Error) -> String {
    let text = with_causes(error);
    let known = KNOWN
        .iter()
        .find(|(parts, ..)| parts.iter().any(|part| text.contains(part)));
    match known {
        Some((_, what, remedy)) => format!("EventBridge cannot be reached: {what}; {remedy}"),
        None => format!(
            "EventBridge cannot be reached: {text}; check the region, the network and the credentials"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_a_sentence_and_a_remedy() {
        for (error, expected) in [
            (
                "dispatch failure: io error: tcp connect error: Connection refused (os error 111)",
                "Connection refused; check",
            ),
            (
                "dispatch failure: dns error: failed to lookup address information",
                "cannot be resolved; check the region",
            ),
            (
                "dispatch failure: other: no providers in chain provided credentials",
                "no AWS credentials can be obtained; give",
            ),
            (
                "dispatch failure: invalid peer certificate: UnknownIssuer",
                "its certificate is not accepted; ",
            ),
            ("request has timed out", "no answer in time; "),
            ("something new", "something new; check the region"),
        ] {
            let text = explain(&std::io::Error::other(error));
            assert!(text.contains(expected), "{error}: {text}");
            assert!(
                text.starts_with("EventBridge cannot be reached: "),
                "{text}"
            );
        }
    }
}

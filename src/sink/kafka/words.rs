//! What librdkafka says about a connection, in a sentence with a remedy. It keeps nothing but words, and those of OpenSSL.

/// Parts of an error; what happened; what to do about it.
const KNOWN: &[(&[&str], &str, &str)] = &[
    (
        &["Failed to resolve"],
        "the name cannot be resolved",
        "check OUTRIGGER_KAFKA_BROKERS, and the names that the brokers announce (`advertised.listeners`)",
    ),
    (
        &["onnection refused"],
        "Connection refused",
        "check that a broker listens there: OUTRIGGER_KAFKA_BROKERS, and what the brokers announce (`advertised.listeners`)",
    ),
    (
        &[
            "onnection setup timed out",
            "timed out",
            "No route to host",
            "unreachable",
        ],
        "no answer",
        "check OUTRIGGER_KAFKA_BROKERS, what the brokers announce (`advertised.listeners`), and firewalls in between",
    ),
    (
        &["connecting to a SSL listener"],
        "the broker hung up at once",
        "if this listener speaks TLS, set OUTRIGGER_KAFKA_TLS=true; if it wants SASL, set OUTRIGGER_KAFKA_USERNAME",
    ),
    (
        &["Invalid response size", "receive.message.max.bytes"],
        "what answers there does not speak Kafka's protocol",
        "check OUTRIGGER_KAFKA_BROKERS; if this listener speaks TLS, set OUTRIGGER_KAFKA_TLS=true",
    ),
    (
        &[
            "wrong version number",
            "record layer failure",
            "packet length too long",
        ],
        "this listener does not speak TLS",
        "use the listener that does, or set OUTRIGGER_KAFKA_TLS=false",
    ),
    (
        &["certificate has expired", "certificate expired"],
        "the broker's certificate has expired",
        "renew it, or check this machine's clock",
    ),
    (
        &[
            "ssl.ca.location",
            "unable to get local issuer",
            "self-signed certificate",
            "self signed certificate",
        ],
        "the broker's certificate is not trusted",
        "name the authority that signed the brokers' certificates in OUTRIGGER_KAFKA_CA_FILE",
    ),
    (
        &["mismatch"],
        "the broker's certificate is made out to another name",
        "the brokers must announce themselves (`advertised.listeners`) by names that are in their certificates",
    ),
    (
        &["certificate required", "bad certificate", "unknown ca"],
        "the broker does not accept our certificate",
        "it asks for a client certificate that it trusts: set OUTRIGGER_KAFKA_CERT_FILE and OUTRIGGER_KAFKA_KEY_FILE",
    ),
    (
        &[
            "uthentication fail",
            "Invalid username or password",
            "invalid credentials",
        ],
        "the broker does not accept user or password",
        "check OUTRIGGER_KAFKA_USERNAME, OUTRIGGER_KAFKA_PASSWORD and OUTRIGGER_KAFKA_SASL_MECHANISM",
    ),
    (
        &["nsupported SASL mechanism", "mechanism handshake failed"],
        "the broker does not offer this way to log in",
        "set OUTRIGGER_KAFKA_SASL_MECHANISM to one that it does",
    ),
    (
        &["Disconnected", "disconnected"],
        "the broker closed the connection",
        "see its log; if this goes on, check OUTRIGGER_KAFKA_TLS and the settings of SASL",
    ),
];

/// A sentence with a remedy about an error of a connection.
pub(super) fn explain(error: &str) -> String {
    let known = KNOWN
        .iter()
        .find(|(parts, ..)| parts.iter().any(|part| error.contains(part)));
    match (known, place(error)) {
        (Some((_, what, remedy)), Some(place)) => format!("{place}: {what}; {remedy}"),
        (Some((_, what, remedy)), None) => format!("{what}; {remedy}"),
        (None, _) => format!(
            "cannot use the cluster: {error}; check OUTRIGGER_KAFKA_BROKERS and the settings of TLS and SASL, and see the \
             brokers' logs"
        ),
    }
}

/// The broker's host and port, from `sasl_ssl://host:9093/bootstrap: ...`.
fn place(error: &str) -> Option<&str> {
    let (broker, _) = error.split_once(": ")?;
    let broker = broker.rsplit_once("://").map_or(broker, |(_, rest)| rest);
    let place = broker.split('/').next()?;
    let sound = place.contains(':') && !place.contains(char::is_whitespace);
    sound.then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_a_sentence_and_a_remedy() {
        for (error, expected) in [
            (
                "localhost:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)",
                "localhost:1: Connection refused; check that a broker listens there: ",
            ),
            (
                "nohost:9092/bootstrap: Failed to resolve 'nohost:9092': Name or service not known (after 3ms in state CONNECT)",
                "nohost:9092: the name cannot be resolved; check OUTRIGGER_KAFKA_BROKERS",
            ),
            (
                "ssl://k:9093/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker \
                 certificate could not be verified, verify that ssl.ca.location is correctly configured",
                "k:9093: the broker's certificate is not trusted; name the authority",
            ),
            (
                "sasl_plaintext://k:9092/1: SASL authentication error: Authentication failed during authentication due to \
                 invalid credentials with SASL mechanism SCRAM-SHA-256",
                "k:9092: the broker does not accept user or password; check OUTRIGGER_KAFKA_USERNAME",
            ),
            (
                "k:9093/bootstrap: Disconnected while requesting ApiVersion: might be caused by incorrect security.protocol \
                 configuration (connecting to a SSL listener?)",
                "k:9093: the broker hung up at once; if this listener speaks TLS",
            ),
            (
                "ssl://k:9092/bootstrap: SSL handshake failed: error:0A00010B:SSL routines::wrong version number",
                "k:9092: this listener does not speak TLS; ",
            ),
            (
                "something new",
                "cannot use the cluster: something new; check OUTRIGGER_KAFKA_BROKERS",
            ),
        ] {
            let text = explain(error);
            assert!(text.starts_with(expected), "{error}: {text}");
        }
    }
}

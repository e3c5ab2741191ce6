//! What the standard variables of OpenTelemetry (`OTEL_*`) say about spans.
//!
//! They are set for many programs at once, often by an operator's machinery. So what cannot be used is no error: it
//! is said, and events are relayed without spans.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::load::Inputs;
use crate::user_info;

/// Variables that are honoured, for those who look at what is in effect.
pub(super) const OTEL_VARIABLES: &[&str] = &[
    "OTEL_SDK_DISABLED",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_TRACES_EXPORTER",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_PROPAGATORS",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
];

/// Samplers by name, and whether they take an argument.
const SAMPLERS: &[(&str, bool)] = &[
    ("always_on", false),
    ("always_off", false),
    ("traceidratio", true),
    ("parentbased_always_on", false),
    ("parentbased_always_off", false),
    ("parentbased_traceidratio", true),
];

/// Whether spans are exported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Traces {
    /// Nobody asked for it.
    #[default]
    Off,
    /// Asked for in a way that cannot be followed: why, and what to do.
    Refused(String),
    /// To a collector.
    On(Box<Export>),
}

/// Where and how spans are exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Where spans are posted, `http` or `https`, without credentials.
    pub endpoint: Url,
    /// Limit for one request.
    pub timeout: Duration,
    /// Certificate authorities instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Client certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// `OTEL_SERVICE_NAME`
    pub service_name: Option<String>,
    /// Whether messages carry the context of their span.
    pub propagate: bool,
    /// What is set and cannot be followed in full.
    pub warnings: Vec<String>,
}

/// Reads the variables.
pub(super) fn traces(inputs: &Inputs) -> Traces {
    match read(inputs) {
        Ok(Some(export)) => Traces::On(Box::new(export)),
        Ok(None) => Traces::Off,
        Err(why) => Traces::Refused(why),
    }
}

fn read(inputs: &Inputs) -> Result<Option<Export>, String> {
    let variable = |name: &str| inputs.variable(name).map(str::trim);
    // The one for traces wins over that for everything.
    let otlp = |what: &str| {
        let traces = format!("OTEL_EXPORTER_OTLP_TRACES_{what}");
        let all = format!("OTEL_EXPORTER_OTLP_{what}");
        [traces, all].into_iter().find_map(|name| {
            let value = variable(&name)?.to_owned();
            Some((name, value))
        })
    };
    let disabled = variable("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let Some((name, endpoint)) = otlp("ENDPOINT").filter(|_| !disabled) else {
        return Ok(None);
    };
    match variable("OTEL_TRACES_EXPORTER") {
        None => {}
        Some("none") => return Ok(None),
        Some(list) if list.split(',').any(|exporter| exporter.trim() == "otlp") => {}
        Some(other) => {
            return Err(format!(
                "OTEL_TRACES_EXPORTER={other:?}: there is `otlp` and `none`"
            ));
        }
    }
    if let Some((name, protocol)) = otlp("PROTOCOL")
        && protocol != "http/protobuf"
    {
        return Err(format!(
            "{name}={protocol:?}: only http/protobuf is spoken; set \
             OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf and \
             OTEL_EXPORTER_OTLP_TRACES_ENDPOINT to the collector's port for it (4318), with the path /v1/traces"
        ));
    }
    let endpoint = url(&name, &endpoint)?;
    let file = |what: &str| otlp(what).map(|(_, path)| PathBuf::from(path));
    let client = match (file("CLIENT_CERTIFICATE"), file("CLIENT_KEY")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => {
            return Err(
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY go together"
                    .to_owned(),
            );
        }
    };
    let mut warnings = Vec::new();
    let mut timeout = Duration::from_secs(10);
    if let Some((name, text)) = otlp("TIMEOUT") {
        match text.parse() {
            Ok(millis @ 1..) => timeout = Duration::from_millis(millis),
            _ => warnings.push(format!(
                "{name}={text:?} is not a number of milliseconds; it is {timeout:?}"
            )),
        }
    }
    warnings.extend(sampler(
        variable("OTEL_TRACES_SAMPLER"),
        variable("OTEL_TRACES_SAMPLER_ARG"),
    ));
    let propagators = variable("OTEL_PROPAGATORS");
    Ok(Some(Export {
        endpoint,
        timeout,
        ca_file: file("CERTIFICATE"),
        client,
        service_name: variable("OTEL_SERVICE_NAME").map(str::to_owned),
        propagate: propagators
            .is_none_or(|list| list.split(',').any(|name| name.trim() == "tracecontext")),
        warnings,
    }))
}

/// Where spans are posted. Never echoes the value, which may hold a token.
fn url(name: &str, text: &str) -> Result<Url, String> {
    let wrong = |rule: &str| format!("{name}: {rule}");
    user_info::check(text).map_err(|rule| wrong(&format!("{rule}: {}", user_info::REMEDY)))?;
    let mut url = Url::parse(text).map_err(|error| wrong(&format!("not a URL ({error})")))?;
    if !["http", "https"].contains(&url.scheme()) {
        return Err(wrong(
            "use `http://` or `https://`, for example http://localhost:4318",
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(
            "credentials in the URL are not sent; use OTEL_EXPORTER_OTLP_HEADERS",
        ));
    }
    // The endpoint of traces is complete; that of everything gets the path of each.
    if name == "OTEL_EXPORTER_OTLP_ENDPOINT" {
        let path = format!("{}/v1/traces", url.path().trim_end_matches('/'));
        url.set_path(&path);
    }
    Ok(url)
}

/// What is wrong with the sampler, which then is the default one, or samples everything.
fn sampler(name: Option<&str>, argument: Option<&str>) -> Option<String> {
    let name = name?;
    let Some((_, takes)) = SAMPLERS.iter().find(|(known, _)| *known == name) else {
        return Some(format!(
            "OTEL_TRACES_SAMPLER={name:?} is not known; it is parentbased_always_on"
        ));
    };
    let ratio = argument.map(str::parse::<f64>);
    match ratio {
        Some(Ok(ratio)) if (0.0..=1.0).contains(&ratio) => None,
        _ if !takes => None,
        _ => Some(format!(
            "OTEL_TRACES_SAMPLER={name} needs a number from 0 to 1 in OTEL_TRACES_SAMPLER_ARG; everything is sampled"
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Traces {
        traces(&Inputs {
            variables: variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..Inputs::default()
        })
    }

    fn on(variables: &[(&str, &str)]) -> Export {
        match of(variables) {
            Traces::On(export) => *export,
            other => panic!("{variables:?}: {other:?}"),
        }
    }

    const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

    #[test]
    fn nothing_is_exported_unless_an_endpoint_is_set() {
        for off in [
            &[][..],
            &[(ALL, "")],
            &[
                ("OTEL_SERVICE_NAME", "shop"),
                ("OTEL_TRACES_SAMPLER", "always_on"),
            ],
            &[(ALL, "http://c:4318"), ("OTEL_SDK_DISABLED", "TRUE")],
            &[(ALL, "http://c:4318"), ("OTEL_TRACES_EXPORTER", "none")],
            &[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://c:4318")],
        ] {
            assert_eq!(of(off), Traces::Off, "{off:?}");
        }
        // Only `true` is true.
        on(&[(ALL, "http://c:4318"), ("OTEL_SDK_DISABLED", "1")]);
    }

    #[test]
    fn endpoints_follow_the_specification() {
        for (variables, endpoint) in [
            (&[(ALL, "http://c:4318")][..], "http://c:4318/v1/traces"),
            (&[(ALL, "https://c/otlp/")], "https://c/otlp/v1/traces"),
            (&[(TRACES, "http://c:4318/x")], "http://c:4318/x"),
            (&[(TRACES, "http://t"), (ALL, "http://a")], "http://t/"),
        ] {
            assert_eq!(on(variables).endpoint.as_str(), endpoint);
        }
        for (value, expected) in [
            ("c:4318", "use `http://` or `https://`"),
            ("/v1/traces", "not a URL"),
            ("https://u:hunter2@c", "credentials in the URL"),
        ] {
            let Traces::Refused(why) = of(&[(ALL, value)]) else {
                panic!("{value}");
            };
            assert!(why.starts_with(ALL) && why.contains(expected), "{why}");
            assert!(!why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn what_cannot_be_followed_is_said() {
        let endpoint = (ALL, "http://c:4318");
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key.pem"),
        ] {
            let Traces::Refused(why) = of(&[endpoint, (name, value)]) else {
                panic!("{name}");
            };
            assert!(why.contains(name), "{why}");
        }
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
        ] {
            let warnings = on(&[endpoint, (name, value)]).warnings;
            assert!(
                warnings.len() == 1 && warnings[0].contains(name),
                "{warnings:?}"
            );
        }
        let fine = on(&[
            endpoint,
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_PROPAGATORS", "baggage"),
        ]);
        assert_eq!(fine.warnings, [""; 0]);
        assert_eq!(fine.timeout, Duration::from_millis(250));
        assert!(!fine.propagate);
        let lists = on(&[endpoint, ("OTEL_PROPAGATORS", "baggage, tracecontext")]);
        assert!(lists.propagate);
    }
}

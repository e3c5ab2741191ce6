//! `outrigger health`: asks the relay that runs beside it, as a container's health check does.

use std::io::{self, Write as _};

use super::args::Health;
use super::{FAILED, Failure};
use crate::admin::probe::{self, Probe};
use crate::settings::Loaded;

/// Asks once. Whatever else is wrong with the settings is not for a health check to say: the relay that runs was
/// started with them.
pub async fn run(args: &Health, loaded: &Loaded) -> Result<(), Failure> {
    let listen = loaded.admin().map_err(Failure::usage)?.listen;
    let nobody = |what: &str| Failure::usage(format!("OUTRIGGER_ADMIN_LISTEN {what}"));
    let listen = listen.ok_or_else(|| {
        nobody("is `off`: the relay has no listener to ask").hint(
            "give it an address, or run the container without a health check (`--no-healthcheck`)",
        )
    })?;
    if listen.port() == 0 {
        return Err(
            nobody("has port 0: the relay takes any free port, which only its log names")
                .hint("give it a fixed port"),
        );
    }
    let address = probe::reachable(listen);
    let probe = if args.ready {
        Probe::Ready
    } else {
        Probe::Live
    };
    match probe::ask(address, probe).await {
        Ok(answer) => {
            io::stdout().write_all(answer.as_bytes())?;
            Ok(())
        }
        Err(what) => Err(Failure {
            exit: FAILED,
            error: Some(format!("http://{address}{}: {what}", probe.path()).into()),
            hint: None,
        }),
    }
}

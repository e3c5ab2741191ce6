//! The command line, declared.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use jiff::Timestamp;

/// Publishes the rows of a transactional outbox table as CloudEvents, in order and confirmed.
#[derive(Debug, Parser)]
#[command(
    name = "outrigger",
    version,
    max_term_width = 100,
    after_help = "Settings are environment variables OUTRIGGER_<SECTION>_<NAME>, or a TOML file.\n\
                  `outrigger config` shows the values in effect.\n\n\
                  Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 check failed."
)]
pub struct Cli {
    /// What to do [default: run].
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Read settings from this TOML file [env: OUTRIGGER_CONFIG].
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Log at level debug, whatever the settings and RUST_LOG say.
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Relay events until stopped (the default).
    ///
    /// TERM or INT stops gracefully: no new events are read, those in flight are settled, and
    /// partitions are handed over. A second signal stops at once.
    Run,
    /// Create or upgrade the tables.
    Migrate(Migrate),
    /// Check settings, database and broker, and say how to mend what is wrong.
    Check(Check),
    /// Show backlog, replicas and failures.
    Status(Status),
    /// Insert an event into the outbox.
    Emit(Emit),
    /// Follow events as they are written and published.
    Tail(Tail),
    /// Look at events that were given up, and try them again or discard them.
    #[command(subcommand)]
    Dead(Dead),
    /// Publish events again that were published before.
    Replay(Replay),
    /// Stop publishing, on all replicas, until `resume`.
    Pause(Write),
    /// Publish again after `pause`.
    Resume(Write),
    /// Show every setting, its value and where it comes from; secrets are hidden.
    Config(Config),
    /// Print a completion script.
    #[command(
        after_help = "Example:\n  outrigger completions bash > /etc/bash_completion.d/outrigger"
    )]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// How a reading command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// The option that every reading command has.
#[derive(Debug, Args)]
pub struct Read {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Output,
}

/// The option that every writing command has.
#[derive(Debug, Args)]
pub struct Write {
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// `migrate`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        outrigger migrate\n  \
        outrigger migrate --print > outrigger.sql   # to apply with another tool")]
pub struct Migrate {
    /// Print the SQL instead of running it; needs no database.
    #[arg(long, conflicts_with = "dry_run")]
    pub print: bool,
    /// Dry run.
    #[command(flatten)]
    pub write: Write,
}

/// `check`
#[derive(Debug, Args)]
#[command(after_help = "Exits with 3 if a check fails.")]
pub struct Check {
    /// Also publish a test message to each destination.
    #[arg(long)]
    pub probe: bool,
    /// Output.
    #[command(flatten)]
    pub read: Read,
}

/// `status`
#[derive(Debug, Args)]
pub struct Status {
    /// Show again every two seconds until interrupted.
    #[arg(short, long)]
    pub watch: bool,
    /// Output.
    #[command(flatten)]
    pub read: Read,
}

/// `emit`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        outrigger emit --type order.created --key order-42 --data '{\"id\": 42}'\n  \
        outrigger emit --type order.created --data @event.json\n  \
        echo '{\"id\": 42}' | outrigger emit --type order.created --data -")]
pub struct Emit {
    /// CloudEvents type.
    #[arg(long = "type", value_name = "TYPE")]
    pub event_type: String,
    /// Payload, as JSON: the text itself, `@FILE`, or `-` for standard input.
    #[arg(long, value_name = "JSON")]
    pub data: Option<String>,
    /// Ordering key.
    #[arg(long)]
    pub key: Option<String>,
    /// CloudEvents subject.
    #[arg(long)]
    pub subject: Option<String>,
    /// CloudEvents source [default: the setting event.source].
    #[arg(long)]
    pub source: Option<String>,
    /// CloudEvents extension; may be repeated.
    #[arg(long = "extension", value_name = "NAME=VALUE", value_parser = pair)]
    pub extensions: Vec<(String, String)>,
    /// Transport header; may be repeated.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = pair)]
    pub headers: Vec<(String, String)>,
    /// Destination, instead of the setting route.destination.
    #[arg(long)]
    pub destination: Option<String>,
    /// Routing key, instead of the setting route.key.
    #[arg(long)]
    pub routing_key: Option<String>,
    /// Dry run.
    #[command(flatten)]
    pub write: Write,
}

/// `tail`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outrigger tail --type 'order.*' --data")]
pub struct Tail {
    /// Only these types; `*` stands for anything.
    #[arg(long = "type", value_name = "PATTERN")]
    pub event_type: Option<String>,
    /// Only this ordering key.
    #[arg(long)]
    pub key: Option<String>,
    /// Show payloads too.
    #[arg(long)]
    pub data: bool,
    /// Output.
    #[command(flatten)]
    pub read: Read,
}

/// `dead ...`
#[derive(Debug, Subcommand)]
pub enum Dead {
    /// List events that are dead, or that block their key.
    List(DeadList),
    /// Show one of them, with its last error.
    Show(DeadShow),
    /// Publish them again, with their attempts counted anew.
    Retry(DeadAct),
    /// Give them up for good and release their keys.
    Discard(DeadAct),
}

/// Which failed events.
#[derive(Debug, Args)]
pub struct DeadFilter {
    /// Only these types; `*` stands for anything.
    #[arg(long = "type", value_name = "PATTERN")]
    pub event_type: Option<String>,
    /// Only this ordering key.
    #[arg(long)]
    pub key: Option<String>,
    /// Only this reason, for example `unroutable`.
    #[arg(long)]
    pub reason: Option<String>,
}

/// `dead list`
#[derive(Debug, Args)]
pub struct DeadList {
    /// Filter.
    #[command(flatten)]
    pub filter: DeadFilter,
    /// Most events to list.
    #[arg(long, default_value_t = 100, value_name = "COUNT")]
    pub limit: u32,
    /// Output.
    #[command(flatten)]
    pub read: Read,
}

/// `dead show`
#[derive(Debug, Args)]
pub struct DeadShow {
    /// Event id, or `seq` number.
    pub event: String,
    /// Output.
    #[command(flatten)]
    pub read: Read,
}

/// `dead retry`, `dead discard`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        outrigger dead retry 0d3c7a58-6f0e-4f4e-9f0b-5b0f6a1f8e11\n  \
        outrigger dead retry --all --reason unroutable --dry-run")]
pub struct DeadAct {
    /// Event ids, or `seq` numbers.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub events: Vec<String>,
    /// Every event that the filters leave.
    #[arg(long)]
    pub all: bool,
    /// Filter.
    #[command(flatten)]
    pub filter: DeadFilter,
    /// Dry run.
    #[command(flatten)]
    pub write: Write,
}

/// `replay`
#[derive(Debug, Args)]
#[command(
    after_help = "Events keep their id and source, so consumers can tell them.\n\n\
        Example:\n  \
        outrigger replay --from 2026-11-20T10:00:00Z --to 2026-11-20T11:00:00Z --dry-run"
)]
pub struct Replay {
    /// Events created at this time or later.
    #[arg(long, value_name = "TIME", required_unless_present = "events")]
    pub from: Option<Timestamp>,
    /// Events created before this time [default: now].
    #[arg(long, value_name = "TIME")]
    pub to: Option<Timestamp>,
    /// Only these events, by id or `seq` number.
    #[arg(value_name = "EVENT")]
    pub events: Vec<String>,
    /// Only these types; `*` stands for anything.
    #[arg(long = "type", value_name = "PATTERN")]
    pub event_type: Option<String>,
    /// Only this ordering key.
    #[arg(long)]
    pub key: Option<String>,
    /// Dry run.
    #[command(flatten)]
    pub write: Write,
}

/// `config`
#[derive(Debug, Args)]
#[command(after_help = "Exits with 2 if something is wrong with the settings.")]
pub struct Config {
    /// Print the reference of all settings, in Markdown.
    #[arg(long, conflicts_with_all = ["example", "output"])]
    pub reference: bool,
    /// Print a commented TOML file with all settings.
    #[arg(long, conflicts_with = "output")]
    pub example: bool,
    /// Output.
    #[command(flatten)]
    pub read: Read,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_declaration_is_sound() {
        Cli::command().debug_assert();
    }

    fn parse(line: &str) -> Result<Cli, clap::error::ErrorKind> {
        Cli::try_parse_from(line.split(' ')).map_err(|error| error.kind())
    }

    #[test]
    fn run_is_the_default() {
        assert!(parse("outrigger").unwrap().command.is_none());
    }

    #[test]
    fn global_options_may_follow_the_command() {
        let cli = parse("outrigger run --config a.toml -v").unwrap();
        assert_eq!(cli.config, Some("a.toml".into()));
        assert!(cli.verbose);
    }

    #[test]
    fn commands_that_change_many_events_must_be_told_which() {
        use clap::error::ErrorKind::{ArgumentConflict, MissingRequiredArgument};
        for line in [
            "outrigger dead retry",
            "outrigger dead discard",
            "outrigger replay",
        ] {
            assert_eq!(parse(line).unwrap_err(), MissingRequiredArgument, "{line}");
        }
        let both = parse("outrigger dead retry --all 7");
        assert_eq!(both.unwrap_err(), ArgumentConflict);
        assert!(parse("outrigger dead retry --all --dry-run").is_ok());
        assert!(parse("outrigger replay --from 2026-11-20T10:00:00Z").is_ok());
        assert!(parse("outrigger replay 17").is_ok());
    }

    #[test]
    fn pairs_need_a_name() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(pair("=b").is_err());
        assert!(pair("a").is_err());
    }
}

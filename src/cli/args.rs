//! The command line, declared.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::time::{Moment, parse_duration};
use crate::error::ReasonCode;
use crate::store::FailureState;

/// Publishes the rows of a transactional outbox table as CloudEvents, in order and confirmed.
#[derive(Debug, Parser)]
#[command(
    name = "outrigger",
    version = super::version::version(),
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
    /// Ask the relay that runs on this host, by these settings, whether it is healthy.
    Health(Health),
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
    Pause(Pause),
    /// Publish again after `pause`.
    Resume(Write),
    /// Show or change the number of partitions that replicas share.
    Partitions(Partitions),
    /// Show every setting, its value and where it comes from; secrets are hidden.
    Config(Config),
    /// Print what a monitoring system needs: metrics, dashboard, alerts.
    Metrics(Metrics),
    /// Print a completion script.
    #[command(
        after_help = "Example:\n  outrigger completions bash > /etc/bash_completion.d/outrigger"
    )]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page.
    #[command(after_help = "Examples:\n  \
        outrigger man | man -l -\n  \
        outrigger man /usr/local/share/man/man1   # one page per command")]
    Man(Man),
}

/// `man`
#[derive(Debug, Args)]
pub struct Man {
    /// Write a page for each command into this folder instead.
    #[arg(value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
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

/// `metrics`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct Metrics {
    /// Every metric with its labels and meaning, in Markdown.
    #[arg(long, group = "what")]
    pub reference: bool,
    /// A dashboard for Grafana.
    #[arg(long, group = "what")]
    pub dashboard: bool,
    /// Alerting rules for Prometheus.
    #[arg(long, group = "what")]
    pub alerts: bool,
    /// With `--alerts`: where your copy of docs/runbook.md can be opened; each alert links to its section.
    #[arg(long, value_name = "URL", requires = "alerts")]
    pub runbook: Option<String>,
}

/// `migrate`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        outrigger migrate\n  \
        outrigger migrate --print > outrigger.sql   # to apply with another tool\n\n\
        Many replicas may migrate at once; one does the work, the others wait.")]
pub struct Migrate {
    /// Print the SQL instead of running it; needs no database.
    #[arg(long, conflicts_with = "dry_run")]
    pub print: bool,
    /// Leave the wake-up trigger out, or remove it: for services that use two-phase commit, which
    /// forbids NOTIFY. The relay then polls (OUTRIGGER_RELAY_WAKE=poll).
    #[arg(long)]
    pub no_trigger: bool,
    /// Dry run.
    #[command(flatten)]
    pub write: Write,
}

/// `check`
#[derive(Debug, Args)]
#[command(after_help = "Exits with 3 if a check fails.\n\n\
        Examples:\n  \
        outrigger check\n  \
        outrigger check --probe=order.created\n  \
        outrigger check --grants shop outrigger | psql")]
pub struct Check {
    /// Also publish a test event of this type, which consumers will see, and tell whether a queue
    /// takes it [default type: outrigger.probe].
    #[arg(long, value_name = "TYPE", num_args = 0..=1, require_equals = true,
          default_missing_value = "outrigger.probe")]
    pub probe: Option<String>,
    /// Only print the least privileges of two roles, as SQL: of the service that writes events and
    /// of the relay. Needs no server.
    #[arg(long, num_args = 2, value_names = ["WRITER", "RELAY"], conflicts_with_all = ["probe", "output"])]
    pub grants: Option<Vec<String>>,
    /// Output.
    #[command(flatten)]
    pub read: Read,
}

/// `health`
#[derive(Debug, Args)]
#[command(
    after_help = "Asks http://127.0.0.1:9647/livez, or what OUTRIGGER_ADMIN_LISTEN says, for 3 seconds at most.\n\
        Exits with 0 if the relay says yes, with 1 if it says no or nothing.\n\n\
        Examples:\n  \
        outrigger health                 # for a container's health check\n  \
        outrigger health --ready         # do events flow?"
)]
pub struct Health {
    /// Ask whether events flow (/readyz) and not just whether the relay works (/livez): an outage of the
    /// database or the broker counts, too.
    #[arg(long)]
    pub ready: bool,
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
    /// CloudEvents id [default: drawn].
    #[arg(long)]
    pub id: Option<String>,
    /// CloudEvents datacontenttype.
    #[arg(long, value_name = "MEDIA_TYPE")]
    pub content_type: Option<String>,
    /// Not before this time; `2h` means in two hours.
    #[arg(long, value_name = "TIME", value_parser = Moment::future)]
    pub available_at: Option<Moment>,
    /// Not after this time; `2h` means in two hours.
    #[arg(long, value_name = "TIME", value_parser = Moment::future)]
    pub expires_at: Option<Moment>,
    /// Dry run.
    #[command(flatten)]
    pub write: Write,
}

/// `pause`
#[derive(Debug, Args)]
pub struct Pause {
    /// The reason that `outrigger status` shows.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Dry run.
    #[command(flatten)]
    pub write: Write,
}

/// `partitions`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        outrigger partitions\n  \
        outrigger partitions 32\n\n\
        Running relays settle what they have in flight, give their partitions back, and go on with the new\n\
        number. Set OUTRIGGER_RELAY_PARTITIONS to it as well; the stored number wins.")]
pub struct Partitions {
    /// The new number; without it, the present one is shown. 1 is total order.
    #[arg(value_name = "NUMBER", value_parser = partitions)]
    pub number: Option<i32>,
    /// Dry run.
    #[command(flatten)]
    pub write: Write,
}

/// `tail`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    outrigger tail --type 'order.*' --data\n  \
    outrigger tail --as-sent   # the messages that a relay would send, pending ones first; nothing is published")]
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
    /// Show pending and new events as the messages that a relay with these settings would send, as JSON lines. Publishes
    /// nothing, marks nothing, and needs no broker.
    #[arg(long, conflicts_with = "data")]
    pub as_sent: bool,
    /// Output.
    #[command(flatten)]
    pub read: Read,
}

/// `dead ...`
#[derive(Debug, Subcommand)]
pub enum Dead {
    /// List events that are dead, or that hold their key up.
    List(DeadList),
    /// Show one of them, with its last error.
    Show(DeadShow),
    /// Publish them again, with their attempts counted anew.
    #[command(after_help = "Examples:\n  \
        outrigger dead retry 0d3c7a58-6f0e-4f4e-9f0b-5b0f6a1f8e11\n  \
        outrigger dead retry --all --reason unroutable --dry-run")]
    Retry(DeadAct),
    /// Give them up for good and release their keys: they are marked as published (or deleted) without being sent, and
    /// recorded as discarded (`dead list --state discarded`).
    #[command(after_help = "Examples:\n  \
        outrigger dead discard 0d3c7a58-6f0e-4f4e-9f0b-5b0f6a1f8e11\n  \
        outrigger dead discard --all --reason invalid_event --dry-run")]
    Discard(DeadDiscard),
}

/// State of a failed event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// Tried again by itself; its key waits.
    Retrying,
    /// Given up; its key waits.
    Blocked,
    /// Given up; its key went on.
    Dead,
    /// Published, but its row could not be marked or deleted so far.
    Unsettled,
    /// Over, never published: given up for good by `dead discard`.
    Discarded,
    /// Over, never published: its time had passed.
    Expired,
}

impl From<State> for FailureState {
    fn from(state: State) -> Self {
        match state {
            State::Retrying => Self::Retrying,
            State::Blocked => Self::Blocked,
            State::Dead => Self::Dead,
            State::Unsettled => Self::Unsettled,
            State::Discarded => Self::Discarded,
            State::Expired => Self::Expired,
        }
    }
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
    #[arg(long, value_parser = reason())]
    pub reason: Option<String>,
    /// Only this state; may be repeated. Default: every state of an event that is not over; `discard --all` takes blocked and
    /// dead ones only.
    #[arg(long = "state", value_name = "STATE", value_enum)]
    pub states: Vec<State>,
    /// Only events that last failed longer ago than this, for example `2h`.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub older_than: Option<Duration>,
    /// Only events that last failed within this period.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub newer_than: Option<Duration>,
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
    /// Show the payload too.
    #[arg(long)]
    pub data: bool,
    /// Output.
    #[command(flatten)]
    pub read: Read,
}

/// `dead retry`, `dead discard`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub struct DeadAct {
    /// Event ids, or `seq` numbers.
    #[arg(group = "which")]
    pub events: Vec<String>,
    /// Every event that the filters leave.
    #[arg(long, group = "which")]
    pub all: bool,
    /// Filter.
    #[command(flatten)]
    pub filter: DeadFilter,
    /// Dry run.
    #[command(flatten)]
    pub write: Write,
}

/// `dead discard`
#[derive(Debug, Args)]
pub struct DeadDiscard {
    /// Which, and whether to try it only.
    #[command(flatten)]
    pub act: DeadAct,
    /// With `--all` on a terminal: do not ask.
    #[arg(long)]
    pub yes: bool,
}

fn partitions(text: &str) -> Result<i32, String> {
    match text.parse() {
        Ok(number @ 1..=1024) => Ok(number),
        _ => Err("write a whole number from 1 to 1024".to_owned()),
    }
}

/// One of the reasons that records can have: a mistyped one would match nothing, and look like good news.
fn reason() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(ReasonCode::ALL.map(ReasonCode::as_str))
}

/// `replay`
#[derive(Debug, Args)]
#[command(
    after_help = "Events keep their id and source, so consumers can recognise duplicates.\n\
        Discarded and expired events never were published, and are left out.\n\n\
        Examples:\n  \
        outrigger replay --from 2026-11-20T10:00:00Z --to 2026-11-20T11:00:00Z --dry-run\n  \
        outrigger replay --from 2h --type 'order.*'\n  \
        outrigger replay 0d3c7a58-6f0e-4f4e-9f0b-5b0f6a1f8e11"
)]
#[command(group = clap::ArgGroup::new("chosen").required(true).multiple(true))]
pub struct Replay {
    /// Events created at this time or later; `2h` means two hours ago.
    #[arg(long, value_name = "TIME", group = "chosen", value_parser = Moment::past)]
    pub from: Option<Moment>,
    /// Events created before this time [default: now].
    #[arg(long, value_name = "TIME", value_parser = Moment::past)]
    pub to: Option<Moment>,
    /// Only these events, by id or `seq` number.
    #[arg(value_name = "EVENT", group = "chosen")]
    pub events: Vec<String>,
    /// Only these types; `*` stands for anything.
    #[arg(long = "type", value_name = "PATTERN")]
    pub event_type: Option<String>,
    /// Only this ordering key.
    #[arg(long)]
    pub key: Option<String>,
    /// Publish copies with new ids, which consumers take for new events.
    #[arg(long)]
    pub new_ids: bool,
    /// Also publish events that were given up for good with `outrigger dead discard`.
    #[arg(long)]
    pub include_discarded: bool,
    /// Also publish events that expired before they could be published. They expire at once again, unless --new-ids is given
    /// (copies do not expire) or their time of expiry was changed.
    #[arg(long)]
    pub include_expired: bool,
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
    /// Only settings that were given, by a variable, a file or an option.
    #[arg(long, conflicts_with_all = ["reference", "example"])]
    pub given: bool,
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

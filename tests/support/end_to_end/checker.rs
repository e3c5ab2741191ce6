//! Compares what was committed, what was delivered, and what the table says in the end.

use std::collections::{BTreeMap, HashMap, HashSet};

/// A committed event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub id: String,
    /// `None`: unordered.
    pub key: Option<String>,
    /// Place among the committed events of its key.
    pub version: i64,
    /// The payload, byte for byte.
    pub data: String,
}

/// A delivered event, reduced to what is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    pub id: String,
    /// The payload as taken out of the message.
    pub data: String,
    /// Everything that must not differ between two copies: body, properties, headers.
    pub bytes: Vec<u8>,
}

/// A row of the outbox in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinalRow {
    pub id: String,
    pub published: bool,
    /// State of its failure record.
    pub failure: Option<String>,
}

/// Every broken promise, by event id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Committed, neither delivered nor visibly waiting or failed.
    pub lost: Vec<String>,
    /// Delivered but never committed.
    pub phantom: Vec<String>,
    /// Delivered again; once per further copy.
    pub duplicated: Vec<String>,
    /// First delivered after a later event of its key.
    pub out_of_order: Vec<String>,
    /// Payload differs from the row, or copies differ from each other.
    pub altered: Vec<String>,
    /// Neither published nor failed in the end: delivered or not, work is left.
    pub pending: Vec<String>,
    /// With a failure record in the end, and its state.
    pub failed: Vec<String>,
    /// Different events delivered.
    pub arrived: usize,
}

/// Compares. `rows` may lack rows (deleted after publishing or by retention).
pub fn check(ledger: &[Entry], arrivals: &[Arrival], rows: &[FinalRow]) -> Report {
    let mut report = Report::default();
    let committed: HashMap<&str, &Entry> = ledger.iter().map(|e| (e.id.as_str(), e)).collect();
    assert_eq!(committed.len(), ledger.len(), "ids in the ledger repeat");

    let mut first: HashMap<&str, &Arrival> = HashMap::new();
    let mut newest: BTreeMap<&str, i64> = BTreeMap::new();
    for arrival in arrivals {
        let id = arrival.id.as_str();
        let Some(entry) = committed.get(id) else {
            report.phantom.push(arrival.id.clone());
            continue;
        };
        if let Some(copy) = first.get(id) {
            report.duplicated.push(arrival.id.clone());
            if copy.bytes != arrival.bytes {
                report.altered.push(arrival.id.clone());
            }
            continue;
        }
        first.insert(id, arrival);
        if entry.data != arrival.data {
            report.altered.push(arrival.id.clone());
        }
        if let Some(key) = &entry.key {
            let newest = newest.entry(key).or_insert(i64::MIN);
            if entry.version <= *newest {
                report.out_of_order.push(arrival.id.clone());
            }
            *newest = entry.version.max(*newest);
        }
    }
    report.arrived = first.len();

    let mut waiting: HashSet<&str> = HashSet::new();
    for row in rows {
        let Some(entry) = committed.get(row.id.as_str()) else {
            continue;
        };
        if let Some(state) = &row.failure {
            report.failed.push(format!("{} {state}", row.id));
        } else if !row.published {
            report.pending.push(row.id.clone());
        }
        if row.failure.is_some() || !row.published {
            waiting.insert(entry.id.as_str());
        }
    }
    for entry in ledger {
        let id = entry.id.as_str();
        if !first.contains_key(id) && !waiting.contains(id) {
            report.lost.push(entry.id.clone());
        }
    }
    report
}

impl Report {
    /// The promises of a run without a fault: each event once, in order, unchanged, and nothing left to do.
    #[track_caller]
    pub fn assert_exact(&self, events: usize) {
        self.assert_delivered(events, 0);
    }

    /// The promises of a run with faults: the same, but up to `duplicates` further copies.
    #[track_caller]
    pub fn assert_delivered(&self, events: usize, duplicates: usize) {
        let problems = self.problems(events, duplicates);
        assert!(
            problems.is_empty(),
            "{}\n{}",
            problems.join("; "),
            self.examples()
        );
    }

    /// What is wrong with a run that committed so many events and may have delivered so many copies.
    pub fn problems(&self, events: usize, duplicates: usize) -> Vec<String> {
        let mut problems = Vec::new();
        if events == 0 {
            problems.push("a run without events proves nothing".to_owned());
        }
        if self.arrived != events {
            problems.push(format!("of {events} events {} arrived", self.arrived));
        }
        for (name, list) in self.lists() {
            let allowed = if name == "duplicated" { duplicates } else { 0 };
            if list.len() > allowed {
                problems.push(format!("{name} {} (allowed {allowed})", list.len()));
            }
        }
        problems
    }

    fn lists(&self) -> [(&'static str, &Vec<String>); 7] {
        [
            ("lost", &self.lost),
            ("phantom", &self.phantom),
            ("duplicated", &self.duplicated),
            ("out of order", &self.out_of_order),
            ("altered", &self.altered),
            ("pending", &self.pending),
            ("failed", &self.failed),
        ]
    }

    /// The first ids of each kind of violation.
    pub fn examples(&self) -> String {
        self.lists()
            .iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(name, list)| format!("  {name}: {:?}\n", &list[..list.len().min(5)]))
            .collect()
    }
}

//! How much of a row was read, and why no more.

use crate::error::{Reason, ReasonCode};

/// How much of a row was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Content {
    /// All of it.
    #[default]
    Whole,
    /// Only what identifies it: the rest is read when it is about to go.
    Left {
        /// Size of the row in bytes, as far as it is known: of JSON that is not rendered yet, as stored; 0 if nothing is.
        bytes: u64,
    },
    /// It cannot be read, or must not be: this is its fate, without being sent.
    Refused(Box<Refusal>),
}

/// Why a row is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why, without anything of the payload.
    pub reason: Reason,
    /// Whether another attempt can help.
    pub may_pass: bool,
}

impl Content {
    /// What becomes of a row of so many bytes that was not read with others. `limit`: most bytes of a row.
    pub fn of_size(bytes: u64, limit: usize) -> Self {
        if bytes <= limit as u64 {
            return Self::Left { bytes };
        }
        Self::refused(
            ReasonCode::TooLarge,
            format!(
                "the row has {bytes} bytes, and OUTRIGGER_RELAY_MAX_EVENT_SIZE allows {limit}; it was not read"
            ),
        )
    }

    /// A row that no attempt can get through.
    pub fn refused(code: ReasonCode, detail: impl Into<String>) -> Self {
        Self::Refused(Box::new(Refusal {
            reason: Reason::new(code, detail),
            may_pass: false,
        }))
    }

    /// Whether the rest of the row is still to be read.
    pub fn is_left(&self) -> bool {
        matches!(self, Self::Left { .. })
    }

    /// Why the row is not read, if so.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::Whole | Self::Left { .. } => None,
        }
    }

    /// Bytes that are still to be read.
    pub(super) fn outstanding(&self) -> usize {
        match self {
            Self::Left { bytes } => usize::try_from(*bytes).unwrap_or(usize::MAX / 2),
            Self::Whole | Self::Refused(_) => 0,
        }
    }
}

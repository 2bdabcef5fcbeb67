//! What happens to sandboxes, as Server-Sent Events tell it.

use serde::{Deserialize, Serialize};

/// Why a sandbox ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Somebody asked for it.
    Requested,
    /// Its time was up.
    TimedOut,
    /// It never came to run.
    NeverRan,
    /// Who it was bound to went away.
    Unbound,
    /// The agent ended it with itself.
    HostEnded,
    /// It was gone when this server looked again.
    Unknown,
}

impl Why {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Requested, Self::TimedOut, Self::NeverRan, Self::Unbound, Self::HostEnded, Self::Unknown];

    /// Its name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::TimedOut => "timed_out",
            Self::NeverRan => "never_ran",
            Self::Unbound => "unbound",
            Self::HostEnded => "host_ended",
            Self::Unknown => "unknown",
        }
    }
}

/// A sandbox that is gone for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Departure {
    /// Which one.
    pub id: String,
    /// Why.
    pub why: Why,
    /// When.
    pub ended_unix_ms: u64,
}

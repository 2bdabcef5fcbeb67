//! How a request is refused.

use serde::{Deserialize, Serialize};

/// What kind of refusal or failure it is. Stable: programs may decide by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// What was asked for makes no sense (400).
    Invalid,
    /// There is no key, or none that is valid (401).
    Unauthenticated,
    /// The key does not allow it (403).
    Forbidden,
    /// There is no such thing, or it is somebody else's (404).
    NotFound,
    /// The path does not know this method (405).
    MethodNotAllowed,
    /// Its state does not allow it now (409).
    Conflict,
    /// Somebody destroyed it meanwhile (410).
    Destroyed,
    /// More was sent than is taken (413).
    TooLarge,
    /// The body is not what the route reads (415).
    UnsupportedMediaType,
    /// The range lies outside of the file (416).
    RangeNotSatisfiable,
    /// The key's quota is used up (429).
    QuotaExceeded,
    /// Too many requests in too short a time (429).
    RateLimited,
    /// It was tried and failed; nothing has changed (500).
    Failed,
    /// It was tried and failed, and the sandbox needs a repair (500).
    NeedsRepair,
    /// The host's agent or the database is not there (503).
    Unavailable,
    /// The host has no room for it (503).
    Exhausted,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Invalid,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::Destroyed,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::RangeNotSatisfiable,
        Self::QuotaExceeded,
        Self::RateLimited,
        Self::Failed,
        Self::NeedsRepair,
        Self::Unavailable,
        Self::Exhausted,
    ];

    /// Its name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Conflict => "conflict",
            Self::Destroyed => "destroyed",
            Self::TooLarge => "too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::RangeNotSatisfiable => "range_not_satisfiable",
            Self::QuotaExceeded => "quota_exceeded",
            Self::RateLimited => "rate_limited",
            Self::Failed => "failed",
            Self::NeedsRepair => "needs_repair",
            Self::Unavailable => "unavailable",
            Self::Exhausted => "exhausted",
        }
    }

    /// The HTTP status that it comes with.
    pub const fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict => 409,
            Self::Destroyed => 410,
            Self::TooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::RangeNotSatisfiable => 416,
            Self::QuotaExceeded | Self::RateLimited => 429,
            Self::Failed | Self::NeedsRepair => 500,
            Self::Unavailable | Self::Exhausted => 503,
        }
    }
}

/// Why a request did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// For programs.
    pub code: Code,
    /// For people: what was tried, on what, and every cause.
    pub message: String,
    /// What helps, where something is known to.
    pub remedy: Option<String>,
}

/// The body of every answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Refusal {
    /// It.
    pub error: ErrorBody,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_called_the_same_everywhere() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
            assert!((400..600).contains(&code.status()));
        }
    }
}

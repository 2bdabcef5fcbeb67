//! Why a call did not do what was asked.

use std::time::Duration;

use crate::types::{Code, ErrorBody};

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a call did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no such URL.
    #[error("{url:?} is no URL of a server ({why}); one looks like https://wrenn.example.com")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is no such key.
    #[error("what was given as key is none; one is `wrn_` and 40 hexadecimal digits")]
    Key,
    /// There can be nothing of this name.
    #[error("there can be nothing called {0:?}")]
    Name(String),
    /// There is no way to make secure connections on this system.
    #[error(
        "cannot make an HTTP client; has this system certificates (Debian package ca-certificates), or does SSL_CERT_FILE name some?"
    )]
    Set {
        /// Why.
        #[source]
        source: Source,
    },
    /// The server understood, and refused or failed.
    #[error("{}", refusal(.error, .request_id.as_deref()))]
    Refused {
        /// What it was asked: method and path.
        call: String,
        /// Its words.
        error: ErrorBody,
        /// The HTTP status.
        status: u16,
        /// By which its log calls the request.
        request_id: Option<String>,
        /// How long to wait before asking again, where it says so.
        retry_after: Option<Duration>,
    },
    /// No connection came to stand, so nothing was asked for.
    #[error("cannot reach the server at {server}; does it run, and is the URL right?")]
    Unreachable {
        /// Which one.
        server: String,
        /// Why.
        #[source]
        source: Source,
    },
    /// The connection broke; what was asked for may have been done or not.
    #[error("the connection to the server broke ({call})")]
    Broke {
        /// What it was asked.
        call: String,
        /// Why.
        #[source]
        source: Source,
    },
    /// What answers there does not speak this API.
    #[error(
        "the answer at {server} is not understood ({call}: {detail}); is it a Wrenn server, and as new as this program?"
    )]
    Protocol {
        /// Where.
        server: String,
        /// What it was asked.
        call: String,
        /// What is wrong.
        detail: String,
    },
}

impl ClientError {
    /// The kind of the refusal, if it is one.
    pub fn code(&self) -> Option<Code> {
        self.refused().map(|error| error.code)
    }

    /// The server's words, if it has refused.
    pub fn refused(&self) -> Option<&ErrorBody> {
        match self {
            Self::Refused { error, .. } => Some(error),
            Self::Url { .. }
            | Self::Key
            | Self::Name(_)
            | Self::Set { .. }
            | Self::Unreachable { .. }
            | Self::Broke { .. }
            | Self::Protocol { .. } => None,
        }
    }

    /// By which the server's log calls the request, where it was answered.
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Self::Refused { request_id, .. } => request_id.as_deref(),
            Self::Url { .. }
            | Self::Key
            | Self::Name(_)
            | Self::Set { .. }
            | Self::Unreachable { .. }
            | Self::Broke { .. }
            | Self::Protocol { .. } => None,
        }
    }
}

fn refusal(error: &ErrorBody, request_id: Option<&str>) -> String {
    let mut text = error.message.clone();
    if let Some(remedy) = error.remedy.as_deref().filter(|remedy| !text.contains(remedy)) {
        text = format!("{text}; {remedy}");
    }
    match request_id {
        Some(id) => format!("{text} (request {id})"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_helps_and_where_to_look() {
        let error = |remedy: Option<&str>| ErrorBody {
            code: Code::NotFound,
            message: "there is no sandbox".to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        assert_eq!(refusal(&error(None), None), "there is no sandbox");
        assert_eq!(refusal(&error(Some("list them")), Some("r1")), "there is no sandbox; list them (request r1)");
        assert_eq!(refusal(&error(Some("no sandbox")), None), "there is no sandbox", "said already");
    }
}

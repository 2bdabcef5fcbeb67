//! What happens to sandboxes, as it happens.
//!
//! First every sandbox that is there, then [`Event::Complete`], then changes. What was missed while nobody was connected is
//! in what the next stream begins with.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use futures::stream::{self, BoxStream};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::client::Answer;
use crate::error::ClientError;
use crate::limits;
use crate::sse::{Parser, Raw};
use crate::types::{Departure, ErrorBody, Sandbox};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A sandbox that is there, as it is now.
    Sandbox(Box<Sandbox>),
    /// All that were there have been told of; what comes now are changes.
    Complete,
    /// A sandbox is gone.
    Gone(Departure),
}

/// Events, until the connection ends. An error is the last item.
pub struct Events(BoxStream<'static, Result<Event, ClientError>>);

impl Events {
    pub(crate) fn new(answer: Answer) -> Self {
        let reading = Reading { answer, parser: Parser::new(limits::EVENT_BYTES_MAX), raw: VecDeque::new() };
        Self(Box::pin(stream::unfold(Some(reading), |reading| async {
            let mut reading = reading?;
            match reading.next().await {
                Ok(Some(event)) => Some((Ok(event), Some(reading))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })))
    }
}

impl Stream for Events {
    type Item = Result<Event, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

struct Reading {
    answer: Answer,
    parser: Parser,
    raw: VecDeque<Raw>,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            while let Some(raw) = self.raw.pop_front() {
                if let Some(event) = self.event(raw)? {
                    return Ok(Some(event));
                }
            }
            let Ok(piece) = timeout(limits::EVENTS_SILENCE_MAX, self.answer.chunk()).await else {
                let silent = io::Error::new(io::ErrorKind::TimedOut, "nothing came for too long");
                return Err(self.answer.call.broke(silent));
            };
            let Some(piece) = piece? else { return Ok(None) };
            let mut events = Vec::new();
            self.parser.push(&piece, &mut events).map_err(|error| self.answer.call.protocol(error))?;
            self.raw.extend(events);
        }
    }

    /// What an event says; one of a kind that a newer server knows says nothing to us.
    fn event(&self, raw: Raw) -> Result<Option<Event>, ClientError> {
        Ok(match raw.event.as_str() {
            "sandbox" => Some(Event::Sandbox(Box::new(self.data(&raw)?))),
            "complete" => Some(Event::Complete),
            "gone" => Some(Event::Gone(self.data(&raw)?)),
            "error" => return Err(self.answer.call.refused_later(self.data::<ErrorBody>(&raw)?)),
            _of_a_newer_server => None,
        })
    }

    fn data<T: DeserializeOwned>(&self, raw: &Raw) -> Result<T, ClientError> {
        serde_json::from_str(&raw.data)
            .map_err(|error| self.answer.call.protocol(format_args!("an event {}: {error}", raw.event)))
    }
}

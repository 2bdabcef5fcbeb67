//! Calls under way, and how those are answered that may take long.
//!
//! A bound sandbox's [`Bond`] lies in the stream of the call that made it, and so goes with its client:
//!
//! ```text
//!   Making ── created ──► Held ── the client or the agent goes ──► dropped: the sandbox is destroyed
//!     └── the client goes ──► the task goes on, and drops what it made
//! ```

use connectrpc::ConnectError;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use wrenn_proto::hostagent as wire;

use super::limits;
use super::wire::change_event;
use crate::host_agent::{AgentError, Bond, Changes, Code, Created};

/// A call that is under way, and goes on when this is dropped.
pub(super) struct Call<T>(JoinHandle<Result<T, AgentError>>);

impl<T> Call<T> {
    /// The call that `task` carries out.
    pub fn new(task: JoinHandle<Result<T, AgentError>>) -> Self {
        Self(task)
    }

    /// Its answer. Cancel safe.
    pub async fn answer(&mut self) -> Result<T, AgentError> {
        (&mut self.0).await.unwrap_or_else(|error| {
            let message = format!("the agent made a mistake, which its log tells more of: {error}");
            Err(AgentError { code: Code::Failed, message })
        })
    }
}

/// The stream of a call that may take long: keepalives while it is under way, then what `events` makes of its answer.
pub(super) fn long<T: Send + 'static, E: Send + 'static>(
    call: Call<T>,
    keepalive: fn() -> E,
    events: fn(T) -> Vec<E>,
) -> impl Stream<Item = Result<E, ConnectError>> + Send {
    let (_nobody, no_lines) = mpsc::channel(1);
    telling(call, no_lines, move |_| keepalive(), keepalive, events)
}

/// As [`long`], of a call that tells in lines how it goes on.
pub(super) fn telling<T: Send + 'static, E: Send + 'static>(
    call: Call<T>,
    lines: mpsc::Receiver<String>,
    line: impl Fn(String) -> E + Copy + Send,
    keepalive: fn() -> E,
    events: fn(T) -> Vec<E>,
) -> impl Stream<Item = Result<E, ConnectError>> + Send {
    let waiting = futures::stream::unfold(Some((call, lines)), move |waiting| async move {
        let (mut call, mut lines) = waiting?;
        let next = async {
            tokio::select! {
                biased;
                Some(text) = lines.recv() => Next::Line(text),
                answer = call.answer() => Next::Answer(answer),
            }
        };
        match timeout(limits::KEEPALIVE_EVERY, next).await {
            Err(_elapsed) => Some((vec![Ok(keepalive())], Some((call, lines)))),
            Ok(Next::Line(text)) => Some((vec![Ok(line(text))], Some((call, lines)))),
            Ok(Next::Answer(answer)) => {
                let told = std::iter::from_fn(|| lines.try_recv().ok()).map(|text| Ok(line(text)));
                let rest = match answer {
                    Ok(answer) => events(answer).into_iter().map(Ok).collect(),
                    Err(error) => vec![Err(error.into())],
                };
                Some((told.chain(rest).collect(), None))
            }
        }
    });
    waiting.flat_map(futures::stream::iter)
}

enum Next<T> {
    Line(String),
    Answer(Result<T, AgentError>),
}

/// The stream of one Watch: what happens, keepalives while nothing does, and an error at its end, also when the agent ends.
pub(super) fn watching(
    changes: Changes,
    ending: watch::Receiver<bool>,
) -> impl Stream<Item = Result<wire::WatchResponse, ConnectError>> + Send {
    let events = futures::stream::unfold(Some((changes, ending)), |watched| async move {
        let (mut changes, mut ending) = watched?;
        let next = tokio::select! {
            biased;
            () = super::ends(&mut ending) => Ok(Some(Err(AgentError::ending()))),
            next = timeout(limits::KEEPALIVE_EVERY, changes.next()) => next,
        };
        match next {
            Err(_elapsed) => Some((Ok(wire::KeepAlive {}.into()), Some((changes, ending)))),
            Ok(Some(Ok(change))) => Some((Ok(change_event(change)), Some((changes, ending)))),
            Ok(Some(Err(error))) => Some((Err(error.into()), None)),
            Ok(None) => None,
        }
    });
    events.map_ok(|event| wire::WatchResponse { event: Some(event) })
}

/// The stream of one Create.
pub(super) struct Making {
    stage: Stage,
    ending: watch::Receiver<bool>,
}

enum Stage {
    Making(Call<Created>),
    /// The bond is never looked at; it is held.
    Held(#[expect(dead_code, reason = "held for its drop")] Bond),
    Over,
}

impl Making {
    /// The stream of the Create that `call` carries out.
    pub fn new(call: Call<Created>, ending: watch::Receiver<bool>) -> Self {
        Self { stage: Stage::Making(call), ending }
    }

    /// As Connect takes it.
    pub fn into_stream(self) -> impl Stream<Item = Result<wire::CreateResponse, ConnectError>> + Send {
        futures::stream::unfold(self, |mut making| async move { making.next().await.map(|event| (event, making)) })
    }

    async fn next(&mut self) -> Option<Result<wire::CreateResponse, ConnectError>> {
        match &mut self.stage {
            Stage::Over => None,
            Stage::Making(call) => match timeout(limits::KEEPALIVE_EVERY, call.answer()).await {
                Err(_elapsed) => Some(Ok(keepalive())),
                Ok(Err(error)) => {
                    self.stage = Stage::Over;
                    Some(Err(error.into()))
                }
                Ok(Ok(Created { changed, bond })) => {
                    self.stage = bond.map_or(Stage::Over, Stage::Held);
                    Some(Ok(created(changed.into())))
                }
            },
            Stage::Held(_) => match timeout(limits::KEEPALIVE_EVERY, super::ends(&mut self.ending)).await {
                Err(_elapsed) => Some(Ok(keepalive())),
                Ok(()) => {
                    self.stage = Stage::Over;
                    Some(Err(AgentError::ending().into()))
                }
            },
        }
    }
}

fn keepalive() -> wire::CreateResponse {
    wire::CreateResponse { event: Some(wire::KeepAlive {}.into()) }
}

fn created(changed: wire::Changed) -> wire::CreateResponse {
    wire::CreateResponse { event: Some(changed.into()) }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::super::limits::KEEPALIVE_EVERY;
    use super::*;

    type Answer = Result<u32, AgentError>;

    fn begin() -> (oneshot::Sender<Answer>, impl Stream<Item = Result<String, ConnectError>>) {
        let (answer, answered) = oneshot::channel();
        let call = Call::new(tokio::spawn(async { answered.await.unwrap() }));
        (answer, long(call, || "alive".to_owned(), |count| (0..count).map(|n| n.to_string()).collect()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_call_says_that_it_is_alive_until_it_answers() {
        let (answer, stream) = begin();
        tokio::pin!(stream);
        for _ in 0..3 {
            let begun = tokio::time::Instant::now();
            assert_eq!(stream.next().await.unwrap().unwrap(), "alive");
            assert!(begun.elapsed() >= KEEPALIVE_EVERY);
        }
        answer.send(Ok(2)).unwrap();
        let rest: Vec<_> = stream.map(Result::unwrap).collect().await;
        assert_eq!(rest, ["0", "1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn all_lines_of_a_call_come_before_its_answer() {
        let (answer, answered) = oneshot::channel::<Answer>();
        let (lines, heard) = mpsc::channel(8);
        let call = Call::new(tokio::spawn(async { answered.await.unwrap() }));
        let stream = telling(call, heard, |line| line, || "alive".to_owned(), |answer| vec![answer.to_string()]);
        tokio::pin!(stream);
        lines.try_send("one".to_owned()).unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "one");
        assert_eq!(stream.next().await.unwrap().unwrap(), "alive");
        answer.send(Ok(7)).unwrap();
        lines.try_send("two".to_owned()).unwrap();
        lines.try_send("three".to_owned()).unwrap();
        drop(lines);
        let rest: Vec<_> = stream.map(Result::unwrap).collect().await;
        assert_eq!(rest, ["two", "three", "7"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_on_which_nothing_happens_says_that_it_is_alive_until_the_agent_ends() {
        let (end, ending) = watch::channel(false);
        let stream = watching(futures::stream::pending().boxed(), ending);
        tokio::pin!(stream);
        for _ in 0..3 {
            let begun = tokio::time::Instant::now();
            let event = stream.next().await.unwrap().unwrap().event;
            assert!(matches!(event, Some(wire::watch_response::Event::Keepalive(_))));
            assert!(begun.elapsed() >= KEEPALIVE_EVERY);
        }
        end.send_replace(true);
        let rest: Vec<_> = stream.collect().await;
        assert_eq!(rest.len(), 1);
        assert_eq!(rest[0].as_ref().unwrap_err().message.as_deref(), Some("the agent is ending"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_call_that_fails_ends_with_its_error() {
        let (answer, stream) = begin();
        answer.send(Err(AgentError::ending())).unwrap();
        let all: Vec<_> = stream.collect().await;
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].as_ref().unwrap_err().message.as_deref(), Some("the agent is ending"));
    }
}

//! What happens to sandboxes, as Server-Sent Events.
//!
//! First what is there, then `complete`, then each change. A client that falls behind is told so and cut off: it asks again and
//! is told anew what is there.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::State;
use axum::response::sse::{Event as Sent, KeepAlive};
use axum::response::{IntoResponse, Sse};
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{self, StreamExt as _};
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use wrenn_agent::host_agent::View;
use wrenn_client::types::{Code, Refusal};
use wrenn_engine::names::SandboxId;

use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::Id;
use crate::limits;
use crate::world::Event;

/// What happens to one sandbox (Server-Sent Events).
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/events",
    tag = "observe",
    params(("id" = String, Path, description = "The sandbox", pattern = "^sb[a-z0-9]{18}$")),
    responses(
        (status = 200, description = "`sandbox` (Sandbox), `complete`, `gone` (Departure), `error` (ErrorBody)", content_type = "text/event-stream"),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn of_sandbox(
    State(app): State<Arc<App>>,
    caller: Caller,
    Id(id): Id,
) -> Result<impl IntoResponse, ApiError> {
    app.sandbox(&caller, &id).await?;
    told(app, caller, Some(id))
}

/// What happens to all sandboxes that the key may see (Server-Sent Events).
#[utoipa::path(
    get,
    path = "/v1/events",
    tag = "observe",
    responses(
        (status = 200, description = "`sandbox` (Sandbox), `complete`, `gone` (Departure), `error` (ErrorBody)", content_type = "text/event-stream"),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn of_all(State(app): State<Arc<App>>, caller: Caller) -> Result<impl IntoResponse, ApiError> {
    told(app, caller, None)
}

fn told(app: Arc<App>, caller: Caller, only: Option<SandboxId>) -> Result<impl IntoResponse + use<>, ApiError> {
    let (views, events) = app.world.subscribe()?;
    let listener = Listener { app, caller, only };
    let first: Vec<Sent> = views.iter().filter(|view| listener.hears(view)).map(|view| listener.is(view)).collect();
    let first = stream::iter(first).chain(stream::iter([sent("complete", &serde_json::json!({}))]));
    let end = end(Arc::clone(&listener.app), listener.caller.clone()).boxed();
    let rest = stream::unfold(Some((listener, events, end)), next);
    let keepalive = KeepAlive::new().interval(limits::KEEPALIVE_EVERY);
    Ok(Sse::new(first.chain(rest).map(Ok::<_, Infallible>)).keep_alive(keepalive))
}

/// Who listens, and to what.
struct Listener {
    app: Arc<App>,
    caller: Caller,
    only: Option<SandboxId>,
}

/// Who listens, to what, and what ends it.
type Listening = Option<(Listener, broadcast::Receiver<Event>, BoxFuture<'static, ApiError>)>;

/// Why nobody is told anything any more. It is one future for the whole stream: where events come without a pause, the key is
/// looked at all the same.
async fn end(app: Arc<App>, caller: Caller) -> ApiError {
    tokio::select! {
        () = app.keys.revoked(&caller) => ApiError::new(Code::Unauthenticated, "the key was revoked"),
        () = app.world.lost() => ApiError::new(Code::Unavailable, "the host's agent is gone")
            .remedy("sandboxes go on; ask again: all that is there is told anew"),
    }
}

/// The next event; the last one says why there are no more.
async fn next(listening: Listening) -> Option<(Sent, Listening)> {
    let (listener, mut events, mut end) = listening?;
    let event = async {
        loop {
            match events.recv().await {
                Ok(Event::Is(view)) if listener.hears(&view) => return Ok(listener.is(&view)),
                Ok(Event::Gone(departure, view)) if listener.hears(&view) => return Ok(sent("gone", &departure)),
                Ok(Event::Is(_) | Event::Gone(..)) => {}
                Err(RecvError::Lagged(missed)) => {
                    let message = format!("{missed} events were not read in time");
                    return Err(
                        ApiError::new(Code::Exhausted, message).remedy("ask again: all that is there is told anew")
                    );
                }
                Err(RecvError::Closed) => return Err(ApiError::new(Code::Unavailable, "the server ends")),
            }
        }
    };
    let event = tokio::select! {
        biased;
        error = &mut end => Err(error),
        event = event => event,
    };
    match event {
        Ok(event) => Some((event, Some((listener, events, end)))),
        Err(error) => Some((sent("error", &error.body), None)),
    }
}

impl Listener {
    fn hears(&self, view: &View) -> bool {
        self.caller.sees_sandbox(view) && self.only.as_ref().is_none_or(|only| *only == view.id)
    }

    fn is(&self, view: &View) -> Sent {
        sent("sandbox", &self.app.shown(&self.caller, view))
    }
}

fn sent(name: &str, data: &impl Serialize) -> Sent {
    Sent::default().event(name).json_data(data).expect("events of ours are JSON")
}

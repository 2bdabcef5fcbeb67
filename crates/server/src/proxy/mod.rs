//! The way to TCP ports of sandboxes, over the server's own listener.
//!
//! ```text
//!   request ─► target ─► head ─► places ─► Ways::admit ─► pool ─► line ─► guest
//!              which     what the          who may,       a connection    │
//!              port      guest sees        which life     that waits, or  │
//!                                                         Ways::dial      │
//!   client ◄── Download ◄─────────────────────────────────────────────────┘
//!              holds the connection and the place until the body has ended; dropped early it closes the connection
//! ```
//!
//! Nothing is buffered: a body moves as fast as the slower side takes it. A request is sent again only where that cannot make a
//! guest do something twice: its connection had waited, was dead, and nothing of the request can have been carried out.
//!
//! What the proxy itself says is marked with `X-Wrenn-Proxy-Error`. It does not know keys, tokens, states or agents: that is
//! [`Ways`]. Names of sandboxes are not looked up here.

mod body;
mod head;
mod limits;
mod line;
mod places;
mod pool;
mod refused;
pub mod target;
mod upgrade;
mod ways;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::body::Body;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, timeout, timeout_at};
use wrenn_client::types::Code;

pub use head::Arrival;
pub use refused::{PROXY_ERROR_HEADER, Refused};
pub use target::Target;
pub use ways::{Admitted, Ways};

use body::{Download, Held, Upload};
use head::{Head, Protocol};
use line::{Line, SendError};
use places::{Kind, Places};
use pool::Pool;

/// Passes requests on. Clones are the same one.
#[derive(Clone)]
pub struct Proxy {
    ways: Arc<dyn Ways>,
    pool: Arc<Pool>,
    places: Arc<Places>,
}

impl Proxy {
    /// Over these ways.
    pub fn new(ways: Arc<dyn Ways>) -> Self {
        Self { ways, pool: Arc::default(), places: Arc::default() }
    }

    /// Passes a request on to the guest; its path is what the guest is asked for. Whatever goes wrong is an answer as well.
    /// Dropping the future, or the answer's body, calls the request off.
    pub async fn forward(&self, target: Target, request: Request<Body>) -> Response<Body> {
        self.pass(target, request).await.unwrap_or_else(|refused| {
            tracing::debug!(
                code = refused.code.as_str(),
                message = refused.message.escape_debug().to_string(),
                "a request was not passed on"
            );
            refused.into_response()
        })
    }

    async fn pass(&self, target: Target, request: Request<Body>) -> Result<Response<Body>, Refused> {
        let (mut asked, body) = request.into_parts();
        let head = Head::to_guest(&asked, &target)?;
        let client = asked.extensions.remove::<OnUpgrade>().filter(|_| head.upgrade);
        let place = self.places.take(&target.id, if head.upgrade { Kind::Upgrade } else { Kind::Request })?;
        let Admitted { life } = self.ways.admit(&target, &asked.headers).await?;
        let (answer, line) = self.exchange(&target, &head, body, life).await?;
        let held = Held { line, target, pool: Arc::clone(&self.pool), place };
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            upgraded(answer, client, held)
        } else {
            Ok(passed(answer, held))
        }
    }

    /// Sends the request over a connection that waits, and over a new one if that turns out dead.
    async fn exchange(
        &self,
        target: &Target,
        head: &Head,
        mut body: Body,
        life: u64,
    ) -> Result<(Response<Incoming>, Line), Refused> {
        if let Some(mut line) = self.pool.take(target, head.protocol, life) {
            let upload = Upload::new(body);
            match send(head, &upload, &mut line).await {
                Ok(answer) => return Ok((answer, line)),
                Err(failed) => body = again(target, head, &upload, failed)?,
            }
        }
        let mut line = self.open(target, head.protocol, life).await?;
        let answer = send(head, &Upload::new(body), &mut line).await;
        answer.map(|answer| (answer, line)).map_err(|failed| failed.refused(target, head.protocol))
    }

    async fn open(&self, target: &Target, protocol: Protocol, life: u64) -> Result<Line, Refused> {
        let dialled =
            timeout(limits::DIAL_LIMIT + limits::DIAL_GRACE, self.ways.dial(target, limits::DIAL_LIMIT)).await;
        let stream = dialled.unwrap_or_else(|_elapsed| {
            let Target { id, port } = target;
            let message =
                format!("port {port} of sandbox {id} was not reached within {} s", limits::DIAL_LIMIT.as_secs());
            Err(Refused::gateway_timeout(message))
        })?;
        Line::open(stream, protocol, life)
            .await
            .map_err(|error| Failed::Broken(SendError::from(error)).refused(target, protocol))
    }
}

/// The body again, where to ask twice cannot do anything twice: nothing of the request left, the method does not mind, or the
/// guest cannot have had all of it. And only if the connection was dead already.
fn again(target: &Target, head: &Head, upload: &Upload, failed: Failed) -> Result<Body, Refused> {
    let harmless = match &failed {
        Failed::Broken(error) => error.is_dead_line() && (error.unsent || head.is_idempotent() || !upload.is_empty()),
        Failed::Slow => false,
    };
    let body = if harmless { upload.take_back() } else { None };
    body.ok_or_else(|| failed.refused(target, head.protocol))
}

/// Sends a request over this connection, until the answer's head is there or the guest took too long over it.
async fn send(head: &Head, upload: &Upload, line: &mut Line) -> Result<Response<Incoming>, Failed> {
    let mut request = head.request(upload.clone());
    if head.expects_continue {
        let wanted = upload.wait_for_continue();
        hyper::ext::on_informational(&mut request, move |answer| {
            if answer.status() == StatusCode::CONTINUE {
                wanted.notify_one();
            }
        });
    }
    let answer = line.send(request);
    tokio::pin!(answer);
    loop {
        let deadline = upload.moved() + limits::ANSWER_HEAD_LIMIT;
        match timeout_at(deadline, &mut answer).await {
            Ok(answer) => return answer.map_err(Failed::Broken),
            Err(_elapsed) if upload.moved() + limits::ANSWER_HEAD_LIMIT > Instant::now() => {}
            Err(_elapsed) => return Err(Failed::Slow),
        }
    }
}

/// An ordinary answer.
fn passed(answer: Response<Incoming>, held: Held) -> Response<Body> {
    let (mut head, body) = answer.into_parts();
    head::to_client(&mut head, false);
    Response::from_parts(head, Body::new(Download::new(body, held)))
}

/// The answer after which both connections become another one.
fn upgraded(mut answer: Response<Incoming>, client: Option<OnUpgrade>, held: Held) -> Result<Response<Body>, Refused> {
    let Held { line, target, place, pool: _ } = held;
    let client = client.ok_or_else(|| {
        let Target { id, port } = &target;
        Refused::bad_gateway(format!("port {port} of sandbox {id} switched protocols without being asked to"))
    })?;
    let guest = hyper::upgrade::on(&mut answer);
    tokio::spawn(upgrade::carry(client, guest, line, place));
    let (mut head, _no_body) = answer.into_parts();
    head::to_client(&mut head, true);
    Ok(Response::from_parts(head, Body::empty()))
}

/// Why a request that went out has no answer.
enum Failed {
    Broken(SendError),
    Slow,
}

impl Failed {
    fn refused(&self, target: &Target, protocol: Protocol) -> Refused {
        let Target { id, port } = target;
        match self {
            Self::Slow => {
                let limit_s = limits::ANSWER_HEAD_LIMIT.as_secs();
                let message = format!("port {port} of sandbox {id} did not begin an answer within {limit_s} s");
                let remedy = "answer long work at once, and let the client ask for its result";
                Refused::gateway_timeout(message).with_remedy(remedy)
            }
            Self::Broken(error) if error.is_client() => {
                Refused::new(Code::Invalid, format!("the request's body broke off: {}", error.words()))
            }
            Self::Broken(error) => {
                let words = error.words();
                let message = format!("port {port} of sandbox {id} took the connection and gave no answer: {words}");
                Refused::bad_gateway(message).with_remedy(no_answer_remedy(protocol))
            }
        }
    }
}

const fn no_answer_remedy(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http1 => "see that what listens there speaks HTTP/1.1 and is still up; its output says more",
        Protocol::Http2 => "see that what listens there speaks HTTP/2 without TLS (as gRPC does) and is still up",
    }
}

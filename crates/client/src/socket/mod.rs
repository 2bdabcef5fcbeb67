//! WebSockets, over the connections that ordinary calls go over too.
//!
//! The handshake is an ordinary call: a refusal is one like any other. Pings are answered while something is awaited.

mod command;
mod tunnel;

use http::header::{CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderValue, StatusCode};
use reqwest::Upgraded;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::client::{Asked, Call};
use crate::error::ClientError;
use crate::limits;

pub use command::{CommandEvent, CommandInput, CommandOutput, CommandStream};
pub use tunnel::Tunnel;

/// A WebSocket, and what was asked for with it.
pub struct Socket {
    frames: WebSocketStream<Upgraded>,
    asked: Asked,
}

/// Makes a call whose answer is a WebSocket.
pub async fn open(call: Call) -> Result<Socket, ClientError> {
    let key = generate_key();
    let header = |call: Call, name: HeaderName, value: &str| {
        call.header(name, HeaderValue::from_str(value).expect("a handshake is printable ASCII"))
    };
    let call = header(call, CONNECTION, "Upgrade");
    let call = header(call, UPGRADE, "websocket");
    let call = header(call, SEC_WEBSOCKET_VERSION, "13");
    let answer = header(call, SEC_WEBSOCKET_KEY, &key).send_upgradable().await?;
    let accepted = answer.headers().get(SEC_WEBSOCKET_ACCEPT);
    let is_ours = accepted.is_some_and(|accepted| accepted.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes());
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS || !is_ours {
        return Err(answer.call.protocol("it is no WebSocket"));
    }
    let (connection, asked) = answer.upgrade().await?;
    let frames = WebSocketStream::from_raw_socket(connection, Role::Client, Some(config())).await;
    Ok(Socket { frames, asked })
}

/// What is written goes out at once; what does not fit into the connection makes the writer wait.
fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(limits::MESSAGE_BYTES_MAX))
        .max_frame_size(Some(limits::MESSAGE_BYTES_MAX))
        .write_buffer_size(0)
        .max_write_buffer_size(limits::WRITE_BUFFER_BYTES_MAX)
}

#[cfg(test)]
mod tests;

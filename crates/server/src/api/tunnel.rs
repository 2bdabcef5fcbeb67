//! A TCP connection to a port of a sandbox, over a WebSocket: for programs that are not browsers, and for protocols that are not HTTP.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::response::Response;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use wrenn_agent::host_agent::Tunnel;
use wrenn_client::types::{self, TunnelMessage};

use super::socket::{self, Heard, In, Out, Socket};
use super::stream::upgradable;
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{IdAnd, Writer};
use crate::limits;

/// What is read from the guest at once.
const READ_BYTES: usize = 64 * 1024;

/// Opens a connection to a TCP port of a sandbox (WebSocket).
///
/// Binary frames are its bytes, in both directions. The text frame `{"type":"close_write"}` ends one direction, closing ends both.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/tunnel/{port}",
    tag = "commands",
    params(
        ("id" = String, Path, description = "The sandbox", pattern = "^sb[a-z0-9]{18}$"),
        ("port" = u16, Path, description = "1 to 65535", minimum = 1),
    ),
    responses(
        (status = 101, description = "The connection stands"),
        (status = "default", description = "Refused", body = types::Refusal),
    )
)]
pub async fn open(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    IdAnd(id, port): IdAnd<u16>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    if port == 0 {
        return Err(ApiError::invalid("a port is 1 to 65535"));
    }
    let upgrade = upgradable(upgrade)?;
    let view = app.sandbox(&caller, &id).await?;
    app.awake(&view).await?;
    let tunnel = app.agent.dial(&id, port, limits::DIAL_LIMIT).await?;
    Ok(socket::accept(upgrade, move |socket| async move { carry(&app, &caller, socket, tunnel).await }))
}

/// Carries bytes both ways until one side is gone, or both have ended, or the key is revoked.
async fn carry(app: &App, caller: &Caller, socket: Socket, tunnel: Tunnel) {
    let Socket { mut out, mut incoming } = socket;
    let (reader, writer) = split(tunnel);
    let both = async { tokio::try_join!(to_client(&mut out, reader), to_guest(&mut incoming, writer)) };
    tokio::select! {
        // Of a client that is gone, the guest's side ends with it, whatever the guest has still to say.
        _ended_or_gone = both => {}
        () = app.keys.revoked(caller) => {}
    }
    out.close().await;
}

/// The client is gone.
struct Gone;

async fn to_client(out: &mut Out, mut reader: ReadHalf<Tunnel>) -> Result<(), Gone> {
    let mut buffer = vec![0; READ_BYTES];
    let mut ping = tokio::time::interval(limits::PING_EVERY);
    ping.reset();
    loop {
        tokio::select! {
            read = reader.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    if out.binary(bytes::Bytes::copy_from_slice(&buffer[..count])).await.is_err() {
                        return Err(Gone);
                    }
                }
            },
            _ = ping.tick() => {
                if out.ping().await.is_err() {
                    return Err(Gone);
                }
            }
        }
    }
    out.text(&TunnelMessage::CloseWrite).await.map_err(|_stalled| Gone)
}

async fn to_guest(incoming: &mut In, mut writer: WriteHalf<Tunnel>) -> Result<(), Gone> {
    loop {
        match incoming.next().await {
            Heard::Binary(bytes) => {
                if writer.write_all(&bytes).await.is_err() {
                    return Ok(());
                }
            }
            Heard::Text(text)
                if serde_json::from_str(&text).is_ok_and(|word: TunnelMessage| word == TunnelMessage::CloseWrite) =>
            {
                break;
            }
            Heard::Quiet => {}
            Heard::Text(_) | Heard::Gone => return Err(Gone),
        }
    }
    // A guest that hung up has been told.
    drop(writer.shutdown().await);
    Ok(())
}

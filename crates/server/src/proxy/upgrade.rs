//! A connection that became another one: bytes both ways, for as long as both sides like.
//!
//! The end of one direction is passed on and leaves the other alone; then the other has to move, because nobody tells a peer that
//! only sends no more from one that is gone. The connection is over when both directions are, or when one breaks.

use std::io;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::sync::watch;
use tokio::time::sleep;

use super::limits;
use super::line::Line;
use super::places::Place;

/// Carries bytes between the two, once both have agreed.
pub async fn carry(client: OnUpgrade, guest: OnUpgrade, line: Line, _place: Place) {
    let carried = async {
        let guest = guest.await.map_err(io::Error::other)?;
        // Its tasks have let go of the connection: it is ours alone.
        drop(line);
        let client = client.await.map_err(io::Error::other)?;
        both_ways(TokioIo::new(client), TokioIo::new(guest)).await
    };
    // Both sides see that it broke; why is only of interest to who looks for it.
    if let Err(error) = carried.await {
        tracing::debug!(%error, "an upgraded connection broke");
    }
}

async fn both_ways(client: impl AsyncRead + AsyncWrite, guest: impl AsyncRead + AsyncWrite) -> io::Result<()> {
    let ((from_client, to_client), (from_guest, to_guest)) = (split(client), split(guest));
    let (half_closed, _) = watch::channel(false);
    let up = one_way(from_client, to_guest, &half_closed);
    let down = one_way(from_guest, to_client, &half_closed);
    tokio::try_join!(up, down).map(drop)
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    half_closed: &watch::Sender<bool>,
) -> io::Result<()> {
    let mut piece = vec![0; limits::PIECE_BYTES];
    loop {
        let count = tokio::select! {
            read = from.read(&mut piece) => read?,
            () = forsaken(half_closed) => return Err(io::ErrorKind::TimedOut.into()),
        };
        if count == 0 {
            half_closed.send_replace(true);
            return to.shutdown().await;
        }
        tokio::select! {
            written = send(&mut to, &piece[..count]) => written?,
            () = forsaken(half_closed) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

async fn send(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

/// Ends when nothing moved for too long after the other direction had ended.
async fn forsaken(half_closed: &watch::Sender<bool>) {
    let mut closed = half_closed.subscribe();
    // The sender is borrowed: it is there.
    drop(closed.wait_for(|closed| *closed).await);
    sleep(limits::HALF_CLOSED_IDLE_MAX).await;
}

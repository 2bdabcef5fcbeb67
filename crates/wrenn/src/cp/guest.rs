//! Files of a guest, as a copy needs them.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Empty, Limited, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::time::timeout;
use wrenn_agent::envd_client::{Command, Entry, EnvdClient, EnvdError, ExecEnd, ExecEvent, StreamedBody};

use crate::words::printable_line;

/// How long a guest may take to begin an answer, and between two pieces of a file; its disk may be slow.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// What is read of an answer that is no file, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Files that one command makes executable; their paths have to fit into its arguments.
const EXECUTABLES_AT_ONCE: usize = 200;

/// A guest, and the user whose files are meant.
pub struct Guest {
    envd: EnvdClient,
    user: String,
}

/// A file that is being read.
pub struct Reading(Incoming);

#[derive(Deserialize)]
struct Written {
    path: String,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

impl Guest {
    /// Reached by `envd`.
    pub fn new(envd: EnvdClient, user: String) -> Self {
        Self { envd, user }
    }

    /// What is at `path`, if anything is.
    pub async fn look(&self, path: &str) -> Result<Option<Entry>> {
        match self.envd.stat(path, Some(&self.user)).await {
            Ok(entry) => Ok(Some(entry)),
            Err(EnvdError::Refused { code, .. }) if code == "not_found" => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What is in a directory.
    pub async fn list(&self, path: &str) -> Result<Vec<Entry>> {
        Ok(self.envd.list_dir(path, 1, Some(&self.user)).await?)
    }

    /// Makes a directory, if it is not there.
    pub async fn make_dir(&self, path: &str) -> Result<()> {
        match self.envd.make_dir(path, Some(&self.user)).await {
            Err(EnvdError::Refused { code, .. }) if code == "already_exists" => Ok(()),
            made => Ok(made?),
        }
    }

    /// Begins to read a file.
    pub async fn read(&self, path: &str) -> Result<Reading> {
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let answer = self.ask(Method::GET, path, None, body, Some(STALL_LIMIT)).await?;
        Ok(Reading(answer.into_body()))
    }

    /// Writes a file, of so many bytes if that is known; where it is then.
    pub async fn write<S>(&self, path: &str, bytes: S, size: Option<u64>) -> Result<String>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        // The exchange tells no more than that our side failed.
        let failed = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&failed);
        let frames = bytes.map(move |piece| match piece {
            Ok(piece) => Ok(Frame::data(piece)),
            Err(error) => {
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err("what is to be sent cannot be read".into())
            }
        });
        let answer = self.ask(Method::POST, path, size, StreamBody::new(frames).boxed_unsync(), None).await;
        if let Some(error) = failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error).context("cannot read what is to be copied");
        }
        let written: Vec<Written> =
            serde_json::from_slice(&whole(answer?).await?).context("the guest's answer is odd")?;
        written.into_iter().next().map(|file| file.path).context("the guest's answer names no file")
    }

    /// Lets everybody execute these files.
    pub async fn make_executable(&self, paths: &[String]) -> Result<()> {
        for paths in paths.chunks(EXECUTABLES_AT_ONCE) {
            let command = Command {
                program: "chmod".to_owned(),
                args: ["a+x".to_owned()].into_iter().chain(paths.iter().cloned()).collect(),
                user: Some(self.user.clone()),
                timeout: Some(STALL_LIMIT),
                ..Command::default()
            };
            let mut exec = self.envd.start(command).await?;
            let end = loop {
                if let ExecEvent::End(end) = exec.next().await? {
                    break end;
                }
            };
            if end != ExecEnd::Exited(0) {
                bail!("the files are there, but cannot be made executable");
            }
        }
        Ok(())
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        size: Option<u64>,
        body: StreamedBody,
        limit: Option<Duration>,
    ) -> Result<Response<Incoming>> {
        let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let target = format!("/files?path={}&username={}", encoded(path), encoded(&self.user));
        let mut request =
            Request::builder().method(method).uri(target).header(CONTENT_TYPE, "application/octet-stream");
        if let Some(size) = size {
            request = request.header(CONTENT_LENGTH, size);
        }
        let answer = self.envd.http(request.body(body)?, None, "files", limit).await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let text = whole(answer).await?;
        match serde_json::from_slice::<Refusal>(&text) {
            Ok(Refusal { message }) => bail!("{}", printable_line(&message)),
            Err(_no_words) => bail!("the guest refused (HTTP {status})"),
        }
    }
}

impl Reading {
    /// How many bytes come, where the guest says so.
    pub fn size(&self) -> Option<u64> {
        self.0.size_hint().exact()
    }

    /// The next bytes; `None` after the last. A file that is cut short is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let frame = timeout(STALL_LIMIT, self.0.frame()).await.context("the guest sends no more of the file")?;
            let Some(frame) = frame else { return Ok(None) };
            if let Ok(bytes) = frame.context("the file is cut short")?.into_data() {
                return Ok(Some(bytes));
            }
        }
    }
}

async fn whole(answer: Response<Incoming>) -> Result<Bytes> {
    let body = timeout(STALL_LIMIT, Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect()).await;
    let body = body.context("the guest does not answer")?;
    Ok(body.map_err(|error| anyhow::anyhow!("the guest's answer is odd: {error}"))?.to_bytes())
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    use async_trait::async_trait;
    use axum::Router;
    use axum::extract::{Query, Request as Asked};
    use axum::http::StatusCode;
    use axum::response::{IntoResponse as _, Response as Answer};
    use axum::routing::get;
    use futures::stream;
    use tokio::net::{TcpListener, TcpStream};
    use wrenn_agent::envd_client::{Dial, Nonces};
    use wrenn_agent::host_agent::Tunnel;

    use super::*;

    #[derive(Debug)]
    struct Loopback(SocketAddr);

    #[async_trait]
    impl Dial for Loopback {
        async fn dial(&self, _port: u16, _limit: Duration) -> io::Result<Tunnel> {
            Ok(Box::new(TcpStream::connect(self.0).await?))
        }
    }

    type Files = Arc<Mutex<BTreeMap<String, Bytes>>>;

    /// A guest that has files and nothing else, and what it has.
    pub async fn guest() -> (Guest, Files) {
        let files = Files::default();
        let (read, write) = (Arc::clone(&files), Arc::clone(&files));
        let get_file = move |Query(query): Query<BTreeMap<String, String>>| async move {
            assert_eq!(query["username"], "me&you");
            let file = read.lock().unwrap().get(&query["path"]).cloned();
            file.map_or_else(|| refusal("path does not exist\u{1b}"), |bytes| bytes.into_response())
        };
        let put_file = move |Query(query): Query<BTreeMap<String, String>>, request: Asked| async move {
            assert_eq!(request.headers()["x-access-token"], "token");
            let Ok(bytes) = axum::body::to_bytes(request.into_body(), 10 << 20).await else { return refusal("cut") };
            write.lock().unwrap().insert(query["path"].clone(), bytes);
            let path = format!("/home/me/{}", query["path"]);
            axum::Json(serde_json::json!([{ "path": path, "name": "x", "type": "file" }])).into_response()
        };
        let router = Router::new().route("/files", get(get_file).post(put_file));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dial = Loopback(listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let envd = EnvdClient::new(Arc::new(dial), "token".to_owned(), Nonces::default());
        (Guest::new(envd, "me&you".to_owned()), files)
    }

    fn refusal(message: &str) -> Answer {
        (StatusCode::NOT_FOUND, axum::Json(serde_json::json!({ "code": 404, "message": message }))).into_response()
    }

    #[tokio::test]
    async fn bytes_stay_bytes_both_ways() {
        let (guest, files) = guest().await;
        let large: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
        let pieces: Vec<_> = large.chunks(70_001).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let path = guest.write("a b/ü", stream::iter(pieces), None).await.unwrap();
        assert_eq!(path, "/home/me/a b/ü");
        assert!(files.lock().unwrap()["a b/ü"] == large);
        let mut reading = guest.read("a b/ü").await.unwrap();
        assert_eq!(reading.size(), Some(3_000_000));
        let mut read = Vec::new();
        while let Some(bytes) = reading.next().await.unwrap() {
            read.extend_from_slice(&bytes);
        }
        assert!(read == large);
    }

    #[tokio::test]
    async fn what_goes_wrong_is_told_in_its_own_words() {
        let (guest, files) = guest().await;
        let error = guest.read("none").await.err().unwrap();
        assert_eq!(error.to_string(), "path does not exist\u{fffd}");
        let cut = stream::iter([Ok(Bytes::from_static(b"1")), Err(io::Error::other("the disk is on fire"))]);
        let error = guest.write("x", cut, Some(5)).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "cannot read what is to be copied: the disk is on fire");
        assert!(files.lock().unwrap().is_empty(), "half a file is none");
    }
}

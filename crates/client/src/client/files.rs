//! Files of sandboxes: their bytes as streams, their names and places as JSON.

use std::fmt;
use std::io;

use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderValue, StatusCode};
use reqwest::{Body, Method};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::Client;
use super::call::{Answer, Call};
use crate::error::ClientError;
use crate::limits;
use crate::types::{FileList, MakeDirRequest, MoveRequest, RemoveRequest, Written};

/// A file of a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileTarget<'a> {
    /// Where it is: absolute, `~`, or relative to the user's home.
    pub path: &'a str,
    /// Who reads it, or whose it is to be; the sandbox's default if `None`.
    pub user: Option<&'a str>,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileRange {
    /// From this byte on.
    From(u64),
    /// From one byte up to another, which is part of it.
    Within(u64, u64),
    /// So many of the last bytes.
    Last(u64),
}

impl fmt::Display for FileRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(first) => write!(f, "bytes={first}-"),
            Self::Within(first, last) => write!(f, "bytes={first}-{last}"),
            Self::Last(count) => write!(f, "bytes=-{count}"),
        }
    }
}

/// A file on its way here.
#[derive(Debug)]
pub struct Download {
    answer: Answer,
    size: Option<u64>,
    file_size: Option<u64>,
}

impl Download {
    /// How many bytes come, where the server says so.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// How large the whole file is, where the server says so.
    pub fn file_size(&self) -> Option<u64> {
        self.file_size
    }

    /// The next bytes; `None` after the last. A file that is cut short is an error, not an end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.answer.chunk().await
    }

    /// The bytes as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, ClientError>> {
        stream::try_unfold(
            self,
            |mut download| async move { Ok(download.next().await?.map(|bytes| (bytes, download))) },
        )
    }

    /// Writes all of it; answers how much that was. The outer error is of `to`.
    pub async fn write_to(mut self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<Result<u64, ClientError>> {
        let mut written = 0;
        loop {
            match self.next().await {
                Ok(Some(bytes)) => {
                    to.write_all(&bytes).await?;
                    written += bytes.len() as u64;
                }
                Ok(None) => break,
                Err(error) => return Ok(Err(error)),
            }
        }
        to.flush().await?;
        Ok(Ok(written))
    }
}

impl Client {
    /// Reads a file, or a part of it.
    pub async fn download(
        &self,
        id: &str,
        file: FileTarget<'_>,
        range: Option<FileRange>,
    ) -> Result<Download, ClientError> {
        let mut call = self.file(Method::GET, id, file)?;
        if let Some(range) = range {
            let value = HeaderValue::from_str(&range.to_string()).expect("numbers make a header");
            call = call.header(RANGE, value);
        }
        let answer = call.send().await?;
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let size = header(CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let file_size = match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                header(CONTENT_RANGE).and_then(|range| range.rsplit_once('/')?.1.parse().ok())
            }
            _whole if range.is_some() => {
                return Err(answer.call.protocol("not the part of the file that was asked for"));
            }
            _whole => size,
        };
        Ok(Download { answer, size, file_size })
    }

    /// Writes a file, whose bytes are sent as they come. An error of theirs leaves the file as it was. `size` is how many there
    /// are, where that is known.
    pub async fn upload<S>(
        &self,
        id: &str,
        file: FileTarget<'_>,
        bytes: S,
        size: Option<u64>,
    ) -> Result<Written, ClientError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let octets = HeaderValue::from_static("application/octet-stream");
        let mut call = self.file(Method::PUT, id, file)?.stream(Body::wrap_stream(bytes), octets);
        if let Some(size) = size {
            call = call.header(CONTENT_LENGTH, size.into());
        }
        call.json().await
    }

    /// Writes a file with what `reader` gives until its end.
    pub async fn upload_from<R>(
        &self,
        id: &str,
        file: FileTarget<'_>,
        reader: R,
        size: Option<u64>,
    ) -> Result<Written, ClientError>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        self.upload(id, file, pieces(reader), size).await
    }

    /// What is in a directory, and `depth` directories below it.
    pub async fn list_files(&self, id: &str, directory: FileTarget<'_>, depth: u32) -> Result<FileList, ClientError> {
        let call = self.get(&["v1", "sandboxes", id, "files", "list"])?;
        of(call, directory).query("depth", depth).json().await
    }

    /// Makes a directory, with its parents.
    pub async fn make_dir(&self, id: &str, request: &MakeDirRequest) -> Result<(), ClientError> {
        self.post(&["v1", "sandboxes", id, "files", "mkdir"])?.body(request).done().await
    }

    /// Moves a file or a directory.
    pub async fn move_file(&self, id: &str, request: &MoveRequest) -> Result<(), ClientError> {
        self.post(&["v1", "sandboxes", id, "files", "move"])?.body(request).done().await
    }

    /// Removes a file, or a directory with all that is in it.
    pub async fn remove_file(&self, id: &str, request: &RemoveRequest) -> Result<(), ClientError> {
        self.post(&["v1", "sandboxes", id, "files", "remove"])?.body(request).done().await
    }

    fn file(&self, method: Method, id: &str, file: FileTarget<'_>) -> Result<Call, ClientError> {
        Ok(of(self.call(method, &["v1", "sandboxes", id, "files"])?, file))
    }
}

fn of(call: Call, file: FileTarget<'_>) -> Call {
    call.query("path", file.path).query_if("user", file.user)
}

fn pieces<R: AsyncRead + Send + Unpin + 'static>(reader: R) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold(reader, |mut reader| async move {
        let mut piece = BytesMut::with_capacity(limits::UPLOAD_CHUNK_BYTES);
        let count = reader.read_buf(&mut piece).await?;
        Ok((count > 0).then(|| (piece.freeze(), reader)))
    })
}

//! `GET /files`: a regular file's bytes, read as fast as the client takes them.
//!
//! One chunk is being read while the one before is being sent; no more of a file than that is ever in memory. Only
//! regular files are opened: a FIFO or a device could block for ever, and opening some devices has effects of its own.

use std::fs::{File, Metadata, OpenOptions};
use std::future::Future as _;
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use axum::body::{Body, HttpBody};
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body::{Frame, SizeHint};
use rustix::buffer::spare_capacity;
use rustix::fs::OFlags;
use tokio::task::JoinHandle;

use super::headers::{self, Encoding, Range};
use crate::envd::files_limits as limits;
use crate::envd::filesystem::operations::is_absent;

/// As much of a file as tells its content type.
const SNIFFED_BYTES: usize = 512;

/// Why a file is not sent. The first two texts are part of E2B's contract.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// Nothing is there.
    #[error("path '{}' does not exist", .0.display())]
    NotFound(PathBuf),
    /// Directories are listed, not read.
    #[error("path '{}' is a directory", .0.display())]
    Directory(PathBuf),
    /// A FIFO, a socket or a device.
    #[error("path '{}' is not a regular file", .0.display())]
    NotRegular(PathBuf),
    /// Neither as it is nor compressed with gzip.
    #[error("no acceptable encoding: only identity and gzip are available")]
    Encoding,
    /// The kernel refused.
    #[error("cannot read '{}'", .path.display())]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A file that is ready to be sent.
#[derive(Debug)]
pub struct Opened {
    file: File,
    path: PathBuf,
    /// In bytes; `None` for files whose size the kernel does not know, as in /proc.
    size: Option<u64>,
    modified: SystemTime,
    content_type: &'static str,
}

/// Opens a regular file, links followed. Blocks.
pub fn open(path: &Path) -> Result<Opened, DownloadError> {
    let failed = |source| read_error(path, source);
    regular(path, &std::fs::metadata(path).map_err(failed)?)?;
    // Whatever took its place since is not waited for either.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    regular(path, &about)?;

    let mut beginning = [0; SNIFFED_BYTES];
    let read = file.read_at(&mut beginning, 0).map_err(failed)?;
    // A size of 0 is believed only of a file that has nothing to read.
    let size = if about.len() == 0 && read > 0 { None } else { Some(about.len()) };
    let content_type = headers::content_type(path, &beginning[..read]);
    Ok(Opened { file, path: path.to_owned(), size, modified: whole_seconds(about.mtime()), content_type })
}

fn regular(path: &Path, about: &Metadata) -> Result<(), DownloadError> {
    match (about.is_file(), about.is_dir()) {
        (true, _) => Ok(()),
        (false, true) => Err(DownloadError::Directory(path.to_owned())),
        (false, false) => Err(DownloadError::NotRegular(path.to_owned())),
    }
}

fn read_error(path: &Path, source: io::Error) -> DownloadError {
    if is_absent(&source) {
        return DownloadError::NotFound(path.to_owned());
    }
    DownloadError::Read { path: path.to_owned(), source }
}

/// HTTP dates have whole seconds; nor can they name one before 1970.
fn whole_seconds(mtime: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(mtime).unwrap_or(0))
}

/// The answer to a request with these headers.
pub fn respond(opened: Opened, request: &HeaderMap) -> Result<Response, DownloadError> {
    let accept = request.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let encoding = headers::encoding(&accept.collect::<Vec<_>>().join(",")).ok_or(DownloadError::Encoding)?;
    let common = common_headers(&opened);
    if not_modified(request, opened.modified) {
        return Ok((StatusCode::NOT_MODIFIED, common).into_response());
    }
    let described = [
        (header::CONTENT_TYPE, HeaderValue::from_static(opened.content_type)),
        (header::CONTENT_DISPOSITION, header_value(headers::content_disposition(&opened.path))),
    ];
    let answer = match encoding {
        Encoding::Gzip => gzip_answer(opened),
        Encoding::Identity => identity_answer(opened, request),
    };
    Ok((common, described, answer).into_response())
}

fn common_headers(opened: &Opened) -> [(HeaderName, HeaderValue); 2] {
    [
        (header::LAST_MODIFIED, header_value(httpdate::fmt_http_date(opened.modified))),
        (header::VARY, HeaderValue::from_static("Accept-Encoding")),
    ]
}

/// Our own header texts are visible ASCII, which is always a value.
fn header_value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn date(request: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    request.get(name)?.to_str().ok().and_then(|text| httpdate::parse_http_date(text).ok())
}

fn not_modified(request: &HeaderMap, modified: SystemTime) -> bool {
    date(request, header::IF_MODIFIED_SINCE).is_some_and(|since| modified <= since)
}

fn gzip_answer(opened: Opened) -> Response {
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let body = FileBody::new(Reader::Gzip(Gzip { file: opened.file, offset: 0, encoder }));
    ([(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"))], Body::new(body)).into_response()
}

fn identity_answer(opened: Opened, request: &HeaderMap) -> Response {
    let Some(size) = opened.size else {
        return Body::new(FileBody::new(Reader::Plain(Plain { file: opened.file, offset: 0, end: None })))
            .into_response();
    };
    let ranges = (header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    match wanted_range(request, size, opened.modified) {
        Range::All => ([ranges], file_body(opened.file, 0, size)).into_response(),
        Range::Part { start, end } => {
            let range = header_value(format!("bytes {start}-{}/{size}", end - 1));
            let headers = [ranges, (header::CONTENT_RANGE, range)];
            (StatusCode::PARTIAL_CONTENT, headers, file_body(opened.file, start, end)).into_response()
        }
        Range::Unsatisfiable => {
            let headers = [ranges, (header::CONTENT_RANGE, header_value(format!("bytes */{size}")))];
            (StatusCode::RANGE_NOT_SATISFIABLE, headers).into_response()
        }
    }
}

/// A range counts only if the file is still the one that `If-Range` names.
fn wanted_range(request: &HeaderMap, size: u64, modified: SystemTime) -> Range {
    let changed = request.contains_key(header::IF_RANGE) && date(request, header::IF_RANGE) != Some(modified);
    match request.get(header::RANGE).and_then(|range| range.to_str().ok()) {
        Some(range) if !changed => headers::range(range, size),
        Some(_) | None => Range::All,
    }
}

fn file_body(file: File, start: u64, end: u64) -> Body {
    if start == end {
        return Body::empty();
    }
    Body::new(FileBody::new(Reader::Plain(Plain { file, offset: start, end: Some(end) })))
}

/// What turns a file into chunks.
enum Reader {
    Plain(Plain),
    Gzip(Gzip),
    Done,
}

struct Plain {
    file: File,
    offset: u64,
    /// One past the last byte to send, or none to send what there is.
    end: Option<u64>,
}

struct Gzip {
    file: File,
    offset: u64,
    encoder: GzEncoder<Vec<u8>>,
}

impl Reader {
    /// The next chunk, and the reader of what follows; no chunk at the end. Blocks.
    fn next(self) -> (io::Result<Option<Bytes>>, Self) {
        match self {
            Self::Plain(mut plain) => match plain.next() {
                Ok(Some(chunk)) => (Ok(Some(chunk)), Self::Plain(plain)),
                ended => (ended, Self::Done),
            },
            Self::Gzip(gzip) => match gzip.next() {
                Ok((chunk, Some(gzip))) => (Ok(Some(chunk)), Self::Gzip(gzip)),
                Ok((chunk, None)) => (Ok(Some(chunk)), Self::Done),
                Err(error) => (Err(error), Self::Done),
            },
            Self::Done => (Ok(None), Self::Done),
        }
    }

    /// Bytes still to come, where that is known.
    fn remaining(&self) -> Option<u64> {
        match self {
            Self::Plain(plain) => plain.end.map(|end| end - plain.offset),
            Self::Gzip(_) => None,
            Self::Done => Some(0),
        }
    }
}

impl Plain {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let left = self.end.map_or(u64::MAX, |end| end - self.offset);
        if left == 0 {
            return Ok(None);
        }
        let chunk = read_chunk(&self.file, self.offset, left)?;
        if chunk.is_empty() && self.end.is_some() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file was cut short while it was sent"));
        }
        self.offset += chunk.len() as u64;
        Ok((!chunk.is_empty()).then(|| Bytes::from(chunk)))
    }
}

impl Gzip {
    /// Reads until there is something to send; without a reader, it is the last chunk.
    fn next(mut self) -> io::Result<(Bytes, Option<Self>)> {
        loop {
            let chunk = read_chunk(&self.file, self.offset, u64::MAX)?;
            if chunk.is_empty() {
                return Ok((Bytes::from(self.encoder.finish()?), None));
            }
            self.offset += chunk.len() as u64;
            self.encoder.write_all(&chunk)?;
            let compressed = std::mem::take(self.encoder.get_mut());
            if !compressed.is_empty() {
                return Ok((Bytes::from(compressed), Some(self)));
            }
        }
    }
}

fn read_chunk(file: &File, offset: u64, left: u64) -> io::Result<Vec<u8>> {
    let most = usize::try_from(left).unwrap_or(usize::MAX).min(limits::DOWNLOAD_CHUNK_BYTES);
    let mut chunk = Vec::with_capacity(most);
    rustix::io::pread(file, spare_capacity(&mut chunk), offset)?;
    chunk.truncate(most);
    Ok(chunk)
}

/// A body that reads one chunk ahead of the client.
struct FileBody {
    remaining: Option<u64>,
    reading: JoinHandle<(io::Result<Option<Bytes>>, Reader)>,
}

impl FileBody {
    fn new(reader: Reader) -> Self {
        Self { remaining: reader.remaining(), reading: read_ahead(reader) }
    }
}

fn read_ahead(reader: Reader) -> JoinHandle<(io::Result<Option<Bytes>>, Reader)> {
    tokio::task::spawn_blocking(|| reader.next())
}

impl HttpBody for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.remaining == Some(0) {
            return Poll::Ready(None);
        }
        let (chunk, reader) = match ready!(Pin::new(&mut self.reading).poll(cx)) {
            Ok(read) => read,
            Err(panicked) => (Err(io::Error::other(panicked)), Reader::Done),
        };
        let frame = chunk.map(|chunk| chunk.map(Frame::data)).transpose();
        match &frame {
            Some(Ok(_)) => {
                self.remaining = reader.remaining();
                if self.remaining != Some(0) {
                    self.reading = read_ahead(reader);
                }
            }
            Some(Err(_)) | None => self.remaining = Some(0),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

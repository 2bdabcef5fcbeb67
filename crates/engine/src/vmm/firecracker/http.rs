//! A client of HTTP/1.1 over one Unix socket, as much of it as Firecracker speaks, and bounded in every direction.
//!
//! One request at a time; the connection stays open between them, and its end is the end of the VMM. Firecracker may have
//! been taken over by its guest: an answer's head and body have a largest size, and only a body whose length is said
//! beforehand is read.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::api::Method;

/// Longest head of an answer in bytes; Firecracker's are under 200.
const HEAD_MAX: usize = 4 * 1024;
/// Longest body of an answer in bytes. The metadata store is the largest thing there is, and holds 50 KiB.
const BODY_MAX: usize = 256 * 1024;
/// Most header lines of an answer.
const HEADERS_MAX: usize = 32;

/// Why an exchange failed. The connection is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The connection ended before a byte of the answer.
    #[error("the connection ended")]
    Closed,
    /// The connection ended in the middle of the answer.
    #[error("the connection ended in the middle of an answer")]
    CutOff,
    /// The answer is too long.
    #[error("an answer of more than {0} bytes")]
    TooLong(usize),
    /// It is no answer.
    #[error("{0}")]
    Malformed(String),
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body; empty if there is none.
    pub body: Vec<u8>,
}

/// What an idle connection tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// The other side closed it.
    Ended,
    /// It spoke without having been asked.
    Spoke,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Over this socket.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// Asks and waits for the answer. Takes the connection and gives it back: one whose exchange failed, or was given up
    /// halfway, is out of step and gone.
    pub async fn exchange(mut self, method: Method, path: &str, body: &[u8]) -> Result<(Self, Answer), HttpError> {
        self.send(method, path, body).await?;
        let (head, mut rest) = self.head().await?;
        if rest.len() > head.body_bytes {
            return Err(HttpError::Malformed("more bytes than the answer's length".to_owned()));
        }
        let have = rest.len();
        rest.resize(head.body_bytes, 0);
        self.stream.read_exact(&mut rest[have..]).await.map_err(|_ended| HttpError::CutOff)?;
        Ok((self, Answer { status: head.status, body: rest }))
    }

    async fn send(&mut self, method: Method, path: &str, body: &[u8]) -> Result<(), HttpError> {
        let head = format!(
            "{} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n{}\r\n",
            method.as_str(),
            match method {
                Method::Get => String::new(),
                Method::Put | Method::Patch =>
                    format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()),
            }
        );
        let request = [head.as_bytes(), body].concat();
        self.stream.write_all(&request).await.map_err(|_broken_pipe| HttpError::Closed)
    }

    /// The head, and what came of the body with it.
    async fn head(&mut self) -> Result<(Head, Vec<u8>), HttpError> {
        let mut bytes = Vec::with_capacity(HEAD_MAX);
        loop {
            if let Some((head, length)) = parse(&bytes)? {
                return Ok((head, bytes.split_off(length)));
            }
            if bytes.len() >= HEAD_MAX {
                return Err(HttpError::TooLong(HEAD_MAX));
            }
            let room = (HEAD_MAX - bytes.len()) as u64;
            let read = (&mut self.stream).take(room).read_buf(&mut bytes).await;
            match (read, bytes.is_empty()) {
                (Ok(0) | Err(_), true) => return Err(HttpError::Closed),
                (Ok(0) | Err(_), false) => return Err(HttpError::CutOff),
                (Ok(_), _) => {}
            }
        }
    }

    /// Waits until the idle connection tells something. Cancel safe.
    pub async fn idle(&self) -> Idle {
        loop {
            if self.stream.readable().await.is_err() {
                return Idle::Ended;
            }
            match self.stream.try_read(&mut [0]) {
                Ok(0) => return Idle::Ended,
                Ok(_) => return Idle::Spoke,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_broken) => return Idle::Ended,
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    body_bytes: usize,
}

/// The head at the beginning of `bytes` and its length; `None` if it is not all there yet.
fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, HttpError> {
    let malformed = |error: &dyn std::fmt::Display| HttpError::Malformed(error.to_string());
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut headers);
    let length = match answer.parse(bytes).map_err(|error| malformed(&error))? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(length) => length,
    };
    let status = answer.code.ok_or_else(|| malformed(&"an answer without a status"))?;
    let body_bytes = body_bytes(answer.headers)?;
    Ok(Some((Head { status, body_bytes }, length)))
}

/// Without a length there is no body: Firecracker leaves it out of an answer that has none.
fn body_bytes(headers: &[httparse::Header<'_>]) -> Result<usize, HttpError> {
    let mut length = None;
    for header in headers {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(HttpError::Malformed("an answer in pieces".to_owned()));
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(header.value).ok();
            // `+5` is a number to `parse`, and none in HTTP.
            let number = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let number = number.and_then(|text| text.parse::<usize>().ok());
            let number = number.ok_or_else(|| HttpError::Malformed("a length that is no number".to_owned()))?;
            if length.is_some_and(|other| other != number) {
                return Err(HttpError::Malformed("two lengths".to_owned()));
            }
            length = Some(number);
        }
    }
    match length.unwrap_or(0) {
        number if number > BODY_MAX => Err(HttpError::TooLong(BODY_MAX)),
        number => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the client makes of an answer that arrives in pieces of `piece` bytes, after which the server is gone.
    async fn answered(bytes: &[u8], piece: usize) -> Result<Answer, HttpError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let serve = async {
            let mut request = [0; 1024];
            assert!(theirs.read(&mut request).await.unwrap() > 0);
            for piece in bytes.chunks(piece) {
                if theirs.write_all(piece).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(theirs);
        };
        let (answer, ()) = tokio::join!(Connection::new(ours).exchange(Method::Get, "/", b""), serve);
        answer.map(|(_, answer)| answer)
    }

    #[tokio::test]
    async fn answers_of_the_real_thing_are_read_however_they_are_cut() {
        let with_body = b"HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
            Content-Type: application/json\r\nContent-Length: 21\r\n\r\n{\"fault_message\":\"x\"}";
        let without = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
        for piece in [1, 7, 64, 4096] {
            let answer = answered(with_body, piece).await.unwrap();
            assert_eq!((answer.status, answer.body.as_slice()), (400, &b"{\"fault_message\":\"x\"}"[..]));
            assert_eq!(answered(without, piece).await.unwrap(), Answer { status: 204, body: Vec::new() });
        }
    }

    type Expected = fn(&HttpError) -> bool;

    #[tokio::test]
    async fn what_is_no_whole_answer_is_told_apart() {
        let head = |length: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        let cases: [(Vec<u8>, Expected); 13] = [
            (Vec::new(), |e| matches!(e, HttpError::Closed)),
            (b"HTTP/1.1 2".to_vec(), |e| matches!(e, HttpError::CutOff)),
            (head("10"), |e| matches!(e, HttpError::CutOff)),
            (head("1073741824"), |e| matches!(e, HttpError::TooLong(BODY_MAX))),
            (head("99999999999999999999999999"), |e| matches!(e, HttpError::Malformed(_))),
            (head("+5"), |e| matches!(e, HttpError::Malformed(_))),
            (head("-1"), |e| matches!(e, HttpError::Malformed(_))),
            (head("3\r\nContent-Length: 4"), |e| matches!(e, HttpError::Malformed(_))),
            (head("3\r\nTransfer-Encoding: chunked"), |e| matches!(e, HttpError::Malformed(_))),
            ([head("1"), b"ab".to_vec()].concat(), |e| matches!(e, HttpError::Malformed(_))),
            (format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_MAX)).into_bytes(), |e| {
                matches!(e, HttpError::TooLong(HEAD_MAX))
            }),
            (format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(HEADERS_MAX + 1)).into_bytes(), |e| {
                matches!(e, HttpError::Malformed(_))
            }),
            (b"SSH-2.0-OpenSSH\r\n".to_vec(), |e| matches!(e, HttpError::Malformed(_))),
        ];
        for (bytes, expected) in cases {
            let error = answered(&bytes, 4096).await.unwrap_err();
            assert!(expected(&error), "{error:?} for {}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic_or_promise_too_much(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            for prefix in [&b""[..], b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: "] {
                if let Ok(Some((head, length))) = parse(&[prefix, &bytes].concat()) {
                    prop_assert!(head.body_bytes <= BODY_MAX && length <= prefix.len() + bytes.len());
                }
            }
        }
    }
}

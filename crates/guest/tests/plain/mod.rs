//! An HTTP client as plain as possible, so that a test says and sees every byte of a transfer, and may stop half-way.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

pub use crate::common::TOKEN;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running envd; it ends with this value.
pub struct Envd {
    inner: crate::common::Envd,
    /// Where it listens on 127.0.0.1.
    pub port: u16,
}

impl Envd {
    /// An envd that no /init has reached.
    pub fn start() -> Self {
        let inner = crate::common::Envd::new();
        let port = inner.address.port();
        Self { inner, port }
    }

    /// An envd with the token [`TOKEN`] that acts for whoever runs the tests.
    pub fn ready() -> Self {
        let envd = Self::start();
        envd.init(&json!({"accessToken": TOKEN, "defaultUser": Me::get().name}));
        envd
    }

    /// The host's call.
    pub fn init(&self, body: &Value) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(self.inner.init(&body.to_string()));
    }

    /// A unary Connect call in JSON with the token, as user `user` (empty for the default one).
    pub fn rpc(&self, method: &str, user: &str, request: &Value) -> Answer {
        let mut call = Call::new("POST", method)
            .header("content-type", "application/json")
            .header("connect-protocol-version", "1")
            .token()
            .body(request.to_string().as_bytes());
        if !user.is_empty() {
            call = call.header("authorization", &format!("Basic {}", STANDARD.encode(format!("{user}:"))));
        }
        call.send(self.port)
    }

    /// A line of envd's /proc/PID/status in KiB, such as `VmHWM`.
    pub fn status_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.inner.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).expect("the field exists");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// What envd's descriptors are open on.
    pub fn open_files(&self) -> Vec<PathBuf> {
        let dir = std::fs::read_dir(format!("/proc/{}/fd", self.inner.pid())).unwrap();
        // A descriptor may be closed while we look.
        dir.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok()).collect()
    }
}

/// Who runs the tests. Without root, envd can act for nobody else.
pub struct Me {
    /// The login name.
    pub name: String,
    /// The home directory.
    pub home: String,
}

impl Me {
    /// From /etc/passwd.
    pub fn get() -> Self {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
        let mut users = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let me = users.find(|fields| fields.get(2) == Some(&uid.as_str())).expect("whoever runs the tests has a name");
        Self { name: me[0].to_owned(), home: me[5].to_owned() }
    }
}

/// Waits until something is so that comes without an event, and panics when it does not become so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Percent-encodes bytes for a query.
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("%{byte:02X}")).collect()
}

/// An HTTP/1.1 request on a connection of its own.
pub struct Call {
    method: &'static str,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Call {
    /// A request without a body.
    pub fn new(method: &'static str, target: impl Into<String>) -> Self {
        Self { method, target: target.into(), headers: Vec::new(), body: None }
    }

    /// One more header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With [`TOKEN`].
    pub fn token(self) -> Self {
        self.header("x-access-token", TOKEN)
    }

    /// With a body, and its length.
    pub fn body(mut self, body: &[u8]) -> Self {
        self.body = Some(body.to_vec());
        self.header("content-length", &body.len().to_string())
    }

    /// Sends the head alone, and gives the connection to send the body on.
    pub fn begin(&self, port: u16) -> TcpStream {
        let mut stream = connect(port);
        stream.write_all(&self.head()).expect("envd reads");
        stream
    }

    /// Sends the request and reads all of the answer.
    pub fn send(&self, port: u16) -> Answer {
        let mut stream = self.begin(port);
        if let Some(body) = &self.body {
            // A server that refuses may stop to read; what it says counts.
            stream.write_all(body).or_else(|error| if is_hang_up(&error) { Ok(()) } else { Err(error) }).unwrap();
        }
        self.read(stream).expect("envd answers")
    }

    /// Reads all of the answer.
    pub fn read(&self, stream: TcpStream) -> io::Result<Answer> {
        let mut streamed = Streamed::read(stream)?;
        let mut body = Vec::new();
        if self.method != "HEAD" {
            streamed.body.read_to_end(&mut body)?;
        }
        Ok(Answer { status: streamed.status, headers: streamed.headers, body })
    }

    fn head(&self) -> Vec<u8> {
        let headers = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<String>();
        let (method, target) = (self.method, &self.target);
        format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n").into_bytes()
    }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("envd accepts");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// An answer whose body is still to be read.
pub struct Streamed {
    status: u16,
    headers: Vec<(String, String)>,
    /// The body, decoded from chunks; one that ends too early is an error.
    pub body: Box<dyn Read>,
}

impl Streamed {
    /// Reads an answer's head.
    pub fn read(stream: TcpStream) -> io::Result<Self> {
        let mut reader = BufReader::with_capacity(256 * 1024, stream);
        let status_line = read_line(&mut reader)?;
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "no status line"))?;
        let mut headers = Vec::new();
        while let Some((name, value)) = read_line(&mut reader)?.split_once(':') {
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let find = |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
        let body: Box<dyn Read> = match (find("content-length"), find("transfer-encoding")) {
            (Some(length), _) => Box::new(Exact { left: length.parse().unwrap(), reader }),
            (None, Some(_)) => Box::new(Chunked { left: 0, done: false, reader }),
            (None, None) => Box::new(reader),
        };
        Ok(Self { status, headers, body })
    }
}

struct Exact {
    left: u64,
    reader: BufReader<TcpStream>,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.by_ref().take(self.left).read(buffer)?;
        self.left -= read as u64;
        too_early(read == 0 && self.left > 0 && !buffer.is_empty(), read)
    }
}

struct Chunked {
    left: u64,
    done: bool,
    reader: BufReader<TcpStream>,
}

impl Read for Chunked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.done {
            let size = read_line(&mut self.reader)?;
            self.left = u64::from_str_radix(&size, 16).map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
            self.done = self.left == 0;
        }
        let read = self.reader.by_ref().take(self.left).read(buffer)?;
        self.left -= read as u64;
        if read > 0 && self.left == 0 {
            read_line(&mut self.reader)?;
        }
        too_early(read == 0 && !self.done && !buffer.is_empty(), read)
    }
}

fn too_early(ended: bool, read: usize) -> io::Result<usize> {
    if ended { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(read) }
}

fn read_line(reader: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, decoded from chunks.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

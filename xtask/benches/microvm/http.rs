//! A client that adds next to nothing to what it measures: HTTP/1.1 on one connection, one request after the other.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::program::read_off;

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Longest answer that is kept, in bytes.
const BODY_MAX: u64 = 16 << 20;

/// A connection.
pub struct Http {
    stream: BufReader<TcpStream>,
    /// Lines of each request's head.
    head: String,
}

impl Http {
    /// Over a connection; `headers` are sent with each request.
    pub fn over(stream: TcpStream, headers: &[(&str, &str)]) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let lines = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        Ok(Self { stream: BufReader::new(stream), head: lines.collect() })
    }

    /// The answer to a GET, which must be a good one.
    pub fn get(&mut self, path: &str) -> Result<Vec<u8>> {
        self.ask("GET", path, "")
    }

    /// The answer to a request, which must be a good one.
    pub fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<Vec<u8>> {
        let (status, length) = self.begin(method, path, body)?;
        ensure!(length <= BODY_MAX, "{method} {path} is answered with {length} bytes");
        let mut answer = vec![0; usize::try_from(length)?];
        self.stream.read_exact(&mut answer)?;
        ensure!(is_good(status), "{method} {path} is answered with {status}: {}", String::from_utf8_lossy(&answer));
        Ok(answer)
    }

    /// Reads the answer to a GET, which must be a good one, and throws it away; how many bytes it had.
    pub fn read_off(&mut self, path: &str) -> Result<u64> {
        let (status, length) = self.begin("GET", path, "")?;
        ensure!(is_good(status), "GET {path} is answered with {status}");
        read_off(&mut self.stream, length)?;
        Ok(length)
    }

    /// Sends a request; status and length of its answer.
    fn begin(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, u64)> {
        let about = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{}{about}content-length: {}\r\n\r\n{body}",
            self.head,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.with_context(|| format!("no answer of HTTP: {first:?}"))?;
        let mut length = None;
        loop {
            let line = self.line()?;
            match line.split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = Some(value.trim().parse()?);
                }
                Some(_another) => {}
                None if line.is_empty() => break,
                None => bail!("no header of HTTP: {line:?}"),
            }
        }
        // 204 has no body, and says no length.
        let length = if status == 204 { Some(0) } else { length };
        Ok((status, length.context("an answer that does not say how long it is")?))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "the connection ended before the answer");
        Ok(line.trim_end().to_owned())
    }
}

fn is_good(status: u16) -> bool {
    (200..300).contains(&status)
}

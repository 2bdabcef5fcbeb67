//! Reads `multipart/form-data` (RFC 7578) as it arrives, in memory of a fixed size.
//!
//! The parser does no input or output: bytes are pushed in, events are taken out. It keeps no more than what was pushed
//! last and what might still turn out to be a delimiter or a part's header.
//!
//! ```text
//!  Preamble ──delimiter──► Headers ──empty line──► Body ──delimiter──► Headers …
//!      └──────last delimiter──────► Done ◄──────last delimiter──┘
//! ```

use bytes::{Buf as _, Bytes, BytesMut};
use memchr::memmem;

use crate::envd::files_limits as limits;

/// Why a body is no multipart form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MultipartError {
    /// The content type names no usable boundary.
    #[error("the content type multipart/form-data needs a boundary of 1 to {} bytes", limits::BOUNDARY_BYTES_MAX)]
    Boundary,
    /// The header of a part does not end.
    #[error("the header of a part is longer than {} bytes", limits::PART_HEADER_BYTES_MAX)]
    HeaderTooLong,
    /// A part does not say which field it is.
    #[error("a part has no Content-Disposition: form-data")]
    NoDisposition,
    /// The body ended before its last delimiter.
    #[error("the multipart body ended early")]
    Truncated,
}

/// What a part's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The name of the form's field.
    pub name: Vec<u8>,
    /// The file's name as the client wrote it: it may be a path.
    pub filename: Option<Vec<u8>>,
}

/// What comes next in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A part begins.
    Begin(Part),
    /// Some more bytes of the part.
    Data(Bytes),
    /// The part is complete.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Preamble,
    Headers,
    Body,
    Done,
}

/// A multipart body that is being read.
pub struct Parser {
    /// What separates parts: CRLF, `--`, the boundary.
    delimiter: Vec<u8>,
    buffer: BytesMut,
    state: State,
}

/// What the buffer begins with.
enum Ahead {
    /// This many bytes of content; none means that more input decides.
    Content(usize),
    /// A delimiter of this length; the last one ends the body.
    Delimiter { length: usize, last: bool },
}

/// How the line goes on after the boundary.
enum LineEnd {
    /// It is too short to tell.
    Open,
    /// Not as a delimiter does: the bytes are content.
    Content,
    /// So many bytes, and a part follows.
    Part(usize),
    /// So many bytes, and nothing follows.
    Last(usize),
}

impl Parser {
    /// A parser for the body of this content type.
    pub fn new(content_type: &[u8]) -> Result<Self, MultipartError> {
        let boundary = parameter(content_type, b"boundary").ok_or(MultipartError::Boundary)?;
        if boundary.is_empty() || boundary.len() > limits::BOUNDARY_BYTES_MAX {
            return Err(MultipartError::Boundary);
        }
        let delimiter = [b"\r\n--", boundary.as_slice()].concat();
        // The first delimiter has no line before it; with one put there it looks like the others.
        Ok(Self { delimiter, buffer: BytesMut::from(&b"\r\n"[..]), state: State::Preamble })
    }

    /// Adds input; what comes after the last delimiter is ignored.
    pub fn push(&mut self, data: &[u8]) {
        if self.state != State::Done {
            self.buffer.extend_from_slice(data);
        }
    }

    /// The next event, or `None` when more input is needed (or the body is complete).
    pub fn next_event(&mut self) -> Result<Option<Event>, MultipartError> {
        loop {
            let event = match self.state {
                State::Preamble | State::Body => match self.ahead() {
                    Ahead::Content(0) => return Ok(None),
                    Ahead::Content(length) => self.content(length),
                    Ahead::Delimiter { length, last } => self.delimiter(length, last),
                },
                State::Headers => match self.headers()? {
                    None => return Ok(None),
                    Some(part) => Some(Event::Begin(part)),
                },
                State::Done => return Ok(None),
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// Says that there is no more input.
    pub fn finish(&self) -> Result<(), MultipartError> {
        if self.state == State::Done { Ok(()) } else { Err(MultipartError::Truncated) }
    }

    fn ahead(&self) -> Ahead {
        let mut from = 0;
        while let Some(at) = memmem::find(&self.buffer[from..], &self.delimiter).map(|at| at + from) {
            let end = at + self.delimiter.len();
            let (length, last) = match line_end(&self.buffer[end..]) {
                LineEnd::Content => {
                    from = at + 1;
                    continue;
                }
                LineEnd::Open => return Ahead::Content(at),
                LineEnd::Part(length) => (length, false),
                LineEnd::Last(length) => (length, true),
            };
            return if at > 0 {
                Ahead::Content(at)
            } else {
                Ahead::Delimiter { length: self.delimiter.len() + length, last }
            };
        }
        Ahead::Content(self.buffer.len().saturating_sub(self.delimiter.len() - 1))
    }

    /// Takes content out; before the first delimiter it means nothing.
    fn content(&mut self, length: usize) -> Option<Event> {
        let data = self.buffer.split_to(length).freeze();
        (self.state == State::Body).then_some(Event::Data(data))
    }

    fn delimiter(&mut self, length: usize, last: bool) -> Option<Event> {
        self.buffer.advance(length);
        let ended = self.state == State::Body;
        self.state = if last { State::Done } else { State::Headers };
        if last {
            self.buffer = BytesMut::new();
        }
        ended.then_some(Event::End)
    }

    fn headers(&mut self) -> Result<Option<Part>, MultipartError> {
        // A header ends with an empty line, which may be its first.
        let (length, end) = match memmem::find(&self.buffer, b"\r\n\r\n") {
            _ if self.buffer.starts_with(b"\r\n") => (0, 2),
            Some(length) if length <= limits::PART_HEADER_BYTES_MAX => (length, length + 4),
            None if self.buffer.len() <= limits::PART_HEADER_BYTES_MAX => return Ok(None),
            Some(_) | None => return Err(MultipartError::HeaderTooLong),
        };
        let part = parse_part(&self.buffer[..length])?;
        self.buffer.advance(end);
        self.state = State::Body;
        Ok(Some(part))
    }
}

/// Reads on after a boundary: `--`, or spaces and a line's end.
fn line_end(rest: &[u8]) -> LineEnd {
    match rest {
        [b'-', b'-', ..] => return LineEnd::Last(2),
        [b'-'] => return LineEnd::Open,
        _ => {}
    }
    let spaces = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    match &rest[spaces..] {
        _ if spaces > limits::BOUNDARY_BYTES_MAX => LineEnd::Content,
        [] | [b'\r'] => LineEnd::Open,
        [b'\r', b'\n', ..] => LineEnd::Part(spaces + 2),
        _ => LineEnd::Content,
    }
}

fn parse_part(header: &[u8]) -> Result<Part, MultipartError> {
    let lines = header.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let mut fields = lines.filter_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        Some((line[..colon].trim_ascii(), &line[colon + 1..]))
    });
    let (_, value) = fields
        .find(|(name, _)| name.eq_ignore_ascii_case(b"content-disposition"))
        .ok_or(MultipartError::NoDisposition)?;
    let name = parameter(value, b"name").ok_or(MultipartError::NoDisposition)?;
    Ok(Part { name, filename: extended_filename(value).or_else(|| parameter(value, b"filename")) })
}

/// A `filename*=UTF-8''percent-encoded` (RFC 5987), which a few clients send beside `filename`.
fn extended_filename(value: &[u8]) -> Option<Vec<u8>> {
    let extended = parameter(value, b"filename*")?;
    let prefix = extended.get(..7).filter(|prefix| prefix.eq_ignore_ascii_case(b"utf-8''"))?;
    Some(super::headers::percent_decode(&extended[prefix.len()..]))
}

/// The value of a parameter of a header such as `form-data; name="file"`; quotes taken off.
pub fn parameter(header: &[u8], wanted: &[u8]) -> Option<Vec<u8>> {
    let mut rest = header;
    while let Some(semicolon) = end_of_value(rest) {
        rest = &rest[semicolon + 1..];
        let own = &rest[..end_of_value(rest).unwrap_or(rest.len())];
        let Some(equals) = memchr::memchr(b'=', own) else { continue };
        if own[..equals].trim_ascii().eq_ignore_ascii_case(wanted) {
            return Some(unquote(own[equals + 1..].trim_ascii()));
        }
    }
    None
}

/// Where the next `;` outside of quotes is.
fn end_of_value(text: &[u8]) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    text.iter().position(|byte| {
        match byte {
            b'"' if !escaped => quoted = !quoted,
            b';' if !quoted => return true,
            _ => {}
        }
        escaped = quoted && *byte == b'\\' && !escaped;
        false
    })
}

/// Takes the quotes off. A backslash escapes a quote or another backslash; before anything else it is itself, because
/// browsers escape nothing.
fn unquote(value: &[u8]) -> Vec<u8> {
    let Some(inner) = value.strip_prefix(b"\"").map(|inner| inner.strip_suffix(b"\"").unwrap_or(inner)) else {
        return value.to_vec();
    };
    let mut plain = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let escaped = if byte == b'\\' { bytes.next_if(|next| matches!(next, b'"' | b'\\')) } else { None };
        plain.push(escaped.unwrap_or(byte));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads a whole body given in pieces of `step` bytes: each part with its contents.
    fn read(body: &[u8], step: usize) -> Result<Vec<(Part, Vec<u8>)>, MultipartError> {
        let mut parser = Parser::new(b"multipart/form-data; boundary=XX")?;
        let mut parts: Vec<(Part, Vec<u8>)> = Vec::new();
        let mut ended = 0;
        for piece in body.chunks(step) {
            parser.push(piece);
            while let Some(event) = parser.next_event()? {
                match event {
                    Event::Begin(part) => parts.push((part, Vec::new())),
                    Event::Data(data) => parts.last_mut().unwrap().1.extend_from_slice(&data),
                    Event::End => ended += 1,
                }
            }
            assert!(parser.buffer.len() < limits::PART_HEADER_BYTES_MAX + step + 200);
        }
        parser.finish()?;
        assert_eq!(ended, parts.len());
        Ok(parts)
    }

    fn part(name: &str, filename: Option<&str>) -> Part {
        Part { name: name.into(), filename: filename.map(Into::into) }
    }

    fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (filename, content) in parts {
            body.extend_from_slice(b"--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"");
            body.extend_from_slice(filename.as_bytes());
            body.extend_from_slice(b"\"\r\nContent-Type: text/plain\r\n\r\n");
            body.extend_from_slice(content);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"--XX--\r\n");
        body
    }

    #[test]
    fn parts_are_read_however_the_bytes_arrive() {
        let body = form(&[("/a/b.txt", b"one\r\n--XXX two"), ("empty", b""), ("c", b"\r\n--X\r\n--XX-no\r\n")]);
        for step in 1..body.len() {
            let parts = read(&body, step).unwrap();
            assert_eq!(parts.len(), 3);
            assert_eq!(parts[0], (part("file", Some("/a/b.txt")), b"one\r\n--XXX two".to_vec()));
            assert_eq!(parts[1], (part("file", Some("empty")), Vec::new()));
            assert_eq!(parts[2].1, b"\r\n--X\r\n--XX-no\r\n");
        }
    }

    #[test]
    fn preamble_epilogue_and_padding_are_skipped() {
        let body = b"hello\r\n--XX  \t\r\nCONTENT-DISPOSITION:form-data;name=a\r\n\r\n1\r\n--XX--rest\r\n--XX\r\n";
        assert_eq!(read(body, 5).unwrap(), [(part("a", None), b"1".to_vec())]);
        assert_eq!(read(b"--XX--", 6).unwrap(), []);
    }

    #[test]
    fn broken_bodies_are_refused() {
        for (body, error) in [
            (&b""[..], MultipartError::Truncated),
            (b"--XX", MultipartError::Truncated),
            (b"--XX\r\n\r\nx\r\n--XX--", MultipartError::NoDisposition),
            (b"--XX\r\nContent-Type: a\r\n\r\nx\r\n--XX--", MultipartError::NoDisposition),
            (b"--XX\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--XX", MultipartError::Truncated),
        ] {
            assert_eq!(read(body, 3), Err(error), "{}", body.escape_ascii());
        }
        let endless = [b"--XX\r\n".to_vec(), vec![b'a'; 2 * limits::PART_HEADER_BYTES_MAX]].concat();
        assert_eq!(read(&endless, 1000), Err(MultipartError::HeaderTooLong));
    }

    #[test]
    fn boundaries_come_from_the_content_type() {
        for (content_type, ok) in [
            ("multipart/form-data; boundary=abc", true),
            ("multipart/form-data; charset=x; Boundary=\"a b;c\"", true),
            ("multipart/form-data", false),
            ("multipart/form-data; boundary=", false),
            ("multipart/form-data; boundary=\"\"", false),
        ] {
            assert_eq!(Parser::new(content_type.as_bytes()).is_ok(), ok, "{content_type}");
        }
        let long = format!("multipart/form-data; boundary={}", "x".repeat(limits::BOUNDARY_BYTES_MAX + 1));
        assert!(Parser::new(long.as_bytes()).is_err());
    }

    #[test]
    fn file_names_are_as_the_client_meant_them() {
        for (header, filename) in [
            (r#"form-data; name="file"; filename="a b;c.txt""#, Some("a b;c.txt")),
            (r#"form-data; name="file"; filename="a\"b\\c\d""#, Some(r#"a"b\c\d"#)),
            (r#"form-data; name="file"; filename=plain.txt"#, Some("plain.txt")),
            (r#"form-data; filename="../x"; name="file""#, Some("../x")),
            (r#"form-data; name="file"; filename="x"; filename*=UTF-8''gr%C3%BC%20n"#, Some("grü n")),
            (r#"form-data; name="file"; filename="grün""#, Some("grün")),
            (r#"form-data; name="file"; filename="open"#, Some("open")),
            (r#"form-data; name="file""#, None),
        ] {
            let part = parse_part(format!("Content-Disposition: {header}").as_bytes()).unwrap();
            assert_eq!(part, super::tests::part("file", filename), "{header}");
        }
    }

    proptest! {
        #[test]
        fn every_form_is_read_back(
            contents in proptest::collection::vec(proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'X'), any::<u8>()], 0..60), 0..4),
            step in 1usize..40,
        ) {
            // Content that holds the delimiter could not have been sent with this boundary.
            prop_assume!(contents.iter().all(|content| memmem::find(&[b"\r\n", content.as_slice(), b"\r"].concat(), b"\r\n--XX").is_none()));
            let parts: Vec<_> = contents.iter().map(|content| ("f", content.as_slice())).collect();
            let read: Vec<_> = read(&form(&parts), step).unwrap().into_iter().map(|(_, content)| content).collect();
            prop_assert_eq!(read, contents);
        }

        #[test]
        fn noise_is_read_without_harm(body in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'X'), Just(b':'), any::<u8>()], 0..300), step in 1usize..50) {
            let _any_answer_will_do = read(&body, step).is_ok();
        }
    }
}

//! The lines of Server-Sent Events, however they are cut into pieces on their way.
//!
//! Pure: bytes go in, events come out. Lines end with LF, CR LF or CR; an empty line ends an event; a line that begins with a
//! colon is a comment. An event without data is none. Ids and retry times are not for us.

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// Its kind; `message` if it has none.
    pub event: String,
    /// Its data, lines joined with LF.
    pub data: String,
}

/// Why there are no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// An event is too large.
    #[error("an event is larger than {bytes_max} bytes")]
    TooLarge {
        /// What it may be.
        bytes_max: usize,
    },
    /// A line is no text.
    #[error("an event is not in UTF-8")]
    NoText,
}

/// Reads events.
#[derive(Debug)]
pub struct Parser {
    bytes_max: usize,
    /// The line so far.
    line: Vec<u8>,
    /// The last byte ended a line with CR: an LF after it belongs to it.
    after_cr: bool,
    is_first_line: bool,
    event: String,
    data: Option<String>,
}

impl Parser {
    /// For events of at most `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, line: Vec::new(), after_cr: false, is_first_line: true, event: String::new(), data: None }
    }

    /// Takes what has come, and appends what events it completes to `events`.
    pub fn push(&mut self, piece: &[u8], events: &mut Vec<Raw>) -> Result<(), SseError> {
        for byte in piece {
            let after_cr = std::mem::replace(&mut self.after_cr, *byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => events.extend(self.end_line()?),
                byte => {
                    self.line.push(*byte);
                    let kept = self.line.len() + self.data.as_ref().map_or(0, String::len);
                    if kept > self.bytes_max {
                        return Err(SseError::TooLarge { bytes_max: self.bytes_max });
                    }
                }
            }
        }
        Ok(())
    }

    fn end_line(&mut self) -> Result<Option<Raw>, SseError> {
        let line = std::mem::take(&mut self.line);
        let line = std::str::from_utf8(&line).map_err(|_not_text| SseError::NoText)?;
        let is_first = std::mem::take(&mut self.is_first_line);
        let line = if is_first { line.strip_prefix('\u{feff}').unwrap_or(line) } else { line };
        if line.is_empty() {
            return Ok(self.end_event());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            _comment_or_not_for_us => {}
        }
        Ok(None)
    }

    fn end_event(&mut self) -> Option<Raw> {
        let event = std::mem::take(&mut self.event);
        let data = self.data.take()?;
        Some(Raw { event: if event.is_empty() { "message".to_owned() } else { event }, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"\xef\xbb\xbf: hello\r\nevent: sandbox\r\ndata: {\"a\":\r\ndata:1}\r\n\r\n:\n\nevent:gone\rid: 7\rdata\r\r\
                            data:  two spaces, \xc3\xa4\nretry: 5\nnonsense\n\nevent: empty\n\nevent: complete\ndata: {}\n\ndata: cut";

    fn expected() -> Vec<Raw> {
        let raw = |event: &str, data: &str| Raw { event: event.to_owned(), data: data.to_owned() };
        vec![raw("sandbox", "{\"a\":\n1}"), raw("gone", ""), raw("message", " two spaces, ä"), raw("complete", "{}")]
    }

    #[test]
    fn events_are_the_same_at_every_split() {
        for split in 0..=STREAM.len() {
            let (mut parser, mut events) = (Parser::new(1000), Vec::new());
            for piece in [&STREAM[..split], &[], &STREAM[split..]] {
                parser.push(piece, &mut events).unwrap();
            }
            assert_eq!(events, expected(), "split at {split}");
        }
        let (mut parser, mut events) = (Parser::new(1000), Vec::new());
        for byte in STREAM {
            parser.push(&[*byte], &mut events).unwrap();
        }
        assert_eq!(events, expected());
    }

    #[test]
    fn an_event_has_an_end() {
        let mut parser = Parser::new(10);
        assert_eq!(parser.push(b"data: 4567890", &mut Vec::new()), Err(SseError::TooLarge { bytes_max: 10 }));
        let mut parser = Parser::new(10);
        let mut events = Vec::new();
        parser.push(b"data: 456\n", &mut events).unwrap();
        assert!(parser.push(b"data: 456\n", &mut events).is_err(), "all its lines count");
    }

    #[test]
    fn what_is_no_text_is_no_event() {
        assert_eq!(Parser::new(10).push(b"data: \xff\n", &mut Vec::new()), Err(SseError::NoText));
    }
}

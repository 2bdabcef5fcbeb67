//! A process's events on the wire: `process.ProcessEvent` inside of StartResponse or ConnectResponse, which look alike.
//!
//! Output is encoded by hand, since it is nearly all that ever goes over this wire: in binary the bytes stay where they
//! are, behind a few bytes of head; in JSON they are encoded once, into place. Everything else goes through the
//! generated code. A test holds the two ways against each other.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use connectrpc::{CodecFormat, ConnectError, Encodable, EncodedBody};
use wrenn_proto::envd::process::process_event::{
    DataEvent, EndEvent, Event as WireEvent, GapEvent, KeepAlive, StartEvent, data_event::Output,
};
use wrenn_proto::envd::process::{ConnectResponse, ProcessEvent, StartResponse};

use super::log::{End, Piece, Stream};

/// One message of a Start or Connect stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The process runs under this pid.
    Start(u32),
    /// It wrote.
    Output(Piece),
    /// This many bytes are gone.
    Gap(u64),
    /// It ended.
    End(End),
    /// Nothing happened.
    KeepAlive,
}

impl Event {
    /// The message that the generated code knows.
    fn to_wire(&self) -> ProcessEvent {
        let event = match self {
            Self::Start(pid) => WireEvent::from(StartEvent { pid: *pid }),
            Self::Output(piece) => WireEvent::from(data_event(piece)),
            Self::Gap(bytes) => WireEvent::from(GapEvent { bytes: *bytes }),
            Self::End(end) => WireEvent::from(end_event(*end)),
            Self::KeepAlive => WireEvent::from(KeepAlive {}),
        };
        ProcessEvent { event: Some(event) }
    }

    fn encode_with<M: Encodable<M>>(
        &self,
        codec: CodecFormat,
        wrap: impl FnOnce(ProcessEvent) -> M,
    ) -> Result<EncodedBody, ConnectError> {
        match (self, codec) {
            (Self::Output(piece), CodecFormat::Proto) => Ok(proto(piece)),
            (Self::Output(piece), CodecFormat::Json) => Ok(EncodedBody::from(json(piece))),
            // The codecs are the library's own list, which may grow: the generated code knows.
            (event, codec) => wrap(event.to_wire()).encode_segments(codec),
        }
    }
}

impl Encodable<StartResponse> for Event {
    fn encode(&self, codec: CodecFormat) -> Result<Bytes, ConnectError> {
        Encodable::<StartResponse>::encode_segments(self, codec).map(EncodedBody::into_contiguous)
    }

    fn encode_segments(&self, codec: CodecFormat) -> Result<EncodedBody, ConnectError> {
        self.encode_with(codec, |event| StartResponse { event: event.into() })
    }
}

impl Encodable<ConnectResponse> for Event {
    fn encode(&self, codec: CodecFormat) -> Result<Bytes, ConnectError> {
        Encodable::<ConnectResponse>::encode_segments(self, codec).map(EncodedBody::into_contiguous)
    }

    fn encode_segments(&self, codec: CodecFormat) -> Result<EncodedBody, ConnectError> {
        self.encode_with(codec, |event| ConnectResponse { event: event.into() })
    }
}

fn data_event(piece: &Piece) -> DataEvent {
    let bytes = piece.bytes.clone();
    let output = match piece.stream {
        Stream::Stdout => Output::Stdout(bytes),
        Stream::Stderr => Output::Stderr(bytes),
        Stream::Pty => Output::Pty(bytes),
    };
    DataEvent { output: Some(output), offset: piece.offset }
}

fn end_event(end: End) -> EndEvent {
    let (exit_code, exited, status, signal) = match end {
        End::Exited(code) => (code, true, format!("exit status {code}"), None),
        End::Signalled(signal) => (-1, false, format!("signal: {}", signal_name(signal)), Some(signal)),
        End::Unknown => (-1, false, "unknown".to_owned(), None),
    };
    let error = (end != End::Exited(0)).then(|| status.clone());
    EndEvent { exit_code, exited, status, error, signal }
}

/// Signals by the names that Go's runtime gives them: E2B's clients show them.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        10 => "user defined signal 1",
        11 => "segmentation fault",
        12 => "user defined signal 2",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

/// Field numbers as they are tagged on the wire: `number << 3 | type`.
mod tag {
    pub const RESPONSE_EVENT: u8 = 1 << 3 | 2;
    pub const EVENT_DATA: u8 = 2 << 3 | 2;
    pub const DATA_STDOUT: u8 = 1 << 3 | 2;
    pub const DATA_STDERR: u8 = 2 << 3 | 2;
    pub const DATA_PTY: u8 = 3 << 3 | 2;
    /// 100 << 3, which takes two bytes.
    pub const DATA_OFFSET: [u8; 2] = [0xa0, 0x06];
}

/// The event in binary: a head, then the bytes themselves. Fields may come in any order, so the offset goes first.
fn proto(piece: &Piece) -> EncodedBody {
    let field = match piece.stream {
        Stream::Stdout => tag::DATA_STDOUT,
        Stream::Stderr => tag::DATA_STDERR,
        Stream::Pty => tag::DATA_PTY,
    };
    let length = piece.bytes.len() as u64;
    let offset_size = if piece.offset == 0 { 0 } else { 2 + varint_size(piece.offset) };
    let data = offset_size + 1 + varint_size(length) + length;
    let event = 1 + varint_size(data) + data;
    let mut head = BytesMut::with_capacity(48);
    head.put_u8(tag::RESPONSE_EVENT);
    put_varint(&mut head, event);
    head.put_u8(tag::EVENT_DATA);
    put_varint(&mut head, data);
    if piece.offset != 0 {
        head.put_slice(&tag::DATA_OFFSET);
        put_varint(&mut head, piece.offset);
    }
    head.put_u8(field);
    put_varint(&mut head, length);
    EncodedBody::from_segments(vec![head.freeze(), piece.bytes.clone()])
}

fn varint_size(value: u64) -> u64 {
    u64::from((64 - (value | 1).leading_zeros()).div_ceil(7))
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn json(piece: &Piece) -> Bytes {
    let field = match piece.stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
        Stream::Pty => "pty",
    };
    let mut text = String::with_capacity(piece.bytes.len().div_ceil(3) * 4 + 80);
    text.push_str("{\"event\":{\"data\":{\"");
    text.push_str(field);
    text.push_str("\":\"");
    STANDARD.encode_string(&piece.bytes, &mut text);
    text.push('"');
    if piece.offset != 0 {
        // int64 is a string in JSON.
        text.push_str(&format!(",\"offset\":\"{}\"", piece.offset));
    }
    text.push_str("}}}");
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn by_the_generator(event: &Event, codec: CodecFormat) -> StartResponse {
        let bytes = StartResponse { event: event.to_wire().into() }.encode(codec).unwrap();
        decode(&bytes, codec)
    }

    fn decode(bytes: &[u8], codec: CodecFormat) -> StartResponse {
        match codec {
            CodecFormat::Proto => wrenn_proto::envd::decode(bytes).unwrap(),
            CodecFormat::Json => serde_json::from_slice(bytes).unwrap(),
            other => panic!("no test for {other}"),
        }
    }

    fn by_hand(event: &Event, codec: CodecFormat) -> StartResponse {
        decode(&Encodable::<StartResponse>::encode(event, codec).unwrap(), codec)
    }

    proptest! {
        #[test]
        fn output_by_hand_is_output_by_the_generator(
            bytes in proptest::collection::vec(any::<u8>(), 1..500), offset: u64, small in 0_u64..300, which in 0..3,
        ) {
            let stream = [Stream::Stdout, Stream::Stderr, Stream::Pty][which as usize];
            for offset in [offset, small] {
                let event = Event::Output(Piece { offset, stream, bytes: bytes.clone().into() });
                for codec in [CodecFormat::Proto, CodecFormat::Json] {
                    prop_assert_eq!(by_hand(&event, codec), by_the_generator(&event, codec));
                }
            }
        }
    }

    #[test]
    fn a_large_piece_is_passed_on_without_a_copy() {
        let bytes = Bytes::from(vec![7; 32 * 1024]);
        let event = Event::Output(Piece { offset: 1 << 63, stream: Stream::Pty, bytes: bytes.clone() });
        let body = Encodable::<ConnectResponse>::encode_segments(&event, CodecFormat::Proto).unwrap();
        assert_eq!(body.segments()[1].as_ptr(), bytes.as_ptr());
        let whole = body.into_contiguous();
        assert_eq!(decode(&whole, CodecFormat::Proto), by_the_generator(&event, CodecFormat::Proto));
    }

    #[test]
    fn ends_read_as_e2b_has_them() {
        let status = |end| {
            let event = end_event(end);
            (event.exit_code, event.exited, event.status, event.error, event.signal)
        };
        let text = |text: &str| text.to_owned();
        assert_eq!(status(End::Exited(0)), (0, true, text("exit status 0"), None, None));
        assert_eq!(status(End::Exited(3)), (3, true, text("exit status 3"), Some(text("exit status 3")), None));
        let killed = text("signal: killed");
        assert_eq!(status(End::Signalled(9)), (-1, false, killed.clone(), Some(killed), Some(9)));
        let odd = text("signal: signal 34");
        assert_eq!(status(End::Signalled(34)), (-1, false, odd.clone(), Some(odd), Some(34)));
        assert_eq!(status(End::Unknown), (-1, false, text("unknown"), Some(text("unknown")), None));
    }
}

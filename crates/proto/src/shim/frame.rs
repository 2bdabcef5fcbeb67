//! Frames: a length (u32, little endian) and that many bytes of JSON.
//!
//! The decoder is fed whatever a socket gives and holds at most one frame's worth of bytes. Any bytes at all are either
//! frames, an incomplete frame, or a length that is refused; after that the stream cannot be followed any further.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes of JSON in a frame. The longest answer is a console tail.
pub const FRAME_MAX: usize = 64 * 1024;

const LENGTH_BYTES: usize = 4;

/// Why a frame could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length is beyond [`FRAME_MAX`]; the stream cannot be followed any further.
    #[error("a frame of {length} bytes, the most is {FRAME_MAX}")]
    TooLong {
        /// The length in bytes.
        length: usize,
    },
    /// The JSON does not fit the message.
    #[error("a frame that is no message")]
    Json(#[from] serde_json::Error),
}

/// A message as the bytes to send.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - LENGTH_BYTES;
    if length > FRAME_MAX {
        return Err(FrameError::TooLong { length });
    }
    bytes[..LENGTH_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// The message of one frame's JSON.
pub fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(json).map_err(FrameError::Json)
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in bytes from the stream and answers how many: all of them, unless [`Decoder::room`] is less.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.buffer.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// How many bytes fit in. Zero only while a whole frame is waiting in [`Decoder::next_frame`].
    pub fn room(&self) -> usize {
        LENGTH_BYTES + FRAME_MAX - self.buffer.len()
    }

    /// Whether a frame has begun and is not complete.
    pub fn is_inside_frame(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The JSON of the next frame, if all of it is here. After an error there are no further frames.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > FRAME_MAX {
            return Err(FrameError::TooLong { length });
        }
        let Some(json) = rest.get(..length) else { return Ok(None) };
        let json = json.to_vec();
        self.buffer.drain(..LENGTH_BYTES + length);
        if self.buffer.is_empty() {
            // An idle connection costs nothing.
            self.buffer = Vec::new();
        }
        Ok(Some(json))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `stream` in pieces of `piece` bytes and answers the frames, and whether the end was an error.
    fn cut(stream: &[u8], piece: usize) -> (Vec<Vec<u8>>, bool) {
        let mut decoder = Decoder::new();
        let mut frames = Vec::new();
        for mut chunk in stream.chunks(piece) {
            while !chunk.is_empty() {
                chunk = &chunk[decoder.push(chunk)..];
                assert!(decoder.buffer.len() <= LENGTH_BYTES + FRAME_MAX);
                loop {
                    match decoder.next_frame() {
                        Ok(Some(frame)) => frames.push(frame),
                        Ok(None) => break,
                        Err(_) => return (frames, true),
                    }
                }
            }
        }
        (frames, false)
    }

    #[test]
    fn the_longest_frame_passes_and_one_more_byte_does_not() {
        let longest = encode(&"x".repeat(FRAME_MAX - 2)).unwrap();
        assert_eq!(cut(&longest, 1000).0.len(), 1);
        assert!(matches!(encode(&"x".repeat(FRAME_MAX - 1)), Err(FrameError::TooLong { .. })));
        let mut decoder = Decoder::new();
        decoder.push(&(FRAME_MAX as u32 + 1).to_le_bytes());
        assert!(matches!(decoder.next_frame(), Err(FrameError::TooLong { length }) if length == FRAME_MAX + 1));
    }

    #[test]
    fn a_full_decoder_always_holds_a_frame_or_an_error() {
        let mut decoder = Decoder::new();
        let stream = encode(&"x".repeat(FRAME_MAX - 2)).unwrap();
        assert_eq!(decoder.push(&stream), stream.len());
        assert_eq!(decoder.push(b"more"), 0);
        assert!(decoder.next_frame().unwrap().is_some());
        assert_eq!(decoder.push(b"more"), 4);
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_frames_or_in_an_error(stream in proptest::collection::vec(any::<u8>(), 0..4000), piece in 1_usize..300) {
            let (frames, failed) = cut(&stream, piece);
            let taken: usize = frames.iter().map(|frame| frame.len() + LENGTH_BYTES).sum();
            prop_assert!(taken <= stream.len());
            let rest = &stream[taken..];
            let refused = rest.len() >= LENGTH_BYTES && u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize > FRAME_MAX;
            prop_assert_eq!(failed, refused);
        }

        #[test]
        fn what_was_encoded_comes_out_however_it_was_cut(texts in proptest::collection::vec(".{0,200}", 0..20), piece in 1_usize..500) {
            let stream: Vec<u8> = texts.iter().flat_map(|text| encode(text).unwrap()).collect();
            let (frames, failed) = cut(&stream, piece);
            prop_assert!(!failed);
            let back: Vec<String> = frames.iter().map(|frame| decode(frame).unwrap()).collect();
            prop_assert_eq!(back, texts);
        }
    }
}

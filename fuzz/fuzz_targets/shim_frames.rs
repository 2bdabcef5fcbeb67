//! The shim's stream of frames: whatever comes in whatever pieces, frames come out as they went in, and no more is held than
//! one frame needs.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wrenn_proto::shim::frame::{Decoder, FRAME_MAX, decode};

fuzz_target!(|pieces: Vec<&[u8]>| {
    let mut decoder = Decoder::new();
    for piece in pieces {
        let mut rest = piece;
        while !rest.is_empty() {
            let taken = decoder.push(rest);
            rest = &rest[taken..];
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => {
                        assert!(frame.len() <= FRAME_MAX);
                        // Any JSON, to begin with; what it means is another question.
                        drop(decode::<serde_json::Value>(&frame));
                    }
                    Ok(None) => break,
                    // The stream cannot be followed any further.
                    Err(_) => return,
                }
            }
            assert!(taken > 0 || rest.is_empty(), "it holds a whole frame and does not give it");
        }
    }
});

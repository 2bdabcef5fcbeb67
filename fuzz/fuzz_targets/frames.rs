//! Frames of the WebSockets of commands and tunnels: any bytes are a frame or refused, and a frame is written the same way again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wrenn_client::types::{ClientMessage, ServerMessage, StreamKind, StreamRequest, TunnelMessage};

fuzz_target!(|bytes: &[u8]| {
    if let Some((kind, offset, rest)) = StreamKind::read(bytes) {
        assert_eq!(kind.frame(offset, rest), bytes);
    }
    again::<ClientMessage>(bytes);
    again::<ServerMessage>(bytes);
    again::<TunnelMessage>(bytes);
    again::<StreamRequest>(bytes);
});

/// What is understood is the same once it was written and read.
fn again<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let Ok(message) = serde_json::from_slice::<T>(bytes) else { return };
    let written = serde_json::to_vec(&message).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<T>(&written).expect("what was written can be read"), message);
}

//! The guest agent's wire: `process.Process` and `filesystem.Filesystem`, plus the few names of its plain HTTP side
//! that host and guest must agree on.

use std::fmt::Write as _;

pub mod host_calls;

/// The generated code, as the .proto files' packages lay it out.
#[allow(
    missing_docs,
    rust_2018_idioms,
    clippy::all,
    clippy::wildcard_imports,
    reason = "the generator's style is not ours to judge"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/_envd.rs"));
}

pub use generated::{filesystem, process};

/// TCP port of envd in every guest.
pub const PORT: u16 = 49_983;

/// Header of a signed host call: unix nanoseconds in decimal, strictly increasing over the guest's life.
pub const NONCE_HEADER: &str = "x-wrenn-nonce";

/// Header of a signed host call: standard Base64 of the Ed25519 signature over [`host_call_message`].
pub const SIGNATURE_HEADER: &str = "x-wrenn-signature";

/// Header of every guarded request: the token that the last /init set.
pub const TOKEN_HEADER: &str = "x-access-token";

/// Header of an upload whose file appears under its name when it is whole, in place of what was there; with any value. An
/// upload that breaks off leaves nothing, whoever is gone by then.
pub const WHOLE_HEADER: &str = "x-wrenn-whole";

/// Header of /init's answer: envd's version.
pub const VERSION_HEADER: &str = "x-envd-version";

/// Reads a message in its binary form; the error is about bytes that are none.
pub fn decode<M: buffa::Message>(bytes: &[u8]) -> Result<M, buffa::DecodeError> {
    M::decode_from_slice(bytes)
}

/// The bytes that a host signs to make a call: `wrenn-host-call-v1`, sandbox id, nonce, path and body, each but the
/// last ended by a line feed. The first three cannot hold one.
pub fn host_call_message(sandbox_id: &str, nonce: u64, path: &str, body: &[u8]) -> Vec<u8> {
    let mut head = String::with_capacity(64 + sandbox_id.len() + path.len());
    write!(head, "wrenn-host-call-v1\n{sandbox_id}\n{nonce}\n{path}\n").expect("writing to a string cannot fail");
    let mut message = head.into_bytes();
    message.extend_from_slice(body);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signed_message_is_spelled_as_agreed() {
        let message = host_call_message("sb0123", 42, "/init", b"{\"a\":\n1}");
        assert_eq!(message, b"wrenn-host-call-v1\nsb0123\n42\n/init\n{\"a\":\n1}");
    }

    #[test]
    fn json_has_the_names_and_forms_of_the_contract() {
        use process::process_event::{DataEvent, EndEvent, Event, data_event};
        let json = |event: Event| {
            let response = process::StartResponse { event: process::ProcessEvent { event: Some(event) }.into() };
            serde_json::to_value(&response).expect("a message has a JSON form")
        };
        let data = DataEvent {
            output: Some(data_event::Output::Stdout(vec![0xff, 0xfe, 0xfd, 0xfc].into())),
            offset: 1 << 40,
        };
        let expected = serde_json::json!({"event": {"data": {"stdout": "//79/A==", "offset": "1099511627776"}}});
        assert_eq!(json(Event::from(data)), expected);
        let end = EndEvent { exited: true, status: "exit status 0".into(), ..Default::default() };
        assert_eq!(
            json(Event::from(end)),
            serde_json::json!({"event": {"end": {"exited": true, "status": "exit status 0"}}})
        );
        let end = EndEvent { exit_code: -1, signal: Some(9), ..Default::default() };
        assert_eq!(json(Event::from(end)), serde_json::json!({"event": {"end": {"exitCode": -1, "signal": 9}}}));
    }
}

//! The host agent's wire: `hostagent.HostAgent`, plus the few names of its tunnels that both sides must agree on.

/// The generated code, as the .proto files' packages lay it out.
#[allow(
    missing_docs,
    rust_2018_idioms,
    clippy::all,
    clippy::wildcard_imports,
    reason = "the generator's style is not ours to judge"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/_hostagent.rs"));
}

pub use buffa::{HasMessageView, MessageView};
pub use generated::hostagent::*;

/// Type of the detail that says which of the agent's errors it is: a [`Failure`].
pub const FAILURE_TYPE: &str = "hostagent.Failure";

/// What a connection is upgraded to, to be a tunnel.
pub const TUNNEL_PROTOCOL: &str = "wrenn-tunnel";

/// Header of a request for a tunnel: how long the guest may take to accept the connection, in milliseconds.
pub const TUNNEL_LIMIT_HEADER: &str = "wrenn-dial-limit-ms";

/// Header of a refused tunnel: the agent's code, as in [`Failure`]; the body is the message.
pub const TUNNEL_CODE_HEADER: &str = "wrenn-code";

/// Path of a tunnel to a guest's port.
pub fn tunnel_path(sandbox_id: &str, port: u16) -> String {
    format!("/tunnel/{sandbox_id}/{port}")
}

/// Reads a message in its binary form; the error is about bytes that are none.
pub fn decode<M: buffa::Message>(bytes: &[u8]) -> Result<M, buffa::DecodeError> {
    M::decode_from_slice(bytes)
}

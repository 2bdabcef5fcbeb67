//! What goes over a slot's network, as the kernel counts it.

use std::io;

use super::links::{Counters, Netlink};

/// Bytes that went to and from a guest since its network was made, frames whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// What the guest was sent.
    pub received_bytes: u64,
    /// What the guest has sent.
    pub sent_bytes: u64,
}

impl Traffic {
    /// What has gone over the pair whose outer end is `veth`; `None` if there is none.
    pub(super) fn of(veth: &str) -> io::Result<Option<Self>> {
        let counted = Netlink::open()?.counters(veth)?;
        // What comes in at the outer end is what the guest has sent.
        Ok(counted.map(|Counters { in_bytes, out_bytes }| Self { received_bytes: out_bytes, sent_bytes: in_bytes }))
    }
}

//! A slot's network as a value.
//!
//! `destroy` is the normal end and reports; `leave` ends this process's part while the VM lives on; dropping is the net
//! below both: a thread takes the network down, and [`super::Network::settle`] waits for it.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use wrenn_sys::netns::NetNs;
use wrenn_sys::tap;

use super::addresses::{Addresses, TAP};
use super::build::{self, Step, Timings};
use super::connect::Connector;
use super::slots::SlotLock;
use super::{NetworkError, Shared, Traffic};
use crate::names::Slot;

/// A slot with its network, held by this process.
#[derive(Debug)]
#[must_use = "dropping it takes the network down"]
pub struct Lease {
    shared: Arc<Shared>,
    addresses: Addresses,
    resolver: Option<Ipv4Addr>,
    netns: Arc<NetNs>,
    timings: Timings,
    /// Empty once the lease has ended.
    lock: Option<SlotLock>,
}

impl Lease {
    pub(super) fn new(
        shared: Arc<Shared>,
        lock: SlotLock,
        addresses: Addresses,
        resolver: Option<Ipv4Addr>,
        netns: NetNs,
        timings: Timings,
    ) -> Self {
        Self { shared, addresses, resolver, netns: Arc::new(netns), timings, lock: Some(lock) }
    }

    /// Which slot.
    pub fn slot(&self) -> Slot {
        self.addresses.name.slot
    }

    /// Its addresses on the host's side.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Where the sandbox's DNS goes; `None` if it has none.
    pub fn resolver(&self) -> Option<Ipv4Addr> {
        self.resolver
    }

    /// The namespace's handle, for processes that are to run inside.
    pub fn netns_path(&self) -> PathBuf {
        self.shared.netns_path(&self.addresses.name.netns())
    }

    /// The namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// How long each step of making it took; empty for an adopted one.
    pub fn timings(&self) -> &[(&'static str, Duration)] {
        &self.timings
    }

    /// Attaches to the TAP, for the VMM: as QEMU's `-netdev tap,fd=N` expects it, non-blocking, close-on-exec. Only one
    /// can be attached at a time; closing it detaches. It belongs to the slot's user, who may also attach to it by name.
    pub fn open_tap(&self) -> Result<OwnedFd, NetworkError> {
        let owner = self.slot().vmm_uid();
        let opened = self.netns.run(|| tap::open(TAP, Some(owner)));
        let failed =
            |source: std::io::Error| NetworkError::Build { slot: self.slot(), step: Step::Tap, source: source.into() };
        opened.map_err(failed)?.map_err(failed)
    }

    /// What makes connections to the guest; may outlive the lease, but connects to nothing then.
    pub fn connector(&self) -> Connector {
        Connector::new(Arc::clone(&self.netns))
    }

    /// What went to and from the guest since the network was made; `None` if somebody has removed it. Connections of
    /// [`Lease::connector`] are not in it: they begin inside of the namespace.
    pub fn traffic(&self) -> std::io::Result<Option<Traffic>> {
        Traffic::of(&self.addresses.name.veth())
    }

    /// Takes the network down and frees the slot. Goes on to its end also if the caller stops waiting. What cannot be
    /// removed stays on record for the next sweep, and is the error.
    pub async fn destroy(mut self) -> Result<(), NetworkError> {
        let Some(end) = self.end() else { return Ok(()) };
        Shared::blocking(&self.shared, |_shared| end()).await
    }

    /// Lets go of the slot and leaves its network as it is: for a process that ends before its VM does. The next one
    /// adopts it.
    pub fn leave(mut self) {
        self.shared.state().held.remove(&self.slot());
        self.lock = None;
    }

    /// The work of ending it; `None` if it has ended.
    fn end(&mut self) -> Option<impl FnOnce() -> Result<(), NetworkError> + Send + 'static> {
        let lock = self.lock.take()?;
        let (shared, addresses, resolver) = (Arc::clone(&self.shared), self.addresses, self.resolver);
        Some(move || build::take_down(&shared, lock, Some(&addresses), resolver))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let slot = self.slot();
        let Some(end) = self.end() else { return };
        let reaper = std::thread::Builder::new().name("wrenn-net-reaper".to_owned()).spawn(move || {
            if let Err(error) = end() {
                tracing::warn!(%slot, error = &error as &dyn std::error::Error, "a dropped network is left over");
            }
        });
        match reaper {
            Ok(thread) => {
                let mut state = self.shared.state();
                // Bounded: the ended ones go when the next one comes.
                state.reaping.retain(|thread| !thread.is_finished());
                state.reaping.push(thread);
            }
            Err(error) => {
                tracing::warn!(%slot, %error, "no thread to take a dropped network down; the next sweep does")
            }
        }
    }
}

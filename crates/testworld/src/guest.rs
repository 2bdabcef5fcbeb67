//! A stand-in for a virtual machine: a namespace with one link, whose frames are carried to and from a sandbox's TAP.
//!
//! ```text
//!   namespace "guest": eth0 (a TAP) ◄── descriptor ── carrier thread ── descriptor ──► tap0: the sandbox's namespace
//! ```
//!
//! The kernel's own network stack is the guest's, set up as wrenn-init sets it up; what reaches the sandbox is real frames
//! through the descriptor that a VMM would hold.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use wrenn_engine::network::addresses::{DEFAULT_ROUTE, GATEWAY, GUEST, GUEST_MAC, GUEST_PREFIX};
use wrenn_engine::network::links::Netlink;
use wrenn_sys::netns::NetNs;
use wrenn_sys::tap::{self, VNET_HEADER_BYTES};

use crate::existing;

const LINK: &str = "eth0";
/// Longest frame with its header: what segmentation offload could make of one.
const FRAME_BYTES_MAX: usize = 65536 + 64;

/// A guest on a sandbox's TAP; dropping it detaches it.
#[derive(Debug)]
pub struct Guest {
    netns: NetNs,
    sandbox: Arc<OwnedFd>,
    stop: Arc<OwnedFd>,
    carrier: Option<JoinHandle<io::Result<()>>>,
}

impl Guest {
    /// Boots a guest on the TAP.
    ///
    /// # Panics
    /// If that is not possible: a test cannot go on without.
    pub fn boot(tap: OwnedFd) -> Self {
        Self::try_boot(tap).expect("the stand-in for a guest cannot be made")
    }

    fn try_boot(tap: OwnedFd) -> io::Result<Self> {
        let netns = NetNs::anonymous()?;
        let link = Arc::new(netns.run(connect)??);
        let (sandbox, stop) = (Arc::new(tap), Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?));
        let ends = (Arc::clone(&link), Arc::clone(&sandbox), Arc::clone(&stop));
        let carrier = std::thread::Builder::new()
            .name("guest-link".to_owned())
            .spawn(move || carry(&ends.0, &ends.1, &ends.2))?;
        Ok(Self { netns, sandbox, stop, carrier: Some(carrier) })
    }

    /// Runs `work` as a program of the guest.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work).expect("the guest's namespace can be entered")
    }

    /// Writes a frame as the guest's network card would, whatever is in it.
    pub fn send_frame(&self, frame: &[u8]) -> io::Result<()> {
        let bytes = [&[0; VNET_HEADER_BYTES][..], frame].concat();
        rustix::io::write(&*self.sandbox, &bytes)?;
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let stopped = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        assert!(stopped.is_ok(), "an eventfd takes a 1");
        if let Some(Err(panic)) = self.carrier.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

fn connect() -> io::Result<OwnedFd> {
    let link = tap::open(LINK, None)?;
    let mut netlink = Netlink::open()?;
    let lo = existing(&mut netlink, "lo")?;
    netlink.set_up(lo, None)?;
    let eth0 = existing(&mut netlink, LINK)?;
    netlink.set_up(eth0, Some(GUEST_MAC))?;
    netlink.add_address(eth0, GUEST, GUEST_PREFIX)?;
    netlink.add_route(DEFAULT_ROUTE, GATEWAY, eth0)?;
    Ok(link)
}

/// Carries frames both ways until told to stop. Both ends have the same header, so frames go through as they are.
fn carry(guest: &OwnedFd, sandbox: &OwnedFd, stop: &OwnedFd) -> io::Result<()> {
    let mut frame = vec![0; FRAME_BYTES_MAX];
    loop {
        let mut ends =
            [PollFd::new(guest, PollFlags::IN), PollFd::new(sandbox, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        poll(&mut ends, None)?;
        let [from_guest, from_sandbox, stopped] = ends.map(|end| !end.revents().is_empty());
        if stopped {
            return Ok(());
        }
        if from_guest {
            carry_one(guest, sandbox, &mut frame)?;
        }
        if from_sandbox {
            carry_one(sandbox, guest, &mut frame)?;
        }
    }
}

fn carry_one(from: impl AsFd, to: impl AsFd, frame: &mut [u8]) -> io::Result<()> {
    let length = match rustix::io::read(from, &mut *frame) {
        Ok(length) => length,
        Err(rustix::io::Errno::AGAIN) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    match rustix::io::write(to, &frame[..length]) {
        // A link that is down or full loses frames, as links do.
        Ok(_) | Err(rustix::io::Errno::IO | rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

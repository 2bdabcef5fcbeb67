//! Tests only: a host's network without a way out, and a small internet in it.
//!
//! ```text
//!   calling thread = "the host"                       namespace "internet"
//!   ┌────────────────────────────┐          ┌──────────────────────────────────────────────┐
//!   │ uplink 192.0.2.2/24        │◄── veth ─►│ router 192.0.2.1/24   every frame is recorded │
//!   │ default via 192.0.2.1      │          │ DNS  198.51.100.53, 10.99.53.53     port 53   │
//!   │ /run is a tmpfs of its own │          │ web  203.0.113.80                   port 80   │
//!   │ /etc/resolv.conf ► the DNS │          │ private targets (one of each range) port 80   │
//!   └────────────────────────────┘          └──────────────────────────────────────────────┘
//! ```
//!
//! [`World::enter`] moves the *calling thread* there, with what it starts from then on; there is no way back. A test calls
//! it first, before it makes a runtime. What a wrong rule lets out ends at the router, and is seen there:
//! [`World::packets`]. Everything ends with the [`World`] and the process.
//!
//! [`Guest`] stands in for a virtual machine: a namespace whose only link is joined to a sandbox's TAP, frame by frame.

pub mod api;
pub mod client;
mod frames;
mod guest;
mod internet;
pub mod postgres;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount, mount_bind};
use tokio::sync::oneshot;
use wrenn_engine::network::addresses::DEFAULT_ROUTE;
use wrenn_engine::network::links::{LinkIndex, Netlink};
use wrenn_sys::netns::{NetNs, leave_host_network};

pub use frames::{ipv6_udp_frame, udp_frame};
pub use guest::Guest;

/// The host's address on its uplink: what masqueraded traffic comes from.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The router behind the uplink.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The name server that /etc/resolv.conf names.
pub const DNS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 53);
/// A name server on a private address.
pub const PRIVATE_DNS: Ipv4Addr = Ipv4Addr::new(10, 99, 53, 53);
/// The web server.
pub const WEB: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
/// A name that the name servers know: the web server's. They know no other.
pub const WEB_NAME: &str = "www.example.test";
/// What the web server says.
pub const PAGE: &str = "hello from the internet\n";
/// Targets that no sandbox may reach: the metadata service's address, and one of each private, shared or local range.
pub const PRIVATE_TARGETS: [Ipv4Addr; 7] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(10, 99, 0, 1),
    Ipv4Addr::new(10, 12, 200, 1),
    Ipv4Addr::new(172, 16, 5, 5),
    Ipv4Addr::new(172, 31, 255, 1),
    Ipv4Addr::new(192, 168, 7, 7),
    Ipv4Addr::new(100, 64, 3, 3),
];
/// The host's end of the uplink.
pub const UPLINK: &str = "uplink";

const ROUTER_LINK: &str = "router";

/// One IP packet that came out of the host's uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it says it comes from.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: IpAddr,
    /// Its protocol number: 1 ICMP, 6 TCP, 17 UDP.
    pub protocol: u8,
    /// The destination's port, for TCP and UDP.
    pub port: Option<u16>,
}

/// What the internet saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    packets: Vec<Packet>,
    connections: Vec<(SocketAddr, SocketAddr)>,
}

pub(crate) type Record = Arc<Mutex<Seen>>;

/// The outer host and its internet; dropping it ends the internet.
#[derive(Debug)]
pub struct World {
    seen: Record,
    internet: Arc<NetNs>,
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
}

/// Moves the calling thread into a network namespace with nothing but loopback, and a mount namespace with an empty
/// /run. To be called before the thread makes others; needs root. For a program whose children are the tests.
pub fn enter_outer_namespace() -> io::Result<()> {
    leave_host_network(true).map_err(explain)?;
    mount("wrenn-test", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755"))?;
    let mut netlink = Netlink::open()?;
    let lo = existing(&mut netlink, "lo")?;
    netlink.set_up(lo, None)
}

impl World {
    /// Moves the calling thread into a world of its own. See the module.
    ///
    /// # Panics
    /// If the world cannot be made: a test cannot go on without.
    pub fn enter() -> Self {
        Self::try_enter().expect("the outer world cannot be made; tests named root_* need root")
    }

    fn try_enter() -> io::Result<Self> {
        enter_outer_namespace()?;
        fs::write("/run/resolv.conf", format!("nameserver {DNS}\n"))?;
        mount_bind("/run/resolv.conf", "/etc/resolv.conf")?;
        let internet = NetNs::anonymous()?;
        connect_host(&internet)?;
        internet.run(connect_router)??;
        let seen = Record::default();
        let (stop, stopped) = oneshot::channel();
        let server = internet::start(internet.try_clone()?, Arc::clone(&seen), stopped)?;
        Ok(Self { seen, internet: Arc::new(internet), stop: Some(stop), server: Some(server) })
    }

    /// The internet's own namespace, to act from outside.
    pub fn internet(&self) -> &NetNs {
        &self.internet
    }

    /// Every IP packet that left the host through its uplink so far, in order.
    pub fn packets(&self) -> Vec<Packet> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).packets.clone()
    }

    /// Every TCP connection that a server of the internet accepted: who connected, to which address.
    pub fn connections(&self) -> Vec<(SocketAddr, SocketAddr)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).connections.clone()
    }

    /// Waits until the servers have accepted this many connections: they do so a moment after the client is told.
    ///
    /// # Panics
    /// If they do not.
    pub fn await_connections(&self, count: usize) {
        let deadline = Instant::now() + client::PATIENCE;
        while self.connections().len() < count {
            assert!(Instant::now() < deadline, "only {:?} of {count} connections came", self.connections());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until everything that left the host before this call is on record: a mark is sent through the uplink, and
    /// seen at the other end behind all that was sent before it.
    ///
    /// # Panics
    /// If the mark is lost: then nothing that was not seen could be trusted.
    pub fn flush(&self) {
        client::mark(self).expect("a mark from the host itself must arrive at the router");
    }

    /// Forgets what was seen so far.
    pub fn forget(&self) {
        self.flush();
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen::default();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The receiver is gone only if the server ended already.
        self.stop.take().and_then(|stop| stop.send(()).err());
        if let Some(Err(panic)) = self.server.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

fn connect_host(internet: &NetNs) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    netlink.add_veth(UPLINK, ROUTER_LINK, internet)?;
    let uplink = existing(&mut netlink, UPLINK)?;
    netlink.set_up(uplink, None)?;
    netlink.add_address(uplink, HOST, 24)?;
    internet.run(|| {
        let mut inside = Netlink::open()?;
        let router = existing(&mut inside, ROUTER_LINK)?;
        inside.set_up(router, None)?;
        inside.add_address(router, ROUTER, 24)
    })??;
    netlink.add_route(DEFAULT_ROUTE, ROUTER, uplink)
}

/// The router has every address of the internet itself, on loopback: Linux answers for them on any link.
fn connect_router() -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let lo = existing(&mut netlink, "lo")?;
    netlink.set_up(lo, None)?;
    for address in [DNS, PRIVATE_DNS, WEB].into_iter().chain(PRIVATE_TARGETS) {
        netlink.add_address(lo, address, 32)?;
    }
    // There is no route back to private addresses, as in the real one; but what comes from them arrives, and is seen.
    for scope in ["all", ROUTER_LINK] {
        fs::write(format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter"), "0")?;
    }
    Ok(())
}

pub(crate) fn existing(netlink: &mut Netlink, name: &str) -> io::Result<LinkIndex> {
    netlink.index(name)?.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no link {name}")))
}

fn explain(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot leave the host's network ({error}); this needs root"))
}

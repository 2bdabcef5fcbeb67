//! lo and eth0 up, eth0's address, the default route. The kernel has no own configuration by command line here.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType};

use super::cmdline::BootConfig;
use super::{InitError, netlink, root};

const LOOPBACK_INDEX: u32 = 1;
/// An acknowledgement repeats the request; ours are below 100 bytes.
const ANSWER_MAX: usize = 1024;

/// Configures the network as the command line says.
pub fn configure(config: &BootConfig) -> Result<(), InitError> {
    let failed = |step: &'static str| move |source: io::Error| InitError::Network { step, source };
    let interface = Path::new("/sys/class/net/eth0");
    root::wait_for(interface)?;
    quiet_ipv6().map_err(failed("turn IPv6 off on eth0"))?;
    let index = read_index(interface).map_err(failed("read the index of eth0"))?;
    let mut route = Route::open().map_err(failed("open a netlink socket"))?;
    route.ask(|n| netlink::link_up(LOOPBACK_INDEX, n)).map_err(failed("bring lo up"))?;
    route.ask(|n| netlink::new_address(index, config.address, n)).map_err(failed("set the address of eth0"))?;
    route.ask(|n| netlink::link_up(index, n)).map_err(failed("bring eth0 up"))?;
    route.ask(|n| netlink::default_route(index, config.gateway, n)).map_err(failed("set the default route"))
}

/// eth0 has no IPv6 at the other end: without this the guest sends router solicitations there.
fn quiet_ipv6() -> io::Result<()> {
    match std::fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn read_index(interface: &Path) -> io::Result<u32> {
    let text = std::fs::read_to_string(interface.join("ifindex"))?;
    text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the index is not a number"))
}

/// A conversation with the kernel's routing side.
struct Route {
    socket: OwnedFd,
    sequence: u32,
}

impl Route {
    fn open() -> io::Result<Self> {
        // Protocol 0 of this family is NETLINK_ROUTE.
        let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends one request and awaits its acknowledgement; the kernel answers within the call.
    fn ask(&mut self, request: impl Fn(u32) -> Vec<u8>) -> io::Result<()> {
        self.sequence += 1;
        rustix::net::send(&self.socket, &request(self.sequence), SendFlags::empty())?;
        let mut answer = [0; ANSWER_MAX];
        loop {
            let (length, _) = rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
            match netlink::acknowledged(&answer[..length], self.sequence) {
                Some(0) => return Ok(()),
                Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                None => {}
            }
        }
    }
}

//! Links, addresses and routes by rtnetlink.
//!
//! A [`Netlink`] is one socket of the network namespace in which it was opened, and speaks of that namespace wherever it
//! is used. Requests are answered in turn, by the kernel, at once: plain blocking calls.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;

use super::addresses::{Ipv4Range, Mac};

/// `RTM_F_FIB_MATCH`: answer with the route that matched, not with the path a packet would take.
const RTM_F_FIB_MATCH: u32 = 0x2000;

/// A link's number in its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkIndex(pub u32);

/// Which route of the host an address falls under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Covering {
    /// What the route leads to.
    pub destination: Ipv4Range,
    /// Through which link, where it names one.
    pub link: Option<LinkIndex>,
}

/// What has gone over a link since it was made, as its own namespace sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that came in.
    pub in_bytes: u64,
    /// Bytes that went out.
    pub out_bytes: u64,
}

/// A socket to the kernel's routing subsystem.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens one in the calling thread's namespace.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes a veth pair: `name` here, `peer` in the namespace `netns`. Fails with `AlreadyExists`.
    pub fn add_veth(&mut self, name: &str, peer: &str, netns: impl AsFd) -> io::Result<()> {
        let mut inner = LinkMessage::default();
        inner.attributes =
            vec![LinkAttribute::IfName(peer.to_owned()), LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd())];
        let mut outer = LinkMessage::default();
        outer.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inner))),
            ]),
        ];
        self.change(RouteNetlinkMessage::NewLink(outer), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// The link called `name`, if there is one.
    pub fn index(&mut self, name: &str) -> io::Result<Option<LinkIndex>> {
        let mut request = LinkMessage::default();
        request.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.request(RouteNetlinkMessage::GetLink(request), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(|answer| link(answer).map(|(index, _)| index))),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What has gone over the link called `name`, if there is one.
    pub fn counters(&mut self, name: &str) -> io::Result<Option<Counters>> {
        let mut request = LinkMessage::default();
        request.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.request(RouteNetlinkMessage::GetLink(request), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(counters)),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All links, with their names.
    pub fn links(&mut self) -> io::Result<Vec<(LinkIndex, String)>> {
        let answers = self.request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(link).collect())
    }

    /// Brings a link up, with this MAC address if one is given.
    pub fn set_up(&mut self, index: LinkIndex, mac: Option<Mac>) -> io::Result<()> {
        let mut request = LinkMessage::default();
        request.header.index = index.0;
        request.header.flags = LinkFlags::Up;
        request.header.change_mask = LinkFlags::Up;
        request.attributes = mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())).into_iter().collect();
        self.change(RouteNetlinkMessage::SetLink(request), 0)
    }

    /// Brings the link called `name` down: nothing passes any more. `false` if there is none.
    pub fn set_down(&mut self, name: &str) -> io::Result<bool> {
        let mut request = LinkMessage::default();
        request.header.change_mask = LinkFlags::Up;
        request.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        self.change_if_there(RouteNetlinkMessage::SetLink(request))
    }

    /// Removes the link called `name`, and its other end; `false` if there is none.
    pub fn delete(&mut self, name: &str) -> io::Result<bool> {
        let mut request = LinkMessage::default();
        request.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        self.change_if_there(RouteNetlinkMessage::DelLink(request))
    }

    /// Gives a link an address.
    pub fn add_address(&mut self, index: LinkIndex, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        request.header.prefix_len = prefix;
        request.header.index = index.0;
        request.attributes = vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
        self.change(RouteNetlinkMessage::NewAddress(request), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Leads `destination` to `gateway`, a neighbour on the link.
    pub fn add_route(&mut self, destination: Ipv4Range, gateway: Ipv4Addr, index: LinkIndex) -> io::Result<()> {
        let mut request = RouteMessage::default();
        request.header = RouteHeader {
            address_family: AddressFamily::Inet,
            destination_prefix_length: destination.prefix(),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Boot,
            scope: RouteScope::Universe,
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        request.attributes = vec![
            RouteAttribute::Destination(RouteAddress::Inet(destination.base())),
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
            RouteAttribute::Oif(index.0),
        ];
        self.change(RouteNetlinkMessage::NewRoute(request), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Pins a neighbour's MAC address: it is never asked for.
    pub fn pin_neighbour(&mut self, index: LinkIndex, address: Ipv4Addr, mac: Mac) -> io::Result<()> {
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Inet;
        request.header.ifindex = index.0;
        request.header.state = NeighbourState::Permanent;
        request.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
            NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
        ];
        self.change(RouteNetlinkMessage::NewNeighbour(request), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// The most specific route that `address` falls under; `None` if there is none, not even a default route.
    pub fn covering(&mut self, address: Ipv4Addr) -> io::Result<Option<Covering>> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        request.header.destination_prefix_length = 32;
        request.header.flags = RouteFlags::from_bits_retain(RTM_F_FIB_MATCH);
        request.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(address))];
        match self.request(RouteNetlinkMessage::GetRoute(request), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(route)),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NETUNREACH) => Ok(None),
            // A route that says unreachable, prohibited or blackhole is a route; the kernel does not say which one.
            Err(error)
                if matches!(Errno::from_io_error(&error), Some(Errno::HOSTUNREACH | Errno::ACCESS | Errno::INVAL)) =>
            {
                Ok(Some(Covering { destination: Ipv4Range::around(address, 32), link: None }))
            }
            Err(error) => Err(error),
        }
    }

    fn change_if_there(&mut self, message: RouteNetlinkMessage) -> io::Result<bool> {
        match self.change(message, 0) {
            Ok(()) => Ok(true),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request(message, flags | NLM_F_ACK).map(drop)
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags | NLM_F_REQUEST;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        // An answer to a single question is one message; to a change, its acknowledgement; to a dump, all up to DONE.
        let ends_with_answer = flags & (NLM_F_ACK | NLM_F_DUMP) == 0;
        self.answers(ends_with_answer)
    }

    fn answers(&mut self, ends_with_answer: bool) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = (message.header.length as usize).next_multiple_of(4).min(rest.len());
                rest = &rest[length..];
                if message.header.sequence_number != self.sequence {
                    continue; // the rest of an answer that an error cut short
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                    // Not ours to decide: the crate's enum grows with the protocol.
                    _ => {}
                }
                if ends_with_answer && !answers.is_empty() {
                    return Ok(answers);
                }
            }
        }
    }
}

fn link(answer: RouteNetlinkMessage) -> Option<(LinkIndex, String)> {
    let RouteNetlinkMessage::NewLink(message) = answer else { return None };
    let name = message.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        // A kernel's enum with a hundred attributes; only the name matters here.
        _ => None,
    })?;
    Some((LinkIndex(message.header.index), name))
}

fn counters(answer: RouteNetlinkMessage) -> Option<Counters> {
    let RouteNetlinkMessage::NewLink(message) = answer else { return None };
    message.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(Counters { in_bytes: stats.rx_bytes, out_bytes: stats.tx_bytes }),
        // As above.
        _ => None,
    })
}

fn route(answer: RouteNetlinkMessage) -> Option<Covering> {
    let RouteNetlinkMessage::NewRoute(message) = answer else { return None };
    let (mut base, mut link) = (Ipv4Addr::UNSPECIFIED, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => base = *address,
            RouteAttribute::Oif(index) => link = Some(LinkIndex(*index)),
            // A kernel's enum; the rest says nothing about the range.
            _ => {}
        }
    }
    let destination = Ipv4Range::around(base, message.header.destination_prefix_length.min(32));
    Some(Covering { destination, link })
}

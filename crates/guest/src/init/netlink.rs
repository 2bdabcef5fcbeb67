//! The four rtnetlink requests init needs, as bytes, and the reading of their answers.
//!
//! Pure: [`super::network`] sends what is built here. Layouts are those of linux/netlink.h and linux/rtnetlink.h; numbers
//! are in the machine's own byte order, addresses in the network's.

use std::net::Ipv4Addr;

use super::cmdline::Ipv4Network;

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_GATEWAY: u16 = 5;
const RTA_OIF: u16 = 4;

const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RTN_UNICAST: u8 = 1;

const HEADER: usize = 16;

/// Brings a link up.
pub fn link_up(index: u32, sequence: u32) -> Vec<u8> {
    let mut body = vec![AF_UNSPEC, 0, 0, 0];
    body.extend(index.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    message(RTM_NEWLINK, 0, sequence, &body)
}

/// Gives a link its address.
pub fn new_address(index: u32, network: Ipv4Network, sequence: u32) -> Vec<u8> {
    let mut body = vec![AF_INET, network.prefix, 0, RT_SCOPE_UNIVERSE];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, &network.address.octets());
    attribute(&mut body, IFA_ADDRESS, &network.address.octets());
    message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, sequence, &body)
}

/// Routes everything through a gateway on a link.
pub fn default_route(index: u32, gateway: Ipv4Addr, sequence: u32) -> Vec<u8> {
    let mut body = vec![AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST];
    body.extend(0_u32.to_ne_bytes());
    attribute(&mut body, RTA_GATEWAY, &gateway.octets());
    attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
    message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, sequence, &body)
}

/// The errno in the acknowledgement of `sequence`: `Some(0)` is success, `None` is another message.
pub fn acknowledged(answer: &[u8], sequence: u32) -> Option<i32> {
    let field = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let found = u32::from_ne_bytes(field(8)?);
    let error = i32::from_ne_bytes(field(HEADER)?);
    (kind == NLMSG_ERROR && found == sequence).then(|| error.saturating_neg())
}

fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).expect("requests are a few dozen bytes");
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(body);
    bytes
}

/// Values here are multiples of four bytes, so no padding is needed.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8; 4]) {
    body.extend(8_u16.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `strace ip addr add 169.254.0.21/30 dev eth0` (index 2) sends, less the broadcast address.
    #[test]
    fn an_address_request_has_the_kernels_layout() {
        let network = Ipv4Network { address: Ipv4Addr::new(169, 254, 0, 21), prefix: 30 };
        let mut wanted = Vec::new();
        wanted.extend(40_u32.to_ne_bytes());
        wanted.extend(20_u16.to_ne_bytes());
        wanted.extend(0x505_u16.to_ne_bytes());
        wanted.extend(7_u32.to_ne_bytes());
        wanted.extend([0; 4]);
        wanted.extend([2, 30, 0, 0]);
        wanted.extend(2_u32.to_ne_bytes());
        for kind in [2_u16, 1] {
            wanted.extend(8_u16.to_ne_bytes());
            wanted.extend(kind.to_ne_bytes());
            wanted.extend([169, 254, 0, 21]);
        }
        assert_eq!(new_address(2, network, 7), wanted);
    }

    #[test]
    fn reads_acknowledgements_and_survives_rubbish() {
        let answer = |kind: u16, sequence: u32, errno: i32| {
            let mut bytes = message(kind, 0, sequence, &(-errno).to_ne_bytes());
            bytes.extend([0; 16]);
            bytes
        };
        assert_eq!(acknowledged(&answer(NLMSG_ERROR, 3, 0), 3), Some(0));
        assert_eq!(acknowledged(&answer(NLMSG_ERROR, 3, 19), 3), Some(19));
        assert_eq!(acknowledged(&answer(NLMSG_ERROR, 2, 0), 3), None);
        assert_eq!(acknowledged(&answer(RTM_NEWLINK, 3, 0), 3), None);
        for length in 0..20 {
            assert_eq!(acknowledged(&answer(NLMSG_ERROR, 3, 0)[..length], 3), None);
        }
    }
}

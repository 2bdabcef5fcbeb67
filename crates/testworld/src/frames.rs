//! Frames as a hostile guest would write them, byte by byte.

use std::net::{Ipv4Addr, Ipv6Addr};

use wrenn_engine::network::addresses::{GUEST_MAC, TAP_MAC};

const UDP: u8 = 17;
/// Header and one byte.
const UDP_LENGTH: u16 = 9;

/// A UDP packet in an Ethernet frame from the guest's MAC to the TAP's, with any source.
pub fn udp_frame(source: Ipv4Addr, destination: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 20 + UDP_LENGTH as u8, 0, 1, 0x40, 0, 64, UDP, 0, 0];
    header.extend(source.octets());
    header.extend(destination.octets());
    let checksum = checksum(&header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    // No UDP checksum: IPv4 allows it.
    frame(0x0800, [header, udp(port, 0)].concat())
}

/// The same over IPv6.
pub fn ipv6_udp_frame(source: Ipv6Addr, destination: Ipv6Addr, port: u16) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0, 0, UDP_LENGTH as u8, UDP, 64];
    header.extend(source.octets());
    header.extend(destination.octets());
    let pseudo = [&header[8..40], &[0, 0, 0, UDP_LENGTH as u8, 0, 0, 0, UDP], &udp(port, 0)].concat();
    let checksum = checksum(&pseudo);
    frame(0x86dd, [header, udp(port, checksum)].concat())
}

fn frame(kind: u16, packet: Vec<u8>) -> Vec<u8> {
    [&TAP_MAC.0[..], &GUEST_MAC.0, &kind.to_be_bytes(), &packet].concat()
}

fn udp(port: u16, checksum: u16) -> Vec<u8> {
    let mut datagram = Vec::new();
    for field in [40000, port, UDP_LENGTH, checksum] {
        datagram.extend(field.to_be_bytes());
    }
    datagram.push(b'x');
    datagram
}

/// The internet checksum: the complement of the one's complement sum of all 16-bit words.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

//! Which addresses a slot has: pure arithmetic over the configured ranges.
//!
//! Inside every sandbox's namespace the same link-local pair is used, so that a guest restored in another slot finds the
//! network it was saved with. What differs between slots exists on the host's side only.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::limits;
use crate::names::{InstanceTag, Slot, SlotName};

/// The guest's address, in every sandbox.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
/// The TAP's address: the guest's gateway and name server, in every sandbox.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
/// Prefix length of the link between guest and TAP.
pub const GUEST_PREFIX: u8 = 30;
/// The TAP's name in a sandbox's namespace.
pub const TAP: &str = "tap0";
/// The name of the veth's inner end, in a sandbox's namespace.
pub const PEER: &str = "veth0";
/// The TAP's MAC address: pinned, for a restored guest remembers it.
pub const TAP_MAC: Mac = Mac([0x02, 0xfc, 0x00, 0x00, 0x00, 0x06]);
/// The guest's MAC address: pinned, and known to the namespace, so that no ARP is on the way to a guest that boots.
pub const GUEST_MAC: Mac = Mac([0x02, 0xfc, 0x00, 0x00, 0x00, 0x05]);

/// Where everything else is.
pub const DEFAULT_ROUTE: Ipv4Range = Ipv4Range::around(Ipv4Addr::UNSPECIFIED, 0);

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A range of IPv4 addresses, such as `10.12.0.0/17`. The base has no bits beyond the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ipv4Range {
    base: Ipv4Addr,
    prefix: u8,
}

/// Why a text is no [`Ipv4Range`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a range of IPv4 addresses such as 10.12.0.0/17 (no bits may be set after the prefix)")]
pub struct RangeError(String);

impl Ipv4Range {
    /// The range of all addresses that share the first `prefix` bits of `address`; `prefix` is at most 32.
    pub const fn around(address: Ipv4Addr, prefix: u8) -> Self {
        assert!(prefix <= 32, "an IPv4 prefix has at most 32 bits");
        Self { base: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix }
    }

    /// Its first address.
    pub const fn base(self) -> Ipv4Addr {
        self.base
    }

    /// Bits that its addresses share.
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// How many addresses it has.
    pub const fn size(self) -> u64 {
        1 << (32 - self.prefix)
    }

    /// Whether `address` is one of them.
    pub const fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.base.to_bits()
    }

    /// Whether all addresses of `other` are in this range.
    pub const fn covers(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.base)
    }

    const fn nth(self, index: u32) -> Ipv4Addr {
        assert!((index as u64) < self.size(), "an address beyond its range");
        Ipv4Addr::from_bits(self.base.to_bits() + index)
    }
}

const fn mask(prefix: u8) -> u32 {
    if prefix == 0 { 0 } else { u32::MAX << (32 - prefix) }
}

impl fmt::Display for Ipv4Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Ipv4Range {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let parse = || {
            let (base, prefix) = text.split_once('/')?;
            let (base, prefix) = (base.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok()?);
            (prefix <= 32).then(|| Self::around(base, prefix)).filter(|range| range.base == base)
        };
        parse().ok_or_else(|| RangeError(text.to_owned()))
    }
}

/// What of a host's network sandboxes may use, and where the host keeps what is shared between instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Addresses of the links between host and sandboxes, two for each slot.
    pub links: Ipv4Range,
    /// Addresses under which the host reaches the guests, one for each slot.
    pub guests: Ipv4Range,
    /// Where leases, namespaces' handles and the record of the host's own settings are; shared by all instances.
    pub run_dir: PathBuf,
    /// Where the host's resolvers are listed.
    pub resolv_conf: PathBuf,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            links: Ipv4Range::around(Ipv4Addr::new(10, 12, 0, 0), 17),
            guests: Ipv4Range::around(Ipv4Addr::new(10, 11, 0, 0), 18),
            run_dir: PathBuf::from("/run/wrenn"),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
        }
    }
}

impl NetworkConfig {
    /// How many slots the ranges hold, at most [`limits::SLOTS_MAX`].
    pub fn slots(&self) -> u16 {
        let slots = (self.links.size() / 2).min(self.guests.size()).min(u64::from(limits::SLOTS_MAX));
        u16::try_from(slots).expect("bounded by SLOTS_MAX")
    }

    /// The addresses of `slot` under `tag`; `None` if the ranges are too small for it.
    pub fn addresses(&self, tag: InstanceTag, slot: Slot) -> Option<Addresses> {
        let index = u32::from(slot.index());
        (slot.index() < self.slots()).then(|| Addresses {
            name: SlotName { tag, slot },
            host: self.links.nth(2 * index),
            peer: self.links.nth(2 * index + 1),
            guest_from_host: self.guests.nth(index),
        })
    }
}

/// The addresses of one slot on the host's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Whose they are.
    pub name: SlotName,
    /// The host's end of the veth pair.
    pub host: Ipv4Addr,
    /// The inner end: what all of the sandbox's traffic comes from, as the host sees it.
    pub peer: Ipv4Addr,
    /// Under which the host (and only the host) reaches the guest.
    pub guest_from_host: Ipv4Addr,
}

impl Addresses {
    /// All three, each with what it is for.
    pub fn all(&self) -> [Ipv4Addr; 3] {
        [self.host, self.peer, self.guest_from_host]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read_strictly() {
        for text in ["10.12.0.0/17", "0.0.0.0/0", "10.0.0.1/32"] {
            assert_eq!(text.parse::<Ipv4Range>().unwrap().to_string(), text);
        }
        for text in ["10.12.0.1/17", "10.12.0.0", "10.12.0.0/33", "10.12.0.0/", "a/8", "", "10.12.0.0/-1"] {
            assert!(text.parse::<Ipv4Range>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_default_ranges_hold_every_slot_and_no_address_twice() {
        let config = NetworkConfig::default();
        assert_eq!(config.slots(), limits::SLOTS_MAX);
        let tag = "abcd".parse().unwrap();
        let mut seen = BTreeSet::new();
        for slot in (0..limits::SLOTS_MAX).filter_map(Slot::new) {
            let addresses = config.addresses(tag, slot).unwrap();
            assert!(addresses.all().into_iter().all(|address| seen.insert(address)), "{addresses:?}");
            assert_eq!(addresses.host.to_bits() ^ 1, addresses.peer.to_bits(), "both ends of a /31");
        }
    }

    #[test]
    fn small_ranges_hold_few_slots() {
        let config = NetworkConfig { links: "10.12.0.0/30".parse().unwrap(), ..NetworkConfig::default() };
        assert_eq!(config.slots(), 2);
        assert!(config.addresses("abcd".parse().unwrap(), Slot::new(1).unwrap()).is_some());
        assert!(config.addresses("abcd".parse().unwrap(), Slot::new(2).unwrap()).is_none());
    }

    proptest! {
        #[test]
        fn a_range_covers_what_it_contains(a in any::<u32>(), b in any::<u32>(), p in 0u8..=32, q in 0u8..=32) {
            let (wide, narrow) = (Ipv4Range::around(a.into(), p), Ipv4Range::around(b.into(), q));
            let both_ends = wide.contains(narrow.base()) && wide.contains(narrow.nth((narrow.size() - 1) as u32));
            prop_assert_eq!(wide.covers(narrow), both_ends);
        }
    }
}

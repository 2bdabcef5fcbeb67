//! Names of host objects: each is derived from its owner and can be parsed back.
//!
//! Whoever finds an object on the host (a sweep, a person) can tell from the name alone which instance made it and
//! for which slot or sandbox. Nothing here touches the host.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits;

/// Why a name is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {wanted}")]
pub struct NameError {
    text: String,
    wanted: &'static str,
}

impl NameError {
    fn new(text: &str, wanted: &'static str) -> Self {
        Self { text: text.chars().take(80).collect(), wanted }
    }
}

/// The tag of an instance (one `WRENN_DIR`): 4 characters of `[a-z0-9]`, in every host object's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceTag([u8; InstanceTag::LENGTH]);

impl InstanceTag {
    /// Characters in a tag.
    pub const LENGTH: usize = 4;

    /// The tag as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a tag is ASCII by construction")
    }

    /// The user and group that the instance's server runs as; nobody else does.
    pub fn server_uid(&self) -> u32 {
        let digit = |byte: &u8| char::from(*byte).to_digit(36).expect("a tag is [a-z0-9] by construction");
        self.0.iter().map(digit).fold(0, |number, digit| number * 36 + digit) + limits::SERVER_UID_BASE
    }
}

impl FromStr for InstanceTag {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let bytes: [u8; Self::LENGTH] =
            text.as_bytes().try_into().map_err(|_| NameError::new(text, "an instance tag of 4 characters"))?;
        if !bytes.iter().all(is_name_byte) {
            return Err(NameError::new(text, "an instance tag of [a-z0-9]"));
        }
        Ok(Self(bytes))
    }
}

/// An id: two letters that say of what, and 18 random characters of `[a-z0-9]`.
macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $wanted:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Characters in an id.
            pub const LENGTH: usize = 20;

            /// An id from random bytes; 18 characters carry 93 bits.
            pub fn from_random(random: [u8; 18]) -> Self {
                Self(random_name($prefix, random))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let well_formed = text.len() == Self::LENGTH
                    && text.starts_with($prefix)
                    && text.as_bytes().iter().all(is_name_byte);
                if well_formed { Ok(Self(text.to_owned())) } else { Err(NameError::new(text, $wanted)) }
            }
        }
    };
}

fn random_name(prefix: &str, random: [u8; 18]) -> String {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let tail = random.iter().map(|byte| ALPHABET[usize::from(*byte) % ALPHABET.len()] as char);
    prefix.chars().chain(tail).collect()
}

random_id!(
    /// The id of a sandbox: `sb` and 18 characters of `[a-z0-9]`; no dash, E2B clients and host names depend on it.
    SandboxId,
    "sb",
    "a sandbox id (`sb` and 18 characters of [a-z0-9])"
);
random_id!(
    /// The id of a snapshot: `sn` and 18 characters of `[a-z0-9]`.
    SnapshotId,
    "sn",
    "a snapshot id (`sn` and 18 characters of [a-z0-9])"
);
random_id!(
    /// The id of an immutable piece of a disk: `ly` and 18 characters of `[a-z0-9]`.
    LayerId,
    "ly",
    "a layer id (`ly` and 18 characters of [a-z0-9])"
);

/// The index of a slot: which addresses, which uid, which network of the host a sandbox uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Slot(u16);

impl Slot {
    /// The slot of this index; `None` beyond [`limits::SLOTS_MAX`].
    pub const fn new(index: u16) -> Option<Self> {
        if index < limits::SLOTS_MAX { Some(Self(index)) } else { None }
    }

    /// The index, from 0.
    pub const fn index(self) -> u16 {
        self.0
    }

    /// The user and group that the slot's VMM runs as; nobody else does.
    pub const fn vmm_uid(self) -> u32 {
        limits::VMM_UID_BASE + self.0 as u32
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl TryFrom<u16> for Slot {
    type Error = NameError;

    fn try_from(index: u16) -> Result<Self, NameError> {
        Self::new(index).ok_or_else(|| NameError::new(&index.to_string(), "a slot below 16384"))
    }
}

impl From<Slot> for u16 {
    fn from(slot: Slot) -> Self {
        slot.0
    }
}

/// What an instance's slot is called on the host: `PREFIX TAG SLOT`, such as the network namespace `wrn-k3f0-12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotName {
    /// The instance that owns the object.
    pub tag: InstanceTag,
    /// The slot the object belongs to.
    pub slot: Slot,
}

impl SlotName {
    const NETNS_PREFIX: &'static str = "wrn-";
    const VETH_PREFIX: &'static str = "wv";

    /// The network namespace's handle under /run/wrenn/netns: `wrn-TAG-SLOT`.
    pub fn netns(&self) -> String {
        format!("{}{}-{}", Self::NETNS_PREFIX, self.tag, self.slot)
    }

    /// The host's end of the veth pair: `wvTAGSLOT`.
    pub fn veth(&self) -> String {
        format!("{}{}{}", Self::VETH_PREFIX, self.tag, self.slot)
    }

    /// Reads a name made by [`SlotName::netns`].
    pub fn parse_netns(text: &str) -> Result<Self, NameError> {
        let (tag, slot) = text
            .strip_prefix(Self::NETNS_PREFIX)
            .and_then(|rest| rest.split_once('-'))
            .ok_or_else(|| NameError::new(text, "a network namespace of ours"))?;
        Ok(Self { tag: tag.parse()?, slot: parse_slot(slot)? })
    }

    /// Reads a name made by [`SlotName::veth`].
    pub fn parse_veth(text: &str) -> Result<Self, NameError> {
        let (tag, slot) = text
            .strip_prefix(Self::VETH_PREFIX)
            .and_then(|rest| rest.split_at_checked(InstanceTag::LENGTH))
            .ok_or_else(|| NameError::new(text, "a veth of ours"))?;
        Ok(Self { tag: tag.parse()?, slot: parse_slot(slot)? })
    }
}

/// What a sandbox's disk is called in device-mapper: `wrenn-TAG-SANDBOX`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DiskName {
    /// The instance that owns the disk.
    pub tag: InstanceTag,
    /// The sandbox whose disk it is.
    pub sandbox: SandboxId,
}

impl DiskName {
    const PREFIX: &'static str = "wrenn-";

    /// The device that the sandbox's VM writes: `wrenn-TAG-SANDBOX`.
    pub fn device(&self) -> String {
        format!("{}{}-{}", Self::PREFIX, self.tag, self.sandbox)
    }

    /// A device of the same disk that the VM's one stands on, the lowest has level 0: `wrenn-TAG-SANDBOX-LEVEL`.
    pub fn beneath(&self, level: u16) -> String {
        format!("{}-{level}", self.device())
    }

    /// Reads a name made by [`DiskName::device`] or, with the level, by [`DiskName::beneath`].
    pub fn parse(text: &str) -> Result<(Self, Option<u16>), NameError> {
        let foreign = || NameError::new(text, "a disk of ours");
        let (tag, rest) = text.strip_prefix(Self::PREFIX).and_then(|rest| rest.split_once('-')).ok_or_else(foreign)?;
        let (sandbox, level) = match rest.split_once('-') {
            Some((sandbox, level)) => (sandbox, Some(parse_number(level).ok_or_else(foreign)?)),
            None => (rest, None),
        };
        Ok((Self { tag: tag.parse()?, sandbox: sandbox.parse()? }, level))
    }
}

/// The nftables table (family `inet`) of an instance: `wrenn_TAG`.
pub fn nft_table(tag: InstanceTag) -> String {
    format!("wrenn_{tag}")
}

const INSTANCE_CGROUP_PREFIX: &str = "wrenn-";

/// The control group of the shims of an instance; no sandbox id looks like it.
pub const SHIMS_CGROUP: &str = "shims";

/// The control group of an instance: `wrenn-TAG`.
pub fn instance_cgroup(tag: InstanceTag) -> String {
    format!("{INSTANCE_CGROUP_PREFIX}{tag}")
}

/// Reads a name made by [`instance_cgroup`].
pub fn parse_instance_cgroup(text: &str) -> Result<InstanceTag, NameError> {
    text.strip_prefix(INSTANCE_CGROUP_PREFIX)
        .ok_or_else(|| NameError::new(text, "a control group of ours"))
        .and_then(str::parse)
}

/// The control group of a sandbox in that of its instance: its id.
pub fn sandbox_cgroup(id: &SandboxId) -> String {
    id.to_string()
}

/// Reads a name made by [`sandbox_cgroup`].
pub fn parse_sandbox_cgroup(text: &str) -> Result<SandboxId, NameError> {
    text.parse()
}

fn parse_slot(text: &str) -> Result<Slot, NameError> {
    parse_number(text).and_then(Slot::new).ok_or_else(|| NameError::new(text, "a slot number"))
}

/// A number in the one form that we write it in.
fn parse_number(text: &str) -> Option<u16> {
    let canonical = !text.starts_with('+') && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| canonical)
}

fn is_name_byte(byte: &u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

macro_rules! text_form {
    ($type:ty) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.to_string()
            }
        }
    };
}
text_form!(InstanceTag);
text_form!(SandboxId);
text_form!(SnapshotId);
text_form!(LayerId);

// The longest interface name: `wv`, a tag, a slot of 5 digits.
const _: () = assert!(SlotName::VETH_PREFIX.len() + InstanceTag::LENGTH + 5 <= limits::INTERFACE_NAME_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_names_of_others() {
        for text in ["veth0", "wv", "wvab", "wvabcd", "wvabcd016", "wvabcd+1", "wvABCD1", "wvabcd16384", "wväb1"] {
            assert!(SlotName::parse_veth(text).is_err(), "{text}");
        }
        for text in ["wrn-abcd", "wrn-abc-1", "wrn-abcd-x", "cni-1234", "wrn-abcd-01"] {
            assert!(SlotName::parse_netns(text).is_err(), "{text}");
        }
        let id = "sb0123456789abcdefgh";
        for text in ["", "wrenn-", "wrenn-abcd", "wrenn-abcd-", "wrenn-abcd-sb1", "wrn-abcd-1", "vg0-root"] {
            assert!(DiskName::parse(text).is_err(), "{text}");
        }
        for text in ["-", "-x", "-01", "-65536", "-1-1"] {
            assert!(DiskName::parse(&format!("wrenn-abcd-{id}{text}")).is_err(), "{text}");
        }
        for text in ["wrenn-", "wrenn-abc", "wrenn-abcde", "wrenn-ABCD", "system.slice", "abcd"] {
            assert!(parse_instance_cgroup(text).is_err(), "{text}");
        }
        assert!(parse_sandbox_cgroup(SHIMS_CGROUP).is_err());
        for text in ["", "sb", "sbABCDEFGHIJKLMNOPQR", "sb0123456789-1234567", "i012345678901234567x"] {
            assert!(text.parse::<SandboxId>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_slot_name_can_be_parsed_back(tag in "[a-z0-9]{4}", index in 0..limits::SLOTS_MAX) {
            let name = SlotName { tag: tag.parse().unwrap(), slot: Slot::new(index).unwrap() };
            prop_assert_eq!(SlotName::parse_veth(&name.veth()), Ok(name));
            prop_assert_eq!(SlotName::parse_netns(&name.netns()), Ok(name));
            prop_assert!(name.veth().len() <= limits::INTERFACE_NAME_MAX);
        }

        #[test]
        fn every_disk_name_can_be_parsed_back(tag in "[a-z0-9]{4}", random in any::<[u8; 18]>(), level in any::<u16>()) {
            let name = DiskName { tag: tag.parse().unwrap(), sandbox: SandboxId::from_random(random) };
            prop_assert_eq!(DiskName::parse(&name.device()), Ok((name.clone(), None)));
            prop_assert_eq!(DiskName::parse(&name.beneath(level)), Ok((name, Some(level))));
        }

        #[test]
        fn every_random_id_is_an_id(random in any::<[u8; 18]>()) {
            let id = SandboxId::from_random(random);
            prop_assert_eq!(id.as_str().parse::<SandboxId>(), Ok(id.clone()));
            prop_assert_eq!(parse_sandbox_cgroup(&sandbox_cgroup(&id)), Ok(id));
        }

        #[test]
        fn every_instance_cgroup_can_be_parsed_back(tag in "[a-z0-9]{4}") {
            let tag: InstanceTag = tag.parse().unwrap();
            prop_assert_eq!(parse_instance_cgroup(&instance_cgroup(tag)), Ok(tag));
        }
    }
}

//! Units as types, so that bytes are never taken for mebibytes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An amount of memory or disk in mebibytes (2^20 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mib(pub u32);

impl Mib {
    /// The same amount in bytes.
    pub const fn bytes(self) -> u64 {
        (self.0 as u64) << 20
    }

    /// The smallest whole number of mebibytes that holds `bytes`; saturates at `u32::MAX`.
    pub const fn holding(bytes: u64) -> Self {
        let mib = bytes.div_ceil(1 << 20);
        Self(if mib > u32::MAX as u64 { u32::MAX } else { mib as u32 })
    }
}

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Mib;

    #[test]
    fn rounds_up_and_saturates() {
        assert_eq!(Mib::holding(0), Mib(0));
        assert_eq!(Mib::holding(1), Mib(1));
        assert_eq!(Mib::holding(1 << 20), Mib(1));
        assert_eq!(Mib::holding((1 << 20) + 1), Mib(2));
        assert_eq!(Mib::holding(u64::MAX), Mib(u32::MAX));
        assert_eq!(Mib(3).bytes(), 3 << 20);
    }
}

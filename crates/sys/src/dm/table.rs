//! Tables: what a device is made of, line by line. A wanted table and the one the kernel tells compare as values.
//!
//! The text form is the kernel's, one line for each stretch: `START LENGTH TARGET ARGUMENTS`, in sectors.

use std::fmt;
use std::str::FromStr;

use crate::blockdev::{DeviceNumber, Sectors};

/// What a device is made of: stretches that follow one another from sector 0 on, none of them empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table(Vec<Line>);

/// One stretch of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its first sector.
    pub start: Sectors,
    /// How many.
    pub length: Sectors,
    /// What is behind them.
    pub target: Target,
}

/// What is behind a stretch of a device: those kinds that Wrenn uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A stretch of another device.
    Linear {
        /// Which device.
        device: DeviceNumber,
        /// Where in it.
        offset: Sectors,
    },
    /// Zeros; writes are lost.
    Zero,
    /// An origin, with what differs from it in an exception store.
    Snapshot {
        /// What is read where nothing was written.
        origin: DeviceNumber,
        /// The exception store.
        cow: DeviceNumber,
        /// What becomes of it.
        store: Store,
        /// How much is copied at once; a power of two.
        chunk: Sectors,
    },
    /// The origin of snapshots, writable: what is written over goes to them first.
    SnapshotOrigin {
        /// Which device.
        device: DeviceNumber,
    },
}

/// Whether an exception store outlives its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `P`: it does.
    Persistent,
    /// `PO`: it does, and a full one says so.
    PersistentTellsOverflow,
    /// `N`: it does not.
    Transient,
}

/// Why something is no table, or none that is used here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Nothing in it.
    #[error("a table needs at least one line")]
    Empty,
    /// A line is empty, or does not begin where the one before ends.
    #[error("line {line} of the table does not go on where the one before ends, or is empty")]
    Gap {
        /// Which, from 0.
        line: usize,
    },
    /// A line that is not understood.
    #[error("`{line}` is not a line of a linear, zero, snapshot or snapshot-origin table")]
    Line {
        /// Its beginning.
        line: String,
    },
}

impl Table {
    /// A table of these lines.
    pub fn new(lines: Vec<Line>) -> Result<Self, TableError> {
        let mut end = Sectors(0);
        for (index, line) in lines.iter().enumerate() {
            let next = line.start.0.checked_add(line.length.0);
            match next {
                Some(next) if line.start == end && line.length.0 > 0 => end = Sectors(next),
                Some(_) | None => return Err(TableError::Gap { line: index }),
            }
        }
        if lines.is_empty() { Err(TableError::Empty) } else { Ok(Self(lines)) }
    }

    /// A table of one line.
    ///
    /// # Panics
    /// On a length of 0.
    pub fn single(length: Sectors, target: Target) -> Self {
        assert!(length.0 > 0, "a device has at least one sector");
        Self(vec![Line { start: Sectors(0), length, target }])
    }

    /// Its lines.
    pub fn lines(&self) -> &[Line] {
        &self.0
    }

    /// Size of the device.
    pub fn length(&self) -> Sectors {
        self.0.last().map_or(Sectors(0), |line| Sectors(line.start.0 + line.length.0))
    }
}

impl Target {
    /// The name of its kind.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Linear { .. } => "linear",
            Self::Zero => "zero",
            Self::Snapshot { .. } => "snapshot",
            Self::SnapshotOrigin { .. } => "snapshot-origin",
        }
    }

    /// Its arguments, as the kernel takes and tells them.
    pub fn arguments(&self) -> String {
        match self {
            Self::Linear { device, offset } => format!("{device} {offset}"),
            Self::Zero => String::new(),
            Self::Snapshot { origin, cow, store, chunk } => format!("{origin} {cow} {} {chunk}", store.text()),
            Self::SnapshotOrigin { device } => device.to_string(),
        }
    }

    /// Reads a kind and its arguments.
    pub(super) fn parse(kind: &str, arguments: &str) -> Option<Self> {
        let words: Vec<&str> = arguments.split_ascii_whitespace().collect();
        match (kind, words.as_slice()) {
            ("linear", [device, offset]) => {
                Some(Self::Linear { device: device.parse().ok()?, offset: sectors(offset)? })
            }
            ("zero", []) => Some(Self::Zero),
            ("snapshot", [origin, cow, store, chunk]) => Some(Self::Snapshot {
                origin: origin.parse().ok()?,
                cow: cow.parse().ok()?,
                store: Store::parse(store)?,
                chunk: sectors(chunk)?,
            }),
            ("snapshot-origin", [device]) => Some(Self::SnapshotOrigin { device: device.parse().ok()? }),
            _other_text => None,
        }
    }
}

impl Store {
    const fn text(self) -> &'static str {
        match self {
            Self::Persistent => "P",
            Self::PersistentTellsOverflow => "PO",
            Self::Transient => "N",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Persistent, Self::PersistentTellsOverflow, Self::Transient].into_iter().find(|it| it.text() == text)
    }
}

fn sectors(text: &str) -> Option<Sectors> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok().map(Sectors)).flatten()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, line) in self.0.iter().enumerate() {
            write!(f, "{}{line}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arguments = self.target.arguments();
        let gap = if arguments.is_empty() { "" } else { " " };
        write!(f, "{} {} {}{gap}{arguments}", self.start, self.length, self.target.kind())
    }
}

impl FromStr for Line {
    type Err = TableError;

    fn from_str(text: &str) -> Result<Self, TableError> {
        let mut words = text.trim().splitn(4, ' ');
        let mut parse = || {
            let (start, length) = (sectors(words.next()?)?, sectors(words.next()?)?);
            let target = Target::parse(words.next()?, words.next().unwrap_or_default())?;
            Some(Self { start, length, target })
        };
        parse().ok_or_else(|| TableError::Line { line: text.chars().take(80).collect() })
    }
}

impl FromStr for Table {
    type Err = TableError;

    fn from_str(text: &str) -> Result<Self, TableError> {
        Self::new(text.lines().map(str::parse).collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_what_is_no_table() {
        for text in [
            "0 8",
            "0 8 crypt aes 0",
            "0 8 linear 7:0",
            "0 8 linear /dev/sda 0",
            "0 8 snapshot 7:0 7:1 X 8",
            "0 8 snapshot 7:0 7:1 P 8 1 discard_zeroes_cow",
            "0 -8 zero",
            "8 8 zero",
            "0 0 zero",
            "0 8 zero\n9 1 zero",
            "18446744073709551615 1 zero",
            "",
        ] {
            assert!(text.parse::<Table>().is_err(), "{text}");
        }
    }

    #[test]
    fn says_it_as_the_kernel_does() {
        let text = "0 8 linear 7:0 16\n8 8 zero\n16 8 snapshot 253:0 7:1 P 8\n24 1 snapshot-origin 7:3";
        let table: Table = text.parse().unwrap();
        assert_eq!(table.length(), Sectors(25));
        assert_eq!(table.to_string(), text);
    }

    fn device() -> impl Strategy<Value = DeviceNumber> {
        (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| DeviceNumber { major, minor })
    }

    fn target() -> impl Strategy<Value = Target> {
        let store = prop_oneof![Just(Store::Persistent), Just(Store::PersistentTellsOverflow), Just(Store::Transient)];
        prop_oneof![
            (device(), any::<u64>()).prop_map(|(device, offset)| Target::Linear { device, offset: Sectors(offset) }),
            Just(Target::Zero),
            (device(), device(), store, any::<u32>()).prop_map(|(origin, cow, store, chunk)| Target::Snapshot {
                origin,
                cow,
                store,
                chunk: Sectors(chunk.into())
            }),
            device().prop_map(|device| Target::SnapshotOrigin { device }),
        ]
    }

    proptest! {
        #[test]
        fn every_table_can_be_read_back(targets in proptest::collection::vec((1u64..1 << 40, target()), 1..8)) {
            let mut start = Sectors(0);
            let lines = targets.into_iter().map(|(length, target)| {
                let line = Line { start, length: Sectors(length), target };
                start.0 += length;
                line
            });
            let table = Table::new(lines.collect()).unwrap();
            prop_assert_eq!(table.to_string().parse::<Table>(), Ok(table));
        }

        #[test]
        fn any_text_is_a_table_or_an_error(text in "\\PC{0,80}") {
            // Only that it ends without a panic.
            drop(text.parse::<Table>());
        }
    }
}

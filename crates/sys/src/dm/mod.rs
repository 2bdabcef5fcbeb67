//! Device-mapper: block devices that the kernel puts together from others, over `/dev/mapper/control`.
//!
//! ```text
//!   create ─► (no table) ─ load ─► (inactive table) ─ resume ─► live ◄─ resume ─ suspend ─► suspended ─► remove
//! ```
//!
//! A device is known by its [`DmName`]; the kernel gives it a number, and devtmpfs the node `/dev/dm-MINOR`. (The links in
//! /dev/mapper are udev's; nothing here waits for them.) A loaded table holds the devices it names open. Everything is one
//! ioctl through one funnel, in [`message`].
//!
//! udev, where it runs, is told with each change to keep its hands off the *content* of these devices: it would open
//! them to look for file systems, which makes a removal busy for a moment, and would make links in /dev/disk from names
//! that a guest chose.

mod message;
mod table;
mod targets;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::str::FromStr;

use message::{Answer, Command, Request, flag};
pub use table::{Line, Store, Table, TableError, Target};

use crate::blockdev::{DeviceNumber, Sectors};

/// Where device-mapper is asked.
const CONTROL: &str = "/dev/mapper/control";

/// For udev's rules, in the upper half of the cookie: no look at content by the subsystem's, the disk's and other rules. The
/// lower half is 0: nobody waits, and `dmsetup udevcomplete` knows that.
const UDEV_HANDS_OFF: u32 = (0x2 | 0x4 | 0x8) << 16;

/// The name of a device: 1 to 127 printable ASCII characters, no space, no `/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DmName(String);

impl DmName {
    /// Longest name in bytes.
    pub const BYTES_MAX: usize = 127;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Text that is no name of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a name for a device: 1 to {max} printable characters without space and `/`", max = DmName::BYTES_MAX)]
pub struct NotADmName(String);

impl FromStr for DmName {
    type Err = NotADmName;

    fn from_str(text: &str) -> Result<Self, NotADmName> {
        let fits = (1..=Self::BYTES_MAX).contains(&text.len()) && !matches!(text, "." | ".." | "control");
        if fits && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/') {
            return Ok(Self(text.to_owned()));
        }
        Err(NotADmName(text.chars().take(80).collect()))
    }
}

impl fmt::Display for DmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why device-mapper did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be asked at all.
    #[error("cannot open {CONTROL}; is dm_mod in this kernel, and loaded?")]
    Open(#[source] io::Error),
    /// It speaks another interface.
    #[error("device-mapper has the interface version {found}, not 4")]
    Version {
        /// Which one.
        found: Version,
    },
    /// It said no.
    #[error("cannot {step} the device-mapper device {name}{}", remedy(.step, .source))]
    Refused {
        /// What was being done.
        step: &'static str,
        /// To which device.
        name: DmName,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Listing devices failed.
    #[error("cannot list the device-mapper devices")]
    List(#[source] io::Error),
    /// The kernel's answer is not what its header says.
    #[error("device-mapper's answer about {what} is not understood")]
    Answer {
        /// What was asked about.
        what: String,
    },
    /// The device has a table of other kinds than those used here.
    #[error("the device-mapper device {name} is made of something else")]
    ForeignTable {
        /// Which device.
        name: DmName,
        /// What is not understood.
        #[source]
        source: TableError,
    },
}

fn remedy(step: &str, source: &io::Error) -> &'static str {
    match (step, source.raw_os_error()) {
        ("load a table into", Some(libc::EINVAL)) => "; is dm_snapshot in this kernel? Its log says more",
        _other => "",
    }
}

impl Error {
    /// Whether somebody has the device open (or, for a creation, there is one of that name already).
    pub fn is_busy(&self) -> bool {
        self.errno() == Some(libc::EBUSY)
    }

    /// Whether there is no such device.
    pub fn is_absent(&self) -> bool {
        self.errno() == Some(libc::ENXIO)
    }

    fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            Self::Open(_) | Self::Version { .. } | Self::List(_) | Self::Answer { .. } | Self::ForeignTable { .. } => {
                None
            }
        }
    }
}

/// The version of device-mapper's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub [u32; 3]);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// Whether a device may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It may; everything beneath it is opened for writing too (but the origin of a snapshot).
    ReadWrite,
    /// It may not.
    ReadOnly,
}

/// How a device is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspend {
    /// What is in flight, and what the page cache holds for the device, is written first.
    Flush,
    /// Nothing is written: what is in flight waits. For devices whose content nobody wants any more.
    NoFlush,
}

/// What a device is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its number.
    pub device: DeviceNumber,
    /// How often it is open.
    pub open_count: u32,
    /// Whether I/O waits.
    pub suspended: bool,
    /// Whether it has a table that is in use.
    pub has_table: bool,
    /// Whether a table was loaded that is not in use yet.
    pub has_inactive_table: bool,
    /// Whether it may only be read.
    pub read_only: bool,
}

/// How a snapshot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStatus {
    /// It works.
    Usage {
        /// Taken of its exception store, with metadata.
        used: Sectors,
        /// Size of its exception store.
        total: Sectors,
        /// Of what is taken, for metadata.
        metadata: Sectors,
    },
    /// Writing to its store failed: what it held is lost.
    Invalid,
    /// Its store was full: what it held is lost. Only told by [`Store::PersistentTellsOverflow`].
    Overflow,
    /// The kernel does not know how much is taken.
    Unknown,
}

impl SnapshotStatus {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "Invalid" | "Merge failed" => return Some(Self::Invalid),
            "Overflow" => return Some(Self::Overflow),
            "Unknown" => return Some(Self::Unknown),
            _numbers => {}
        }
        let (usage, metadata) = text.split_once(' ')?;
        let (used, total) = usage.split_once('/')?;
        let number = |text: &str| text.parse().ok().map(Sectors);
        Some(Self::Usage { used: number(used)?, total: number(total)?, metadata: number(metadata)? })
    }
}

/// The way to device-mapper.
#[derive(Debug)]
pub struct DeviceMapper {
    control: File,
}

impl DeviceMapper {
    /// Opens `/dev/mapper/control` (which loads dm_mod where it is a module) and checks the interface's version.
    pub fn open() -> Result<Self, Error> {
        let control = OpenOptions::new().read(true).write(true).open(CONTROL).map_err(Error::Open)?;
        let mapper = Self { control };
        let found = mapper.version()?;
        if found.0[0] == 4 { Ok(mapper) } else { Err(Error::Version { found }) }
    }

    /// The version of the interface.
    pub fn version(&self) -> Result<Version, Error> {
        let answer = message::ask(self.control.as_fd(), &Request::new(Command::Version, None)).map_err(Error::Open)?;
        Ok(Version(answer.version))
    }

    /// Whether the kernel has targets of this kind, such as `snapshot`; loads the module they are in. A kernel that cannot be
    /// asked (before 5.1) is taken to have them.
    pub fn has_target(&self, kind: &DmName) -> Result<bool, Error> {
        match self.ask("find targets for", &Request::new(Command::TargetVersion, Some(kind)), kind) {
            Ok(_versions) => Ok(true),
            Err(error) if error.errno() == Some(libc::EINVAL) => Ok(false),
            Err(error) if error.errno() == Some(libc::ENOTTY) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Makes the device `name`, without a table. Busy when there is one of that name.
    pub fn create(&self, name: &DmName) -> Result<DeviceNumber, Error> {
        Ok(self.ask("create", &Request::new(Command::Create, Some(name)), name)?.device)
    }

    /// Loads `table`, in place of an inactive one; it is used from the next [`DeviceMapper::resume`] on.
    pub fn load(&self, name: &DmName, table: &Table, access: Access) -> Result<(), Error> {
        let payload = targets::encode(table);
        let flags = match access {
            Access::ReadWrite => 0,
            Access::ReadOnly => flag::READ_ONLY,
        };
        let target_count = table.lines().len() as u32;
        let request = Request { flags, target_count, payload: &payload, ..Request::new(Command::Load, Some(name)) };
        self.ask("load a table into", &request, name).map(drop)
    }

    /// Puts the inactive table to use, if there is one, and lets I/O go on.
    pub fn resume(&self, name: &DmName) -> Result<(), Error> {
        let request = Request { event: UDEV_HANDS_OFF, ..Request::new(Command::Suspend, Some(name)) };
        self.ask("resume", &request, name).map(drop)
    }

    /// Makes I/O wait, once what is in flight was dealt with as `how` says.
    pub fn suspend(&self, name: &DmName, how: Suspend) -> Result<(), Error> {
        let flags = match how {
            // Not SKIP_LOCKFS: that step is also what writes out the page cache of the device.
            Suspend::Flush => flag::SUSPEND,
            Suspend::NoFlush => flag::SUSPEND | flag::NO_FLUSH | flag::SKIP_LOCKFS,
        };
        self.ask("suspend", &Request { flags, ..Request::new(Command::Suspend, Some(name)) }, name).map(drop)
    }

    /// What the device is like.
    pub fn info(&self, name: &DmName) -> Result<Info, Error> {
        let answer = self.ask("look at", &Request::new(Command::Status, Some(name)), name)?;
        let has = |flag| answer.flags & flag != 0;
        Ok(Info {
            device: answer.device,
            open_count: answer.open_count,
            suspended: has(flag::SUSPEND),
            has_table: has(flag::ACTIVE_PRESENT),
            has_inactive_table: has(flag::INACTIVE_PRESENT),
            read_only: has(flag::READ_ONLY),
        })
    }

    /// The table in use; `None` for a device without one.
    pub fn table(&self, name: &DmName) -> Result<Option<Table>, Error> {
        let lines = self.lines("read the table of", name, flag::STATUS_TABLE)?;
        if lines.is_empty() {
            return Ok(None);
        }
        let foreign = |source| Error::ForeignTable { name: name.clone(), source };
        let lines = lines.into_iter().map(|line| {
            let target = Target::parse(&line.kind, &line.text)
                .ok_or_else(|| TableError::Line { line: format!("{} {}", line.kind, line.text) })?;
            Ok(Line { start: line.start, length: line.length, target })
        });
        let lines = lines.collect::<Result<Vec<_>, _>>().map_err(foreign)?;
        Table::new(lines).map(Some).map_err(foreign)
    }

    /// How the snapshot `name` is doing; a device of one line that is a snapshot.
    pub fn snapshot_status(&self, name: &DmName) -> Result<SnapshotStatus, Error> {
        // Without NO_FLUSH the kernel would suspend some targets for a moment to be exact.
        let lines = self.lines("read the status of", name, flag::NO_FLUSH)?;
        let [line] = lines.as_slice() else { return Err(Error::Answer { what: name.to_string() }) };
        SnapshotStatus::parse(&line.text).ok_or_else(|| Error::Answer { what: name.to_string() })
    }

    /// Removes the device. Busy while somebody has it open.
    pub fn remove(&self, name: &DmName) -> Result<(), Error> {
        let request = Request { event: UDEV_HANDS_OFF, ..Request::new(Command::Remove, Some(name)) };
        self.ask("remove", &request, name).map(drop)
    }

    /// All devices of the host. Those of names that no [`DmName`] has are left out: none of ours.
    pub fn list(&self) -> Result<Vec<(DmName, DeviceNumber)>, Error> {
        let answer = message::ask(self.control.as_fd(), &Request::new(Command::List, None)).map_err(Error::List)?;
        let devices = targets::decode_list(&answer.payload)
            .ok_or_else(|| Error::Answer { what: "the list of devices".to_owned() })?;
        Ok(devices.into_iter().filter_map(|(name, device)| Some((name.parse().ok()?, device))).collect())
    }

    fn lines(&self, step: &'static str, name: &DmName, flags: u32) -> Result<Vec<targets::RawLine>, Error> {
        let request = Request { flags, ..Request::new(Command::TableStatus, Some(name)) };
        let answer = self.ask(step, &request, name)?;
        targets::decode(&answer).ok_or_else(|| Error::Answer { what: name.to_string() })
    }

    fn ask(&self, step: &'static str, request: &Request<'_>, name: &DmName) -> Result<Answer, Error> {
        let refused = |source| Error::Refused { step, name: name.clone(), source };
        message::ask(self.control.as_fd(), request).map_err(refused)
    }
}

#[cfg(test)]
mod tests;

//! Free space under the disks: whether it is time to stop.
//!
//! Live files are sparse: together they may promise more than there is. A disk whose live file finds no room is lost, so
//! whoever runs VMs stops their CPUs while there is still a reserve, and lets them go on when there is room again.
//!
//! ```text
//!   Ample ── available < reserve ──► Low ── available ≥ ample ──► Ample
//! ```
//!
//! A VMM writes through the host's page cache, which may hold a fifth of the memory before writers have to wait, and none
//! of that has its place in the file system yet. So what is dirty counts as written. The kernel tells it for the whole
//! host only; to take too much of it for ours stops a guest too early, never too late.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::limits;
use crate::units::Mib;

/// Whether there is room to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// There is.
    Ample,
    /// Only the reserve is left.
    Low,
}

/// Where one state becomes the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    reserve_bytes: u64,
    ample_bytes: u64,
}

impl Thresholds {
    /// Low below `reserve`, ample again from `ample` on.
    ///
    /// # Panics
    /// Unless `ample` is more than `reserve`.
    pub const fn new(reserve: Mib, ample: Mib) -> Self {
        assert!(ample.0 > reserve.0, "one block more or less must not change the state twice");
        Self { reserve_bytes: reserve.bytes(), ample_bytes: ample.bytes() }
    }

    /// Those for the file system that `folder` is in: [`limits::SPACE_RESERVE`] and [`limits::SPACE_AMPLE`], or where that is
    /// much of it, a sixteenth and three thirty-seconds of it; but no less than [`limits::SPACE_RESERVE_LEAST`].
    pub fn of(folder: &Path) -> io::Result<Self> {
        let statistics = rustix::fs::statvfs(folder)?;
        Ok(Self::default().within(statistics.f_blocks.saturating_mul(statistics.f_frsize)))
    }

    /// Thresholds that a file system of `total_bytes` can meet.
    const fn within(self, total_bytes: u64) -> Self {
        let part = total_bytes / 32;
        let floor = limits::SPACE_RESERVE_LEAST.bytes();
        Self {
            reserve_bytes: most(floor, least(self.reserve_bytes, 2 * part)),
            ample_bytes: most(2 * floor, least(self.ample_bytes, 3 * part)),
        }
    }

    /// What the state is after `before`, with `available_bytes` free.
    pub const fn next(self, before: Space, available_bytes: u64) -> Space {
        match before {
            Space::Ample if available_bytes < self.reserve_bytes => Space::Low,
            Space::Low if available_bytes >= self.ample_bytes => Space::Ample,
            Space::Ample | Space::Low => before,
        }
    }
}

impl Default for Thresholds {
    fn default() -> Self {
        Self::new(limits::SPACE_RESERVE, limits::SPACE_AMPLE)
    }
}

const fn least(one: u64, other: u64) -> u64 {
    if one < other { one } else { other }
}

const fn most(one: u64, other: u64) -> u64 {
    if one > other { one } else { other }
}

/// Whether only the reserve is left in the file system that `folder` is in: no time to begin something there.
pub fn is_low(folder: &Path) -> io::Result<bool> {
    Ok(Thresholds::of(folder)?.next(Space::Ample, available_bytes(folder)?) == Space::Low)
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it is now.
    pub now: Space,
    /// What is free and not promised to anything in the page cache, in bytes.
    pub available_bytes: u64,
}

/// Looks at one file system, regularly.
#[derive(Debug)]
pub struct Watch {
    folder: PathBuf,
    thresholds: Thresholds,
    state: Space,
    looks: Interval,
    memory_bytes: u64,
}

impl Watch {
    /// Watches the file system that `folder` is in. It is taken for ample until it was looked at.
    pub fn new(folder: &Path, thresholds: Thresholds, every: Duration) -> Self {
        let mut looks = interval(every);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let memory_bytes = MemoryInfo::read().map_or(u64::MAX, |info| info.total_bytes);
        Self { folder: folder.to_owned(), thresholds, state: Space::Ample, looks, memory_bytes }
    }

    /// What it is now, as far as it was looked at.
    pub fn state(&self) -> Space {
        self.state
    }

    /// Waits until the state changes. Cancel safe. A file system that cannot be looked at keeps its state.
    pub async fn change(&mut self) -> Change {
        loop {
            self.looks.tick().await;
            match self.look() {
                Ok(available_bytes) => {
                    let now = self.thresholds.next(self.state, available_bytes);
                    if now != self.state {
                        self.state = now;
                        return Change { now, available_bytes };
                    }
                }
                Err(error) => tracing::debug!(folder = %self.folder.display(), %error, "cannot see the free space"),
            }
        }
    }
}

impl Watch {
    /// What is free and not promised to anything in the page cache.
    fn look(&self) -> io::Result<u64> {
        let free = available_bytes(&self.folder)?;
        // With this much even a page cache that is all dirty changes nothing, and need not be looked at.
        if free >= self.thresholds.ample_bytes.saturating_add(self.memory_bytes) {
            return Ok(free);
        }
        Ok(free.saturating_sub(MemoryInfo::read()?.unwritten_bytes))
    }
}

/// What `/proc/meminfo` says, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct MemoryInfo {
    total_bytes: u64,
    /// Dirty, or on its way.
    unwritten_bytes: u64,
}

impl MemoryInfo {
    fn read() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/meminfo")?))
    }

    fn parse(text: &str) -> Self {
        let mut info = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let kib: u64 = value.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            match name {
                "MemTotal" => info.total_bytes = kib << 10,
                "Dirty" | "Writeback" => info.unwritten_bytes += kib << 10,
                _others => {}
            }
        }
        info
    }
}

/// What can still be written into the file system of `folder` by those who are not root's exception: in bytes.
pub fn available_bytes(folder: &Path) -> io::Result<u64> {
    Ok(capacity(folder)?.available_bytes)
}

/// How large a file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// What can still be written by those who are not root's exception, in bytes.
    pub available_bytes: u64,
    /// What it holds in all, in bytes.
    pub total_bytes: u64,
}

/// How large the file system of `folder` is.
pub fn capacity(folder: &Path) -> io::Result<Capacity> {
    let statistics = rustix::fs::statvfs(folder)?;
    let bytes = |blocks: u64| blocks.saturating_mul(statistics.f_frsize);
    Ok(Capacity { available_bytes: bytes(statistics.f_bavail), total_bytes: bytes(statistics.f_blocks) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const THRESHOLDS: Thresholds = Thresholds::new(Mib(10), Mib(20));

    #[test]
    fn stops_below_the_reserve_and_goes_on_only_with_room() {
        let mib = |count: u64| count << 20;
        for (before, available, after) in [
            (Space::Ample, mib(10), Space::Ample),
            (Space::Ample, mib(10) - 1, Space::Low),
            (Space::Ample, 0, Space::Low),
            (Space::Low, mib(10), Space::Low),
            (Space::Low, mib(20) - 1, Space::Low),
            (Space::Low, mib(20), Space::Ample),
            (Space::Low, u64::MAX, Space::Ample),
        ] {
            assert_eq!(THRESHOLDS.next(before, available), after, "{before:?} with {available}");
        }
    }

    #[test]
    fn what_is_dirty_or_on_its_way_is_not_written_yet() {
        let text = "MemTotal:        4000 kB\nMemFree:  100 kB\nDirty:   8 kB\nWriteback:     4 kB\nWritebackTmp: 9 kB\nHugePages_Total: 0\n";
        assert_eq!(MemoryInfo::parse(text), MemoryInfo { total_bytes: 4_096_000, unwritten_bytes: 12_288 });
        assert!(MemoryInfo::read().unwrap().total_bytes > 0);
    }

    #[test]
    fn a_small_file_system_keeps_a_part_of_itself() {
        let small = Thresholds::default().within(1 << 30);
        assert_eq!((small.reserve_bytes, small.ample_bytes), (64 << 20, 96 << 20));
        assert_eq!(Thresholds::default().within(1 << 40), Thresholds::default());
        let tiny = Thresholds::default().within(64 << 10);
        assert_eq!(tiny.next(Space::Ample, 64 << 10), Space::Low, "it has no room for a sandbox at all");
    }

    proptest! {
        /// Whatever comes, two changes are apart by the whole distance between the thresholds.
        #[test]
        fn never_flutters(looks in proptest::collection::vec(0u64..32 << 20, 1..100)) {
            let mut state = Space::Ample;
            let mut last_change = None;
            for available in looks {
                let next = THRESHOLDS.next(state, available);
                if next != state {
                    let moved = last_change.map_or(u64::MAX, |last: u64| last.abs_diff(available));
                    prop_assert!(moved >= 10 << 20);
                    last_change = Some(available);
                }
                state = next;
            }
        }
    }

    #[tokio::test]
    async fn tells_of_a_change_once() {
        let dir = tempfile::tempdir().unwrap();
        let free = Mib::holding(available_bytes(dir.path()).unwrap());
        let always_low = Thresholds::new(Mib(free.0.saturating_add(1 << 20)), Mib(u32::MAX));
        let mut watch = Watch::new(dir.path(), always_low, Duration::from_millis(1));
        assert_eq!(watch.change().await.now, Space::Low);
        let again = tokio::time::timeout(Duration::from_millis(50), watch.change()).await;
        assert!(again.is_err(), "{again:?}");
        assert_eq!(watch.state(), Space::Low);
    }
}

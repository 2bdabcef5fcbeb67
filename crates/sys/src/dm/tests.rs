//! What is sound without device-mapper, and (`testbed_*`) the kernel's own word.

use super::*;
use crate::loopdev::{LoopDevice, Options};

#[test]
fn names_are_checked() {
    for text in ["wrenn-k3f0-x", "a", "A_b.c+d"] {
        assert_eq!(text.parse::<DmName>().unwrap().as_str(), text);
    }
    let long = "x".repeat(128);
    for text in ["", ".", "..", "control", "a/b", "a b", "ä", "a\0", long.as_str()] {
        assert!(text.parse::<DmName>().is_err(), "{text}");
    }
}

#[test]
fn a_snapshots_status_is_read() {
    let usage = SnapshotStatus::Usage { used: Sectors(16), total: Sectors(262_144), metadata: Sectors(8) };
    for (text, wanted) in [
        ("16/262144 8", Some(usage)),
        ("Invalid", Some(SnapshotStatus::Invalid)),
        ("Merge failed", Some(SnapshotStatus::Invalid)),
        ("Overflow", Some(SnapshotStatus::Overflow)),
        ("Unknown", Some(SnapshotStatus::Unknown)),
        ("16/8", None),
        ("", None),
    ] {
        assert_eq!(SnapshotStatus::parse(text), wanted, "{text}");
    }
}

/// A device that is gone at the end, also of a test that fails.
struct Guard<'a>(&'a DeviceMapper, DmName);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove(&self.1) {
            assert!(error.is_absent(), "{error:?}");
        }
    }
}

fn name(text: &str) -> DmName {
    format!("wrenn-test-{text}-{}", std::process::id()).parse().unwrap()
}

#[test]
fn testbed_a_device_lives_and_dies() {
    let mapper = DeviceMapper::open().expect("this test needs device-mapper");
    let guard = Guard(&mapper, name("zero"));
    let name = &guard.1;
    assert!(mapper.info(name).unwrap_err().is_absent());
    assert!(mapper.remove(name).unwrap_err().is_absent());
    let device = mapper.create(name).unwrap();
    assert!(mapper.create(name).unwrap_err().is_busy(), "a name is taken once");
    assert_eq!(mapper.table(name).unwrap(), None);

    let table: Table = "0 2048 zero".parse().unwrap();
    mapper.load(name, &table, Access::ReadWrite).unwrap();
    assert!(mapper.info(name).unwrap().has_inactive_table);
    mapper.resume(name).unwrap();
    assert_eq!(mapper.table(name).unwrap(), Some(table));
    assert!(mapper.list().unwrap().contains(&(name.clone(), device)));
    let node = device.node("dm-").expect("devtmpfs makes the node");

    mapper.suspend(name, Suspend::Flush).unwrap();
    assert!(mapper.info(name).unwrap().suspended);
    mapper.resume(name).unwrap();
    let open = File::open(node).unwrap();
    assert_eq!(DeviceNumber::of(&open).unwrap(), device);
    assert_eq!(mapper.info(name).unwrap().open_count, 1);
    assert!(mapper.remove(name).unwrap_err().is_busy());
    drop(open);
    mapper.remove(name).unwrap();
    assert!(mapper.info(name).unwrap_err().is_absent());
}

#[test]
fn testbed_every_kind_of_table_comes_back_from_the_kernel_as_it_was_loaded() {
    let mapper = DeviceMapper::open().expect("this test needs device-mapper");
    let loops: Vec<LoopDevice> = (0..2)
        .map(|_| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(4 << 20).unwrap();
            LoopDevice::attach(file.as_fd(), Options { read_only: false, direct_io: false, autoclear: true }).unwrap()
        })
        .collect();
    let (origin, cow) = (loops[0].device(), loops[1].device());
    let tables = [
        format!("0 8 linear {origin} 16\n8 8 zero\n16 100 linear {cow} 0"),
        format!("0 8192 snapshot {origin} {cow} P 8"),
        format!("0 8192 snapshot {origin} {cow} N 16"),
        format!("0 8192 snapshot-origin {origin}"),
    ];
    for (index, text) in tables.iter().enumerate() {
        let guard = Guard(&mapper, name(&format!("kind{index}")));
        mapper.create(&guard.1).unwrap();
        let table: Table = text.parse().unwrap();
        mapper.load(&guard.1, &table, Access::ReadWrite).unwrap();
        mapper.resume(&guard.1).unwrap();
        assert_eq!(mapper.table(&guard.1).unwrap().as_ref(), Some(&table));
        if text.contains(" P ") {
            let status = mapper.snapshot_status(&guard.1).unwrap();
            assert!(matches!(status, SnapshotStatus::Usage { total: Sectors(8192), .. }), "{status:?}");
        }
        let guard_name = guard.1.clone();
        drop(guard);
        assert!(mapper.info(&guard_name).unwrap_err().is_absent());
    }
}

#[test]
fn testbed_a_list_that_outgrows_the_buffer_is_whole() {
    let mapper = DeviceMapper::open().expect("this test needs device-mapper");
    // 600 entries of some 48 bytes: more than the first 16 KiB.
    let guards: Vec<Guard<'_>> = (0..600).map(|index| Guard(&mapper, name(&format!("list{index}")))).collect();
    for guard in &guards {
        mapper.create(&guard.1).unwrap();
    }
    let listed = mapper.list().unwrap();
    assert!(guards.iter().all(|guard| listed.iter().any(|(name, _)| *name == guard.1)));
}

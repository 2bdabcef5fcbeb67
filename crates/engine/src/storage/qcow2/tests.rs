//! The overlays against QEMU's own tools: what we make they accept, and what they write we read back.

#![allow(clippy::disallowed_methods, reason = "qemu-img and qemu-io are the reference these tests compare with")]

use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A raw image of 4 MiB with a pattern in its second MiB.
    fn base(&self) -> Layer {
        let path = self.path("base.img");
        let file = File::create(&path).unwrap();
        file.set_len(4 * MIB).unwrap();
        file.write_all_at(&vec![0xba; MIB as usize], MIB).unwrap();
        Layer { path, format: LayerFormat::Raw, size_bytes: 4 * MIB }
    }
}

fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Writes to a live disk as a VMM would: QEMU's block layer, with the chain spelled out.
fn write(disk: &Disk, commands: &[String]) {
    let image = chain(&disk.path, &disk.layers);
    let mut args = vec!["--image-opts".to_owned(), image];
    args.extend(commands.iter().flat_map(|command| ["-c".to_owned(), command.clone()]));
    tool("qemu-io", &args.iter().map(String::as_str).collect::<Vec<_>>());
}

fn chain(top: &Path, layers: &[Layer]) -> String {
    let mut options = format!("driver=qcow2,file.driver=file,file.filename={}", top.display());
    let mut prefix = String::new();
    for layer in layers.iter().rev() {
        prefix.push_str("backing.");
        let driver = match layer.format {
            LayerFormat::Raw => "raw",
            LayerFormat::Qcow2 => "qcow2",
        };
        let path = layer.path.display();
        options.push_str(&format!(
            ",{prefix}driver={driver},{prefix}file.driver=file,{prefix}file.filename={path},{prefix}read-only=on"
        ));
    }
    options
}

#[test]
fn qemu_finds_no_fault_in_an_empty_overlay() {
    let world = World::new();
    let disk = Qcow2.create(&world.path("disk"), &[world.base()], 3 << 30).unwrap();
    tool("qemu-img", &["check", "-f", "qcow2", disk.path.to_str().unwrap()]);
    let info: serde_json::Value =
        serde_json::from_str(&tool("qemu-img", &["info", "--output=json", "-f", "qcow2", disk.path.to_str().unwrap()]))
            .unwrap();
    assert_eq!(info["virtual-size"], 3u64 << 30);
    assert!(info.get("backing-filename").is_none());
    assert!(Qcow2.status(&disk).unwrap().own_bytes <= 256 * 1024);
}

#[test]
fn a_disk_keeps_apart_what_it_wrote_and_what_lies_beneath() {
    let world = World::new();
    let base = world.base();
    let before = std::fs::read(&base.path).unwrap();
    let disk = Qcow2.create(&world.path("disk"), std::slice::from_ref(&base), 8 * MIB).unwrap();
    write(&disk, &["write -P 0x11 0 64k".into(), "write -z 1M 128k".into(), "write -P 0x22 7M 4k".into()]);

    let flat = Qcow2.flatten(&[base.clone(), sealed(&disk, &world.path("layer"))], &world.path("flat")).unwrap();
    let bytes = std::fs::read(&flat.path).unwrap();
    assert_eq!(bytes.len() as u64, 8 * MIB);
    let all = |range: std::ops::Range<u64>, value: u8| {
        bytes[range.start as usize..range.end as usize].iter().all(|byte| *byte == value)
    };
    assert!(all(0..65_536, 0x11), "what was written");
    assert!(all(MIB..MIB + 131_072, 0), "what was zeroed over data of the base is zero");
    assert!(all(MIB + 131_072..2 * MIB, 0xba), "what lies beneath");
    assert!(all(7 * MIB..7 * MIB + 4096, 0x22), "beyond the base");
    assert!(allocated_bytes(&flat.path).unwrap() < 2 * MIB, "the flat image is sparse");
    assert_eq!(std::fs::read(&base.path).unwrap(), before, "the base is as it was");
}

fn sealed(disk: &Disk, path: &Path) -> Layer {
    Qcow2.seal(disk, path).unwrap()
}

#[test]
fn what_is_written_after_a_seal_is_not_in_the_layer() {
    let world = World::new();
    let base = world.base();
    let disk = Qcow2.create(&world.path("disk"), std::slice::from_ref(&base), 4 * MIB).unwrap();
    write(&disk, &["write -P 0x11 0 64k".into()]);
    let layer = sealed(&disk, &world.path("layer"));
    write(&disk, &["write -P 0x33 0 64k".into()]);

    let fork = Qcow2.restore(&world.path("fork"), &[base.clone(), layer.clone()]).unwrap();
    write(&fork, &["read -P 0x11 0 64k".into(), "read -P 0xba 1M 1M".into(), "write -P 0x44 3M 64k".into()]);
    write(&disk, &["read -P 0x33 0 64k".into(), "read -P 0 3M 64k".into()]);

    let stacked = Qcow2.create(&world.path("stacked"), &[base, layer], 4 * MIB).unwrap();
    write(&stacked, &["read -P 0x11 0 64k".into(), "read -P 0 3M 64k".into()]);
    tool("qemu-img", &["check", "-f", "qcow2", fork.path.to_str().unwrap()]);
}

#[test]
fn refuses_what_cannot_be() {
    let world = World::new();
    let base = world.base();
    let smaller = Qcow2.create(&world.path("disk"), std::slice::from_ref(&base), MIB).unwrap_err();
    assert!(matches!(smaller, StorageError::SmallerThanBase { .. }), "{smaller}");
    assert!(matches!(Qcow2.create(&world.path("disk"), &[], MIB), Err(StorageError::NoBase)));

    let disk = Qcow2.create(&world.path("disk"), std::slice::from_ref(&base), 4 * MIB).unwrap();
    let again = Qcow2.create(&world.path("disk"), &[base], 4 * MIB).unwrap_err();
    assert!(matches!(again, StorageError::Exists { .. }), "{again}");
    Qcow2.remove(&disk).unwrap();
    Qcow2.remove(&disk).unwrap();
    assert!(!disk.path.exists());
}

#[test]
fn a_damaged_layer_is_named() {
    let world = World::new();
    let base = world.base();
    let disk = Qcow2.create(&world.path("disk"), std::slice::from_ref(&base), 4 * MIB).unwrap();
    write(&disk, &["write -P 0x11 0 64k".into()]);
    let layer = sealed(&disk, &world.path("layer"));
    let mut bytes = std::fs::read(&layer.path).unwrap();

    bytes[3 * 65_536..3 * 65_536 + 8].copy_from_slice(&(1u64 << 40).to_be_bytes());
    std::fs::remove_file(&layer.path).unwrap();
    std::fs::write(&layer.path, &bytes).unwrap();
    let error = Qcow2.flatten(&[base.clone(), layer.clone()], &world.path("flat")).unwrap_err();
    let named = matches!(&error, StorageError::BadLayer { path, source: FormatError::BadPointer { .. } } if *path == layer.path);
    assert!(named, "{error:?}");
    assert!(!world.path("flat").exists(), "the half-made image is gone");

    std::fs::write(&layer.path, &bytes[..50]).unwrap();
    let error = Qcow2.flatten(&[base, layer], &world.path("flat")).unwrap_err();
    assert!(matches!(error, StorageError::BadLayer { source: FormatError::NotQcow2, .. }), "{error:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Any writes and zeroings through QEMU, with a seal in between: flattening says what a plain array says.
    #[test]
    fn flattening_agrees_with_a_plain_array(
        first in proptest::collection::vec((0u64..1024, 1u64..64, 0u8..4), 1..6),
        second in proptest::collection::vec((0u64..1024, 1u64..64, 0u8..4), 1..6),
    ) {
        let world = World::new();
        let base = world.base();
        let mut model = std::fs::read(&base.path).unwrap();
        let disk = Qcow2.create(&world.path("disk"), std::slice::from_ref(&base), 4 * MIB).unwrap();
        apply(&disk, &mut model, &first);
        let layer = sealed(&disk, &world.path("layer"));
        let top = Qcow2.create(&world.path("top"), &[base.clone(), layer.clone()], 4 * MIB).unwrap();
        apply(&top, &mut model, &second);
        let layers = [base, layer, sealed(&top, &world.path("layer2"))];
        let flat = Qcow2.flatten(&layers, &world.path("flat")).unwrap();
        prop_assert!(std::fs::read(&flat.path).unwrap() == model);
    }
}

/// Writes 4 KiB blocks; value 0 is a zeroing (`write -z`), so that zero clusters over data occur.
fn apply(disk: &Disk, model: &mut [u8], writes: &[(u64, u64, u8)]) {
    let mut commands = Vec::new();
    for (block, count, value) in writes {
        let (start, end) = (block * 4096, ((block + count) * 4096).min(model.len() as u64));
        model[start as usize..end as usize].fill(*value);
        let length = end - start;
        commands.push(match value {
            0 => format!("write -z {start} {length}"),
            value => format!("write -P {value} {start} {length}"),
        });
    }
    write(disk, &commands);
}

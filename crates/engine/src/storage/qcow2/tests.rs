//! The overlays against QEMU's own tools: what we make they accept, and what they write we read back.

#![allow(clippy::disallowed_methods, reason = "qemu-img and qemu-io are the reference these tests compare with")]

use std::process::Command;

use super::*;
use crate::storage::suite::{self, Io, MIB};

fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Does as a VMM would: QEMU's block layer, with the chain spelled out.
fn run(disk: &Disk, ios: &[Io]) {
    let image = chain(&disk.path, &disk.layers);
    let mut args = vec!["--image-opts".to_owned(), image];
    for io in ios {
        let command = match *io {
            Io::Write(at, length, byte) => format!("write -P {byte} {at} {length}"),
            Io::Zero(at, length) => format!("write -z {at} {length}"),
            Io::Find(at, length, byte) => format!("read -P {byte} {at} {length}"),
        };
        args.extend(["-c".to_owned(), command]);
    }
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
            LayerFormat::DmCow => panic!("no layer of this backend"),
        };
        let path = layer.path.display();
        options.push_str(&format!(
            ",{prefix}driver={driver},{prefix}file.driver=file,{prefix}file.filename={path},{prefix}read-only=on"
        ));
    }
    options
}

#[test]
fn does_what_every_backend_must_do() {
    suite::all(&Qcow2, run);
}

#[test]
fn qemu_finds_no_fault_in_an_empty_overlay_nor_in_a_used_one() {
    let dir = tempfile::tempdir().unwrap();
    let place = suite::place(dir.path(), "disk");
    let disk = Qcow2.create(&place, &[suite::base(dir.path())], 3 << 30).unwrap();
    tool("qemu-img", &["check", "-f", "qcow2", disk.path.to_str().unwrap()]);
    let info: serde_json::Value =
        serde_json::from_str(&tool("qemu-img", &["info", "--output=json", "-f", "qcow2", disk.path.to_str().unwrap()]))
            .unwrap();
    assert_eq!(info["virtual-size"], 3u64 << 30);
    assert!(info.get("backing-filename").is_none());
    assert!(Qcow2.status(&disk).unwrap().own_bytes <= 256 * 1024);
    run(&disk, &[Io::Write(MIB, MIB, 0x44), Io::Zero(2 * MIB, 65_536)]);
    tool("qemu-img", &["check", "-f", "qcow2", disk.path.to_str().unwrap()]);
}

#[test]
fn qemu_finds_no_fault_in_a_merged_overlay() {
    let dir = tempfile::tempdir().unwrap();
    let base = suite::base(dir.path());
    let mut layers = vec![base];
    // Several tables of 512 MiB, clusters that are zero in the upper over data in the lower and the other way round.
    let written = [
        vec![Io::Write(0, 3 * MIB, 0x11), Io::Zero(600 * MIB, MIB), Io::Write(1500 * MIB, MIB, 0x12)],
        vec![Io::Zero(MIB, MIB), Io::Write(600 * MIB, 65_536, 0x21), Io::Write(1501 * MIB - 4096, 8192, 0x22)],
    ];
    for (index, ios) in written.iter().enumerate() {
        let disk = Qcow2.create(&suite::place(dir.path(), "disk"), &layers, 2048 * MIB).unwrap();
        run(&disk, ios);
        layers.push(Qcow2.seal(&disk, &dir.path().join(format!("layer{index}"))).unwrap());
        Qcow2.remove(&disk).unwrap();
    }
    let merged = Qcow2.merge(&layers, &dir.path().join("merged")).unwrap();
    let check = ["check", "--output=json", "-f", "qcow2", merged.path.to_str().unwrap()];
    let checked: serde_json::Value = serde_json::from_str(&tool("qemu-img", &check)).unwrap();
    assert_eq!(checked["check-errors"], 0);
    assert!(checked.get("corruptions").is_none() && checked.get("leaks").is_none(), "{checked}");
    let chained =
        ["compare", "--image-opts", &chain(&layers[2].path, &layers[..2]), &chain(&merged.path, &layers[..1])];
    assert!(tool("qemu-img", &chained).contains("identical"));

    let disk = Qcow2.restore(&suite::place(dir.path(), "disk"), &[layers[0].clone(), merged]).unwrap();
    run(&disk, &[Io::Write(MIB, MIB, 0x33), Io::Write(1024 * MIB, MIB, 0x34), Io::Find(0, MIB, 0x11)]);
    tool("qemu-img", &["check", "-f", "qcow2", disk.path.to_str().unwrap()]);
}

#[test]
fn a_damaged_layer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let base = suite::base(dir.path());
    let disk = Qcow2.create(&suite::place(dir.path(), "disk"), std::slice::from_ref(&base), 4 * MIB).unwrap();
    run(&disk, &[Io::Write(0, 65_536, 0x11)]);
    let layer = Qcow2.seal(&disk, &dir.path().join("layer")).unwrap();
    let mut bytes = std::fs::read(&layer.path).unwrap();

    bytes[3 * 65_536..3 * 65_536 + 8].copy_from_slice(&(1u64 << 40).to_be_bytes());
    std::fs::remove_file(&layer.path).unwrap();
    std::fs::write(&layer.path, &bytes).unwrap();
    let flat = dir.path().join("flat");
    let error = Qcow2.flatten(&[base.clone(), layer.clone()], &flat).unwrap_err();
    let named = matches!(&error, StorageError::BadLayer { path, source: FormatError::BadPointer { .. } } if *path == layer.path);
    assert!(named, "{error:?}");
    assert!(!flat.exists(), "the half-made image is gone");

    std::fs::write(&layer.path, &bytes[..50]).unwrap();
    let error = Qcow2.flatten(&[base, layer], &flat).unwrap_err();
    assert!(matches!(error, StorageError::BadLayer { source: FormatError::NotQcow2, .. }), "{error:?}");
}

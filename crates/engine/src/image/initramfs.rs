//! The initramfs: wrenn-init, the modules it loads, and the few names it needs before anything is mounted.
//!
//! It is not compressed: the guest would spend more time on unpacking it than the VMM saves by copying less. And it fills
//! whole pages: QEMU's microvm puts it at the very end of memory, beginning at a page; where its last page is a full one,
//! the one after it stays untouched, and there the firmware has put the ACPI tables, without which the guest finds no
//! device. (With a length of 4000 bytes more the tables are overwritten.)

use super::cpio::{Archive, Entry};
use super::modules::Module;

/// Folders that wrenn-init mounts on or that hold what it loads, parents first.
const FOLDERS: [&str; 8] = ["dev", "proc", "sys", "newroot", "lib", "lib/modules", "lib/modules/wrenn", "root"];

const PAGE: usize = 4096;

/// Major and minor number of /dev/console; the kernel opens it for init before devtmpfs is there.
const CONSOLE: Entry<'static> = Entry::CharacterDevice(5, 1);

/// The bytes of the initramfs with `init` as its first process. The same inputs give the same bytes.
pub fn build(init: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::default();
    for folder in FOLDERS {
        archive.add(folder, 0o755, Entry::Folder);
    }
    archive.add("dev/console", 0o600, CONSOLE);
    for (number, module) in modules.iter().enumerate() {
        let path = format!("lib/modules/wrenn/{number:02}-{}.ko", module.name);
        archive.add(&path, 0o644, Entry::File(&module.bytes));
    }
    archive.add("init", 0o755, Entry::File(init));
    let mut bytes = archive.finish();
    bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_numbered_in_load_order_and_the_bytes_are_reproducible() {
        let module = |name: &str| Module { name: name.into(), bytes: name.as_bytes().to_vec() };
        let modules = [module("virtio_ring"), module("virtio")];
        let image = build(b"static binary", &modules);
        assert_eq!(image, build(b"static binary", &modules));
        assert_eq!(image.len() % PAGE, 0);
        let text = String::from_utf8_lossy(&image);
        let at = |name: &str| text.find(name).unwrap_or_else(|| panic!("{name} is not in the image"));
        assert!(at("lib/modules/wrenn\0") < at("lib/modules/wrenn/00-virtio_ring.ko"));
        assert!(at("00-virtio_ring.ko") < at("01-virtio.ko"));
        assert!(at("dev\0") < at("dev/console") && at("init\0") < at("TRAILER!!!"));
    }
}

//! Which kernel modules a guest needs, and in which order they can be loaded.
//!
//! A kernel package brings no `modules.dep` (depmod writes it on the machine that installs it), so the order is computed
//! from what each module says itself: `depends=` in its `.modinfo` section. Modules are taken uncompressed and without
//! their signature: the guest's kernel would spend more time on checking one than on all the rest of loading it, and
//! whoever could change the initramfs could change the kernel as well.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use object::LittleEndian;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, SectionHeader};

/// What a guest needs, in wrenn-init's order of need: the bus, disk, network, entropy.
pub const WANTED: [&str; 4] = ["virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng"];

/// Largest module: the biggest of Debian's cloud kernel is 8 MiB.
const MODULE_MAX: u64 = 64 << 20;

const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";
/// Length of `struct module_signature`, whose last field is the length of the signature before it.
const SIGNATURE_TRAILER: usize = 12;

/// Why a kernel's modules cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// Neither a file nor built in.
    #[error("the kernel has no module `{name}`{}; give a kernel with virtio drivers", needed(needed_by))]
    Missing {
        /// The module.
        name: String,
        /// The module that depends on it; `None` if we want it ourselves.
        needed_by: Option<String>,
    },
    /// A module file cannot be understood.
    #[error("the module file {path} is damaged: {reason}")]
    Damaged {
        /// Its path in the package.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A compressed module cannot be unpacked.
    #[error("the module file {path} cannot be unpacked")]
    Unpack {
        /// Its path in the package.
        path: String,
        /// Why.
        source: io::Error,
    },
}

fn needed(by: &Option<String>) -> String {
    by.as_ref().map(|by| format!(", which `{by}` needs")).unwrap_or_default()
}

/// A module ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// Its ELF file, unpacked, without signature.
    pub bytes: Vec<u8>,
}

/// The modules of a kernel package.
#[derive(Debug, Default)]
pub struct ModuleTree {
    /// Path in the package and content as packed there, by module name.
    files: BTreeMap<String, (String, Content)>,
    builtin: BTreeSet<String>,
}

/// A module's file: in memory, or where it can be read.
#[derive(Debug)]
enum Content {
    Bytes(Vec<u8>),
    File(PathBuf),
}

impl ModuleTree {
    /// Takes a file of the package if it says something about modules.
    pub fn add(&mut self, path: &str, content: Vec<u8>) {
        if let Some(name) = module_name(path) {
            self.files.insert(name, (path.to_owned(), Content::Bytes(content)));
        } else if path.ends_with("/modules.builtin") {
            let text = String::from_utf8_lossy(&content);
            self.builtin.extend(text.lines().filter_map(module_name));
        }
    }

    /// The modules of a folder such as /lib/modules/RELEASE. Contents are read when they are needed.
    pub fn from_folder(folder: &Path) -> Result<Self, ModuleError> {
        let unreadable = |source| ModuleError::Unpack { path: folder.display().to_string(), source };
        let mut tree = Self::default();
        let builtin = folder.join("modules.builtin");
        if builtin.exists() {
            tree.add("/modules.builtin", std::fs::read(builtin).map_err(unreadable)?);
        }
        let mut folders = vec![folder.join("kernel")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).map_err(unreadable)? {
                let entry = entry.map_err(unreadable)?;
                let path = entry.path();
                if entry.file_type().map_err(unreadable)?.is_dir() {
                    folders.push(path);
                } else if let Some(name) = module_name(&path.to_string_lossy()) {
                    tree.files.insert(name, (path.display().to_string(), Content::File(path)));
                }
            }
        }
        Ok(tree)
    }

    /// Whether [`ModuleTree::add`] would take a file of this path.
    pub fn wants(path: &str) -> bool {
        module_name(path).is_some() || path.ends_with("/modules.builtin")
    }

    /// `wanted` and all they depend on, each after what it depends on. What is built into the kernel is left out.
    pub fn load_order(&self, wanted: &[&str]) -> Result<Vec<Module>, ModuleError> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in wanted {
            self.visit(name, None, &mut seen, &mut order)?;
        }
        Ok(order)
    }

    /// Depth first; a module is seen before its dependencies are, so that a circle ends.
    fn visit(
        &self,
        name: &str,
        needed_by: Option<&str>,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<Module>,
    ) -> Result<(), ModuleError> {
        if self.builtin.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let missing = || ModuleError::Missing { name: name.to_owned(), needed_by: needed_by.map(str::to_owned) };
        let (path, packed) = self.files.get(name).ok_or_else(missing)?;
        let bytes = match packed {
            Content::Bytes(packed) => unpack(path, packed)?,
            Content::File(file) => {
                let packed = std::fs::read(file);
                unpack(path, &packed.map_err(|source| ModuleError::Unpack { path: path.clone(), source })?)?
            }
        };
        for dependency in dependencies(path, &bytes)? {
            self.visit(&dependency, Some(name), seen, order)?;
        }
        order.push(Module { name: name.to_owned(), bytes: without_signature(bytes) });
        Ok(())
    }
}

/// The module's name, if this is the path of one: `.../virtio-rng.ko.xz` is `virtio_rng`.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|suffix| file.strip_suffix(suffix))?;
    Some(stem.replace('-', "_"))
}

fn unpack(path: &str, packed: &[u8]) -> Result<Vec<u8>, ModuleError> {
    let unpacked = match path.rsplit('.').next() {
        Some("xz") => read_bounded(liblzma::bufread::XzDecoder::new(packed)),
        Some("zst") => zstd::stream::read::Decoder::with_buffer(packed).and_then(read_bounded),
        Some("gz") => read_bounded(flate2::bufread::GzDecoder::new(packed)),
        // The closed set of suffixes is that of `module_name`.
        _ => Ok(packed.to_vec()),
    };
    unpacked.map_err(|source| ModuleError::Unpack { path: path.to_owned(), source })
}

fn read_bounded(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MODULE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MODULE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than any kernel module"));
    }
    Ok(bytes)
}

/// The names after `depends=` in the module's own information.
fn dependencies(path: &str, module: &[u8]) -> Result<Vec<String>, ModuleError> {
    let damaged = |reason| ModuleError::Damaged { path: path.to_owned(), reason };
    let elf = FileHeader64::<LittleEndian>::parse(module).map_err(|_| damaged("no 64-bit ELF header"))?;
    let endian = elf.endian().map_err(|_| damaged("wrong byte order"))?;
    let sections = elf.sections(endian, module).map_err(|_| damaged("no section table"))?;
    let (_, section) = sections.section_by_name(endian, b".modinfo").ok_or_else(|| damaged("no .modinfo section"))?;
    let info = section.data(endian, module).map_err(|_| damaged("its .modinfo is cut short"))?;
    let depends = info.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"depends="));
    let names = String::from_utf8_lossy(depends.unwrap_or_default());
    Ok(names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

fn without_signature(mut module: Vec<u8>) -> Vec<u8> {
    let Some(body) = module.strip_suffix(SIGNATURE_MAGIC) else { return module };
    let Some((rest, trailer)) = body.split_last_chunk::<SIGNATURE_TRAILER>() else { return module };
    let length = u32::from_be_bytes([trailer[8], trailer[9], trailer[10], trailer[11]]) as usize;
    if let Some(kept) = rest.len().checked_sub(length) {
        module.truncate(kept);
    }
    module
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;

    /// A module file that depends on `depends`: an ELF header, a section table, `.modinfo`.
    pub fn module(depends: &str) -> Vec<u8> {
        let info = format!("license=GPL\0depends={depends}\0name=x\0");
        let names = b"\0.modinfo\0.shstrtab\0";
        let sections_at = 64 + info.len() + names.len();
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(16, 0);
        elf.extend(1_u16.to_le_bytes());
        elf.extend(0x3e_u16.to_le_bytes());
        elf.extend(1_u32.to_le_bytes());
        for value in [0, 0, sections_at as u64] {
            elf.extend(value.to_le_bytes());
        }
        elf.extend(0_u32.to_le_bytes());
        for value in [64_u16, 0, 0, 64, 3, 2] {
            elf.extend(value.to_le_bytes());
        }
        elf.extend(info.as_bytes());
        elf.extend(names);
        let info_at = 64_u64;
        let names_at = info_at + info.len() as u64;
        for (name, kind, offset, size) in
            [(0, 0_u32, 0, 0), (1_u32, 1, info_at, info.len() as u64), (10, 3, names_at, names.len() as u64)]
        {
            elf.extend(name.to_le_bytes());
            elf.extend(kind.to_le_bytes());
            for value in [0, 0, offset, size] {
                elf.extend(value.to_le_bytes());
            }
            elf.extend([0; 8]);
            elf.extend([0; 16]);
        }
        elf
    }

    /// A signature as the kernel's build appends one.
    pub fn signed(mut module: Vec<u8>) -> Vec<u8> {
        let signature = [7; 300];
        module.extend(signature);
        module.extend([0; 8]);
        module.extend((signature.len() as u32).to_be_bytes());
        module.extend(SIGNATURE_MAGIC);
        module
    }

    fn names(order: &[Module]) -> Vec<&str> {
        order.iter().map(|module| module.name.as_str()).collect()
    }

    fn debian() -> ModuleTree {
        let mut tree = ModuleTree::default();
        for (path, depends) in [
            ("lib/modules/6.1/kernel/drivers/virtio/virtio_ring.ko", ""),
            ("lib/modules/6.1/kernel/drivers/virtio/virtio.ko", "virtio_ring"),
            ("lib/modules/6.1/kernel/drivers/virtio/virtio_mmio.ko", "virtio,virtio_ring"),
            ("lib/modules/6.1/kernel/drivers/block/virtio_blk.ko", "virtio,virtio_ring"),
            ("lib/modules/6.1/kernel/net/core/failover.ko", ""),
            ("lib/modules/6.1/kernel/drivers/net/net_failover.ko", "failover"),
            ("lib/modules/6.1/kernel/drivers/net/virtio_net.ko", "virtio,virtio_ring,net-failover"),
            ("lib/modules/6.1/kernel/drivers/char/hw_random/virtio-rng.ko", "virtio,virtio_ring"),
            ("lib/modules/6.1/kernel/fs/fuse/virtiofs.ko", "fuse"),
        ] {
            tree.add(path, signed(module(depends)));
        }
        tree
    }

    #[test]
    fn each_module_comes_after_what_it_depends_on() {
        let order = debian().load_order(&WANTED).unwrap();
        let wanted = [
            "virtio_ring",
            "virtio",
            "virtio_mmio",
            "virtio_blk",
            "failover",
            "net_failover",
            "virtio_net",
            "virtio_rng",
        ];
        assert_eq!(names(&order), wanted);
        assert_eq!(order[0].bytes, module(""), "the signature is gone");
    }

    #[test]
    fn what_is_built_in_is_left_out() {
        let mut tree = debian();
        tree.add(
            "lib/modules/6.1/modules.builtin",
            b"kernel/drivers/virtio/virtio.ko\nkernel/x/virtio-rng.ko\n".to_vec(),
        );
        let order = tree.load_order(&WANTED).unwrap();
        assert!(!names(&order).contains(&"virtio") && !names(&order).contains(&"virtio_rng"), "{:?}", names(&order));
    }

    #[test]
    fn a_missing_module_is_named_with_who_needs_it() {
        let error = debian().load_order(&["virtiofs"]).unwrap_err().to_string();
        assert!(error.contains("no module `fuse`, which `virtiofs` needs"), "{error}");
        let error = ModuleTree::default().load_order(&WANTED).unwrap_err().to_string();
        assert!(error.contains("no module `virtio_mmio`;"), "{error}");
    }

    #[test]
    fn packed_modules_are_unpacked() {
        let plain = module("a");
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 6);
        xz.write_all(&signed(plain.clone())).unwrap();
        let zst = zstd::encode_all(&plain[..], 3).unwrap();
        let mut tree = ModuleTree::default();
        tree.add("k/b.ko.xz", xz.finish().unwrap());
        tree.add("k/a.ko.zst", zstd::encode_all(&module("")[..], 3).unwrap());
        assert_eq!(tree.load_order(&["b"]).unwrap()[1].bytes, plain);
        tree.add("k/c.ko.xz", zst);
        assert!(matches!(tree.load_order(&["c"]), Err(ModuleError::Unpack { .. })));
        tree.add("k/d.ko", b"no module".to_vec());
        assert!(matches!(tree.load_order(&["d"]), Err(ModuleError::Damaged { .. })));
    }

    #[test]
    fn a_folder_of_modules_is_read_where_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        let drivers = folder.path().join("kernel/drivers/virtio");
        std::fs::create_dir_all(&drivers).unwrap();
        std::fs::write(drivers.join("virtio-rng.ko.zst"), zstd::encode_all(&module("virtio")[..], 1).unwrap()).unwrap();
        std::fs::write(folder.path().join("modules.builtin"), "kernel/drivers/virtio/virtio.ko\n").unwrap();
        let tree = ModuleTree::from_folder(folder.path()).unwrap();
        assert_eq!(names(&tree.load_order(&["virtio_rng"]).unwrap()), ["virtio_rng"]);
    }

    #[test]
    fn circles_end() {
        let mut tree = ModuleTree::default();
        tree.add("k/a.ko", module("b"));
        tree.add("k/b.ko", module("a"));
        assert_eq!(names(&tree.load_order(&["a"]).unwrap()), ["b", "a"]);
    }
}

//! Kernels: unpacked once, then paired with a guest binary.
//!
//! ```text
//! package or file ─► kernels/unpacked/UNPACKED/{vmlinuz, vmlinux, modules/NN-name.ko, manifest.json}
//!                              │ + guest binary
//!                              ▼
//!                    kernels/ID/{vmlinuz, vmlinux, initrd.img, manifest.json}      kernels/prepared.json: the default
//! ```
//!
//! Both kinds of folder are immutable and named after a hash of all that went into them, so that making one twice is a
//! no-op and a sandbox can remember which it runs. The kernel files of a set are hard links: a new guest binary costs
//! one small initramfs.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::{self, BuildLock, FileError, WorkFolder, at};
use super::modules::{Module, ModuleError, ModuleTree, WANTED};
use super::vmlinux::{self, ImageKind, KernelImageError};
use super::{Places, deb, initramfs};

/// Changes whenever the same inputs would give other files.
const FORMAT: u32 = 2;
/// Largest kernel file we read: an uncompressed one with everything built in and symbols.
const KERNEL_FILE_MAX: u64 = 1 << 30;
/// Hex digits of a hash in an id: 64 bits, for a handful of kernels.
const ID_DIGITS: usize = 16;

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// None was prepared in this instance.
    #[error("no kernel is prepared in {}; `wrenn template build minimal` fetches one", folder.display())]
    NotPrepared {
        /// The folder of kernels.
        folder: PathBuf,
    },
    /// A set that a sandbox remembers is not there.
    #[error("the kernel set {id} of the sandbox is gone: put {} back", folder.display())]
    Gone {
        /// Its id.
        id: String,
        /// Where it should be.
        folder: PathBuf,
    },
    /// A file of the user's is no kernel.
    #[error("cannot use {} as a kernel", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KernelImageError,
    },
    /// A file of the user's is too large to be one.
    #[error("cannot use {} as a kernel: it has {size} bytes, a kernel has at most {KERNEL_FILE_MAX}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        size: u64,
    },
    /// A package without a kernel in it.
    #[error("the package {} holds no /boot/vmlinuz-*; give a linux-image package", path.display())]
    NoKernelInPackage {
        /// The package.
        path: PathBuf,
    },
    /// Its package cannot be read.
    #[error(transparent)]
    Package(#[from] deb::DebError),
    /// Its modules.
    #[error("cannot use the modules of the kernel {release}")]
    Modules {
        /// The kernel's release.
        release: String,
        /// What is wrong with them.
        #[source]
        source: ModuleError,
    },
    /// Files of ours.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A kernel and the initramfs that fits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelFiles {
    /// Hash of all that went into it; what a sandbox remembers.
    pub id: String,
    /// The kernel's release, such as `6.1.0-56-cloud-amd64`; `unknown` for a bare ELF file.
    pub release: String,
    /// The packed kernel (bzImage), if it came as one.
    pub vmlinuz: Option<PathBuf>,
    /// The unpacked ELF kernel.
    pub vmlinux: PathBuf,
    /// Whether [`KernelFiles::vmlinux`] has the PVH entry point.
    pub pvh: bool,
    /// The initramfs.
    pub initramfs: PathBuf,
}

impl KernelFiles {
    /// The image that boots fastest in a VMM that takes both forms: the ELF kernel if it can be entered directly, which
    /// saves the guest its own unpacking (0.8 s under emulation), else the packed one.
    pub fn boot_image(&self) -> &Path {
        match &self.vmlinuz {
            Some(vmlinuz) if !self.pvh => vmlinuz,
            Some(_) | None => &self.vmlinux,
        }
    }

    /// Opens [`KernelFiles::boot_image`].
    pub fn open_kernel(&self) -> Result<OwnedFd, FileError> {
        let path = self.boot_image();
        File::open(path).map(Into::into).map_err(at("open the kernel", path))
    }
}

/// What an unpacked kernel was made from, and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnpackedManifest {
    format: u32,
    release: String,
    pvh: bool,
    packed: bool,
    source: String,
}

/// What a set was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetManifest {
    format: u32,
    id: String,
    unpacked: String,
    kernel: UnpackedManifest,
    guest_sha256: String,
    created: String,
}

/// The kernel to use when nobody names one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Prepared {
    unpacked: String,
}

/// The guest binary and its hash.
#[derive(Debug, Clone, Copy)]
pub struct Guest<'a> {
    /// The static binary.
    pub binary: &'a [u8],
    /// Its SHA-256.
    pub sha256: &'a str,
}

/// The id of the prepared kernel's folder, if it is there.
pub fn prepared(places: &Places) -> Result<Option<String>, FileError> {
    let prepared: Option<Prepared> = files::read_json(&places.prepared_kernel())?;
    Ok(prepared.map(|it| it.unpacked).filter(|id| places.unpacked_kernel(id).join(MANIFEST).exists()))
}

/// Makes the kernel of a Debian package the prepared one.
pub fn prepare_package(places: &Places, package: &Path, name: &str, sha256: &str) -> Result<(), KernelError> {
    let id = id_of(&[b"package", sha256.as_bytes()]);
    ensure_unpacked(places, &id, || read_package(package, name))?;
    Ok(files::write_json(&places.prepared_kernel(), &Prepared { unpacked: id })?)
}

/// The prepared kernel with this guest.
pub fn default_set(places: &Places, guest: Guest<'_>) -> Result<KernelFiles, KernelError> {
    let unpacked = prepared(places)?.ok_or_else(|| KernelError::NotPrepared { folder: places.kernels() })?;
    ensure_set(places, &unpacked, guest)
}

/// The set of this id, as a sandbox remembers it: also one of an older guest.
pub fn set_of_id(places: &Places, id: &str) -> Result<KernelFiles, KernelError> {
    let folder = places.kernel_set(id);
    let is_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let set = if is_id { read_set(&folder)? } else { None };
    set.ok_or_else(|| KernelError::Gone { id: id.chars().take(80).collect(), folder })
}

/// A kernel of the user's with this guest: a vmlinuz, a vmlinux, or a Debian package.
pub fn set_of_file(places: &Places, path: &Path, guest: Guest<'_>) -> Result<KernelFiles, KernelError> {
    let bytes = read_kernel_file(path)?;
    let bad = |source| KernelError::Image { path: path.to_owned(), source };
    let name = path.display().to_string();
    let id = match vmlinux::kind(&bytes).map_err(bad)? {
        ImageKind::DebianPackage => {
            let id = id_of(&[b"package", files::hash_parts([&bytes[..]]).as_bytes()]);
            ensure_unpacked(places, &id, || read_package(path, &name))?;
            id
        }
        ImageKind::BzImage => {
            let release = vmlinux::release(&bytes).unwrap_or_else(|| "unknown".to_owned());
            let modules = host_modules(&release)?;
            let id = id_with_modules(&bytes, &modules);
            ensure_unpacked(places, &id, || unpack_bzimage(bytes, modules, release, &name).map_err(bad))?;
            id
        }
        ImageKind::Elf => {
            let id = id_with_modules(&bytes, &[]);
            ensure_unpacked(places, &id, || {
                let pvh = vmlinux::check_elf(&bytes).map_err(bad)?;
                let manifest =
                    UnpackedManifest { format: FORMAT, release: "unknown".into(), pvh, packed: false, source: name };
                Ok(Unpacked { manifest, vmlinuz: None, vmlinux: bytes, modules: Vec::new() })
            })?;
            id
        }
    };
    ensure_set(places, &id, guest)
}

const MANIFEST: &str = "manifest.json";
const VMLINUZ: &str = "vmlinuz";
const VMLINUX: &str = "vmlinux";
const INITRAMFS: &str = "initrd.img";
const MODULES: &str = "modules";

/// A kernel taken out of whatever it came in.
struct Unpacked {
    manifest: UnpackedManifest,
    vmlinuz: Option<Vec<u8>>,
    vmlinux: Vec<u8>,
    modules: Vec<Module>,
}

fn id_of(parts: &[&[u8]]) -> String {
    let format = FORMAT.to_le_bytes();
    let parts = std::iter::once(&format[..]).chain(parts.iter().copied());
    files::hash_parts(parts)[..ID_DIGITS].to_owned()
}

fn id_with_modules(kernel: &[u8], modules: &[Module]) -> String {
    let modules = modules.iter().flat_map(|module| [module.name.as_bytes(), &module.bytes[..]]);
    id_of(&[&b"file"[..], kernel].into_iter().chain(modules).collect::<Vec<_>>())
}

fn read_kernel_file(path: &Path) -> Result<Vec<u8>, KernelError> {
    let metadata = fs::metadata(path).map_err(at("read the kernel", path))?;
    if metadata.is_dir() {
        return Err(KernelError::Image { path: path.to_owned(), source: KernelImageError::NotAKernel });
    }
    if metadata.len() > KERNEL_FILE_MAX {
        return Err(KernelError::TooLarge { path: path.to_owned(), size: metadata.len() });
    }
    Ok(fs::read(path).map_err(at("read the kernel", path))?)
}

fn read_package(path: &Path, name: &str) -> Result<Unpacked, KernelError> {
    let is_kernel = |path: &str| path.starts_with("boot/vmlinuz-");
    let mut modules = ModuleTree::default();
    let mut kernel = None;
    for file in deb::read(path, |path| is_kernel(path) || ModuleTree::wants(path))? {
        if is_kernel(&file.path) {
            kernel = Some(file);
        } else {
            modules.add(&file.path, file.content);
        }
    }
    let kernel = kernel.ok_or_else(|| KernelError::NoKernelInPackage { path: path.to_owned() })?;
    let release = kernel.path.trim_start_matches("boot/vmlinuz-").to_owned();
    let bad_modules = |source| KernelError::Modules { release: release.clone(), source };
    let modules = modules.load_order(&WANTED).map_err(bad_modules)?;
    unpack_bzimage(kernel.content, modules, release, name)
        .map_err(|source| KernelError::Image { path: path.join(kernel.path), source })
}

fn unpack_bzimage(
    vmlinuz: Vec<u8>,
    modules: Vec<Module>,
    release: String,
    source: &str,
) -> Result<Unpacked, KernelImageError> {
    let vmlinux = vmlinux::extract(&vmlinuz)?;
    let pvh = vmlinux::check_elf(&vmlinux)?;
    let manifest = UnpackedManifest { format: FORMAT, release, pvh, packed: true, source: source.to_owned() };
    Ok(Unpacked { manifest, vmlinuz: Some(vmlinuz), vmlinux, modules })
}

/// The modules installed on this host for a kernel of this release. A host without them means a kernel that has its
/// drivers built in; if that is wrong, wrenn-init says which device it misses.
fn host_modules(release: &str) -> Result<Vec<Module>, KernelError> {
    let folder = Path::new("/lib/modules").join(release);
    if release.contains('/') || !folder.join("kernel").is_dir() {
        return Ok(Vec::new());
    }
    let bad = |source| KernelError::Modules { release: release.to_owned(), source };
    ModuleTree::from_folder(&folder).and_then(|tree| tree.load_order(&WANTED)).map_err(bad)
}

fn ensure_unpacked(
    places: &Places,
    id: &str,
    make: impl FnOnce() -> Result<Unpacked, KernelError>,
) -> Result<(), KernelError> {
    let target = places.unpacked_kernel(id);
    if target.join(MANIFEST).exists() {
        return Ok(());
    }
    let unpacked = make()?;
    in_work_folder(places, |folder| {
        if target.join(MANIFEST).exists() {
            return Ok(());
        }
        write_unpacked(folder, &unpacked)?;
        files::publish(folder, &target)
    })?;
    Ok(())
}

fn write_unpacked(folder: &Path, unpacked: &Unpacked) -> Result<(), FileError> {
    if let Some(vmlinuz) = &unpacked.vmlinuz {
        files::write_whole(&folder.join(VMLINUZ), vmlinuz, 0o444)?;
    }
    files::write_whole(&folder.join(VMLINUX), &unpacked.vmlinux, 0o444)?;
    let modules = folder.join(MODULES);
    files::make_folder(&modules)?;
    for (number, module) in unpacked.modules.iter().enumerate() {
        files::write_whole(&modules.join(format!("{number:02}-{}.ko", module.name)), &module.bytes, 0o444)?;
    }
    files::write_json(&folder.join(MANIFEST), &unpacked.manifest)
}

fn ensure_set(places: &Places, unpacked: &str, guest: Guest<'_>) -> Result<KernelFiles, KernelError> {
    let id = id_of(&[b"set", unpacked.as_bytes(), guest.sha256.as_bytes()]);
    let target = places.kernel_set(&id);
    if let Some(set) = read_set(&target)? {
        return Ok(set);
    }
    in_work_folder(places, |folder| {
        if !target.join(MANIFEST).exists() {
            write_set(folder, &places.unpacked_kernel(unpacked), &id, unpacked, guest)?;
            files::publish(folder, &target)?;
        }
        Ok(())
    })?;
    read_set(&target)?.ok_or(KernelError::NotPrepared { folder: target })
}

fn read_set(folder: &Path) -> Result<Option<KernelFiles>, FileError> {
    let Some(manifest) = files::read_json::<SetManifest>(&folder.join(MANIFEST))? else { return Ok(None) };
    Ok(Some(KernelFiles {
        id: manifest.id,
        release: manifest.kernel.release,
        vmlinuz: manifest.kernel.packed.then(|| folder.join(VMLINUZ)),
        vmlinux: folder.join(VMLINUX),
        pvh: manifest.kernel.pvh,
        initramfs: folder.join(INITRAMFS),
    }))
}

fn write_set(folder: &Path, kernel: &Path, id: &str, unpacked: &str, guest: Guest<'_>) -> Result<(), FileError> {
    let manifest_path = kernel.join(MANIFEST);
    let manifest: UnpackedManifest = files::read_json(&manifest_path)?
        .ok_or_else(|| at("read", &manifest_path)(std::io::ErrorKind::NotFound.into()))?;
    let images = if manifest.packed { &[VMLINUZ, VMLINUX][..] } else { &[VMLINUX] };
    for name in images {
        fs::hard_link(kernel.join(name), folder.join(name)).map_err(at("link", &folder.join(name)))?;
    }
    let modules = read_modules(&kernel.join(MODULES))?;
    files::write_whole(&folder.join(INITRAMFS), &initramfs::build(guest.binary, &modules), 0o444)?;
    let manifest = SetManifest {
        format: FORMAT,
        id: id.to_owned(),
        unpacked: unpacked.to_owned(),
        kernel: manifest,
        guest_sha256: guest.sha256.to_owned(),
        created: files::now(),
    };
    files::write_json(&folder.join(MANIFEST), &manifest)
}

/// The modules in load order, their numbers taken off again.
fn read_modules(folder: &Path) -> Result<Vec<Module>, FileError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(at("list", folder))? {
        paths.push(entry.map_err(at("list", folder))?.path());
    }
    paths.sort();
    let module = |path: PathBuf| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = stem.split_once('-').map_or(&*stem, |(_, name)| name).to_owned();
        fs::read(&path).map(|bytes| Module { name, bytes }).map_err(at("read", &path))
    };
    paths.into_iter().map(module).collect()
}

fn in_work_folder(places: &Places, work: impl FnOnce(&Path) -> Result<(), FileError>) -> Result<(), FileError> {
    files::make_folder(&places.unpacked_kernels())?;
    let lock = BuildLock::acquire(&places.lock())?;
    let folder = WorkFolder::new(&places.work(), &lock)?;
    work(folder.path())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::deb::tests::package;
    use crate::image::modules::tests::{module, signed};
    use crate::image::vmlinux::Packing;
    use crate::image::vmlinux::tests::{bzimage, packed, tiny_kernel};

    const GUEST: Guest<'static> = Guest { binary: b"static guest", sha256: "aa" };

    struct Instance {
        folder: tempfile::TempDir,
        places: Places,
    }

    fn instance() -> Instance {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::new(&folder.path().join("wrenn"));
        files::make_folder(&places.kernels()).unwrap();
        Instance { folder, places }
    }

    impl Instance {
        fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<_> = fs::read_dir(self.places.kernels())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    fn debian_package() -> Vec<u8> {
        let kernel = bzimage(&packed(Packing::Zstd, &tiny_kernel(&[5; 10_000])));
        let folder = "lib/modules/6.1.0-9-cloud-amd64/kernel";
        let modules = [
            ("virtio_mmio", "virtio"),
            ("virtio_blk", "virtio"),
            ("virtio_net", "virtio"),
            ("virtio-rng", "virtio"),
            ("virtio", ""),
        ];
        let modules: Vec<_> =
            modules.iter().map(|(name, depends)| (format!("{folder}/{name}.ko"), signed(module(depends)))).collect();
        let mut files: Vec<(&str, &[u8])> = vec![("boot/vmlinuz-6.1.0-9-cloud-amd64", &kernel), ("etc/other", b"x")];
        files.extend(modules.iter().map(|(path, bytes)| (path.as_str(), &bytes[..])));
        package(".xz", &files)
    }

    #[test]
    fn a_package_becomes_the_prepared_kernel_once() {
        let host = instance();
        assert!(matches!(default_set(&host.places, GUEST), Err(KernelError::NotPrepared { .. })));
        let deb = host.file("k.deb", &debian_package());
        prepare_package(&host.places, &deb, "linux-image-x", "00").unwrap();
        let first = default_set(&host.places, GUEST).unwrap();
        let before = files::Identity::of(&first.initramfs).unwrap();
        // Nothing of it needs the package any more.
        fs::remove_file(&deb).unwrap();
        prepare_package(&host.places, &deb, "linux-image-x", "00").unwrap();
        assert_eq!(default_set(&host.places, GUEST).unwrap(), first);
        assert_eq!(files::Identity::of(&first.initramfs).unwrap(), before);
        assert_eq!(first.release, "6.1.0-9-cloud-amd64");
        assert_eq!(first.boot_image(), first.vmlinux, "this kernel has the PVH entry point");
        first.open_kernel().unwrap();
        let initramfs = fs::read(&first.initramfs).unwrap();
        let has = |text: &[u8]| initramfs.windows(text.len()).any(|window| window == text);
        assert!(has(b"00-virtio.ko\0") && has(b"04-virtio_rng.ko\0") && has(b"static guest"));
        assert!(!has(b"signature appended"));
    }

    #[test]
    fn another_guest_is_another_set_of_the_same_kernel() {
        let host = instance();
        let deb = host.file("k.deb", &debian_package());
        prepare_package(&host.places, &deb, "linux-image-x", "00").unwrap();
        let first = default_set(&host.places, GUEST).unwrap();
        let second = default_set(&host.places, Guest { binary: b"newer", sha256: "bb" }).unwrap();
        assert_ne!(first.id, second.id);
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        assert_eq!(inode(&first.vmlinux), inode(&second.vmlinux));
        let mut wanted = vec![first.id, second.id, "prepared.json".to_owned(), "unpacked".to_owned()];
        wanted.sort();
        assert_eq!(host.names(), wanted);
    }

    #[test]
    fn a_kernel_by_path_may_be_a_package_a_bzimage_or_an_elf_file() {
        let host = instance();
        let kernel = tiny_kernel(&[9; 5000]);
        let packed = bzimage(&packed(Packing::Gzip, &kernel));
        for (name, bytes, has_vmlinuz) in
            [("k.deb", debian_package(), true), ("vmlinuz", packed, true), ("vmlinux", kernel, false)]
        {
            let path = host.file(name, &bytes);
            let set = set_of_file(&host.places, &path, GUEST).unwrap();
            assert_eq!(set.vmlinuz.is_some(), has_vmlinuz, "{name}");
            assert_eq!(set_of_file(&host.places, &path, GUEST).unwrap(), set, "{name}");
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused_and_leaves_nothing() {
        let host = instance();
        let text = host.file("notes.txt", &b"just text\n".repeat(1000));
        let error = set_of_file(&host.places, &text, GUEST).unwrap_err();
        assert!(matches!(&error, KernelError::Image { source: KernelImageError::NotAKernel, .. }), "{error:?}");
        let empty = host.file("empty.deb", &package("", &[("etc/x", b"")]));
        assert!(matches!(set_of_file(&host.places, &empty, GUEST), Err(KernelError::NoKernelInPackage { .. })));
        let folder = set_of_file(&host.places, host.folder.path(), GUEST);
        assert!(matches!(folder, Err(KernelError::Image { .. })));
        let whole = debian_package();
        let cut = &whole[..whole.len() - 100];
        let cut = host.file("cut.deb", cut);
        assert!(matches!(set_of_file(&host.places, &cut, GUEST), Err(KernelError::Package(_))));
        assert_eq!(host.names(), Vec::<String>::new());
    }
}

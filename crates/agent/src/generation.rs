//! A generation: a sandbox at rest, as files that nobody changes any more.
//!
//! ```text
//!   generations/3.new/          being made: whatever is there after a crash is either finished or thrown away
//!   generations/3/
//!     generation.json           what it is made for and of; sealed, written last
//!     memory/                   none where only the disk was kept
//!       devices                 the state of CPUs and devices
//!       memory, …               the memory, or what changed since the generation that this one builds on
//!                               (see wrenn_engine::memory)
//!     disk, disk.sums           what the sandbox wrote on its disk, above the layers that lie beneath
//! ```
//!
//! It appears by a rename and is whole from then on. What it was made with (VMM, kernel, CPU) is compared before anything
//! of it is used. A generation is removed when the sandbox neither rests as it, nor runs on its memory or disk, nor has a
//! generation that builds on it ([`garbage`]).

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wrenn_engine::memory::Files;
use wrenn_engine::names::{LayerId, SandboxId};
use wrenn_engine::storage::{Layer, LayerFormat, StorageError};
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::{Description, GuestCpu};

use crate::durable::{self, SealError, Staged};
use crate::layers::{Share, VerifyError, link, verify};

/// Version of generation.json that is written here.
pub const FORMAT: u32 = 2;
/// The oldest that is read: version 1 says the same, and never had anything beneath a disk.
const OLDEST: u32 = 1;
/// Longest generation.json taken, in bytes.
const BYTES_MAX: u64 = 64 * 1024;
/// Longest state of devices taken, in bytes.
const DEVICES_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Mode of the list of what is wanted first: which pages a guest uses is nobody's business.
const WORKING_SET_MODE: u32 = 0o600;

/// The number of a generation of one sandbox: from 1, each larger than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Number(u32);

impl Number {
    /// Before the first.
    pub const NONE: Self = Self(0);
    /// The first.
    pub const FIRST: Self = Self(1);

    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("nobody pauses a sandbox four billion times"))
    }

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().filter(|number: &u32| number.to_string() == text && *number > 0).map(Self)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a generation has of the sandbox's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The generation on whose memory this one's builds, if it is not whole by itself.
    pub builds_on: Option<Number>,
    /// Bytes of `devices`.
    pub devices_bytes: u64,
    /// Their hash, in hexadecimal.
    pub devices_sha256: String,
    /// The CPU that the guest saw.
    pub cpu: GuestCpu,
}

/// What a generation has of the sandbox's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// How its file is kept.
    pub format: LayerFormat,
    /// Size as the guest sees it, in bytes.
    pub size_bytes: u64,
    /// Layers that lie beneath ([`crate::layers`]), lowest first; beneath these is the template's image.
    pub beneath: Vec<LayerId>,
}

/// A sandbox at rest, as it is kept in generation.json.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// [`FORMAT`].
    pub version: u32,
    /// Whose it is.
    pub sandbox: SandboxId,
    /// Its number.
    pub number: Number,
    /// Unix time at which it was captured, in milliseconds.
    pub created_unix_ms: u64,
    /// What ran the VM.
    pub vmm: Description,
    /// The kernel set it ran.
    pub kernel: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory_mib: Mib,
    /// Its memory; `None` where only the disk was kept.
    pub memory: Option<Memory>,
    /// Its disk.
    pub disk: Disk,
}

/// Why a generation cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// A file operation failed.
    #[error("cannot {step} {path}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A file cannot be copied.
    #[error(transparent)]
    Copy(#[from] StorageError),
    /// A file is not there.
    #[error("{path} is missing: the sandbox cannot come back as it was; destroy it, or put the file back")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Its description is not readable.
    #[error("{path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: SealError,
    },
    /// A file is not as it was written.
    #[error("{path} is damaged: {detail}")]
    Changed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// Another version of wrenn wrote it.
    #[error("{path} has version {found}; this wrenn reads versions up to {FORMAT}, use the one that wrote it")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// What was captured does not run on this host as it is now.
    #[error("the sandbox was paused with {field} {captured}, and this host has {here}; {remedy}")]
    Mismatch {
        /// What differs.
        field: &'static str,
        /// What it was.
        captured: String,
        /// What it is.
        here: String,
        /// What to do about it.
        remedy: &'static str,
    },
}

/// What a captured VM needs to go on.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// The VMM of this host.
    pub vmm: &'a Description,
    /// The CPU that its guests see.
    pub cpu: &'a GuestCpu,
    /// What its storage makes of disks.
    pub storage: LayerFormat,
}

impl Generation {
    /// Writes it durably into `folder`.
    pub fn write(&self, folder: &Folder) -> Result<(), GenerationError> {
        self.stage(folder)?.put().map_err(failed("write", &folder.manifest()))
    }

    /// Writes it durably beside its place in `folder`, for when all else is there.
    pub fn stage(&self, folder: &Folder) -> Result<Staged, GenerationError> {
        assert_eq!(self.version, FORMAT, "only this version's generations are made");
        let path = folder.manifest();
        durable::stage(&path, &durable::seal(self)).map_err(failed("write", &path))
    }

    /// Reads the one in `folder`.
    pub fn read(folder: &Folder) -> Result<Self, GenerationError> {
        let path = folder.manifest();
        let text = durable::read(&path, BYTES_MAX).map_err(failed("read", &path))?;
        let text = text.ok_or_else(|| GenerationError::Missing { path: path.clone() })?;
        let damaged = |source| GenerationError::Damaged { path: path.clone(), source };
        let Version { version } = durable::unseal(&text).map_err(damaged)?;
        if !(OLDEST..=FORMAT).contains(&version) {
            return Err(GenerationError::Version { path, found: version });
        }
        let generation = durable::unseal(&text).map_err(damaged)?;
        Ok(Self { version: FORMAT, ..generation })
    }

    /// Whether what was captured runs with what this host offers. What has no memory runs with every VMM and CPU.
    pub fn check_fits(&self, offer: Offer<'_>) -> Result<(), GenerationError> {
        let vmm = |vmm: &Description| format!("{} {} ({})", vmm.driver, vmm.version, vmm.accel);
        let cpu = |cpu: &GuestCpu| format!("{cpu:?}");
        let differs = |field, captured: String, here: String, remedy| {
            Err(GenerationError::Mismatch { field, captured, here, remedy })
        };
        if self.disk.format != offer.storage {
            let remedy = "run the agent with that storage (--storage)";
            return differs("the disk as", self.disk.format.to_string(), offer.storage.to_string(), remedy);
        }
        let Some(memory) = &self.memory else { return Ok(()) };
        if self.vmm != *offer.vmm {
            let remedy = "run the agent with that VMM (--vmm, --accel, WRENN_QEMU, WRENN_FIRECRACKER)";
            return differs("the VMM", vmm(&self.vmm), vmm(offer.vmm), remedy);
        }
        if memory.cpu != *offer.cpu {
            let remedy = "resume it on a host with that CPU";
            return differs("the CPU", cpu(&memory.cpu), cpu(offer.cpu), remedy);
        }
        Ok(())
    }

    /// Compares the state of the devices with what was captured.
    pub fn check_devices(&self, folder: &Folder) -> Result<(), GenerationError> {
        let Some(memory) = &self.memory else { return Ok(()) };
        let path = folder.devices();
        let (bytes, sha256) = hash_devices(&path)?;
        let changed = |detail: String| Err(GenerationError::Changed { path: path.clone(), detail });
        if bytes != memory.devices_bytes {
            return changed(format!("it has {bytes} bytes, and had {}", memory.devices_bytes));
        }
        if sha256 != memory.devices_sha256 { changed("its checksum does not match".to_owned()) } else { Ok(()) }
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Length and hash of a state of devices.
pub fn hash_devices(path: &Path) -> Result<(u64, String), GenerationError> {
    let bytes = durable::read(path, DEVICES_BYTES_MAX).map_err(failed("read", path))?;
    let bytes = bytes.ok_or_else(|| GenerationError::Missing { path: path.to_owned() })?;
    Ok((bytes.len() as u64, hex::encode(Sha256::digest(&bytes))))
}

impl GenerationError {
    pub(crate) fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        failed(step, path)
    }
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> GenerationError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::NotFound => GenerationError::Missing { path },
        _other_kinds => GenerationError::Io { step, path, source },
    }
}

/// The folder of one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder(PathBuf);

impl Folder {
    /// The one at `path`: a sandbox's, or that of a snapshot.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Makes it, and the folder of its memory.
    pub fn make(&self) -> Result<(), GenerationError> {
        let make = |path: &Path| {
            use std::os::unix::fs::DirBuilderExt as _;
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make", path))
        };
        make(self.path())?;
        make(&self.memory())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What it is made for and of.
    pub fn manifest(&self) -> PathBuf {
        self.0.join("generation.json")
    }

    /// The state of CPUs and devices.
    pub fn devices(&self) -> PathBuf {
        self.memory().join("devices")
    }

    /// The folder of the memory.
    pub fn memory(&self) -> PathBuf {
        self.0.join("memory")
    }

    /// The files of the memory.
    pub fn memory_files(&self) -> Files {
        Files::in_folder(&self.memory())
    }

    /// Which pages of the memory a VM wants first: a hint.
    pub fn working_set(&self) -> PathBuf {
        self.memory().join("working-set")
    }

    /// The disk.
    pub fn disk(&self) -> PathBuf {
        self.0.join("disk")
    }

    /// The disk's checksums.
    pub fn disk_sums(&self) -> PathBuf {
        self.0.join("disk.sums")
    }

    /// What it takes on the host.
    pub fn allocated(&self) -> Allocated {
        Allocated { disk: allocated_in(self.path()), memory: allocated_in(&self.memory()) }
    }

    /// Makes this one, which is there and empty, be the same as `from`, which is whole and whose memory is in one file: names
    /// for the same files. The description is not among them: it is not the same.
    pub fn share(&self, from: &Self) -> Result<(), GenerationError> {
        if from.devices().exists() {
            self.share_memory(from)?;
        }
        link(&from.disk_sums(), &self.disk_sums())?;
        link(&from.disk(), &self.disk())
    }

    /// As [`Folder::share`], of the memory and the state of the devices alone.
    pub fn share_memory(&self, from: &Self) -> Result<(), GenerationError> {
        let (ours, theirs) = (self.memory_files(), from.memory_files());
        // Checksums first: a file that is here is here with them.
        link(&from.devices(), &self.devices())?;
        link(&theirs.base_sums, &ours.base_sums)?;
        link(&theirs.base, &ours.base)?;
        self.share_working_set(from);
        Ok(())
    }

    /// What one of them wants first, the others will want first: whoever runs first writes it down for all. It is a hint, which
    /// may be missing.
    fn share_working_set(&self, from: &Self) {
        let made = from.open_working_set();
        let shared = made.and_then(|_file| fs::hard_link(from.working_set(), self.working_set()));
        if let Err(error) = shared {
            let path = from.working_set();
            tracing::debug!(path = %path.display(), %error, "what is wanted first of a memory is not shared");
        }
    }

    /// Opens the list of what is wanted first, making it if there is none.
    pub fn open_working_set(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(WORKING_SET_MODE).open(self.working_set())
    }

    /// Reads all of the disk and compares it with its checksums.
    pub fn verify_disk(&self) -> Result<(), VerifyError> {
        verify(&self.disk(), &self.disk_sums())
    }

    /// Removes the disk; one that is gone, or cannot be removed, is fine: it goes with the folder.
    pub fn remove_disk(&self) {
        for path in [self.disk(), self.disk_sums()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove a disk that nothing needs any more");
                }
                Ok(()) | Err(_) => {}
            }
        }
    }

    /// The disk as a layer.
    pub fn layer(&self, disk: &Disk) -> Layer {
        Layer { path: self.disk(), format: disk.format, size_bytes: disk.size_bytes }
    }
}

/// The generations of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generations(PathBuf);

impl Generations {
    /// Those in the sandbox's folder `dir`.
    pub fn of(dir: &Path) -> Self {
        Self(dir.join("generations"))
    }

    /// The folder of a generation that is whole.
    pub fn folder(&self, number: Number) -> Folder {
        Folder(self.0.join(number.to_string()))
    }

    /// The folder of one that is being made.
    pub fn unfinished(&self, number: Number) -> Folder {
        Folder(self.0.join(format!("{number}.new")))
    }

    /// Makes the folder of a new one; what an earlier attempt at it left is thrown away.
    pub fn begin(&self, number: Number) -> Result<Folder, GenerationError> {
        let folder = self.unfinished(number);
        self.abandon(number)?;
        folder.make()?;
        Ok(folder)
    }

    /// Makes a new one whole: durable from here on.
    pub fn commit(&self, number: Number) -> Result<Folder, GenerationError> {
        let (from, to) = (self.unfinished(number), self.folder(number));
        durable::sync_folder(from.path()).map_err(failed("sync", from.path()))?;
        fs::rename(from.path(), to.path()).map_err(failed("rename", from.path()))?;
        durable::sync_folder(&self.0).map_err(failed("sync", &self.0))?;
        Ok(to)
    }

    /// Throws an unfinished one away.
    pub fn abandon(&self, number: Number) -> Result<(), GenerationError> {
        remove(self.unfinished(number).path())
    }

    /// Whether this one is whole.
    pub fn is_whole(&self, number: Number) -> bool {
        self.folder(number).manifest().exists()
    }

    /// Those that are there, finished or not.
    pub fn numbers(&self) -> Vec<Number> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| Number::parse(name.strip_suffix(".new").unwrap_or(&name))).collect()
    }

    /// What all of them take on the host.
    pub fn allocated(&self) -> Allocated {
        let folders = self.numbers().into_iter().flat_map(|number| [self.folder(number), self.unfinished(number)]);
        folders.fold(Allocated::default(), |sum, folder| {
            let Allocated { disk, memory } = folder.allocated();
            Allocated { disk: sum.disk.plus(disk), memory: sum.memory.plus(memory) }
        })
    }

    /// Removes every generation that is not in `needed`, finished or not. What cannot be removed is logged, and tried again
    /// the next time.
    pub fn keep_only(&self, needed: &BTreeSet<Number>) {
        let Ok(entries) = fs::read_dir(&self.0) else { return };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        for name in garbage(names, needed) {
            if let Err(error) = remove(&self.0.join(&name)) {
                tracing::warn!(%error, generation = name, "cannot remove a generation that nothing needs any more");
            }
        }
    }
}

/// What generations take on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocated {
    /// Disks and descriptions.
    pub disk: Share,
    /// Memory and states of devices.
    pub memory: Share,
}

/// What the files in a folder take; one that is gone meanwhile takes nothing.
fn allocated_in(folder: &Path) -> Share {
    let Ok(entries) = fs::read_dir(folder) else { return Share::default() };
    let metadata = entries.flatten().filter_map(|entry| entry.metadata().ok());
    metadata.fold(Share::default(), |sum, metadata| sum.plus(Share::of(&metadata)))
}

/// The entries of a folder of generations that go: those of ours that nobody needs; strange names are left alone.
fn garbage(names: impl Iterator<Item = String>, needed: &BTreeSet<Number>) -> Vec<String> {
    names
        .filter(|name| {
            let number = Number::parse(name.strip_suffix(".new").unwrap_or(name));
            number.is_some_and(|number| !needed.contains(&number))
        })
        .collect()
}

fn remove(path: &Path) -> Result<(), GenerationError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(GenerationError::Io { step: "remove", path: path.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use wrenn_engine::vmm::{Accel, DriverKind};

    use super::*;

    fn cpu(model: u32) -> GuestCpu {
        GuestCpu { vendor: "v".to_owned(), family: 1, model, features: String::new(), tsc_mhz: None }
    }

    fn vmm(version: &str) -> Description {
        Description { driver: DriverKind::Qemu, version: version.to_owned(), accel: Accel::Tcg }
    }

    fn generation() -> Generation {
        Generation {
            version: FORMAT,
            sandbox: SandboxId::from_random([1; 18]),
            number: Number::FIRST,
            created_unix_ms: 1,
            vmm: vmm("10.0.2"),
            kernel: "k".to_owned(),
            vcpus: 1,
            memory_mib: Mib(128),
            memory: Some(Memory {
                builds_on: None,
                devices_bytes: 4,
                devices_sha256: hex::encode(Sha256::digest("abcd")),
                cpu: cpu(1),
            }),
            disk: Disk { format: LayerFormat::Qcow2, size_bytes: 4096, beneath: Vec::new() },
        }
    }

    #[test]
    fn appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let generations = Generations::of(dir.path());
        let folder = generations.begin(Number::FIRST).unwrap();
        fs::write(folder.devices(), "abcd").unwrap();
        generation().write(&folder).unwrap();
        assert!(!generations.is_whole(Number::FIRST));
        let folder = generations.commit(Number::FIRST).unwrap();
        assert_eq!(Generation::read(&folder).unwrap(), generation());
        generation().check_devices(&folder).unwrap();

        fs::write(folder.devices(), "abce").unwrap();
        let error = generation().check_devices(&folder).unwrap_err();
        assert!(error.to_string().contains("devices is damaged"), "{error}");
        fs::write(folder.devices(), "abc").unwrap();
        assert!(matches!(generation().check_devices(&folder), Err(GenerationError::Changed { .. })));
        fs::remove_file(folder.devices()).unwrap();
        assert!(matches!(generation().check_devices(&folder), Err(GenerationError::Missing { .. })));

        generations.begin(Number::FIRST.next()).unwrap();
        generations.keep_only(&BTreeSet::from([Number::FIRST]));
        assert!(generations.is_whole(Number::FIRST));
        assert!(!generations.unfinished(Number::FIRST.next()).path().exists());
    }

    #[test]
    fn another_vmm_or_cpu_is_refused_by_name() {
        let (here, other) = (cpu(1), cpu(2));
        let fits = |vmm: &Description, cpu| generation().check_fits(Offer { vmm, cpu, storage: LayerFormat::Qcow2 });
        fits(&vmm("10.0.2"), &here).unwrap();
        for (vmm, cpu, field) in [(vmm("10.1.0"), &here, "the VMM"), (vmm("10.0.2"), &other, "the CPU")] {
            let error = fits(&vmm, cpu).unwrap_err();
            assert!(matches!(&error, GenerationError::Mismatch { field: found, .. } if *found == field), "{error}");
        }
        let disk_only = Generation { memory: None, ..generation() };
        let offer = Offer { vmm: &vmm("1"), cpu: &other, storage: LayerFormat::Qcow2 };
        disk_only.check_fits(offer).unwrap();
        assert!(disk_only.check_fits(Offer { storage: LayerFormat::DmCow, ..offer }).is_err());
    }

    #[test]
    fn only_what_is_ours_and_not_needed_goes() {
        let names = ["1", "2", "2.new", "3", "4.new", "x", "01", "0", "lost+found", "y.new"].map(str::to_owned);
        let needed = BTreeSet::from([Number(2)]);
        assert_eq!(garbage(names.into_iter(), &needed), ["1", "3", "4.new"]);
    }
}

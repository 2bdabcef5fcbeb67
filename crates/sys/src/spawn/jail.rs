//! A root of its own for a program: the mount operations as data, planned here and done by the child.
//!
//! ```text
//!   Jail ──plan──► [own namespaces · everything private · tmpfs over the mount point
//!                   · per entry: folders on the way, then node / bind + flags
//!                   · pivot_root, old root detached · root sealed (read-only)]  ──► child: one system call each
//! ```
//!
//! The root is a tmpfs that exists in the child's mount namespace alone: the host's mount table never shows it, and the
//! kernel frees it with the namespace's last process. Nothing is propagated in either direction, and after the old root
//! is detached no path leads back.
//!
//! **Namespaces.** Mounts, of course, and with them IPC and UTS, which cost a fifth more (200 and 240 µs where measured): System V and POSIX queues know
//! no file permissions worth relying on, and the host's name is nobody's business. No PID namespace: as its first process
//! the program would ignore SIGTERM, its parent's death could not be checked, and what it would hide is hidden already:
//! there is no /proc in here, and its user owns no other process that it could signal.
//!
//! **Who is trusted.** Sources are named by us and looked at before `clone`: nobody but root may be able to write the
//! folders they are in. What is *in* a writable folder is the program's and is never followed by us.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use super::{Credentials, Step, c_string};

/// Most entries of a jail; a VMM needs about ten.
pub const JAIL_ENTRIES_MAX: usize = 64;
/// Deepest path in a jail, in components; it bounds the folders that are made on the way.
const DEPTH_MAX: usize = 8;
/// Bytes the root's own files may take: there are none, but a tmpfs wants at least a page.
const ROOT_BYTES: u32 = 64 * 1024;
/// Inodes beyond those that are planned: the tmpfs's root, and what the kernel may count for itself.
const SPARE_INODES: usize = 8;

/// What a program sees as `/`: these entries and nothing else, read-only once it is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jail {
    /// A folder of the host over which the root is mounted while it is built; nobody else sees that.
    pub mount_point: PathBuf,
    /// What is in there. Folders on the way are made.
    pub entries: Vec<JailEntry>,
}

/// One thing in a [`Jail`], at `path` as seen from inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JailEntry {
    /// A device node of the same number as the host's `source`, mode 0600, the program's user's own.
    Device {
        /// Its place inside.
        path: PathBuf,
        /// The host's node.
        source: PathBuf,
    },
    /// A file or folder of the host, mounted read-only, without devices and set-user-id bits.
    ReadOnly {
        /// Its place inside.
        path: PathBuf,
        /// On the host.
        source: PathBuf,
    },
    /// A folder of the host in which the program may make files, or a file that it may write; mounted without devices and
    /// programs.
    Writable {
        /// Its place inside.
        path: PathBuf,
        /// On the host.
        source: PathBuf,
    },
}

impl JailEntry {
    /// Its place inside.
    pub fn path(&self) -> &Path {
        match self {
            Self::Device { path, .. } | Self::ReadOnly { path, .. } | Self::Writable { path, .. } => path,
        }
    }

    /// What of the host it is made of.
    pub fn source(&self) -> &Path {
        match self {
            Self::Device { source, .. } | Self::ReadOnly { source, .. } | Self::Writable { source, .. } => source,
        }
    }
}

/// What a source on the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File,
    CharacterDevice(u64),
    BlockDevice(u64),
    /// A socket or a pipe.
    Other,
}

/// Looks at a source; symbolic links are followed, as the mount will.
pub(super) fn kind(path: &Path) -> io::Result<Kind> {
    let metadata = std::fs::metadata(path)?;
    let file_type = metadata.file_type();
    Ok(match () {
        () if file_type.is_dir() => Kind::Folder,
        () if file_type.is_file() => Kind::File,
        () if file_type.is_char_device() => Kind::CharacterDevice(metadata.rdev()),
        () if file_type.is_block_device() => Kind::BlockDevice(metadata.rdev()),
        () => Kind::Other,
    })
}

/// One system call of the child, and what to blame if it fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Operation {
    pub step: Step,
    /// Index of the entry it is for.
    pub entry: Option<usize>,
    pub call: Call,
}

/// A system call with its arguments, as the child can use them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    Unshare {
        flags: i32,
    },
    Mount {
        source: CString,
        target: CString,
        filesystem: CString,
        flags: u64,
        data: CString,
    },
    Mkdir {
        path: CString,
        mode: u32,
    },
    Mknod {
        path: CString,
        mode: u32,
        device: u64,
    },
    Chown {
        path: CString,
        uid: u32,
        gid: u32,
    },
    Chdir {
        path: CString,
    },
    /// `pivot_root(".", ".")`: the old root is then mounted over the new one.
    PivotRoot,
    /// Detaches what is mounted over `.`.
    Detach,
}

/// Why there is no plan: the step, the entry, the reason.
pub(super) type NoPlan = (Step, Option<usize>, io::Error);

/// The operations that build `jail` for a program run as `credentials` (the caller's user if `None`). Pure but for `kind`.
pub(super) fn plan(
    jail: &Jail,
    credentials: Option<&Credentials>,
    kind: impl Fn(&Path) -> io::Result<Kind>,
) -> Result<Vec<Operation>, NoPlan> {
    check(jail)?;
    let owner = credentials.map_or((0, 0), |credentials| (credentials.uid, credentials.gid));
    let mut builder = Builder { root: &jail.mount_point, folders: Vec::new(), operations: Vec::new() };
    for (index, entry) in jail.entries.iter().enumerate() {
        let source_kind = kind(entry.source()).map_err(|error| (Step::JailSource, Some(index), error))?;
        builder.entry(index, entry, source_kind, owner).map_err(|error| (Step::JailSource, Some(index), error))?;
    }
    let inodes = builder.operations.len() + SPARE_INODES;
    let around = |error| (Step::Prepare, None, error);
    let mut operations = opening(&jail.mount_point, inodes).map_err(around)?;
    operations.append(&mut builder.operations);
    operations.extend(closing(&jail.mount_point).map_err(around)?);
    Ok(operations)
}

fn check(jail: &Jail) -> Result<(), NoPlan> {
    let refuse = |entry, text: String| Err((Step::Prepare, entry, io::Error::new(io::ErrorKind::InvalidInput, text)));
    if jail.entries.len() > JAIL_ENTRIES_MAX {
        return refuse(None, format!("a jail of {} entries; the most is {JAIL_ENTRIES_MAX}", jail.entries.len()));
    }
    if !is_plain(&jail.mount_point) {
        return refuse(None, "the jail's mount point is not a plain absolute path".to_owned());
    }
    for (index, entry) in jail.entries.iter().enumerate() {
        let (path, source) = (entry.path(), entry.source());
        if !is_plain(path) || path.components().count() > DEPTH_MAX + 1 {
            return refuse(Some(index), format!("{} is no place in a jail", path.display()));
        }
        if !is_plain(source) || source.starts_with(&jail.mount_point) {
            return refuse(Some(index), format!("{} is no source of a jail", source.display()));
        }
        let overlaps = |other: &JailEntry| other.path().starts_with(path) || path.starts_with(other.path());
        if jail.entries.iter().take(index).any(overlaps) {
            return refuse(Some(index), format!("{} overlaps another entry", path.display()));
        }
    }
    Ok(())
}

/// Absolute, below the root, and without `.` or `..`.
fn is_plain(path: &Path) -> bool {
    let mut components = path.components();
    let plain = |component: Component<'_>| matches!(component, Component::Normal(_));
    // `components` passes over a `.` in the middle, which the kernel would not mind; the text is compared to be strict.
    components.next() == Some(Component::RootDir)
        && components.clone().next().is_some()
        && components.all(plain)
        && path.components().collect::<PathBuf>().as_os_str() == path.as_os_str()
}

fn operation(step: Step, entry: Option<usize>, call: Call) -> Operation {
    Operation { step, entry, call }
}

fn text(text: &str) -> io::Result<CString> {
    c_string(OsStr::new(text))
}

fn mount(source: &OsStr, target: &OsStr, filesystem: &str, flags: u64, data: &str) -> io::Result<Call> {
    let (source, target) = (c_string(source)?, c_string(target)?);
    Ok(Call::Mount { source, target, filesystem: text(filesystem)?, flags, data: text(data)? })
}

/// Namespaces, no propagation, and the empty root. Devices are needed in it, so it has no `nodev`.
fn opening(mount_point: &Path, inodes: usize) -> io::Result<Vec<Operation>> {
    let flags = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let private = mount(OsStr::new("none"), OsStr::new("/"), "", libc::MS_REC | libc::MS_PRIVATE, "")?;
    let limits = format!("mode=0755,size={ROOT_BYTES},nr_inodes={inodes}");
    let root = mount(OsStr::new("jail"), mount_point.as_os_str(), "tmpfs", ROOT_FLAGS, &limits)?;
    Ok(vec![
        operation(Step::Namespaces, None, Call::Unshare { flags }),
        operation(Step::Namespaces, None, private),
        operation(Step::JailRoot, None, root),
    ])
}

const ROOT_FLAGS: u64 = libc::MS_NOSUID | libc::MS_NOEXEC;

/// Into the new root, away with the old one, and shut.
fn closing(mount_point: &Path) -> io::Result<Vec<Operation>> {
    let sealed = libc::MS_REMOUNT | libc::MS_RDONLY | ROOT_FLAGS;
    let seal = mount(OsStr::new("jail"), OsStr::new("/"), "", sealed, "")?;
    Ok(vec![
        operation(Step::JailEnter, None, Call::Chdir { path: c_string(mount_point.as_os_str())? }),
        operation(Step::JailEnter, None, Call::PivotRoot),
        operation(Step::JailEnter, None, Call::Detach),
        operation(Step::JailEnter, None, Call::Chdir { path: text("/")? }),
        operation(Step::JailSeal, None, seal),
    ])
}

/// Collects the operations of the entries.
struct Builder<'a> {
    root: &'a Path,
    /// Folders that are made already.
    folders: Vec<PathBuf>,
    operations: Vec<Operation>,
}

impl Builder<'_> {
    fn entry(&mut self, index: usize, entry: &JailEntry, kind: Kind, owner: (u32, u32)) -> io::Result<()> {
        let source = entry.source().as_os_str();
        let bound = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_NOSUID | libc::MS_NODEV;
        match (entry, kind) {
            (JailEntry::Device { path, .. }, Kind::CharacterDevice(device)) => {
                self.device(index, path, libc::S_IFCHR, device, owner)
            }
            (JailEntry::Device { path, .. }, Kind::BlockDevice(device)) => {
                self.device(index, path, libc::S_IFBLK, device, owner)
            }
            (JailEntry::ReadOnly { path, .. }, Kind::File | Kind::Folder) => {
                self.bind(index, path, source, kind, bound | libc::MS_RDONLY)
            }
            (JailEntry::Writable { path, .. }, Kind::File | Kind::Folder) => {
                self.bind(index, path, source, kind, bound | libc::MS_NOEXEC)
            }
            (JailEntry::Device { .. }, Kind::File | Kind::Folder | Kind::Other) => Err(wrong("no device")),
            (
                JailEntry::ReadOnly { .. } | JailEntry::Writable { .. },
                Kind::CharacterDevice(_) | Kind::BlockDevice(_) | Kind::Other,
            ) => Err(wrong("neither a file nor a folder")),
        }
    }

    fn device(
        &mut self,
        index: usize,
        path: &Path,
        node: libc::mode_t,
        device: u64,
        (uid, gid): (u32, u32),
    ) -> io::Result<()> {
        let place = self.place(index, path)?;
        self.push(Step::JailDevice, index, Call::Mknod { path: place.clone(), mode: node | 0o600, device });
        self.push(Step::JailDevice, index, Call::Chown { path: place, uid, gid });
        Ok(())
    }

    /// A bind mount takes its flags only in a second call; until then nobody but the child itself sees it.
    fn bind(&mut self, index: usize, path: &Path, source: &OsStr, kind: Kind, flags: u64) -> io::Result<()> {
        let place = self.place(index, path)?;
        let below = match kind {
            Kind::Folder => Call::Mkdir { path: place, mode: 0o755 },
            Kind::File | Kind::CharacterDevice(_) | Kind::BlockDevice(_) | Kind::Other => {
                Call::Mknod { path: place, mode: libc::S_IFREG | 0o444, device: 0 }
            }
        };
        self.push(Step::JailFolder, index, below);
        let target = self.inside(path);
        let bind = mount(source, target.as_os_str(), "", libc::MS_BIND, "")?;
        let restrict = mount(OsStr::new("none"), target.as_os_str(), "", flags, "")?;
        self.push(Step::JailBind, index, bind);
        self.push(Step::JailBind, index, restrict);
        Ok(())
    }

    /// The place under the mount point; the folders on the way are made first.
    fn place(&mut self, index: usize, path: &Path) -> io::Result<CString> {
        let mut on_the_way: Vec<_> = path.ancestors().skip(1).filter(|folder| folder.parent().is_some()).collect();
        on_the_way.reverse();
        for folder in on_the_way {
            if !self.folders.iter().any(|made| made == folder) {
                let place = c_string(self.inside(folder).as_os_str())?;
                self.push(Step::JailFolder, index, Call::Mkdir { path: place, mode: 0o755 });
                self.folders.push(folder.to_owned());
            }
        }
        c_string(self.inside(path).as_os_str())
    }

    /// Where a path of the inside is before the root is entered.
    fn inside(&self, path: &Path) -> PathBuf {
        // `check` made sure that it begins with `/`.
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn push(&mut self, step: Step, index: usize, call: Call) {
        self.operations.push(operation(step, Some(index), call));
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("its source is {what}"))
}

#[cfg(test)]
mod tests;

//! What there is to say about one file, directory or link.
//!
//! An entry describes the link itself, with the kind and mode of what it leads to: whoever lists a directory wants to know
//! whether `current -> releases/7` can be entered.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use super::files_limits as limits;
use super::paths;
use super::users::Accounts;

/// What metadata's extended attributes are called: this and the key.
pub const METADATA_PREFIX: &str = "user.e2b.";

/// What a path leads to, links followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A FIFO, socket or device; or nothing, at the end of a link.
    Other,
}

/// One file, directory or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Last part of the path, bytes that are not UTF-8 replaced.
    pub name: String,
    /// Where it is: absolute, its links not resolved.
    pub path: PathBuf,
    /// What it is; of a link, what its target is.
    pub kind: Kind,
    /// It is a link, whatever its target is.
    pub is_symlink: bool,
    /// In bytes; of a link, its own.
    pub size: u64,
    /// Permission bits (`0o777` at most); of a link, its target's, 0 when it has none.
    pub mode: u32,
    /// As Go prints them, such as `drwxr-xr-x` or `Lrwxrwxrwx`; of a link, its own.
    pub permissions: String,
    /// Name of the owner, or the number of one without a name.
    pub owner: String,
    /// Name of the group, or the number of one without a name.
    pub group: String,
    /// When the contents last changed.
    pub modified: SystemTime,
    /// Of a link: where it leads in the end; its own path when it leads nowhere.
    pub symlink_target: Option<PathBuf>,
    /// Extended attributes `user.e2b.*` without that prefix.
    pub metadata: BTreeMap<String, String>,
}

impl Entry {
    /// Describes what is at `path`, which is absolute and clean. Blocks.
    pub fn read(path: &Path, accounts: &Accounts) -> io::Result<Self> {
        let own = fs::symlink_metadata(path)?;
        let target = own.is_symlink().then(|| fs::metadata(path).ok()).flatten();
        let described = if own.is_symlink() { target.as_ref() } else { Some(&own) };
        Ok(Self {
            name: paths::name(path).to_string_lossy().into_owned(),
            path: path.to_owned(),
            kind: described.map_or(Kind::Other, kind),
            is_symlink: own.is_symlink(),
            size: own.size(),
            mode: described.map_or(0, |metadata| metadata.mode() & 0o777),
            permissions: permissions(own.file_type(), own.mode()),
            owner: accounts.user_name(own.uid()),
            group: accounts.group_name(own.gid()),
            modified: own.modified()?,
            symlink_target: own.is_symlink().then(|| target_path(path)),
            metadata: if own.is_symlink() { BTreeMap::new() } else { metadata(path) },
        })
    }

    /// It is a directory and no link to one: a walk goes in.
    pub fn can_be_walked(&self) -> bool {
        self.kind == Kind::Directory && !self.is_symlink
    }

    /// What it takes in an answer, in bytes, roughly.
    pub fn weight(&self) -> usize {
        let metadata: usize = self.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        let target = self.symlink_target.as_ref().map_or(0, |target| target.as_os_str().len());
        self.name.len() + self.path.as_os_str().len() + self.owner.len() + self.group.len() + target + metadata
    }
}

fn kind(metadata: &Metadata) -> Kind {
    match (metadata.is_file(), metadata.is_dir()) {
        (true, _) => Kind::File,
        (_, true) => Kind::Directory,
        (false, false) => Kind::Other,
    }
}

fn target_path(link: &Path) -> PathBuf {
    fs::canonicalize(link).unwrap_or_else(|_leads_nowhere| link.to_owned())
}

/// The mode as Go's `FileMode` prints it: a letter for each special bit (`-` for none), then the nine permissions.
fn permissions(file_type: fs::FileType, mode: u32) -> String {
    let special = [
        (file_type.is_dir(), 'd'),
        (file_type.is_symlink(), 'L'),
        (file_type.is_block_device() || file_type.is_char_device(), 'D'),
        (file_type.is_fifo(), 'p'),
        (file_type.is_socket(), 'S'),
        (mode & 0o4000 != 0, 'u'),
        (mode & 0o2000 != 0, 'g'),
        (file_type.is_char_device(), 'c'),
        (mode & 0o1000 != 0, 't'),
    ];
    let mut text: String = special.iter().filter(|(set, _)| *set).map(|(_, letter)| letter).collect();
    if text.is_empty() {
        text.push('-');
    }
    text.extend(
        "rwxrwxrwx".chars().enumerate().map(|(at, letter)| if mode & (0o400 >> at) != 0 { letter } else { '-' }),
    );
    text
}

/// The metadata of a file. What cannot be read is not there: most file systems of a kernel have no such attributes.
fn metadata(path: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut bytes = 0;
    for name in attributes(METADATA_PREFIX.as_bytes(), |list| rustix::fs::llistxattr(path, list)) {
        let mut value = Vec::with_capacity(limits::METADATA_BYTES_MAX);
        let Ok(_) = rustix::fs::lgetxattr(path, name.as_slice(), spare_capacity(&mut value)) else { continue };
        let key = &name[METADATA_PREFIX.len()..];
        bytes += key.len() + value.len();
        if bytes > limits::METADATA_BYTES_MAX {
            break;
        }
        found.insert(String::from_utf8_lossy(key).into_owned(), String::from_utf8_lossy(&value).into_owned());
    }
    found
}

/// The full names of those extended attributes that begin with `prefix`; `list` is one of the kernel's listxattr calls.
pub fn attributes(prefix: &[u8], list: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Vec<Vec<u8>> {
    let mut names = vec![0; 1024];
    let filled = match list(&mut names) {
        Err(Errno::RANGE) => {
            names.resize(limits::XATTR_LIST_BYTES_MAX, 0);
            list(&mut names)
        }
        other => other,
    };
    names.truncate(filled.unwrap_or(0));
    let names = names.split(|byte| *byte == 0);
    names.filter(|name| name.starts_with(prefix)).map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    fn accounts() -> Accounts {
        Accounts::parse("root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/bash\n", "root:x:0:\n")
    }

    fn read(path: &Path) -> Entry {
        Entry::read(path, &accounts()).unwrap()
    }

    #[test]
    fn a_file_is_described() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        fs::write(&path, "hello").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let entry = read(&path);
        assert_eq!((entry.name.as_str(), entry.kind, entry.size, entry.mode), ("a.txt", Kind::File, 5, 0o640));
        assert_eq!((entry.permissions.as_str(), entry.is_symlink, entry.symlink_target), ("-rw-r-----", false, None));
        assert_eq!(entry.path, path);
        assert!(entry.modified.elapsed().unwrap().as_secs() < 60);
        assert!(entry.metadata.is_empty());
    }

    #[test]
    fn a_link_is_described_with_kind_and_mode_of_its_target() {
        let dir = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(real.join("sub")).unwrap();
        fs::set_permissions(real.join("sub"), fs::Permissions::from_mode(0o750)).unwrap();
        symlink("sub", real.join("one")).unwrap();
        symlink("one", real.join("two")).unwrap();
        let entry = read(&real.join("two"));
        assert_eq!((entry.kind, entry.mode, entry.is_symlink), (Kind::Directory, 0o750, true));
        assert_eq!((entry.permissions.as_str(), entry.size), ("Lrwxrwxrwx", 3));
        assert_eq!(entry.symlink_target, Some(real.join("sub")));
        assert!(!entry.can_be_walked(), "a walk must not follow links");
    }

    #[test]
    fn a_link_that_leads_nowhere_names_itself() {
        let dir = tempfile::tempdir().unwrap();
        for (name, target) in [("dangling", "missing"), ("circle", "circle")] {
            let path = dir.path().join(name);
            symlink(target, &path).unwrap();
            let entry = read(&path);
            assert_eq!((entry.kind, entry.mode, entry.symlink_target), (Kind::Other, 0, Some(path)));
        }
    }

    #[test]
    fn special_files_and_bits_have_go_letters() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        assert_eq!((read(&fifo).permissions.as_str(), read(&fifo).kind), ("prw-------", Kind::Other));

        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        assert!(read(&socket).permissions.starts_with('S'));
        assert!(read(Path::new("/dev/null")).permissions.starts_with("Dcrw-"));

        for (mode, text) in
            [(0o4755, "urwxr-xr-x"), (0o2755, "grwxr-xr-x"), (0o1777, "trwxrwxrwx"), (0o0, "----------")]
        {
            let file = dir.path().join(format!("{mode:o}"));
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&file).permissions, text);
            assert_eq!(read(&file).mode, mode & 0o777, "permission bits only");
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(read(dir.path()).permissions, "dtrwxrwxrwx");
    }

    #[test]
    fn the_root_and_odd_names_have_names() {
        assert_eq!((read(Path::new("/")).name.as_str(), read(Path::new("/")).kind), ("/", Kind::Directory));
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join(odd_name());
        fs::write(&odd, "").unwrap();
        assert_eq!(read(&odd).name, "a\u{fffd}b");
    }

    fn odd_name() -> std::ffi::OsString {
        std::os::unix::ffi::OsStringExt::from_vec(b"a\xffb".to_vec())
    }

    #[test]
    fn metadata_are_the_attributes_with_the_prefix() {
        // On the disk of the build: /tmp may be of a kind that keeps no such attributes.
        let program = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        let set = |name: &str, value: &[u8]| {
            rustix::fs::setxattr(&path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
        };
        set("user.e2b.author", b"me");
        set("user.e2b.bytes", b"\xff");
        set("user.other", b"no");
        let metadata = read(&path).metadata;
        assert_eq!(metadata.get("author").map(String::as_str), Some("me"));
        assert_eq!(metadata.get("bytes").map(String::as_str), Some("\u{fffd}"));
        assert_eq!(metadata.len(), 2);
    }
}

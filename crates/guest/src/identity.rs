//! What a machine calls itself: its name, how the name resolves, its machine id, the id of its boot.
//!
//! wrenn-init writes it at boot, envd when the host says that the machine is another one from now on (a fork).

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

const ETC: &str = "/etc";
/// The address Debian gives a machine's own name; everything else in /etc/hosts belongs to the template or the user.
const OWN_ADDRESS: &str = "127.0.1.1";
const HOSTS_DEFAULT: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
/// Longest host name the kernel takes.
const NAME_BYTES_MAX: usize = 64;

/// Where programs read which boot of which machine this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// What is mounted there in a machine that was not booted, but began as another's memory. Gone with the memory.
const BOOT_ID_FILE: &str = "/run/wrenn/boot_id";

/// Why a machine has not got its name or id.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The kernel refused the name.
    #[error("cannot set the host name")]
    Hostname(#[source] rustix::io::Errno),
    /// A file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file could not be mounted.
    #[error("cannot mount {} over {}", file.display(), target.display())]
    Cover {
        /// The file.
        file: PathBuf,
        /// The place.
        target: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// 1 to 64 characters of `[a-z0-9-]`.
pub fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

/// 32 hex digits in lower case (machine-id(5)).
pub fn is_machine_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// A UUID in lower case: groups of 8, 4, 4, 4 and 12 hex digits.
pub fn is_boot_id(text: &str) -> bool {
    let digits = text.replace('-', "");
    let groups = text.split('-').map(str::len);
    is_machine_id(&digits) && groups.eq([8, 4, 4, 4, 12])
}

/// Sets the host name, in the kernel and in its files.
pub fn set_hostname(name: &str) -> Result<(), IdentityError> {
    rustix::system::sethostname(name.as_bytes()).map_err(IdentityError::Hostname)?;
    write_hostname(Path::new(ETC), name)
}

fn write_hostname(etc: &Path, name: &str) -> Result<(), IdentityError> {
    let path = etc.join("hosts");
    let existing = std::fs::read_to_string(&path).unwrap_or_default();
    put(&path, &hosts(&existing, name))?;
    put(&etc.join("hostname"), &format!("{name}\n"))
}

/// Sets the machine id.
pub fn set_machine_id(id: &str) -> Result<(), IdentityError> {
    put(&Path::new(ETC).join("machine-id"), &format!("{id}\n"))
}

/// Sets the boot id, as far as programs can read it: the kernel's own cannot be changed. A program in a mount namespace that
/// it made before the first time, or with a /proc of its own, still reads that one.
pub fn set_boot_id(id: &str) -> Result<(), IdentityError> {
    cover(Path::new(BOOT_ID), Path::new(BOOT_ID_FILE), &format!("{id}\n"))
}

/// Has `target` say `text` by mounting `file` over it. One that is mounted there already is written again, not mounted again:
/// so whoever has got the mount from us in a namespace of its own reads the new text as well.
fn cover(target: &Path, file: &Path, text: &str) -> Result<(), IdentityError> {
    write_in_place(file, text).map_err(|source| IdentityError::Write { path: file.to_owned(), source })?;
    let mounted = || -> io::Result<()> {
        if is_same(target, file)? {
            return Ok(());
        }
        rustix::mount::mount_bind(file, target)?;
        // As little to be written to as what it hides.
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        Ok(rustix::mount::mount_remount(target, flags, c"")?)
    };
    mounted().map_err(|source| IdentityError::Cover { file: file.to_owned(), target: target.to_owned(), source })
}

fn write_in_place(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o444).open(path)?;
    file.write_all(text.as_bytes())
}

fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (std::fs::metadata(one)?, std::fs::metadata(other)?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// Replaces a file, also where it was a link into a /run that is gone; leaves it alone if it says the same already.
pub fn put(path: &Path, text: &str) -> Result<(), IdentityError> {
    replace(path, text).map_err(|source| IdentityError::Write { path: path.to_owned(), source })
}

/// A file with something in it is replaced by a rename, so that a machine that dies has the old or the new one. ext4 waits
/// for the disk then; a file that is not there or empty, as in every new sandbox, is written as it is and waits for nothing.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(found) if found.is_file() && found.len() == 0 => {
            OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
        }
        Ok(found) if found.is_file() && std::fs::read(path)? == text.as_bytes() => Ok(()),
        Ok(_other) => {
            let temporary = path.with_extension("wrenn-new");
            std::fs::write(&temporary, text)?;
            std::fs::rename(&temporary, path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::write(path, text),
        Err(error) => Err(error),
    }
}

/// The old text with the line of our own name replaced, or a text of our own where there was none.
fn hosts(existing: &str, name: &str) -> String {
    let kept = if existing.trim().is_empty() { HOSTS_DEFAULT } else { existing };
    let foreign = kept.lines().filter(|line| line.split_ascii_whitespace().next() != Some(OWN_ADDRESS));
    let mut text: String = foreign.map(|line| format!("{line}\n")).collect();
    text.push_str(&format!("{OWN_ADDRESS} {name}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_have_their_forms() {
        for (text, name, id) in [
            ("sb0123456789abcdefgh", true, false),
            ("0123456789abcdef0123456789abcdef", true, true),
            ("0123456789ABCDEF0123456789ABCDEF", false, false),
            ("0123456789abcdef0123456789abcde", true, false),
            ("g123456789abcdef0123456789abcdef", true, false),
            ("", false, false),
            ("a.b", false, false),
            ("a b", false, false),
            ("a\n", false, false),
            (&"a".repeat(65), false, false),
        ] {
            assert_eq!((is_name(text), is_machine_id(text)), (name, id), "{text:?}");
        }
    }

    #[test]
    fn a_boot_id_has_the_form_of_the_kernel_s() {
        assert!(is_boot_id(std::fs::read_to_string(BOOT_ID).unwrap().trim()));
        for text in [
            "",
            "0123456789abcdef0123456789abcdef",
            "01234567-89AB-cdef-0123-456789abcdef",
            "01234567-89ab-cdef-0123-456789abcde",
            "0123456-789ab-cdef-0123-456789abcdef",
            "01234567-89ab-cdef-0123-456789abcdef-",
            "01234567-89ab-cdef-0123-456789abcdef\n",
        ] {
            assert!(!is_boot_id(text), "{text:?}");
        }
    }

    #[test]
    fn root_a_file_is_covered_once_and_says_the_last_text() {
        assert!(rustix::process::geteuid().is_root(), "this test needs root: it mounts a file over another");
        let folder = tempfile::tempdir().unwrap();
        let (target, file) = (folder.path().join("target"), folder.path().join("run/file"));
        std::fs::write(&target, "the kernel's").unwrap();
        for text in ["first", "second is longer", "third"] {
            cover(&target, &file, text).unwrap();
            assert_eq!(std::fs::read_to_string(&target).unwrap(), text);
            assert!(std::fs::write(&target, "mine").is_err(), "it can be read only");
        }
        rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "the kernel's", "there was one mount");
        cover(&target, &file, "fourth").unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "fourth", "also after somebody took it away");
        rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
    }

    #[test]
    fn a_new_name_replaces_the_old_one_everywhere() {
        let etc = tempfile::tempdir().unwrap();
        let read = |name: &str| std::fs::read_to_string(etc.path().join(name)).unwrap();
        for name in ["sb1", "sb2"] {
            write_hostname(etc.path(), name).unwrap();
            assert_eq!(read("hostname"), format!("{name}\n"));
            assert_eq!(read("hosts"), format!("{HOSTS_DEFAULT}127.0.1.1 {name}\n"));
        }
    }

    #[test]
    fn our_own_line_is_replaced_and_all_others_stay() {
        let first = hosts("", "sb1");
        assert_eq!(first, format!("{HOSTS_DEFAULT}127.0.1.1 sb1\n"));
        let edited = format!("{first}192.0.2.1 db # mine\n");
        let second = hosts(&edited, "sb2");
        assert_eq!(second, format!("{HOSTS_DEFAULT}192.0.2.1 db # mine\n127.0.1.1 sb2\n"));
    }

    #[test]
    fn a_file_ends_up_with_its_text_whatever_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for before in [None, Some(""), Some("older and longer than the new text"), Some("new")] {
            match before {
                Some(text) => std::fs::write(&path, text).unwrap(),
                None => assert!(!path.exists()),
            }
            replace(&path, "new").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "new", "{before:?}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_is_replaced_by_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        std::os::unix::fs::symlink("/nowhere/resolv.conf", &path).unwrap();
        replace(&path, "nameserver 192.0.2.1\n").unwrap();
        assert!(path.symlink_metadata().unwrap().is_file());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.1\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

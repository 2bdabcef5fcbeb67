//! What a machine's own files must say: its name, how the name resolves, who resolves others, its machine id.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::Path;

use super::InitError;
use super::cmdline::BootConfig;

const HOSTS: &str = "/etc/hosts";
/// The address Debian gives a machine's own name; everything else in /etc/hosts belongs to the template or the user.
const OWN_ADDRESS: &str = "127.0.1.1";
const HOSTS_DEFAULT: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";

/// Sets the host name and writes the files.
pub fn write(config: &BootConfig) -> Result<(), InitError> {
    rustix::system::sethostname(config.id.as_bytes()).map_err(InitError::Hostname)?;
    std::fs::create_dir_all("/etc").map_err(|source| InitError::Write { path: "/etc", source })?;
    let existing = std::fs::read_to_string(HOSTS).unwrap_or_default();
    put(HOSTS, &hosts(&existing, &config.id))?;
    put("/etc/hostname", &format!("{}\n", config.id))?;
    put("/etc/resolv.conf", &resolv_conf(config.dns))?;
    if std::fs::read_to_string("/etc/machine-id").map_or(true, |id| id.trim().is_empty()) {
        put("/etc/machine-id", &machine_id().map_err(|source| InitError::Write { path: "/etc/machine-id", source })?)?;
    }
    Ok(())
}

/// Replaces a file, also where it was a link into a /run that is gone; leaves it alone if it says the same already.
fn put(path: &'static str, text: &str) -> Result<(), InitError> {
    replace(Path::new(path), text).map_err(|source| InitError::Write { path, source })
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

fn resolv_conf(dns: Ipv4Addr) -> String {
    format!("nameserver {dns}\n")
}

/// 32 hex digits, new for every machine whose template has none (machine-id(5)).
fn machine_id() -> io::Result<String> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(format!("{}\n", uuid.trim().replace('-', "")))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        replace(&path, &resolv_conf(Ipv4Addr::new(192, 0, 2, 1))).unwrap();
        assert!(path.symlink_metadata().unwrap().is_file());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.1\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_machine_id_is_32_hex_digits() {
        let id = machine_id().unwrap();
        assert!(id.len() == 33 && id.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        assert_ne!(id, machine_id().unwrap());
    }
}

//! The server's folder: where its database and the agent's socket for it are.
//!
//! ```text
//!   root's view                    the server's view (a mount namespace of its own, an ordinary user)
//!   WRENN_DIR/server/              /run/wrenn/
//!     wrenn.db, -wal, -shm           wrenn.db …
//!     agent.sock                     agent.sock
//!     database-ca.pem                database-ca.pem     a copy of the file that the database's URL names, if it names one
//! ```
//!
//! `WRENN_DIR` is root's alone, and may be anywhere. So the server is shown its own folder, and nothing else of it, at a place
//! that is there on each host with an agent.

use std::fs::{self, DirBuilder};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use wrenn_agent::instance::RUN_DIR;
use wrenn_agent::lock::Lock;
use wrenn_engine::names::InstanceTag;
use wrenn_server::db::DatabaseUrl;
use wrenn_sys::confine::{Confinement, confine};

/// The database's name.
const DATABASE: &str = "wrenn.db";
/// The name of the lock that whoever serves holds; beside the folder, where the server's user cannot touch it.
const LOCK: &str = "server.lock";
/// The name of the copy of the authorities that sign the database's certificate.
const AUTHORITIES: &str = "database-ca.pem";
/// Largest file of them, in bytes: all authorities of a system are a quarter of that.
const AUTHORITIES_BYTES_MAX: u64 = 1024 * 1024;
const PEM_CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";
/// The socket's name.
const SOCKET: &str = "agent.sock";

/// The folder, as root sees it.
pub struct Room {
    dir: PathBuf,
    /// Whose it is.
    pub uid: u32,
}

impl Room {
    /// Makes the folder, or gives it to its user again: a copied or restored folder may be somebody else's.
    pub fn ensure(data_dir: &Path, tag: InstanceTag) -> Result<Self> {
        let (dir, uid) = (data_dir.join("server"), tag.server_uid());
        let cannot = || format!("cannot make the server's folder {}", dir.display());
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error).with_context(cannot),
            Ok(()) | Err(_) => {}
        }
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o700)).with_context(cannot)?;
        let files = fs::read_dir(&dir).with_context(cannot)?.collect::<Result<Vec<_>, _>>().with_context(cannot)?;
        for path in files.iter().map(fs::DirEntry::path).chain([dir.clone()]) {
            std::os::unix::fs::lchown(&path, Some(uid), Some(uid)).with_context(cannot)?;
        }
        Ok(Self { dir, uid })
    }

    /// Held by the one process that serves with this database: two would make each other's operations their own.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.dir.with_file_name(LOCK);
        match Lock::try_acquire(&path).with_context(|| format!("cannot lock {}", path.display()))? {
            Some(lock) => Ok(lock),
            None => bail!("another `wrenn serve` uses {}; end it, or take another WRENN_DIR", self.dir.display()),
        }
    }

    /// A file of it, as root sees it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where the agent listens for the server, as root sees it.
    pub fn agent_socket(&self) -> PathBuf {
        self.path(SOCKET)
    }

    /// The database, as the server sees it. To be asked for outside of the room, where its authorities' file can be read.
    pub fn database(&self, wanted: Option<&str>) -> Result<DatabaseUrl> {
        let url = database(wanted)?;
        let Some(named) = url.root_cert() else { return Ok(url) };
        let pem = read_authorities(&named)?;
        self.put(AUTHORITIES, &pem).with_context(|| format!("cannot copy {} for the server", named.display()))?;
        Ok(url.with_root_cert(&inside(AUTHORITIES)))
    }

    /// Writes a file for the server's user. The folder is that user's, so nothing that is there is opened or followed.
    fn put(&self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        let part = self.path(&format!("{name}.{}.part", std::process::id()));
        match fs::remove_file(&part) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(bytes)?;
        fchown(&file, Some(self.uid), Some(self.uid))?;
        fs::rename(part, self.path(name))
    }

    /// Takes the calling process into the room, for good.
    pub fn enter(&self, parent: Option<u32>) -> Result<()> {
        let place = Path::new(RUN_DIR);
        confine(&Confinement { uid: self.uid, folder: &self.dir, place, parent })
            .context("cannot become the server's user; is this process root's?")
    }
}

/// Where the agent listens, as the server sees it.
pub fn agent_socket() -> PathBuf {
    Path::new(RUN_DIR).join(SOCKET)
}

/// That a database is named as it has to be, and that what its name needs of this host's files is there.
pub fn check_database(wanted: Option<&str>) -> Result<()> {
    database(wanted)?.root_cert().as_deref().map(read_authorities).transpose()?;
    Ok(())
}

fn database(wanted: Option<&str>) -> Result<DatabaseUrl> {
    let default = || format!("sqlite:{}", inside(DATABASE).display());
    Ok(wanted.map_or_else(default, str::to_owned).parse()?)
}

/// The certificates of authorities in a file that only root may be able to read.
fn read_authorities(path: &Path) -> Result<Vec<u8>> {
    let remedy = "sslrootcert has to name a file with certificates of authorities, in PEM";
    let cannot = || format!("cannot read {}; {remedy}", path.display());
    let bytes = fs::metadata(path).with_context(cannot)?.len();
    if bytes > AUTHORITIES_BYTES_MAX {
        bail!("{} is larger than {} KiB; {remedy}", path.display(), AUTHORITIES_BYTES_MAX / 1024);
    }
    let pem = fs::read(path).with_context(cannot)?;
    if !pem.windows(PEM_CERTIFICATE.len()).any(|text| text == PEM_CERTIFICATE) {
        bail!("{} has no certificate; {remedy}", path.display());
    }
    Ok(pem)
}

/// A file of the room, as the server sees it.
pub fn inside(name: &str) -> PathBuf {
    Path::new(RUN_DIR).join(name)
}

/// Gives a file that the server wrote to root.
pub fn take_over(path: &Path) -> Result<()> {
    chown(path, Some(0), Some(0)).with_context(|| format!("cannot take over {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn the_authorities_of_a_database_are_copied_for_the_server() {
        let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let room = Room { dir: dir.path().to_owned(), uid: rustix::process::geteuid().as_raw() };
        let named = files.path().join("ca.pem");
        let url = format!("postgres://u@h/d?sslmode=verify-full&sslrootcert={}", named.display());
        let said = |error: anyhow::Error| crate::causes(&error);
        assert!(said(check_database(Some(&url)).unwrap_err()).contains("ca.pem; sslrootcert has to name"));
        fs::write(&named, "nothing").unwrap();
        assert!(said(room.database(Some(&url)).unwrap_err()).contains("has no certificate"));

        fs::write(&named, PEM).unwrap();
        let (copy, secret) = (room.path(AUTHORITIES), files.path().join("secret"));
        fs::write(&secret, "secret").unwrap();
        // What the server's user may have put there.
        symlink(&secret, &copy).unwrap();
        for _ in 0..2 {
            let seen = room.database(Some(&url)).unwrap();
            assert_eq!(seen.root_cert(), Some(inside(AUTHORITIES)));
            let about = fs::symlink_metadata(&copy).unwrap();
            assert!(about.is_file() && about.mode() & 0o777 == 0o600);
            assert_eq!(fs::read_to_string(&copy).unwrap(), PEM);
        }
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(room.database(None).unwrap().root_cert(), None);
    }
}

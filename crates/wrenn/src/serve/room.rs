//! The server's folder: where its database and the agent's socket for it are.
//!
//! ```text
//!   root's view                    the server's view (a mount namespace of its own, an ordinary user)
//!   WRENN_DIR/server/              /run/wrenn/
//!     wrenn.db, -wal, -shm           wrenn.db …
//!     agent.sock                     agent.sock
//! ```
//!
//! `WRENN_DIR` is root's alone, and may be anywhere. So the server is shown its own folder, and nothing else of it, at a place
//! that is there on each host with an agent.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use wrenn_agent::instance::RUN_DIR;
use wrenn_engine::names::InstanceTag;
use wrenn_server::db::DatabaseUrl;
use wrenn_sys::confine::{Confinement, confine};

/// The database's name.
const DATABASE: &str = "wrenn.db";
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

    /// A file of it, as root sees it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where the agent listens for the server, as root sees it.
    pub fn agent_socket(&self) -> PathBuf {
        self.path(SOCKET)
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

/// The database, as the server sees it.
pub fn database(wanted: Option<&str>) -> Result<DatabaseUrl> {
    let default = || format!("sqlite:{}", Path::new(RUN_DIR).join(DATABASE).display());
    Ok(wanted.map_or_else(default, str::to_owned).parse()?)
}

/// A file of the room, as the server sees it.
pub fn inside(name: &str) -> PathBuf {
    Path::new(RUN_DIR).join(name)
}

/// Gives a file that the server wrote to root.
pub fn take_over(path: &Path) -> Result<()> {
    chown(path, Some(0), Some(0)).with_context(|| format!("cannot take over {}", path.display()))
}

//! The exit record on disk: whole or not at all.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use wrenn_proto::shim::ExitRecord;

/// Writes the record: a temporary file beside it, fsync, rename, fsync of the folder.
pub fn write(path: &Path, record: &ExitRecord) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&record.to_json())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    // The path is absolute (`Spec::check`), so it has a parent.
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Now, in Unix milliseconds.
pub fn unix_ms() -> u64 {
    // A clock before 1970 is no reason to die.
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

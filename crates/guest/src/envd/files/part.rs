//! A file that has its name when it is whole: until then it is beside its place, under a name of its own, and it goes if it
//! does not get that far.
//!
//! What it takes the place of stays what it is but for its contents: links are followed, also to where nothing is yet, and the
//! permissions of a file are kept.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::Mode;

use super::upload::UploadError;
use crate::envd::files_limits as limits;
use crate::envd::filesystem::operations;
use crate::envd::users::User;

/// A file that is not whole yet.
pub struct Part {
    path: PathBuf,
    place: PathBuf,
    is_whole: bool,
}

impl Part {
    /// Makes it, and the directories above; it belongs to `owner`.
    pub fn begin(target: &Path, owner: &User) -> Result<(Self, File), UploadError> {
        let place = followed(target).map_err(UploadError::write("open", target))?;
        let there = fs::metadata(&place).ok().filter(fs::Metadata::is_file);
        operations::make_dirs(place.parent().unwrap_or(Path::new("/")), owner)?;
        let (path, file) = beside(&place).map_err(UploadError::write("make a file beside", &place))?;
        let part = Self { path, place, is_whole: false };
        operations::give(&file, owner).map_err(UploadError::write("give the user", &part.place))?;
        if let Some(there) = there {
            let mode = Mode::from_raw_mode(there.mode() & limits::KEPT_MODE);
            rustix::fs::fchmod(&file, mode).map_err(UploadError::write("set the mode of", &part.place))?;
        }
        Ok((part, file))
    }

    /// Gives it its name, in place of what was there.
    pub fn finish(mut self) -> Result<(), UploadError> {
        fs::rename(&self.path, &self.place).map_err(UploadError::write("replace", &self.place))?;
        self.is_whole = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.is_whole
            && let Err(error) = fs::remove_file(&self.path)
        {
            eprintln!("envd: a part of an upload stays at {}: {error}", self.path.display());
        }
    }
}

/// Where a path leads, also if nothing is there.
fn followed(target: &Path) -> io::Result<PathBuf> {
    let mut path = target.to_owned();
    for _ in 0..limits::LINKS_MAX {
        match fs::read_link(&path) {
            Ok(leads_to) => path = path.parent().unwrap_or(Path::new("/")).join(leads_to),
            // No link, or nothing there; what else may be wrong shows when something is made there.
            Err(_) => return Ok(path),
        }
    }
    Err(rustix::io::Errno::LOOP.into())
}

/// A new file in the same directory, 0666 less the umask.
fn beside(place: &Path) -> io::Result<(PathBuf, File)> {
    static PARTS: AtomicU64 = AtomicU64::new(0);
    loop {
        let serial = PARTS.fetch_add(1, Ordering::Relaxed);
        let path = place.with_file_name(format!(".wrenn-{}-{serial}.part", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).mode(0o666).open(&path) {
            // Left by a machine that was switched off; the next name is free.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            done => return done.map(|file| (path, file)),
        }
    }
}

//! The files of a capture, made out of what a VMM wrote.
//!
//! A VMM that was taken over by its guest holds on to every file that it was ever given. So what it wrote is copied, within
//! bounds, into files that it never sees.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom as Extent;
use rustix::io::Errno;

use super::VmmError;

/// Largest state of CPUs and devices taken, in bytes; 20 to 100 KiB are common.
const DEVICES_MAX: u64 = 16 * 1024 * 1024;
/// Mode of what was captured. All may read it, because every VMM that goes on from it runs as a user of its own and may
/// have to open it; nobody but root comes to where it is.
const MODE: u32 = 0o444;

/// Where `name` goes in the folder `into`; refuses if it is there already.
pub(super) fn absent(into: &Path, name: &str) -> Result<PathBuf, VmmError> {
    let path = into.join(name);
    match std::fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path),
        Err(source) => Err(VmmError::Capture { step: "look for", path, source }),
        Ok(_) => Err(VmmError::Capture { step: "make", path, source: io::ErrorKind::AlreadyExists.into() }),
    }
}

/// Copies the state of CPUs and devices to the new file `target`, whole or not at all.
pub(super) fn copy_devices(mut devices: &File, target: &Path) -> Result<(), VmmError> {
    let failed = |source| VmmError::Capture { step: "copy the devices' state to", path: target.to_owned(), source };
    let mut bytes = Vec::new();
    devices.rewind().and_then(|()| devices.take(DEVICES_MAX + 1).read_to_end(&mut bytes)).map_err(failed)?;
    match bytes.len() as u64 {
        0 => Err(failed(io::Error::other("the VMM wrote nothing"))),
        length if length > DEVICES_MAX => Err(VmmError::TooLong { command: "capture", limit: DEVICES_MAX as usize }),
        _ => create_whole(target, |mut file| file.write_all(&bytes)).map_err(failed),
    }
}

/// Copies what is not a hole of `memory` to the new file `target` of the same length, whole or not at all.
pub(super) fn copy_memory(memory: &File, target: &Path) -> Result<(), VmmError> {
    let copied = create_whole(target, |file| {
        let length = memory.metadata()?.len();
        file.set_len(length)?;
        copy_extents(memory, file, length)
    });
    copied.map_err(|source| VmmError::Capture { step: "copy memory to", path: target.to_owned(), source })
}

fn copy_extents(mut from: &File, mut to: &File, length: u64) -> io::Result<()> {
    let mut position = 0;
    while position < length {
        position = match rustix::fs::seek(from, Extent::Data(position)) {
            Ok(data) => data,
            // Only a hole is left.
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(from, Extent::Hole(position))?.min(length);
        from.seek(SeekFrom::Start(position))?;
        to.seek(SeekFrom::Start(position))?;
        io::copy(&mut from.take(end.saturating_sub(position)), &mut to)?;
        position = end;
    }
    Ok(())
}

/// Makes the file `target` with what `fill` puts in; nothing is left of one that could not be filled.
fn create_whole(target: &Path, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target)?;
    let filled = fill(&file).and_then(|()| file.set_permissions(Permissions::from_mode(MODE)));
    filled.inspect_err(|_| remove(target))
}

/// Removes what is left of a capture that failed; that it failed is what is told.
pub(super) fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove what is left of a capture");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn memory_is_copied_with_its_holes_and_its_zeroes() {
        const BLOCK: u64 = 64 * 1024;
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        let source = File::options().read(true).write(true).create_new(true).open(&from).unwrap();
        source.set_len(8 * BLOCK).unwrap();
        source.write_all_at(&[7; 1000], 2 * BLOCK).unwrap();
        source.write_all_at(&vec![0; BLOCK as usize], 4 * BLOCK).unwrap();
        source.write_all_at(&[9], 8 * BLOCK - 1).unwrap();
        copy_memory(&source, &to).unwrap();

        assert_eq!(std::fs::read(&to).unwrap(), std::fs::read(&from).unwrap());
        let (copy, source) = (File::open(&to).unwrap(), source.metadata().unwrap());
        assert_eq!(copy.metadata().unwrap().mode() & 0o7777, MODE);
        assert_eq!(copy.metadata().unwrap().blocks(), source.blocks(), "written zeroes are no hole");
        assert_eq!(rustix::fs::seek(&copy, Extent::Data(3 * BLOCK)).unwrap(), 4 * BLOCK);
        let taken = copy_memory(&copy, &to).unwrap_err();
        assert!(matches!(&taken, VmmError::Capture { path, .. } if *path == to));
        assert!(to.exists(), "what was there before stays");
    }

    #[test]
    fn a_state_of_no_bytes_or_too_many_is_no_state() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        for (length, fits) in [(0, false), (DEVICES_MAX + 1, false), (DEVICES_MAX, true)] {
            let source = File::options().read(true).write(true).create(true).truncate(true).open(&from).unwrap();
            source.set_len(length).unwrap();
            assert_eq!(copy_devices(&source, &to).is_ok(), fits, "{length}");
            assert_eq!(to.exists(), fits, "{length}");
        }
        assert!(matches!(absent(dir.path(), "to").unwrap_err(), VmmError::Capture { step: "make", .. }));
        assert!(absent(dir.path(), "new").is_ok());
    }
}

//! Files that are either the old or the new text after a crash: temporary name, fsync, rename, fsync of the folder.
//!
//! A *sealed* file is JSON that also tells when a bit of it was flipped: `{"sha256": of body, "body": …}`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

/// By how much the next text may be longer than this one, in bytes, and still find its place in a file that is rotated: a state
/// and its reason, with the end of a console.
const SLACK_BYTES: usize = 4096;
/// A file that is rotated stays as long as it is, unless that is so many bytes more than it needs.
const SURPLUS_BYTES_MAX: usize = 64 * 1024;

/// Replaces `path` by `bytes` (mode 0600). The folder must exist. Only one writer at a time: hold the owner's lock.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    stage(path, bytes)?.put()
}

/// Writes what `path` is to be (mode 0600) to a durable file beside it.
pub fn stage(path: &Path, bytes: &[u8]) -> io::Result<Staged> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(Staged { temporary, path: path.to_owned() })
}

/// A durable file that is not at its place yet. One that never comes there is replaced by the next.
#[derive(Debug)]
#[must_use]
pub struct Staged {
    temporary: PathBuf,
    path: PathBuf,
}

impl Staged {
    /// Puts it there, durable when this returns, and so is all else that was done in its folder.
    pub fn put(self) -> io::Result<()> {
        let folder = self.path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        std::fs::rename(&self.temporary, &self.path)?;
        sync_folder(folder)
    }
}

/// Replaces `path` by `text`, JSON, as [`replace`] does, and keeps what was there at `previous`. Once both are there, this takes
/// no room in a file system that writes in place: the file that was `previous` is written anew, and is as long as it was. So
/// what must be noted can be noted on a full disk. Blanks fill it up, and leave room for a text that is longer the next time.
///
/// `previous` is for a damaged disk, not for a crash: it may be missing or half written after one.
pub fn rotate(path: &Path, previous: &Path, text: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let spare = path.with_extension("new");
    take_spare(previous, &spare)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&spare)?;
    let mut padded = text.to_vec();
    padded.resize(room_for(text.len(), file.metadata()?.len()), b' ');
    file.write_all_at(&padded, 0)?;
    file.set_len(padded.len() as u64)?;
    file.sync_all()?;
    match std::fs::hard_link(path, previous) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    std::fs::rename(&spare, path)?;
    sync_folder(folder)
}

/// What is at `previous` is at `spare` afterwards, if nobody needs it there.
fn take_spare(previous: &Path, spare: &Path) -> io::Result<()> {
    match std::fs::metadata(previous) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        // A crash came between the two names of what is the newest: that must not be written to.
        Ok(metadata) if metadata.nlink() > 1 => std::fs::remove_file(previous),
        Ok(_) => std::fs::rename(previous, spare),
    }
}

/// How long a file with `text_bytes` becomes that has `file_bytes`: as long as it is, if that is reasonable.
fn room_for(text_bytes: usize, file_bytes: u64) -> usize {
    let wanted = (text_bytes + SLACK_BYTES).next_multiple_of(SLACK_BYTES);
    match usize::try_from(file_bytes) {
        Ok(file_bytes) if (text_bytes..=wanted + SURPLUS_BYTES_MAX).contains(&file_bytes) => file_bytes,
        Ok(_) | Err(_) => wanted,
    }
}

/// Reads a file that [`replace`] wrote, refusing more than `bytes_max`; `None` when it does not exist.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let metadata = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    if metadata.len() > bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{} bytes, and {bytes_max} are the limit", metadata.len()),
        ));
    }
    std::fs::read(path).map(Some)
}

/// Makes a folder's entries durable: what was made, renamed and removed in it.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Why a sealed file is not understood.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It is no JSON of the expected shape.
    #[error("it is not what it should be; was it cut short?")]
    Shape(#[from] serde_json::Error),
    /// Its content is not what was written.
    #[error("its checksum does not match: it was changed from outside, or the disk has failed")]
    Checksum,
}

#[derive(Serialize, Deserialize)]
struct Sealed<'a> {
    sha256: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// The text of a sealed file with this content.
pub fn seal(content: &impl Serialize) -> Vec<u8> {
    let body = serde_json::value::to_raw_value(content).expect("structs of strings and numbers are JSON");
    let sealed = Sealed { sha256: digest(&body), body: &body };
    let mut text = serde_json::to_vec(&sealed).expect("a string and raw JSON are JSON");
    text.push(b'\n');
    text
}

/// The content of a sealed file.
pub fn unseal<T: DeserializeOwned>(text: &[u8]) -> Result<T, SealError> {
    let sealed: Sealed<'_> = serde_json::from_slice(text)?;
    if digest(sealed.body) != sealed.sha256 {
        return Err(SealError::Checksum);
    }
    Ok(serde_json::from_str(sealed.body.get())?)
}

fn digest(body: &RawValue) -> String {
    hex::encode(Sha256::digest(body.get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_tells_every_flipped_bit() {
        let text = seal(&serde_json::json!({"state": "running", "slot": 3}));
        assert_eq!(unseal::<serde_json::Value>(&text).unwrap()["slot"], 3);
        for bit in 0..(text.len() - 1) * 8 {
            let mut damaged = text.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal::<serde_json::Value>(&damaged).is_err(), "bit {bit}");
        }
        for length in 0..text.len() - 1 {
            assert!(unseal::<serde_json::Value>(&text[..length]).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn a_rotated_file_takes_the_place_of_the_one_before_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let (path, previous) = (dir.path().join("manifest.json"), dir.path().join("manifest.previous.json"));
        let read = |path: &Path| unseal::<String>(&std::fs::read(path).unwrap()).unwrap();
        let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
        let size = |path: &Path| std::fs::metadata(path).unwrap().len();
        let rotate = |text: &str| super::rotate(&path, &previous, &seal(&text)).unwrap();
        rotate("first");
        assert!(!previous.exists());
        rotate("second");
        let (one, other, bytes) = (inode(&path), inode(&previous), size(&path));
        for text in ["third", &"long".repeat(1000), "short", &"x".repeat(4000)] {
            let before = (read(&path), inode(&path), inode(&previous));
            rotate(text);
            assert_eq!((read(&path).as_str(), read(&previous)), (text, before.0));
            assert_eq!((inode(&previous), inode(&path)), (before.1, before.2), "the files take turns");
            assert_eq!((size(&path), size(&previous)), (bytes, bytes), "and nothing is allocated");
        }
        assert!([one, other].contains(&inode(&path)));
        rotate(&"longer".repeat(10_000));
        assert_eq!(read(&path).len(), 60_000);
        rotate("short");
        rotate("short");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_newest_is_not_written_to_when_a_crash_has_left_it_two_names() {
        let dir = tempfile::tempdir().unwrap();
        let (path, previous) = (dir.path().join("manifest.json"), dir.path().join("manifest.previous.json"));
        for text in ["first", "second"] {
            rotate(&path, &previous, &seal(&text)).unwrap();
        }
        // As a crash before the last rename does.
        std::fs::rename(&previous, path.with_extension("new")).unwrap();
        std::fs::hard_link(&path, &previous).unwrap();
        let newest = File::open(&path).unwrap();
        rotate(&path, &previous, &seal(&"third")).unwrap();
        let bytes = io::read_to_string(newest).unwrap();
        assert_eq!(unseal::<String>(bytes.as_bytes()).unwrap(), "second");
        assert_eq!(unseal::<String>(&std::fs::read(&path).unwrap()).unwrap(), "third");
    }

    #[test]
    fn replaces_whole_and_privately() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.json");
        assert_eq!(read(&path, 10).unwrap(), None);
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read(&path, 10).unwrap().unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(read(&path, 2).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}

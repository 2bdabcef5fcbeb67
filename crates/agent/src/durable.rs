//! Files that are either the old or the new text after a crash: temporary name, fsync, rename, fsync of the folder.
//!
//! A *sealed* file is JSON that also tells when a bit of it was flipped: `{"sha256": of body, "body": …}`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

/// Replaces `path` by `bytes` (mode 0600). The folder must exist. Only one writer at a time: hold the owner's lock.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_folder(folder)
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

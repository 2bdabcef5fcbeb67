//! Pieces of disks that several generations, sandboxes and snapshots stand on.
//!
//! ```text
//!   sandboxes/A/layers/ly…      ┐
//!   sandboxes/B/layers/ly…      ├─ one file with several names: the file system counts who needs it
//!   snapshots/S/layers/ly…      ┘
//!   …/layers/ly….sums              its checksums, likewise
//! ```
//!
//! A layer is written once, as the disk of a generation, and never again. Whoever stands on it has a name of its own for it, so
//! that nobody has to know who else does: removing one's own names is all that is ever removed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use wrenn_engine::memory::{Checksums, MemoryError};
use wrenn_engine::names::LayerId;
use wrenn_engine::storage::copy_sparse;

use crate::generation::{Folder, GenerationError};

/// Ends the name of a layer's checksums.
const SUMS: &str = ".sums";
/// Mode of a copy: whoever runs a VM from it reads it as a user of its own.
const READ_ONLY: u32 = 0o444;

/// The layers that one sandbox or snapshot has names for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers(PathBuf);

impl Layers {
    /// Those of the sandbox or snapshot in `dir`.
    pub fn of(dir: &Path) -> Self {
        Self(dir.join("layers"))
    }

    /// Where a layer is.
    pub fn path(&self, id: &LayerId) -> PathBuf {
        self.0.join(id.as_str())
    }

    /// Where its checksums are.
    pub fn sums(&self, id: &LayerId) -> PathBuf {
        self.0.join(format!("{id}{SUMS}"))
    }

    /// Makes the disk of a generation the layer `id`; it stays the generation's as well.
    pub fn take(&self, generation: &Folder, id: &LayerId) -> Result<(), GenerationError> {
        self.make()?;
        link(&generation.disk_sums(), &self.sums(id))?;
        link(&generation.disk(), &self.path(id))
    }

    /// Names for layers of somebody else.
    pub fn share(&self, from: &Self, ids: &[LayerId]) -> Result<(), GenerationError> {
        if !ids.is_empty() {
            self.make()?;
        }
        for id in ids {
            link(&from.sums(id), &self.sums(id))?;
            link(&from.path(id), &self.path(id))?;
        }
        Ok(())
    }

    /// Reads all of a layer and compares it with its checksums.
    pub fn verify(&self, id: &LayerId) -> Result<(), VerifyError> {
        verify(&self.path(id), &self.sums(id))
    }

    /// Removes the names of all layers but `needed`. One that cannot be removed is logged, and tried again the next time.
    pub fn keep_only(&self, needed: &BTreeSet<LayerId>) {
        for entry in self.entries() {
            let path = entry.path();
            let id = layer_of(&path);
            if id.is_none_or(|id| needed.contains(&id)) {
                continue;
            }
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove a layer that nothing needs any more");
            }
        }
    }

    /// What they take on the host.
    pub fn allocated(&self) -> Share {
        let files = self.entries().into_iter().filter_map(|entry| entry.metadata().ok());
        files.fold(Share::default(), |sum, metadata| sum.plus(Share::of(&metadata)))
    }

    fn make(&self) -> Result<(), GenerationError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        made.map_err(GenerationError::io("make", &self.0))
    }

    /// There is no folder where there are no layers.
    fn entries(&self) -> Vec<fs::DirEntry> {
        fs::read_dir(&self.0).map(|entries| entries.flatten().collect()).unwrap_or_default()
    }
}

/// Why a layer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Its file.
    #[error(transparent)]
    File(#[from] GenerationError),
    /// Its content.
    #[error(transparent)]
    Content(#[from] MemoryError),
}

/// What files take on the host: allocated blocks × 512.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Of files that have one name.
    pub own_bytes: u64,
    /// Of files that others have a name for as well.
    pub shared_bytes: u64,
}

impl Share {
    /// What one file takes.
    pub fn of(metadata: &fs::Metadata) -> Self {
        let bytes = metadata.blocks() * 512;
        match (metadata.is_file(), metadata.nlink()) {
            (true, 0 | 1) => Self { own_bytes: bytes, shared_bytes: 0 },
            (true, _several) => Self { own_bytes: 0, shared_bytes: bytes },
            (false, _) => Self::default(),
        }
    }

    /// Both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { own_bytes: self.own_bytes + other.own_bytes, shared_bytes: self.shared_bytes + other.shared_bytes }
    }
}

/// The layer that a file in such a folder belongs to; `None` for what is none of ours.
fn layer_of(path: &Path) -> Option<LayerId> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(SUMS).unwrap_or(name).parse().ok()
}

/// Reads all of a file and compares it with its checksums.
pub(crate) fn verify(path: &Path, sums: &Path) -> Result<(), VerifyError> {
    let missing = || GenerationError::Missing { path: sums.to_owned() };
    let wanted = Checksums::read(sums)?.ok_or_else(missing)?;
    let file = File::open(path).map_err(GenerationError::io("open", path))?;
    Ok(wrenn_engine::memory::verify(&file, path, &wanted)?)
}

/// Another name for a file; one that is there already is right: ids are never used twice. Somebody may have put a part of
/// `WRENN_DIR` on another file system: then it is a copy, whole or not there.
pub(crate) fn link(from: &Path, to: &Path) -> Result<(), GenerationError> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices && !to.exists() => copy(from, to),
        other => other.map_err(GenerationError::io("link", from)),
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), GenerationError> {
    let half = to.with_extension("half");
    match fs::remove_file(&half) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(GenerationError::io("remove", &half)(error));
        }
        Ok(()) | Err(_) => {}
    }
    copy_sparse(from, &half, READ_ONLY)?;
    fs::rename(&half, to).map_err(GenerationError::io("rename", &half))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::{Generations, Number};

    fn id(byte: u8) -> LayerId {
        LayerId::from_random([byte; 18])
    }

    fn generation(dir: &Path, content: &str) -> Folder {
        let folder = Generations::of(dir).begin(Number::FIRST).unwrap();
        let bytes = content.repeat(4096);
        fs::write(folder.disk(), bytes).unwrap();
        let file = File::open(folder.disk()).unwrap();
        Checksums::of(&file, &folder.disk()).unwrap().write(&folder.disk_sums()).unwrap();
        folder
    }

    #[test]
    fn whoever_has_a_name_for_a_layer_keeps_it() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folder = generation(one.path(), "x");
        let (ours, theirs) = (Layers::of(one.path()), Layers::of(other.path()));
        ours.take(&folder, &id(1)).unwrap();
        ours.take(&folder, &id(1)).unwrap();
        theirs.share(&ours, &[id(1)]).unwrap();
        assert_eq!(theirs.allocated().own_bytes, 0);
        assert!(theirs.allocated().shared_bytes >= 4096);

        fs::remove_dir_all(one.path().join("layers")).unwrap();
        folder.remove_disk();
        theirs.verify(&id(1)).unwrap();
        assert!(theirs.allocated().own_bytes >= 4096);
        theirs.keep_only(&BTreeSet::from([id(2)]));
        let error = theirs.verify(&id(1)).unwrap_err();
        assert!(matches!(error, VerifyError::File(GenerationError::Missing { .. })), "{error}");
    }

    #[test]
    fn damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let layers = Layers::of(dir.path());
        layers.take(&generation(dir.path(), "x"), &id(7)).unwrap();
        let file = File::options().write(true).open(layers.path(&id(7))).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"y", 5).unwrap();
        let error = layers.verify(&id(7)).unwrap_err().to_string();
        assert!(error.contains(id(7).as_str()) && error.contains("damaged"), "{error}");
    }
}

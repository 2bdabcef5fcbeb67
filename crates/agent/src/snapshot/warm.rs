//! Warm images: VMs that were booted once and captured when their guest was ready, before it was told anything.
//!
//! One fits to a [`Key`] alone: everything that would have made the boot another one. Sandboxes with another key boot cold.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};
use wrenn_engine::limits;
use wrenn_engine::storage::LayerFormat;
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::{Description, GuestCpu};

use super::{Record, Shelf, SnapshotError, Stored, Unfinished, io_error};
use crate::generation::Generation;
use crate::host_agent::WarmView;
use crate::lock::Lock;

/// Hex digits of a key in a file's name.
const KEY_DIGITS: usize = 32;

/// What a warm image fits to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Key {
    /// Id of the template.
    pub template: String,
    /// Id of the kernel set.
    pub kernel: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: Mib,
    /// Size of the disk.
    pub disk: Mib,
    /// What runs it.
    pub vmm: Description,
    /// The CPU that the guest sees.
    pub cpu: GuestCpu,
    /// How disks are kept.
    pub storage: LayerFormat,
    /// Public half of the instance's key, which the guest knows: 64 hex digits.
    pub host_key: String,
}

impl Key {
    /// As a file's name.
    pub fn name(&self) -> String {
        let text = serde_json::to_vec(self).expect("a key is plain data");
        hex::encode(Sha256::digest(text))[..KEY_DIGITS].to_owned()
    }
}

/// The warm images in one `WRENN_DIR`. Several processes may make and use them.
#[derive(Clone, Debug)]
pub struct WarmImages(Shelf);

impl WarmImages {
    /// Those in the instance folder `dir`.
    pub fn of(dir: &Path) -> Self {
        Self(Shelf(dir.join("warm")))
    }

    /// The one for `key`, if there is one.
    pub fn find(&self, key: &Key) -> Option<Stored> {
        let stored = self.0.at(&key.name());
        stored.record_path().exists().then_some(stored)
    }

    /// Begins the one for `key`; `None` while somebody else makes it, or has made it.
    pub fn make(&self, key: &Key) -> Result<Option<Unfinished>, SnapshotError> {
        let folder = &self.0.0;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io_error("make", folder))?;
        let Some(lock) = self.lock(&key.name())? else { return Ok(None) };
        if self.find(key).is_some() {
            return Ok(None);
        }
        self.0.begin(&key.name(), Some(lock)).map(Some)
    }

    /// Makes it findable; the images that were made longest ago go if there are too many.
    pub fn finish(&self, made: Unfinished, record: &Record) -> Result<(), SnapshotError> {
        made.commit(record)?;
        self.make_room();
        Ok(())
    }

    /// Those of one template.
    pub fn of_template(&self, template: &str) -> Vec<WarmView> {
        self.all().into_iter().filter(|(found, _)| found == template).map(|(_, view)| view).collect()
    }

    /// Removes those of one template.
    pub fn remove_of(&self, template: &str) -> Result<(), SnapshotError> {
        self.of_template(template).iter().try_for_each(|view| self.0.remove(&view.key))
    }

    /// Removes one that turned out to be damaged: the next sandbox of its key makes another.
    pub fn remove(&self, key: &Key) {
        if let Err(error) = self.0.remove(&key.name()) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "cannot remove a warm image");
        }
    }

    /// Throws away what a crash left half made or half removed; what somebody is making is left alone. Answers how much it was.
    pub fn sweep(&self) -> usize {
        self.0.sweep(|name| self.lock(name).ok().flatten())
    }

    /// The right to make the one called `name`; `None` while somebody else has it.
    fn lock(&self, name: &str) -> Result<Option<Lock>, SnapshotError> {
        let path = self.0.0.join(format!("{name}.lock"));
        Lock::try_acquire(&path).map_err(io_error("lock", &path))
    }

    /// Each with its template.
    fn all(&self) -> Vec<(String, WarmView)> {
        let names = self.0.names().into_iter().filter(|name| name.len() == KEY_DIGITS);
        names.filter_map(|name| self.view(name).ok()).collect()
    }

    fn view(&self, key: String) -> Result<(String, WarmView), SnapshotError> {
        let stored = self.0.at(&key);
        let (record, generation) = (stored.record()?, Generation::read(&stored.generation())?);
        let share = stored.allocated();
        let view = WarmView {
            key,
            vcpus: generation.vcpus,
            memory: generation.memory_mib,
            disk: record.disk_mib,
            kernel: generation.kernel,
            vmm: generation.vmm,
            own_bytes: share.own_bytes + share.shared_bytes,
        };
        Ok((record.template, view))
    }

    fn make_room(&self) {
        let names = self.0.names().into_iter().filter(|name| name.len() == KEY_DIGITS);
        let age = |name: &String| self.0.at(name).record().map_or(0, |record| record.created_unix_ms);
        let mut names: Vec<_> = names.map(|name| (age(&name), name)).collect();
        names.sort();
        let surplus = names.len().saturating_sub(limits::WARM_IMAGES_MAX);
        for (_, name) in names.into_iter().take(surplus) {
            if let Err(error) = self.0.remove(&name) {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot remove the oldest warm image");
            }
        }
    }
}

/// Any key.
#[cfg(test)]
pub(crate) fn any_key() -> Key {
    use wrenn_engine::vmm::{Accel, DriverKind};
    Key {
        template: "t".to_owned(),
        kernel: "k".to_owned(),
        vcpus: 1,
        memory: Mib(256),
        disk: Mib(64),
        vmm: Description { driver: DriverKind::Qemu, version: "10.0.2".to_owned(), accel: Accel::Tcg },
        cpu: GuestCpu { vendor: "v".to_owned(), family: 1, model: 2, features: String::new(), tsc_mhz: None },
        storage: LayerFormat::Qcow2,
        host_key: "k".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::any_key as key;
    use super::*;

    #[test]
    fn whatever_differs_is_another_key() {
        let first = key();
        assert_eq!(first.name().len(), KEY_DIGITS);
        assert_eq!(first.name(), key().name());
        let others = [
            Key { template: "u".to_owned(), ..key() },
            Key { kernel: "l".to_owned(), ..key() },
            Key { vcpus: 2, ..key() },
            Key { memory: Mib(512), ..key() },
            Key { disk: Mib(65), ..key() },
            Key { vmm: Description { version: "10.0.3".to_owned(), ..key().vmm }, ..key() },
            Key { cpu: GuestCpu { model: 3, ..key().cpu }, ..key() },
            Key { storage: LayerFormat::DmCow, ..key() },
            Key { host_key: "l".to_owned(), ..key() },
        ];
        for other in others {
            assert_ne!(other.name(), first.name(), "{other:?}");
        }
    }

    #[test]
    fn one_that_is_being_made_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let images = WarmImages::of(dir.path());
        let making = images.make(&key()).unwrap().unwrap();
        assert!(images.find(&key()).is_none());
        assert!(images.of_template("t").is_empty());
        assert!(images.make(&key()).unwrap().is_none(), "one at a time");
        let folder = making.stored().path().to_owned();
        drop(making);
        assert!(!folder.exists(), "one that is not finished is thrown away");
        assert!(images.make(&key()).unwrap().is_some());
    }
}

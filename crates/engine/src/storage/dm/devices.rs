//! The devices of disks on the host: building, recognizing, removing and sweeping them.
//!
//! A disk's devices are known by their names ([`DiskName`]) and by nothing else: whoever finds one can tell whose it is.
//! Nobody but the owner of a sandbox (who holds its lock) touches its devices, so no lock is needed here.

use std::fs::File;
use std::path::Path;

use wrenn_sys::blockdev::DeviceNumber;
use wrenn_sys::dm::{Access, DeviceMapper, DmName, Target};
use wrenn_sys::loopdev::LoopDevice;

use super::loops::{self, FileId, LoopRegistry};
use super::plan::{self, Step, StoreOf};
use crate::limits;
use crate::names::{DiskName, InstanceTag, SandboxId};
use crate::storage::{Layer, StorageError};

/// What a disk's devices are to be made of.
pub(super) struct Wanted<'a> {
    pub name: &'a DiskName,
    pub layers: &'a [Layer],
    pub size_bytes: u64,
    /// The live file, opened for reading and writing, and where it is.
    pub live: (&'a File, &'a Path),
}

/// The way to the host's devices.
#[derive(Debug)]
pub(super) struct Devices {
    mapper: DeviceMapper,
    images: LoopRegistry,
}

impl Devices {
    pub(super) fn open() -> Result<Self, StorageError> {
        Ok(Self { mapper: DeviceMapper::open()?, images: LoopRegistry::default() })
    }

    pub(super) fn mapper(&self) -> &DeviceMapper {
        &self.mapper
    }

    /// Builds the devices of a disk, and answers the number of the VM's one. Devices of the same name that were left behind
    /// are removed first. On failure there is none.
    pub(super) fn build(&self, wanted: &Wanted<'_>) -> Result<DeviceNumber, StorageError> {
        let steps = plan::steps(wanted.layers, wanted.size_bytes)?;
        let names = plan::names(wanted.name, steps.len());
        let built = match self.build_all(wanted, &steps, &names) {
            // Somebody of our name: a process that was killed left it, and its sandbox is ours now.
            Err(StorageError::DeviceMapper(error)) if error.is_busy() => {
                tracing::warn!(disk = %wanted.name.device(), "replacing devices that were left behind");
                self.remove_all(wanted.name)?;
                self.build_all(wanted, &steps, &names)
            }
            other => other,
        };
        built.inspect_err(|_| {
            if let Err(error) = self.remove_all(wanted.name) {
                tracing::warn!(disk = %wanted.name.device(), %error, "cannot remove half-made devices");
            }
        })
    }

    fn build_all(&self, wanted: &Wanted<'_>, steps: &[Step], names: &[DmName]) -> Result<DeviceNumber, StorageError> {
        // Held until the lowest table names it.
        let image = self.images.image(&wanted.layers[0].path)?;
        let mut beneath = image.device();
        for (step, name) in steps.iter().zip(names) {
            let store = step.store().map(|store| attach(store, wanted)).transpose()?;
            beneath = self.build_one(name, *step, beneath, store.as_ref())?;
        }
        Ok(beneath)
    }

    /// `store` is closed by the caller only when the table has it.
    fn build_one(
        &self,
        name: &DmName,
        step: Step,
        beneath: DeviceNumber,
        store: Option<&LoopDevice>,
    ) -> Result<DeviceNumber, StorageError> {
        let device = self.mapper.create(name)?;
        self.mapper.load(name, &step.table(beneath, store.map(LoopDevice::device)), access(step))?;
        self.mapper.resume(name)?;
        Ok(device)
    }

    /// The number of the VM's device if all devices of the disk are there already and as wanted; I/O that waits is let go on.
    pub(super) fn adopt(&self, wanted: &Wanted<'_>) -> Result<Option<DeviceNumber>, StorageError> {
        let steps = plan::steps(wanted.layers, wanted.size_bytes)?;
        let image = self.images.image(&wanted.layers[0].path)?;
        let mut beneath = image.device();
        for (step, name) in steps.iter().zip(plan::names(wanted.name, steps.len())) {
            match self.adopt_one(&name, *step, beneath, wanted)? {
                Some(device) => beneath = device,
                None => return Ok(None),
            }
        }
        Ok(Some(beneath))
    }

    fn adopt_one(
        &self,
        name: &DmName,
        step: Step,
        beneath: DeviceNumber,
        wanted: &Wanted<'_>,
    ) -> Result<Option<DeviceNumber>, StorageError> {
        // A device that is not there, has no table or a foreign one is not what is wanted, and will be made anew.
        let (Ok(info), Ok(Some(table))) = (self.mapper.info(name), self.mapper.table(name)) else { return Ok(None) };
        let store = table.lines().iter().find_map(|line| match line.target {
            Target::Snapshot { cow, .. } => Some(cow),
            Target::Linear { .. } | Target::Zero | Target::SnapshotOrigin { .. } => None,
        });
        let equal = store.is_some() == step.store().is_some() && table == step.table(beneath, store);
        let same_file = match (step.store(), store) {
            (Some(of), Some(device)) => is_behind(device, of, wanted)?,
            (Some(_), None) | (None, Some(_)) => false,
            (None, None) => true,
        };
        if !(equal && same_file) || info.read_only != (access(step) == Access::ReadOnly) {
            return Ok(None);
        }
        if info.suspended {
            self.mapper.resume(name)?;
        }
        Ok(Some(info.device))
    }

    /// Removes the devices that a disk of this plan has, the VM's one first. Those that are gone already are fine.
    pub(super) fn remove(&self, name: &DiskName, layers: &[Layer], size_bytes: u64) -> Result<(), StorageError> {
        let steps = plan::steps(layers, size_bytes)?;
        plan::names(name, steps.len()).iter().rev().try_for_each(|name| self.remove_one(name))
    }

    /// Removes all devices of this name, however many there are.
    pub(super) fn remove_all(&self, name: &DiskName) -> Result<(), StorageError> {
        self.of(|found| found == name)?.into_iter().try_for_each(|(_, _, device)| self.remove_one(&device))
    }

    /// The devices of the disks that `wanted` picks, in the order in which they can be removed.
    fn of(&self, wanted: impl Fn(&DiskName) -> bool) -> Result<Vec<Found>, StorageError> {
        let listed = self.mapper.list()?.into_iter();
        let ours = listed.filter_map(|(device, _)| {
            let (name, level) = DiskName::parse(device.as_str()).ok()?;
            wanted(&name).then_some((name, level, device))
        });
        let mut found: Vec<_> = ours.collect();
        // The VM's device stands on the highest level, which stands on the next.
        found.sort_by_key(|(name, level, _)| (name.clone(), std::cmp::Reverse(level.unwrap_or(u16::MAX))));
        Ok(found)
    }

    fn remove_one(&self, name: &DmName) -> Result<(), StorageError> {
        for left in (0..limits::DEVICE_REMOVAL_TRIES).rev() {
            match self.mapper.remove(name) {
                Ok(()) => return Ok(()),
                Err(error) if error.is_absent() => return Ok(()),
                Err(error) if error.is_busy() && left > 0 => self.let_go(name),
                Err(error) if error.is_busy() => return Err(StorageError::InUse { name: name.clone(), source: error }),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Who has it open may be ending, or wait for I/O to a device that was suspended by a process that was killed.
    fn let_go(&self, name: &DmName) {
        let suspended = self.mapper.info(name).is_ok_and(|info| info.suspended);
        if suspended && let Err(error) = self.mapper.resume(name) {
            tracing::warn!(device = %name, %error, "cannot resume a device that is to be removed");
        }
        std::thread::sleep(limits::DEVICE_REMOVAL_PAUSE);
    }

    /// Removes every device of the instance `tag` whose sandbox nobody owns; answers whose they were.
    pub(super) fn sweep(
        &self,
        tag: InstanceTag,
        owned: &dyn Fn(&SandboxId) -> bool,
    ) -> Result<Vec<SandboxId>, StorageError> {
        let mut swept = Vec::new();
        let mut first_error = None;
        for (name, _, device) in self.of(|name| name.tag == tag && !owned(&name.sandbox))? {
            match self.remove_one(&device) {
                Ok(()) if swept.last() != Some(&name.sandbox) => swept.push(name.sandbox),
                Ok(()) => {}
                // One that is in use must not keep the others from going.
                Err(error) => {
                    tracing::warn!(%device, %error, "cannot remove a device that nobody owns");
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(swept), Err)
    }
}

/// A disk's name, its device's level, and its device.
type Found = (DiskName, Option<u16>, DmName);

fn access(step: Step) -> Access {
    match step {
        Step::Widen { .. } | Step::Snapshot { store: StoreOf::Layer(_), .. } => Access::ReadOnly,
        Step::Snapshot { store: StoreOf::Live, .. } => Access::ReadWrite,
    }
}

fn attach(store: StoreOf, wanted: &Wanted<'_>) -> Result<LoopDevice, StorageError> {
    match store {
        StoreOf::Layer(index) => loops::sealed(&wanted.layers[index].path),
        StoreOf::Live => loops::live(wanted.live.0),
    }
}

/// Whether the loop device `device` has the file of `store`.
fn is_behind(device: DeviceNumber, store: StoreOf, wanted: &Wanted<'_>) -> Result<bool, StorageError> {
    let id = match store {
        StoreOf::Layer(index) => {
            let path = &wanted.layers[index].path;
            FileId::of(&File::open(path).map_err(StorageError::io("open", path))?, path)?
        }
        StoreOf::Live => FileId::of(wanted.live.0, wanted.live.1)?,
    };
    // A loop device whose number is no longer its minor number, or that is gone, is not the wanted one.
    let found = LoopDevice::open(device.minor, true).ok().filter(|found| found.device() == device);
    Ok(found.and_then(|found| found.status().ok()).is_some_and(|status| id.is_behind(&status)))
}

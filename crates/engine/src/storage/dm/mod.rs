//! Storage by device-mapper: the kernel puts a disk together, and the VM gets a block device.
//!
//! ```text
//!   wrenn-TAG-SANDBOX          snapshot  ◄─ what the VM writes: the live file (an exception store), by its loop device
//!        │ stands on
//!   wrenn-TAG-SANDBOX-LEVEL    snapshot of a sealed layer, read-only; or linear + zero, where a disk is larger than what
//!        │                     it stands on. None of these for a fresh disk of its template's size.
//!   loop device of the image   read-only, one for all disks on it
//! ```
//!
//! The devices beneath belong to one disk each, though several disks may stand on the same sealed layer: they cost a table
//! in memory, and nobody has to count who uses them. What is shared is the image's loop device and the page cache.
//!
//! A live file is sparse and has room for every chunk of the disk, so it never fills up. The file system beneath it does;
//! then the snapshot is *invalid* for ever: [`Health::Lost`], and [`super::space`] is there to not let it come to that.
//!
//! A process that is killed at any step leaves at most devices with the sandbox's name ([`sweep`] finds them) and the live
//! file in the sandbox's folder: loop devices go by themselves ([`loops`]).

mod devices;
mod loops;
mod merge;
mod plan;
mod store;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use wrenn_sys::blockdev::DeviceNumber;
use wrenn_sys::dm::{DmName, SnapshotStatus, Suspend};

pub use loops::LoopRegistry;
pub use store::StoreError;

use devices::{Devices, Wanted};
use store::StoreReader;

use super::extents::{copy_sparse, remove_half_made};
use super::flatten::{create_new, flatten, overwrite, write_sealed};
use super::{
    Backend, Disk, DiskStatus, Health, LIVE_MODE, Layer, LayerFormat, Place, SEALED_MODE, Storage, StorageError,
    allocated_bytes, check_size, remove_live_file, shared_bytes, space, sync_live_file, topmost, topmost_of_growing,
};
use crate::names::{DiskName, InstanceTag, SandboxId};

/// How this backend keeps what differs from the layers beneath.
const OURS: LayerFormat = LayerFormat::DmCow;

/// Where it can be seen whether device-mapper is in use on this host, without loading it.
const IN_KERNEL: &str = "/sys/class/misc/device-mapper";

/// The device-mapper backend.
#[derive(Debug)]
pub struct Dm {
    devices: Devices,
}

impl Dm {
    /// Opens the way to device-mapper; an error where the kernel has none.
    pub fn open() -> Result<Self, StorageError> {
        Ok(Self { devices: Devices::open()? })
    }

    /// The VM's device, once it is there; what it is made of is removed again if /dev has no node for it.
    fn disk(
        &self,
        place: &Place,
        layers: &[Layer],
        size_bytes: u64,
        device: DeviceNumber,
    ) -> Result<Disk, StorageError> {
        let name = dm_name(&place.name);
        let Some(node) = device.node("dm-") else { return Err(StorageError::NoNode { name, device }) };
        Ok(Disk {
            name: place.name.clone(),
            path: place.path.clone(),
            layers: layers.to_vec(),
            size_bytes,
            device: Some(node),
        })
    }

    /// Puts a disk together over a live file that was just made; on failure that is gone again.
    fn assemble(&self, place: &Place, layers: &[Layer], size_bytes: u64, live: &File) -> Result<Disk, StorageError> {
        let wanted = Wanted { name: &place.name, layers, size_bytes, live: (live, &place.path) };
        self.devices
            .build(&wanted)
            .and_then(|device| self.disk(place, layers, size_bytes, device))
            .map_err(|error| remove_half_made(&place.path, error))
    }

    fn snapshot_status(&self, disk: &Disk) -> Result<Health, StorageError> {
        match self.devices.mapper().snapshot_status(&dm_name(&disk.name))? {
            SnapshotStatus::Usage { .. } | SnapshotStatus::Unknown => Ok(Health::Sound),
            SnapshotStatus::Invalid | SnapshotStatus::Overflow => Ok(Health::Lost),
        }
    }

    fn check_sound(&self, disk: &Disk) -> Result<(), StorageError> {
        match self.snapshot_status(disk)? {
            Health::Sound => Ok(()),
            Health::Lost => Err(StorageError::Lost { name: dm_name(&disk.name), path: disk.path.clone() }),
        }
    }

    /// Copies the live file while nothing is written to it.
    fn copy_suspended(&self, disk: &Disk, path: &Path) -> Result<(), StorageError> {
        // What was in flight is in the file now, or the store is invalid.
        self.check_sound(disk)?;
        copy_sparse(&disk.path, path, SEALED_MODE)
    }
}

impl Storage for Dm {
    fn backend(&self) -> Backend {
        Backend::DeviceMapper
    }

    fn create(&self, place: &Place, layers: &[Layer], size_bytes: u64) -> Result<Disk, StorageError> {
        check_size(topmost(layers, OURS)?, size_bytes)?;
        plan::steps(layers, size_bytes)?;
        check_room(&place.path)?;
        let live = create_new(&place.path, LIVE_MODE)?;
        live.set_len(plan::store_bytes(size_bytes))
            .map_err(|error| remove_half_made(&place.path, StorageError::io("size", &place.path)(error)))?;
        self.assemble(place, layers, size_bytes, &live)
    }

    fn open(&self, place: &Place, layers: &[Layer], size_bytes: u64) -> Result<Disk, StorageError> {
        check_size(topmost(layers, OURS)?, size_bytes)?;
        let live = open_live(&place.path)?;
        check_store(&live, &place.path, size_bytes)?;
        let wanted = Wanted { name: &place.name, layers, size_bytes, live: (&live, &place.path) };
        let device = match self.devices.adopt(&wanted)? {
            Some(device) => device,
            None => self.devices.build(&wanted)?,
        };
        self.disk(place, layers, size_bytes, device)
    }

    fn seal(&self, disk: &Disk, path: &Path) -> Result<Layer, StorageError> {
        let name = dm_name(&disk.name);
        self.devices.mapper().suspend(&name, Suspend::Flush)?;
        let copied = self.copy_suspended(disk, path);
        let resumed = self.devices.mapper().resume(&name);
        copied?;
        resumed?;
        Ok(Layer { path: path.to_owned(), format: OURS, size_bytes: disk.size_bytes })
    }

    fn restore(&self, place: &Place, layers: &[Layer]) -> Result<Disk, StorageError> {
        let top = topmost(layers, OURS)?;
        match top.format {
            LayerFormat::Raw => self.create(place, layers, top.size_bytes),
            LayerFormat::Qcow2 | LayerFormat::DmCow => {
                copy_sparse(&top.path, &place.path, LIVE_MODE)?;
                let live = open_live(&place.path)
                    .and_then(|live| check_store(&live, &place.path, top.size_bytes).map(|()| live))
                    .map_err(|error| remove_half_made(&place.path, error))?;
                self.assemble(place, &layers[..layers.len() - 1], top.size_bytes, &live)
            }
        }
    }

    fn detach(&self, disk: &Disk) -> Result<(), StorageError> {
        self.devices.remove(&disk.name, &disk.layers, disk.size_bytes)?;
        sync_live_file(&disk.path)
    }

    fn layer_format(&self) -> LayerFormat {
        OURS
    }

    fn flatten(&self, layers: &[Layer], path: &Path) -> Result<Layer, StorageError> {
        flatten(layers, path, topmost(layers, OURS)?.size_bytes)
    }

    fn merge(&self, layers: &[Layer], path: &Path) -> Result<Layer, StorageError> {
        let size_bytes = topmost_of_growing(layers, OURS)?.size_bytes;
        write_sealed(path, |target| merge::merge(&layers[1..], target, path, size_bytes))?;
        Ok(Layer { path: path.to_owned(), format: OURS, size_bytes })
    }

    fn remove(&self, disk: &Disk) -> Result<(), StorageError> {
        self.devices.remove(&disk.name, &disk.layers, disk.size_bytes)?;
        remove_live_file(&disk.path)
    }

    fn status(&self, disk: &Disk) -> Result<DiskStatus, StorageError> {
        Ok(DiskStatus {
            size_bytes: disk.size_bytes,
            own_bytes: allocated_bytes(&disk.path)?,
            shared_bytes: shared_bytes(&disk.layers)?,
            health: self.snapshot_status(disk)?,
        })
    }
}

/// Removes the devices of the instance `tag` whose sandbox is not `owned`; answers whose they were. Their VMs must have
/// ended. Whichever backend is in use now: another one may have been when they were made. One that cannot be removed does
/// not keep the others from going; the first error is returned then.
pub fn sweep(tag: InstanceTag, owned: &dyn Fn(&SandboxId) -> bool) -> Result<Vec<SandboxId>, StorageError> {
    // To ask would load the module into a kernel that never had a device of ours.
    if !Path::new(IN_KERNEL).exists() {
        return Ok(Vec::new());
    }
    Devices::open()?.sweep(tag, owned)
}

/// Writes what the exception store `layer` holds over `target`, the half-made image at `path`.
pub(super) fn apply(layer: &Layer, source: File, target: &File, path: &Path) -> Result<(), StorageError> {
    let reader = StoreReader::new(source, layer.size_bytes).map_err(bad_store(&layer.path))?;
    let write =
        |offset, data: &[u8]| overwrite(target, offset, data.len() as u64, Some(data)).map_err(ApplyError::Write);
    reader.for_each_chunk(write).map_err(|error| match error {
        ApplyError::Store(source) => bad_store(&layer.path)(source),
        ApplyError::Write(source) => StorageError::io("write", path)(source),
    })
}

enum ApplyError {
    Store(StoreError),
    Write(io::Error),
}

impl From<StoreError> for ApplyError {
    fn from(source: StoreError) -> Self {
        Self::Store(source)
    }
}

fn dm_name(name: &DiskName) -> DmName {
    name.device().parse().expect("our names are names for devices")
}

fn bad_store(path: &Path) -> impl FnOnce(StoreError) -> StorageError {
    let path = path.to_owned();
    move |source| StorageError::BadStore { path, source }
}

/// A store takes no room when it is made; the one that gets none later is lost.
fn check_room(path: &Path) -> Result<(), StorageError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    match space::is_low(folder).map_err(StorageError::io("look at", folder))? {
        true => Err(StorageError::Full { step: "keep a reserve beside", path: path.to_owned() }),
        false => Ok(()),
    }
}

fn open_live(path: &Path) -> Result<File, StorageError> {
    OpenOptions::new().read(true).write(true).open(path).map_err(StorageError::io("open", path))
}

/// The kernel takes any store: one that is too small for the disk would end as an invalid one, later.
fn check_store(live: &File, path: &Path, size_bytes: u64) -> Result<(), StorageError> {
    let found = live.metadata().map_err(StorageError::io("look at", path))?.len();
    if found < plan::store_bytes(size_bytes) {
        return Err(bad_store(path)(StoreError::NotAStore));
    }
    let copy = live.try_clone().map_err(StorageError::io("open", path))?;
    StoreReader::new(copy, size_bytes).map(drop).map_err(bad_store(path))
}

#[cfg(test)]
mod tests;

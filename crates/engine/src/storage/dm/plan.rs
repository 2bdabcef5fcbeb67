//! What devices a disk is made of, as data.

use wrenn_sys::blockdev::{DeviceNumber, Sectors};
use wrenn_sys::dm::{DmName, Line, Store, Table, Target};

use super::store::CHUNK_BYTES;
use crate::names::DiskName;
use crate::storage::{Layer, StorageError};

/// Exceptions that one chunk of metadata holds: 16 bytes each.
const EXCEPTIONS_PER_CHUNK: u64 = CHUNK_BYTES / 16;

/// Whose exception store a snapshot reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreOf {
    /// That of the layer with this index; read-only.
    Layer(usize),
    /// The live file; the VM's writes go there.
    Live,
}

/// One device, standing on the one before it (the first one on the image's loop device).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The device beneath, and zeros up to `to`.
    Widen { from: Sectors, to: Sectors },
    /// The device beneath, and what differs from it.
    Snapshot { size: Sectors, store: StoreOf },
}

impl Step {
    /// The device's table, once it is known what it stands on. `store` is the loop device of its exception store.
    pub(super) fn table(self, beneath: DeviceNumber, store: Option<DeviceNumber>) -> Table {
        match (self, store) {
            (Self::Widen { from, to }, None) => {
                let rest = Sectors(to.0 - from.0);
                let image = Target::Linear { device: beneath, offset: Sectors(0) };
                let lines = [(Sectors(0), from, image), (from, rest, Target::Zero)];
                let lines = lines.map(|(start, length, target)| Line { start, length, target });
                Table::new(lines.to_vec()).expect("the plan widens something by something")
            }
            (Self::Snapshot { size, .. }, Some(cow)) => {
                let chunk = Sectors(CHUNK_BYTES / Sectors::BYTES);
                let target = Target::Snapshot { origin: beneath, cow, store: Store::Persistent, chunk };
                Table::single(size, target)
            }
            (Self::Widen { .. }, Some(_)) | (Self::Snapshot { .. }, None) => {
                panic!("a snapshot has an exception store, and nothing else has")
            }
        }
    }

    /// Whose exception store it reads.
    pub(super) fn store(self) -> Option<StoreOf> {
        match self {
            Self::Widen { .. } => None,
            Self::Snapshot { store, .. } => Some(store),
        }
    }
}

/// The devices of a disk of `size_bytes` over `layers` (raw, then exception stores), lowest first; the last one is the VM's.
///
/// A device is never larger than what it stands on: where a layer or the disk is, the device beneath is widened with
/// zeros first.
pub(super) fn steps(layers: &[Layer], size_bytes: u64) -> Result<Vec<Step>, StorageError> {
    let (base, overlays) = layers.split_first().ok_or(StorageError::NoBase)?;
    let stores = overlays.iter().enumerate().map(|(index, layer)| (layer.size_bytes, StoreOf::Layer(index + 1)));
    let mut steps = Vec::new();
    let mut beneath = sectors(base, base.size_bytes)?;
    for (bytes, store) in stores.chain([(size_bytes, StoreOf::Live)]) {
        let size = sectors(base, bytes)?;
        if size < beneath {
            return Err(StorageError::SmallerThanBase { wanted: bytes, beneath: beneath.bytes() });
        }
        if size > beneath {
            steps.push(Step::Widen { from: beneath, to: size });
        }
        steps.push(Step::Snapshot { size, store });
        beneath = size;
    }
    Ok(steps)
}

fn sectors(layer: &Layer, bytes: u64) -> Result<Sectors, StorageError> {
    Sectors::from_bytes(bytes)
        .filter(|sectors| sectors.0 > 0)
        .ok_or_else(|| StorageError::NotSectors { path: layer.path.clone(), bytes })
}

/// Names for `count` devices of a disk, in the order of [`steps`].
pub(super) fn names(name: &DiskName, count: usize) -> Vec<DmName> {
    let beneath = (0..count.saturating_sub(1)).map(|level| name.beneath(level as u16));
    beneath.chain([name.device()]).map(|text| text.parse().expect("our names are names for devices")).collect()
}

/// Size of the exception store in which a whole disk of `disk_bytes` finds room: a header, each chunk of data, and a chunk of
/// metadata for each 256 of them.
///
/// When a chunk of metadata is full the kernel wipes the place of the next one, whether it will be needed or not, and a
/// store that has no room for that is invalid. So there is one more than `ceil(chunks / 256)` where that leaves no rest.
pub(super) fn store_bytes(disk_bytes: u64) -> u64 {
    let data = disk_bytes.div_ceil(CHUNK_BYTES);
    let metadata = data / EXCEPTIONS_PER_CHUNK + 1;
    (1 + data + metadata) * CHUNK_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::LayerFormat;

    const MIB: u64 = 1 << 20;

    fn layers(sizes: &[u64]) -> Vec<Layer> {
        let format = |index| if index == 0 { LayerFormat::Raw } else { LayerFormat::DmCow };
        let layer = |(index, size): (usize, &u64)| Layer {
            path: format!("/l{index}").into(),
            format: format(index),
            size_bytes: *size,
        };
        sizes.iter().enumerate().map(layer).collect()
    }

    fn device(minor: u32) -> DeviceNumber {
        DeviceNumber { major: 7, minor }
    }

    fn tables(sizes: &[u64], size: u64) -> Vec<String> {
        let steps = steps(&layers(sizes), size).unwrap();
        let table = |(index, step): (usize, &Step)| {
            step.table(device(index as u32), step.store().map(|_| device(99))).to_string()
        };
        steps.iter().enumerate().map(table).collect()
    }

    #[test]
    fn a_disk_of_its_images_size_is_one_device() {
        assert_eq!(tables(&[MIB], MIB), ["0 2048 snapshot 7:0 7:99 P 8"]);
    }

    #[test]
    fn a_larger_disk_stands_on_a_widened_image() {
        assert_eq!(tables(&[MIB], 2 * MIB), ["0 2048 linear 7:0 0\n2048 2048 zero", "0 4096 snapshot 7:1 7:99 P 8"]);
    }

    #[test]
    fn layers_are_snapshots_of_one_another_and_widened_between() {
        assert_eq!(
            tables(&[MIB, MIB, 2 * MIB], 2 * MIB),
            [
                "0 2048 snapshot 7:0 7:99 P 8",
                "0 2048 linear 7:1 0\n2048 2048 zero",
                "0 4096 snapshot 7:2 7:99 P 8",
                "0 4096 snapshot 7:3 7:99 P 8",
            ]
        );
    }

    #[test]
    fn sizes_that_no_device_has_are_refused() {
        assert!(matches!(steps(&layers(&[1000]), MIB), Err(StorageError::NotSectors { bytes: 1000, .. })));
        assert!(matches!(steps(&layers(&[MIB]), 0), Err(StorageError::NotSectors { bytes: 0, .. })));
        assert!(matches!(steps(&layers(&[MIB]), 512), Err(StorageError::SmallerThanBase { .. })));
        assert!(matches!(steps(&[], MIB), Err(StorageError::NoBase)));
    }

    #[test]
    fn every_chunk_finds_room_and_so_does_the_wiped_one() {
        for chunks in [1, 255, 256, 257, 512, 100_000, 262_144] {
            // As the kernel lays them out: the header, then each chunk of metadata before the 256 chunks it describes.
            let metadata_chunk = |area: u64| 1 + area * 257;
            let last_data = metadata_chunk((chunks - 1) / 256) + 1 + (chunks - 1) % 256;
            let wiped = if chunks % 256 == 0 { metadata_chunk(chunks / 256) } else { 0 };
            let wanted = last_data.max(wiped) + 1;
            assert_eq!(store_bytes(chunks * 4096) / 4096, wanted, "{chunks} chunks");
        }
        assert_eq!(store_bytes(1), 3 * 4096);
    }
}

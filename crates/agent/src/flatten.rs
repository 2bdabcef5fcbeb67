//! A template from a snapshot: its disk as one image, and its memory as a warm image of that.
//!
//! ```text
//!   template + layers + disk ── flattened ──► image ── named after its hash ──► a new template
//!   memory, devices ─ names for the same files ─► warm image: with an empty disk over that image
//! ```
//!
//! And what a snapshot's disk stands on, made one layer where it was many ([`shorten`]).
//!
//! To the guest nothing has changed: its disk reads as it did. Where the memory does not fit to this host any more, or there is
//! none, the template is there all the same, and boots cold.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use wrenn_engine::image::{ImageError, Template};
use wrenn_engine::limits;
use wrenn_engine::memory::Checksums;
use wrenn_engine::names::{DiskName, LayerId, SandboxId};
use wrenn_engine::storage::{Layer, LayerFormat, Place, StorageError};
use wrenn_engine::vmm::VmmError;

use crate::faults::{Injected, Step};
use crate::generation::{self, Generation, GenerationError, Offer};
use crate::host::Host;
use crate::host_agent::with_causes;
use crate::instance::random_bytes;
use crate::layers::VerifyError;
use crate::sandbox::{PauseError, seal_disk};
use crate::snapshot::{Key, Record, SnapshotError, Stored};

/// Why there is no template from a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum FlattenError {
    /// The snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Its files.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// A layer of its disk.
    #[error("the disk cannot be used")]
    Layer(#[from] VerifyError),
    /// Its template, or the new one.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its disk cannot be made one image.
    #[error("cannot make one image of the disk")]
    Storage(#[from] StorageError),
    /// What this host offers is not known.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// An empty disk cannot be kept.
    #[error("cannot keep an empty disk for the memory")]
    Seal(#[source] Box<PauseError>),
    /// Asked for by a test.
    #[error(transparent)]
    Injected(#[from] Injected),
}

/// A template called `name` from what is in `stored`. Blocks: reads all of the disk.
pub fn template(host: &Arc<Host>, stored: &Stored, name: &str) -> Result<Template, FlattenError> {
    host.images.check_free(name)?;
    let (record, captured) = (stored.record()?, Generation::read(&stored.generation())?);
    let layers = checked_layers(host, stored, &record, &captured)?;
    host.faults.at(Step::FlattenBegun, None)?;
    let flatten = |path: &Path| -> Result<(), FlattenError> {
        host.storage.flatten(&layers, path)?;
        Ok(host.faults.at(Step::FlattenWritten, None)?)
    };
    let template = host.images.adopt(name, flatten)?;
    host.faults.at(Step::FlattenNamed, None)?;
    match keep_memory(host, stored, &record, &captured, &template) {
        Ok(()) => {}
        Err(error) => {
            let reason = with_causes(&error);
            tracing::warn!(template = name, reason, "a template from a snapshot does not start warm");
        }
    }
    host.faults.at(Step::FlattenDone, None)?;
    Ok(template)
}

/// Makes one layer of those between the template and the disk in `stored`, which is still being made, where they are many. Blocks:
/// reads all of them. Whatever fails, the disk is as it was.
pub fn shorten(host: &Host, stored: &Stored, record: &Record) -> Result<(), FlattenError> {
    let (folder, layers) = (stored.generation(), stored.layers());
    let captured = Generation::read(&folder)?;
    let before = &captured.disk.beneath;
    if before.len() <= limits::DISK_LAYERS_KEPT_MAX {
        return Ok(());
    }
    let id = LayerId::from_random(random_bytes());
    let shorter = merge(host, stored, record, &captured, &id).and_then(|()| {
        let disk = generation::Disk { beneath: vec![id.clone()], ..captured.disk.clone() };
        Ok(Generation { disk, ..captured.clone() }.write(&folder)?)
    });
    let needed = if shorter.is_ok() { vec![id] } else { before.clone() };
    layers.keep_only(&needed.into_iter().collect());
    shorter
}

fn merge(
    host: &Host,
    stored: &Stored,
    record: &Record,
    captured: &Generation,
    id: &LayerId,
) -> Result<(), FlattenError> {
    let (path, sums) = (stored.layers().path(id), stored.layers().sums(id));
    let merged = host.storage.merge(&layers_beneath(host, stored, record, captured)?, &path)?;
    let file = File::open(&merged.path).map_err(GenerationError::io("open", &path))?;
    Ok(Checksums::of(&file, &path).and_then(|checksums| checksums.write(&sums)).map_err(VerifyError::from)?)
}

/// What the disk is made of, all of it as it was written.
fn checked_layers(
    host: &Host,
    stored: &Stored,
    record: &Record,
    captured: &Generation,
) -> Result<Vec<Layer>, FlattenError> {
    let (mut layers, folder) = (layers_beneath(host, stored, record, captured)?, stored.generation());
    folder.verify_disk()?;
    layers.push(folder.layer(&captured.disk));
    Ok(layers)
}

/// The template, and what lies between it and the disk, all of it as it was written.
fn layers_beneath(
    host: &Host,
    stored: &Stored,
    record: &Record,
    captured: &Generation,
) -> Result<Vec<Layer>, FlattenError> {
    let (template, layers) = (host.images.template(&record.template)?, stored.layers());
    captured.disk.beneath.iter().try_for_each(|id| layers.verify(id))?;
    let format = captured.disk.format;
    let between = captured.disk.beneath.iter();
    let between = between.map(|id| Layer { path: layers.path(id), format, size_bytes: captured.disk.size_bytes });
    let base = Layer { path: template.rootfs, format: LayerFormat::Raw, size_bytes: template.size_bytes };
    Ok(std::iter::once(base).chain(between).collect())
}

fn keep_memory(
    host: &Arc<Host>,
    stored: &Stored,
    record: &Record,
    captured: &Generation,
    template: &Template,
) -> Result<(), FlattenError> {
    if captured.memory.is_none() {
        return Ok(());
    }
    let cpu = host.vmm.cpu()?;
    captured.check_fits(Offer { vmm: host.vmm.describe(), cpu: &cpu, storage: host.storage.layer_format() })?;
    let key = Key {
        template: template.id.clone(),
        kernel: captured.kernel.clone(),
        vcpus: captured.vcpus,
        memory: captured.memory_mib,
        disk: record.disk_mib,
        vmm: captured.vmm.clone(),
        cpu,
        storage: host.storage.layer_format(),
        host_key: host.instance.public_key(),
    };
    let Some(made) = host.warm.make(&key)? else { return Ok(()) };
    let (from, to) = (stored.generation(), made.stored().generation());
    to.share_memory(&from)?;
    empty_disk(host, template, captured.disk.size_bytes, &to)?;
    let disk = generation::Disk { beneath: Vec::new(), ..captured.disk.clone() };
    Generation { disk, ..captured.clone() }.write(&to)?;
    Ok(host.warm.finish(made, &record.clone().on(&template.id))?)
}

/// A disk on which nothing was written yet, as a generation keeps it.
fn empty_disk(
    host: &Host,
    template: &Template,
    size_bytes: u64,
    folder: &generation::Folder,
) -> Result<(), FlattenError> {
    let name = DiskName { tag: host.instance.tag(), sandbox: SandboxId::from_random(random_bytes()) };
    let base = Layer { path: template.rootfs.clone(), format: LayerFormat::Raw, size_bytes: template.size_bytes };
    let disk = host.storage.create(&Place { path: folder.disk(), name }, &[base], size_bytes)?;
    host.storage.detach(&disk)?;
    seal_disk(folder).map_err(|error| FlattenError::Seal(Box::new(error)))
}

//! A generation's memory, for a shim that serves it page by page.

use std::fs::File;
use std::os::fd::OwnedFd;

use wrenn_engine::memory::{self, Base, SealedPatch};
use wrenn_engine::vmm::Pages;

use super::create::CreateError;
use crate::generation::Folder;
use crate::instance::io_error;

/// What the memory in `folder` is served from: its base, and a patch that was not folded into it.
pub(super) fn pages(folder: &Folder) -> Result<Pages, CreateError> {
    let files = folder.memory_files();
    let base = Base::open(&files.base)?;
    let patch = SealedPatch::open(&files, base.bytes())?;
    let on_demand = memory::on_demand(&base, patch.as_slice())?;
    let table = on_demand.table_file().map_err(io_error("list the pages of", base.path()))?;
    Ok(Pages {
        table: table.into(),
        files: on_demand.files.into_iter().map(OwnedFd::from).collect(),
        working_set: working_set(folder).map(OwnedFd::from),
    })
}

/// The pages that were wanted first; one that does not fit is written anew. Without it a resume is slower, and that is all.
fn working_set(folder: &Folder) -> Option<File> {
    let path = folder.working_set();
    let opened = folder.open_working_set();
    opened
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "cannot keep which pages a VM wants first"))
        .ok()
}

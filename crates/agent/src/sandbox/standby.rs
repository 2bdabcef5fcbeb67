//! Sandboxes made ahead: brought up from a warm image as far as nobody has to want them yet.
//!
//! ```text
//!   warm image ─► placed ─► network ─► disk ─► VMM with the captured state ─► its guest answers a call ─► CPUs stand still
//!                                                                                                          │
//!                                                                                        somebody wants one ▼
//!                                                                        CPUs run ─► becomes somebody ─► Running
//! ```
//!
//! One that waits is being created, as its manifest says: if this process dies, the next one removes it as half made. It is
//! nobody's, in no list, and known by what the leak sweep counts alone.

use std::sync::Arc;
use std::time::Duration;

use wrenn_engine::image::{KernelFiles, Template};
use wrenn_engine::names::SandboxId;

use super::create::{Begun, Cancel, CreateError, Origin, Owner, begin_warm, set_wishes, steps, usable};
use super::rise::{Loaded, Rise, VmFrom};
use super::{Parts, Stopwatch};
use crate::host::Host;
use crate::host_agent::Wishes;
use crate::snapshot::Key;

/// How long its guest may take to become ready where nobody has asked for it; whoever takes one has their own limit.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// A sandbox that waits for somebody who wants it.
pub(crate) struct Standby {
    parts: Parts,
    template: Template,
    kernel: KernelFiles,
    guest: SandboxId,
    loaded: Loaded,
}

impl Standby {
    /// Makes one from the warm image of `key`; `None` if there is no such image, or none that can be used. Nothing is left of
    /// one that cannot be made, or that nobody wants any more before it is.
    pub(crate) async fn make(host: &Arc<Host>, key: &Key, cancel: Cancel) -> Result<Option<Self>, CreateError> {
        let (host, wanted) = (Arc::clone(host), key.clone());
        let begun = super::blocking(move || begin_warm(&host, &wanted, &Wishes::bound(READY_LIMIT), Owner::Instance));
        let Some(begun) = begun.await? else { return Ok(None) };
        let Begun { mut parts, template, kernel, origin: Origin::Captured { guest, .. }, .. } = begun else {
            unreachable!("it begins from what was captured")
        };
        match load(&mut parts, (&template, &kernel), key, &guest, cancel).await {
            Ok(Some(loaded)) => Ok(Some(Self { parts, template, kernel, guest, loaded })),
            none => {
                // What cannot be taken down was logged, and the next start goes on.
                parts.destroy(&mut Stopwatch::default()).await.ok();
                none.map(|_| None)
            }
        }
    }

    /// Which one it will be.
    pub(crate) fn id(&self) -> &SandboxId {
        &self.parts.manifest.id
    }

    /// Whether it still waits: its VMM may have been killed meanwhile.
    pub(crate) fn waits(&mut self) -> bool {
        self.loaded.runs()
    }

    /// It is somebody's from now on.
    pub(crate) fn begin(self, wishes: &Wishes) -> Begun {
        let Self { mut parts, template, kernel, guest, loaded } = self;
        set_wishes(&mut parts.manifest, wishes);
        let origin = Origin::Standby { guest, loaded };
        Begun { parts, template, kernel, origin, ready_limit: wishes.ready_limit, watch: Stopwatch::default() }
    }

    /// Nothing is left of it.
    pub(crate) async fn destroy(self) {
        // What cannot be taken down was logged, and the next start goes on.
        self.parts.destroy(&mut Stopwatch::default()).await.ok();
    }
}

async fn load(
    parts: &mut Parts,
    (template, kernel): (&Template, &KernelFiles),
    key: &Key,
    guest: &SandboxId,
    cancel: Cancel,
) -> Result<Option<Loaded>, CreateError> {
    let Some((disk, vm)) = usable(parts, Some(key)).await? else { return Ok(None) };
    if matches!(vm, VmFrom::Boot) {
        return Ok(None);
    }
    let host = Arc::clone(&parts.host);
    let rise = Rise { host: &host, template, kernel, ready_limit: READY_LIMIT, steps: steps() };
    let loaded = rise.load(parts, disk, &vm, &mut Stopwatch::default(), cancel.clone()).await?;
    rise.rehearse(parts, guest, loaded, cancel).await.map(Some)
}

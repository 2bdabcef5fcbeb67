//! Sandboxes that an earlier agent has left, as their folders tell of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use wrenn_engine::names::SandboxId;
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::Shim;

use crate::generation::{Generations, Number};
use crate::host::Host;
use crate::host_agent::{OnTimeout, Start, with_causes};
use crate::instance::{InstanceError, Places, io_error};
use crate::lock::Lock;
use crate::manifest::{self, Manifest, ManifestError, Progress, State};
use crate::sandbox::Parts;

/// The sandbox `id`, if it is the instance's own and nobody has it.
pub(super) fn take(host: &Arc<Host>, id: &SandboxId) -> Result<Option<Parts>, InstanceError> {
    let places = host.instance.places(id);
    if !places.kept().exists() {
        return Ok(None);
    }
    let path = places.lock();
    let Some(lock) = Lock::try_acquire(&path).map_err(io_error("lock", &path))? else {
        tracing::warn!(sandbox = %id, "somebody else holds a sandbox of this instance; it is left alone");
        return Ok(None);
    };
    let manifest = match Manifest::read_of(&places.manifest(), id) {
        Ok(Some(manifest)) => manifest,
        // Begun, and nothing more: no host object is made before the manifest is there.
        Ok(None) => nothing_known(host, id, State::Destroying),
        Err(error) => damaged(host, id, &places, &error),
    };
    Ok(Some(Parts::new(Arc::clone(host), places, manifest, lock)))
}

/// A sandbox whose manifest cannot be read. Nothing is done with it, and nothing is written, before somebody asks for it:
/// the revision before is the best that is known, and what is there tells the rest.
fn damaged(host: &Host, id: &SandboxId, places: &Places, error: &ManifestError) -> Manifest {
    let reason = with_causes(error);
    tracing::error!(sandbox = %id, reason, "the manifest of a sandbox cannot be used");
    match Manifest::read_previous(&places.manifest()) {
        Ok(Some(mut previous)) if previous.id == *id => {
            let generations = Generations::of(&places.dir);
            previous.newest_generation =
                generations.numbers().into_iter().fold(previous.newest_generation, Number::max);
            let was = Box::new(reconstruct(places, &generations, previous.newest_generation, previous.state));
            Manifest { state: State::NeedsRepair { reason, was }, ..previous }
        }
        Ok(_) | Err(_) => {
            let hopeless = State::NeedsRepair { reason: reason.clone(), was: Box::new(State::Destroying) };
            nothing_known(host, id, State::NeedsRepair { reason, was: Box::new(hopeless) })
        }
    }
}

/// The state that fits to what is there.
fn reconstruct(places: &Places, generations: &Generations, newest: Number, previous: State) -> State {
    let runs = matches!(Shim::at(&places.shim_socket()).vmm_pid(), Ok(Some(_)));
    let (live_disk, captured) = (places.disk().exists(), generations.unfinished(newest).manifest().exists());
    match (previous, runs, live_disk) {
        (State::Destroying, ..) => State::Destroying,
        // A VM that is there can go on, whatever was begun.
        (_, true, true) => State::Pausing { generation: newest, progress: Progress::Capturing },
        (_, false, _) if captured => State::Pausing { generation: newest, progress: Progress::Captured },
        (State::Resuming { generation }, ..) => State::Resuming { generation },
        (State::RollingBack { generation }, ..) => State::RollingBack { generation },
        (_, _, false) if generations.is_whole(newest) => State::Paused { generation: newest },
        (State::Creating, ..) => State::Destroying,
        _ => State::Stopped { reason: "its VM was gone when its manifest was repaired".to_owned() },
    }
}

/// A manifest of which only the id is true.
fn nothing_known(host: &Host, id: &SandboxId, state: State) -> Manifest {
    Manifest {
        version: manifest::FORMAT,
        revision: 0,
        id: id.clone(),
        state,
        created_unix_ms: 0,
        deadline_unix_ms: None,
        timeout_ms: None,
        on_timeout: OnTimeout::default(),
        bound: false,
        template: String::new(),
        kernel: String::new(),
        vcpus: 0,
        memory_mib: Mib(0),
        disk_mib: Mib(0),
        vmm: host.vmm.describe().clone(),
        storage: host.storage.backend(),
        start: Start::Cold,
        env: BTreeMap::new(),
        metadata: BTreeMap::new(),
        attributes: BTreeMap::new(),
        slot: None,
        disk: None,
        memory_base: None,
        newest_generation: Number::NONE,
        access_token: String::new(),
        nonces_below: 0,
    }
}

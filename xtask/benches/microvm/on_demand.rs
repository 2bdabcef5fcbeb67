//! Memory that a Firecracker's shim serves, of a sandbox that starts from its warm image; each time nothing of the memory is in
//! the page cache of the machine it runs on.
//!
//! - `uffd-exec`: from the call until `true` has run, with the list of what was wanted first by the one before; beside it
//!   `uffd-blind-exec`, without, and `file-exec`, where the VMM maps the file.
//! - `uffd-read`: what shim and VMM have had read from the disk when that is answered, in percent of the guest's memory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{Advice, fadvise};
use tokio::time::sleep;
use wrenn_agent::host_agent::{HostAgent as _, View};
use wrenn_engine::vmm::DriverKind;

use crate::Round;
use crate::agent::Agent;
use crate::branch::{image_of, warm};
use crate::cold::millis;
use crate::program::{children, read_bytes};
use crate::setting::Setting;

/// How long a list may take to be written, and how often it is looked for.
const RECORDED_LIMIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Values of one round; none where the VMM cannot be served.
pub fn take(setting: &Setting, round: &mut Round) -> Result<()> {
    if setting.host.vmm.describe().driver != DriverKind::Firecracker {
        return Ok(());
    }
    setting.runtime.block_on(async {
        for backend in ["uffd", "file"] {
            round.doing(&format!("an agent with memory backend {backend}"));
            let agent = Agent::start_with(setting, &["--memory-backend", backend]).await?;
            let taken = with_agent(setting, &agent, round, backend == "uffd").await;
            agent.end(taken).await?;
        }
        Ok(())
    })
}

async fn with_agent(setting: &Setting, agent: &Agent, round: &mut Round, uffd: bool) -> Result<()> {
    agent.clear().await?;
    // It makes the image if there is none yet, and this agent reads all of it once, to know that it is whole.
    let first = agent.create_as(warm(setting)).await?.view;
    agent.remote().destroy(&first.id).await?;
    let folder = image_of(setting, &first)?.generation();
    let (memory, hint) = (folder.memory_files().base, folder.working_set());
    if !uffd {
        return measured(setting, agent, round, "file", &memory).await;
    }
    File::options().write(true).open(&hint).context("the image has no list")?.set_len(0)?;
    measured(setting, agent, round, "uffd-blind", &memory).await?;
    recorded(&hint).await?;
    measured(setting, agent, round, "uffd", &memory).await
}

async fn measured(setting: &Setting, agent: &Agent, round: &mut Round, name: &str, memory: &Path) -> Result<()> {
    round.doing(name);
    forget(memory)?;
    let begun = Instant::now();
    let view = agent.create_as(warm(setting)).await?.view;
    agent.exec(&view, &["true"]).await?;
    round.value(&format!("{name}-exec"), "ms", millis(begun.elapsed()));
    let read = bytes_read(agent, &view)?;
    round.value(&format!("{name}-read"), "%", read as f64 * 100.0 / view.memory.bytes() as f64);
    // The list is written when nothing more is wanted for a while, or at the end.
    agent.remote().destroy(&view.id).await?;
    Ok(())
}

/// What shim and VMM have had read from the disk.
fn bytes_read(agent: &Agent, view: &View) -> Result<u64> {
    let shim = agent.shim_pid(view)?;
    Ok(read_bytes(shim)? + children(shim)?.into_iter().map(read_bytes).sum::<Result<u64>>()?)
}

/// Nothing of the file is in the page cache afterwards.
fn forget(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
}

async fn recorded(hint: &PathBuf) -> Result<()> {
    let deadline = Instant::now() + RECORDED_LIMIT;
    while std::fs::metadata(hint)?.len() == 0 {
        ensure!(Instant::now() < deadline, "no list was written within {RECORDED_LIMIT:?}");
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

//! What is started from something captured, under an agent.
//!
//! - `warm-create-exec`: from the call until `true` has run in a sandbox that starts from its template's warm image; beside it
//!   `warm-plain-restore`, a plain VMM that goes on from the same files until its guest's agent answers, and
//!   `cold-create-exec`, the same sandbox booted. `standby-create-exec`: the same where one was made ahead.
//! - `fork-last`: from the call until `true` has run in the last of 16 forks of a sandbox; beside it the least that could take,
//!   16 times the CPU time of one plain restore on all cores.
//! - `fork-frozen`: how long the parent of one fork stood still, 16 MiB having changed; beside it what of that its VMM takes with
//!   a copy of as many bytes.
//! - `fork-own-memory`: what the VMM of a fork that does nothing has of its own; beside it the plain VMM's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::try_join_all;
use tokio::time::sleep;
use wrenn_agent::host_agent::{Changed, CreateRequest, ForkRequest, Forked, HostAgent as _, Source, Start, View};
use wrenn_agent::sandbox::Timing;
use wrenn_agent::snapshot::{Key, Stored};
use wrenn_engine::units::Mib;

use crate::Round;
use crate::agent::Agent;
use crate::cold::millis;
use crate::life::{copy_ms, phase};
use crate::load::megabytes;
use crate::plain::{self, Restored};
use crate::program::own_memory;
use crate::setting::{READY_LIMIT, Setting};

/// Forks that are made at once.
const FORKS: u32 = 16;
/// What the parent writes into its memory before it is forked.
const DIRTY: Mib = Mib(16);
/// Steps of a capture in which the parent stands still: the VMM's alone, and ours.
const FROZEN_BY_VMM: [&str; 2] = ["freeze cpus", "devices"];
const FROZEN_BY_US: [&str; 2] = ["memory", "disk"];
/// How often a sandbox is created until one waited for it.
const STANDBY_TRIES: usize = 50;

/// Values of one round.
pub fn take(setting: &Setting, round: &mut Round) -> Result<()> {
    setting.runtime.block_on(async {
        round.doing("start an agent");
        let agent = Agent::start(setting).await?;
        let taken = with_agent(setting, &agent, round).await;
        agent.end(taken).await?;
        round.doing("start an agent that makes one ahead");
        let agent = Agent::start_with(setting, &["--standby", "1"]).await?;
        let taken = standby(setting, &agent, round).await;
        agent.end(taken).await
    })
}

async fn with_agent(setting: &Setting, agent: &Agent, round: &mut Round) -> Result<()> {
    agent.clear().await?;
    round.doing("cold");
    let cold = create(agent, setting.request(), "cold-create", round).await?;
    ensure!(cold.start == Start::Cold, "a cold create was not cold");
    agent.remote().destroy(&cold.id).await?;
    round.doing("warm");
    // The first of a kind makes its warm image, if there is none yet.
    let first = agent.create_as(warm(setting)).await?.view;
    agent.remote().destroy(&first.id).await?;
    // First and second in turn: what comes later finds the image's pages in memory.
    let (view, plain) = if round.number() % 2 == 1 {
        let view = create(agent, warm(setting), "warm-create", round).await?;
        let plain = bare(setting, round, &view).await?;
        (view, plain)
    } else {
        let plain = bare(setting, round, &first).await?;
        (create(agent, warm(setting), "warm-create", round).await?, plain)
    };
    ensure!(view.start == Start::Warm, "a warm create was not warm");
    forks(agent, round, &view, plain).await
}

/// What every measurement here starts from its warm image.
pub fn warm(setting: &Setting) -> CreateRequest {
    let mut request = setting.request();
    if let Source::Template(fresh) = &mut request.source {
        fresh.cold = false;
    }
    request
}

/// From the call until `true` has run.
async fn create(agent: &Agent, request: CreateRequest, name: &str, round: &mut Round) -> Result<View> {
    let begun = Instant::now();
    let Changed { view, timings } = agent.create_as(request).await?;
    let created = begun.elapsed();
    agent.exec(&view, &["true"]).await?;
    tell(round, name, (begun.elapsed(), created), &timings);
    Ok(view)
}

fn tell(round: &mut Round, name: &str, (answered, created): (Duration, Duration), timings: &[Timing]) {
    round.value(&format!("{name}-exec"), "ms", millis(answered));
    round.value(&format!("{name}-wall"), "ms", millis(created));
    for Timing { phase, took } in timings {
        round.value(&format!("{name}-phase-{}", phase.replace(' ', "-")), "ms", millis(*took));
    }
}

/// A plain VMM goes on from the warm image of such a sandbox.
async fn bare(setting: &Setting, round: &mut Round, like: &View) -> Result<Restored> {
    let image = image_of(setting, like)?;
    let restored = plain::restore(setting, &image.generation(), &image.layers()).await?;
    round.value("warm-plain-restore", "ms", millis(restored.wall));
    round.value("warm-plain-cpu", "ms", millis(restored.cpu));
    Ok(restored)
}

/// The warm image of such a sandbox.
pub fn image_of(setting: &Setting, like: &View) -> Result<Stored> {
    let host = &setting.host;
    let key = Key {
        template: like.template.clone(),
        kernel: like.kernel.clone(),
        vcpus: like.vcpus,
        memory: like.memory,
        disk: like.disk,
        vmm: like.vmm.clone(),
        cpu: host.vmm.cpu()?,
        storage: host.storage.layer_format(),
        host_key: host.instance.public_key(),
    };
    host.warm.find(&key).context("a warm create has left no warm image")
}

async fn forks(agent: &Agent, round: &mut Round, parent: &View, plain: Restored) -> Result<()> {
    round.doing("one fork");
    let count = format!("count={}", DIRTY.0);
    agent.exec(parent, &["dd", "if=/dev/urandom", "of=/dev/shm/changed", "bs=1M", &count]).await?;
    let Forked { timings, children } = agent.remote().fork(&parent.id, request(1)).await?;
    let steps = |names: &[&str]| names.iter().map(|name| phase(&timings, name)).sum::<Result<f64>>();
    let by_vmm = steps(&FROZEN_BY_VMM)?;
    let bytes = vec![0x5a; usize::try_from(DIRTY.bytes())?];
    round.value("fork-frozen", "ms", by_vmm + steps(&FROZEN_BY_US)?);
    round.value("fork-frozen-bare", "ms", by_vmm + copy_ms(&bytes));
    for Timing { phase, took } in &timings {
        round.value(&format!("fork-phase-{}", phase.replace(' ', "-")), "ms", millis(*took));
    }
    for child in children {
        let view = child?.view;
        round.value("fork-own-memory", "MB", megabytes(own_memory(agent.vmm_pid(&view)?)?));
        round.value("fork-own-memory-bare", "MB", megabytes(plain.own_bytes));
        agent.remote().destroy(&view.id).await?;
    }
    round.doing("many forks");
    let begun = Instant::now();
    let Forked { children, .. } = agent.remote().fork(&parent.id, request(FORKS)).await?;
    let children = children.into_iter().collect::<Result<Vec<Changed>, _>>()?;
    round.value("fork-made", "ms", millis(begun.elapsed()));
    let answers = children.iter().map(|child| agent.exec(&child.view, &["true"]));
    try_join_all(answers).await?;
    round.value("fork-last", "ms", millis(begun.elapsed()));
    let cores = std::thread::available_parallelism()?.get() as f64;
    round.value("fork-least", "ms", f64::from(FORKS) * millis(plain.cpu) / cores);
    Ok(())
}

fn request(count: u32) -> ForkRequest {
    ForkRequest {
        count,
        ready_limit: READY_LIMIT,
        timeout: None,
        metadata: Agent::label(),
        attributes: BTreeMap::new(),
    }
}

/// What waits is there a moment after the last one was taken.
async fn standby(setting: &Setting, agent: &Agent, round: &mut Round) -> Result<()> {
    for _ in 0..STANDBY_TRIES {
        let begun = Instant::now();
        let Changed { view, timings } = agent.create_as(warm(setting)).await?;
        let created = begun.elapsed();
        agent.exec(&view, &["true"]).await?;
        let answered = begun.elapsed();
        agent.remote().destroy(&view.id).await?;
        if timings.iter().all(|timing| timing.phase != "vmm") {
            tell(round, "standby-create", (answered, created), &timings);
            return Ok(());
        }
        sleep(answered).await;
    }
    bail!("none was waiting in {STANDBY_TRIES} tries")
}

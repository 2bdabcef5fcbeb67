//! To rest and back, under `wrenn agent`: two sandboxes, one of 256 MiB and one of 1 GiB, are paused, resumed, write 16 MiB
//! into their memory, and are paused once more. This second pause is what is told of; without a size in its name, the small
//! one's.
//!
//! - `pause-frozen`: from the order to stop the CPUs until memory is captured; beside it what of that the VMM takes itself
//!   (stopping, and the devices' state) with a plain copy of as many bytes as changed. Firecracker writes memory together
//!   with the devices' state, so that nearly all of it is on both sides: there the ratio says only that we add little.
//!   `pause-scan-difference` is what it takes the large one more: as much has changed there, and more is looked through.
//! - `pause-durable`: from then until it is certain that nothing is lost; beside it as many bytes written to a file of the
//!   same folder and synced. What changed is held back in memory until then, and so is written here. Firecracker has
//!   written it by then: only syncing and checksums are left, and only syncing is beside it.
//! - `resume-exec`: from the call until `true`, started in the guest, has ended; beside it a plain VMM that goes on from the
//!   same files, with its network and its copy of the disk made before, until the guest's agent answers.
//!
//! The bytes that changed are those that the capture's file takes on the disk, devices and disk not counted.

use std::fs::File;
use std::hint::black_box;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::time::sleep;
use wrenn_agent::generation::{Folder, Generation, Generations, Number};
use wrenn_agent::host_agent::{Changed, HostAgent as _, PauseOptions, ResumeOptions, View};
use wrenn_agent::layers::Layers;
use wrenn_agent::sandbox::Timing;
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::DriverKind;

use crate::Round;
use crate::agent::Agent;
use crate::cold::millis;
use crate::load::megabytes;
use crate::plain;
use crate::setting::{MEMORY, READY_LIMIT, Setting};

/// The larger of the two sandboxes.
const LARGE: Mib = Mib(1024);
/// What a guest writes into its memory between the two pauses, in MiB.
const DIRTY_MIB: u32 = 16;
/// Steps of a pause in which the guest stands still: the VMM's alone, and ours.
const FROZEN_BY_VMM: [&str; 2] = ["freeze cpus", "devices"];
const FROZEN_BY_US: &str = "memory";
/// Steps of a pause after that, until nothing is lost any more.
const DURABLE: [&str; 2] = ["sync", "decide"];
/// How often what something costs bare is measured; the middle counts.
const BARE_TIMES: usize = 5;
/// How long an agent may take to bring captured memory into one file.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// How often files that come or go are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Values of one round.
pub fn take(setting: &Setting, round: &mut Round) -> Result<()> {
    setting.runtime.block_on(async {
        round.doing("start an agent");
        let agent = Agent::start(setting).await?;
        let taken = with_agent(setting, &agent, round).await;
        agent.end(taken).await
    })
}

async fn with_agent(setting: &Setting, agent: &Agent, round: &mut Round) -> Result<()> {
    agent.clear().await?;
    round.value("agent-rss-idle", "MB", megabytes(agent.rss()?));
    let small = changed(setting, agent, round, MEMORY).await?;
    let large = changed(setting, agent, round, LARGE).await?;
    round.doing("pause both again");
    // First and second in turn: what comes later finds an agent that has just done the same.
    let (small, large) = if round.number() % 2 == 1 {
        let small = second_pause(setting, agent, small).await?;
        (small, second_pause(setting, agent, large).await?)
    } else {
        let large = second_pause(setting, agent, large).await?;
        (second_pause(setting, agent, small).await?, large)
    };
    tell_of_pause(setting, round, &small)?;
    round.value("pause-frozen-1gib", "ms", large.frozen()?);
    round.value("pause-changed-1gib", "MB", megabytes(large.changed_bytes));
    round.value("pause-scan-difference", "ms", large.frozen()? - small.frozen()?);
    agent.remote().destroy(&large.view.id).await?;
    back(setting, agent, round, small).await
}

/// A sandbox at rest, and how it came to it.
struct Rest {
    view: View,
    timings: Vec<Timing>,
    wall: Duration,
    /// What the generation has of memory that differs from the one before; 0 where nobody looked.
    changed_bytes: u64,
    folder: Folder,
    /// The sandbox's folder, on the same file system.
    beside: PathBuf,
}

impl Rest {
    /// Milliseconds of these steps together.
    fn steps(&self, wanted: &[&str]) -> Result<f64> {
        wanted.iter().map(|step| phase(&self.timings, step)).sum()
    }

    /// Milliseconds that its guest stood still before it was captured.
    fn frozen(&self) -> Result<f64> {
        Ok(self.steps(&FROZEN_BY_VMM)? + self.steps(&[FROZEN_BY_US])?)
    }
}

/// Milliseconds of one step.
pub fn phase(timings: &[Timing], name: &str) -> Result<f64> {
    let found = timings.iter().find(|timing| timing.phase == name);
    Ok(millis(found.with_context(|| format!("the agent does not tell how long `{name}` took"))?.took))
}

/// A new sandbox, paused, resumed, and with something new in its memory.
async fn changed(setting: &Setting, agent: &Agent, round: &Round, memory: Mib) -> Result<View> {
    round.doing(&format!("create, pause and resume a sandbox of {} MiB", memory.0));
    let view = agent.create(setting, memory).await?;
    pause(setting, agent, view.clone(), Number::FIRST).await?;
    resume(agent, &view).await?;
    let count = format!("count={DIRTY_MIB}");
    agent.exec(&view, &["dd", "if=/dev/urandom", "of=/dev/shm/changed", "bs=1M", &count]).await?;
    Ok(view)
}

/// Pauses a sandbox once more, and sees how much that keeps.
async fn second_pause(setting: &Setting, agent: &Agent, view: View) -> Result<Rest> {
    let second = Number::FIRST.next();
    let generations = Generations::of(&setting.host.instance.places(&view.id).dir);
    let watched = Watched::begin(generations.unfinished(second).memory_files().patch_data);
    let paused = pause(setting, agent, view, second).await;
    let changed_bytes = watched.end();
    let paused = paused?;
    Ok(Rest { changed_bytes: changed_bytes?, ..paused })
}

/// Pauses a sandbox as its generation `number`, and waits until its memory is in one file.
async fn pause(setting: &Setting, agent: &Agent, view: View, number: Number) -> Result<Rest> {
    let beside = setting.host.instance.places(&view.id).dir;
    let folder = Generations::of(&beside).folder(number);
    let begun = Instant::now();
    let Changed { timings, .. } = agent.remote().pause(&view.id, PauseOptions::default()).await?;
    let wall = begun.elapsed();
    settled(&folder).await?;
    Ok(Rest { view, timings, wall, changed_bytes: 0, folder, beside })
}

async fn resume(agent: &Agent, view: &View) -> Result<Changed> {
    Ok(agent.remote().resume(&view.id, ResumeOptions { ready_limit: READY_LIMIT, timeout: None }).await?)
}

/// Waits until the agent has brought the memory of a generation into one file, which it does after it has answered.
async fn settled(folder: &Folder) -> Result<()> {
    let files = folder.memory_files();
    let deadline = Instant::now() + SETTLE_LIMIT;
    loop {
        let is_whole = Generation::read(folder)?.memory.context("a pause that kept no memory")?.builds_on.is_none();
        if is_whole && files.base.exists() && !files.marker.exists() && !files.patch_map.exists() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the memory is not in one file after {SETTLE_LIMIT:?}");
        sleep(LOOK_EVERY).await;
    }
}

/// Opens a file as soon as it is there: soon after the pause has ended it has no name any more.
struct Watched {
    is_enough: Arc<AtomicBool>,
    looking: thread::JoinHandle<Option<File>>,
}

impl Watched {
    fn begin(path: PathBuf) -> Self {
        let is_enough = Arc::new(AtomicBool::new(false));
        let enough = Arc::clone(&is_enough);
        let looking = thread::spawn(move || {
            while !enough.load(Ordering::Relaxed) {
                if let Ok(file) = File::open(&path) {
                    return Some(file);
                }
                thread::sleep(LOOK_EVERY);
            }
            None
        });
        Self { is_enough, looking }
    }

    /// What it takes on the disk, in bytes.
    fn end(self) -> Result<u64> {
        self.is_enough.store(true, Ordering::Relaxed);
        let file = self.looking.join().expect("looking for a file does not panic");
        Ok(file.context("the pause made no file of what changed in memory")?.metadata()?.blocks() * 512)
    }
}

fn tell_of_pause(setting: &Setting, round: &mut Round, rest: &Rest) -> Result<()> {
    round.doing("the same bytes bare");
    let bytes = vec![0x5a; usize::try_from(rest.changed_bytes)?];
    let (copy, Written { written, synced }) = (copy_ms(&bytes), write_ms(&bytes, &rest.beside)?);
    let durable = match setting.host.vmm.describe().driver {
        DriverKind::Qemu => written + synced,
        DriverKind::Firecracker => synced,
    };
    let by_vmm = rest.steps(&FROZEN_BY_VMM)?;
    round.value("pause-changed", "MB", megabytes(rest.changed_bytes));
    round.value("pause-wall", "ms", millis(rest.wall));
    for Timing { phase, took } in &rest.timings {
        round.value(&format!("pause-phase-{}", phase.replace(' ', "-")), "ms", millis(*took));
    }
    round.value("pause-frozen", "ms", rest.frozen()?);
    round.value("pause-copy-bare", "ms", copy);
    round.value("pause-frozen-bare", "ms", by_vmm + copy);
    round.value("pause-durable", "ms", rest.steps(&DURABLE)?);
    round.value("pause-durable-bare", "ms", durable);
    Ok(())
}

/// A copy from memory to memory, both used before.
pub fn copy_ms(bytes: &[u8]) -> f64 {
    let mut target = vec![1; bytes.len()];
    let mut times = [0.0; BARE_TIMES].map(|_: f64| {
        let begun = Instant::now();
        black_box(&mut target).copy_from_slice(black_box(bytes));
        millis(begun.elapsed())
    });
    middle(&mut times)
}

/// Milliseconds for the two halves of making a file.
struct Written {
    written: f64,
    synced: f64,
}

/// A new file in `folder`, written and synced; it is removed again.
fn write_ms(bytes: &[u8], folder: &Path) -> Result<Written> {
    let path = folder.join("bench");
    let (mut written, mut synced) = ([0.0; BARE_TIMES], [0.0; BARE_TIMES]);
    for (written, synced) in written.iter_mut().zip(&mut synced) {
        let made = make(&path, bytes);
        std::fs::remove_file(&path)?;
        let made = made?;
        (*written, *synced) = (made.written, made.synced);
    }
    Ok(Written { written: middle(&mut written), synced: middle(&mut synced) })
}

fn make(path: &Path, bytes: &[u8]) -> Result<Written> {
    let begun = Instant::now();
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    let written = millis(begun.elapsed());
    let begun = Instant::now();
    file.sync_all()?;
    Ok(Written { written, synced: millis(begun.elapsed()) })
}

/// The middle of some times.
pub fn middle(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Back from rest, plain and ours, first and second in turn. Ours has to be put to rest again to be plain's second.
async fn back(setting: &Setting, agent: &Agent, round: &mut Round, rest: Rest) -> Result<()> {
    if round.number() % 2 == 1 {
        bare(setting, round, &rest).await?;
        ours(agent, round, &rest.view).await
    } else {
        ours(agent, round, &rest.view).await?;
        let third = Number::FIRST.next().next();
        let rest = pause(setting, agent, rest.view, third).await?;
        bare(setting, round, &rest).await
    }
}

async fn ours(agent: &Agent, round: &mut Round, view: &View) -> Result<()> {
    round.doing("resume");
    let begun = Instant::now();
    let Changed { view, timings } = resume(agent, view).await?;
    let resumed = begun.elapsed();
    agent.exec(&view, &["true"]).await?;
    round.value("resume-exec", "ms", millis(begun.elapsed()));
    round.value("resume-wall", "ms", millis(resumed));
    for Timing { phase, took } in &timings {
        round.value(&format!("resume-phase-{}", phase.replace(' ', "-")), "ms", millis(*took));
    }
    Ok(())
}

async fn bare(setting: &Setting, round: &mut Round, rest: &Rest) -> Result<()> {
    round.doing("a plain VMM goes on from it");
    let restored = plain::restore(setting, &rest.folder, &Layers::of(&rest.beside)).await?;
    round.value("plain-restore", "ms", millis(restored.wall));
    Ok(())
}

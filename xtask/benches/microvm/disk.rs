//! Disks of device-mapper: made and removed, beside the same by `losetup` and `dmsetup`.
//!
//! System calls are counted by `strace` over a run of this program that does nothing else, less those of one that does
//! nothing at all. Nothing is measured where the host has no device-mapper.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wrenn_engine::names::{DiskName, SandboxId};
use wrenn_engine::storage::dm::Dm;
use wrenn_engine::storage::{Backend, Layer, LayerFormat, Place, Storage as _};
use wrenn_sys::spawn::{ExitStatus, Spawn, find_program};

use crate::Round;
use crate::program::Running;
use crate::setting::Setting;

/// How often a disk is made and removed for one value.
const CYCLES: u32 = 8;
const GIB: u64 = 1 << 30;
/// Sizes of the images whose disks are compared.
const SIZES: [(&str, u64); 2] = [("disk-1gib", GIB), ("disk-8gib", 8 * GIB)];

/// What others do with programs. The store has the size that ours has.
const BY_PROGRAMS: &str = "set -e; cd \"$1\"; for n in $(seq \"$2\"); do \
    truncate -s 1100M store; origin=$(losetup --find --show --read-only image); cow=$(losetup --find --show store); \
    sectors=$(blockdev --getsz $origin); echo \"0 $sectors snapshot $origin $cow P 8\" | dmsetup create wrenn-by-programs; \
    dmsetup remove wrenn-by-programs; losetup --detach $cow; losetup --detach $origin; rm store; done";

/// Values of one round.
pub fn take(setting: &Setting, round: &mut Round) -> Result<()> {
    if setting.host.storage.backend() != Backend::DeviceMapper {
        round.doing("nothing: this host has no device-mapper");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    for (name, bytes) in SIZES {
        round.doing(name);
        image(folder.path(), bytes)?;
        let began = Instant::now();
        cycles(folder.path(), bytes, CYCLES)?;
        round.value(name, "ms", millis(began.elapsed()) / f64::from(CYCLES));
    }
    round.doing("a disk by programs");
    image(folder.path(), GIB)?;
    let count = CYCLES.to_string();
    let script = |count: &str| -> Result<Vec<String>> {
        let folder = folder.path().to_str().context("a path that is no text")?;
        Ok(["sh", "-c", BY_PROGRAMS, "sh", folder, count].map(str::to_owned).to_vec())
    };
    let began = Instant::now();
    run(&script(&count)?)?;
    round.value("disk-by-programs", "ms", millis(began.elapsed()) / f64::from(CYCLES));

    round.doing("system calls");
    let own = |count: &str| -> Result<Vec<String>> {
        let program = std::env::current_exe()?.to_str().context("a path that is no text")?.to_owned();
        let folder = folder.path().to_str().context("a path that is no text")?.to_owned();
        Ok(vec![program, "disk-cycles".to_owned(), folder, count.to_owned()])
    };
    let per_cycle = |with: Vec<String>, without: Vec<String>| -> Result<f64> {
        let (with, without) = (calls(folder.path(), &with)?, calls(folder.path(), &without)?);
        Ok((with as f64 - without as f64) / f64::from(CYCLES))
    };
    round.value("disk-calls", "", per_cycle(own(&count)?, own("0")?)?);
    round.value("disk-calls-by-programs", "", per_cycle(script(&count)?, script("0")?)?);
    Ok(())
}

/// An empty image, sparse.
fn image(folder: &Path, bytes: u64) -> Result<()> {
    Ok(File::create(folder.join("image"))?.set_len(bytes)?)
}

/// Makes and removes a disk on the image in `folder`; also what `disk-cycles FOLDER COUNT` does.
pub fn cycles(folder: &Path, bytes: u64, count: u32) -> Result<()> {
    let storage = Dm::open()?;
    let base = Layer { path: folder.join("image"), format: LayerFormat::Raw, size_bytes: bytes };
    for number in 0..count {
        let sandbox = SandboxId::from_random([number as u8; 18]);
        let name = DiskName { tag: "bnch".parse()?, sandbox };
        let place = Place { path: folder.join("live"), name };
        let disk = storage.create(&place, std::slice::from_ref(&base), bytes)?;
        storage.remove(&disk)?;
    }
    Ok(())
}

/// What `disk-cycles FOLDER COUNT` says on the command line.
pub fn cycles_by_name(folder: &str, count: &str) -> Result<()> {
    cycles(Path::new(folder), GIB, count.parse()?)
}

/// System calls of a program and all it starts.
fn calls(folder: &Path, command: &[String]) -> Result<u64> {
    let table = folder.join("calls");
    let mut strace: Vec<String> = ["strace", "-f", "-c", "-o"].map(str::to_owned).to_vec();
    strace.push(table.to_str().context("a path that is no text")?.to_owned());
    strace.extend_from_slice(command);
    run(&strace)?;
    let text = std::fs::read_to_string(&table)?;
    total(&text).with_context(|| format!("strace's table is not understood: {text}"))
}

/// The calls in the last line of `strace -c`: `100.00    0.012345          12      1000        10 total`.
fn total(table: &str) -> Option<u64> {
    let line = table.lines().rev().find(|line| line.trim_end().ends_with(" total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

fn run(command: &[String]) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let program: PathBuf = find_program(command[0].as_ref(), &path, Path::new("/"))
        .with_context(|| format!("`{}` is not installed", command[0]))?;
    let stderr = std::io::stderr();
    let spawn = Spawn::new(program).args(&command[1..]).env("PATH", path).fd(stderr.as_fd(), 2);
    let ended = Running::start(spawn)?.wait()?;
    ensure!(ended.status == ExitStatus::Exited(0), "{command:?} ended with {:?}", ended.status);
    Ok(())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

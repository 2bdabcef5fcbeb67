//! What capturing, folding and checking a VM's memory costs: `cargo run --release -p wrenn-engine --example memory [FOLDER]`.
//!
//! The process that is captured is this one. Shares one machine with others: compare within a run.

use std::error::Error;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wrenn_engine::memory::{Base, Checksums, Files, Prepared, Timings, fold, seal_base, verify};
use wrenn_sys::mapping::PrivateMapping;

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| std::env::temp_dir().display().to_string());
    for memory_mib in [256, 1024] {
        for (name, stretch_pages) in [("scattered, 1 page each", 1), ("16 pages each", 16), ("one stretch", 4096)] {
            for round in 0..3 {
                let dir = tempfile::tempdir_in(&folder)?;
                println!("{memory_mib} MiB, 16 MiB changed, {name}, round {round}:");
                one(dir.path(), memory_mib * MIB, stretch_pages)?;
            }
        }
    }
    first(tempfile::tempdir_in(&folder)?.path())?;
    check(tempfile::tempdir_in(&folder)?.path())
}

/// A base a quarter of which is data; a sixteenth of the changed pages is equal, a sixteenth zero.
fn one(dir: &Path, bytes: usize, stretch_pages: usize) -> Result<(), Box<dyn Error>> {
    let files = Files::in_folder(dir);
    let zero = Base::create_zero(&files.base, bytes as u64)?;
    let file = std::fs::File::options().write(true).open(&files.base)?;
    for at in (0..bytes).step_by(256 * 1024) {
        file.write_all_at(&vec![(at / PAGE) as u8 | 1; 64 * 1024], at as u64)?;
    }
    drop(zero);
    file.sync_all()?;
    seal_base(&files)?;
    let base = Arc::new(Base::open(&files.base)?);
    let mut mapping = PrivateMapping::of(base.file())?;
    // As a guest that ran: it has looked at much of its memory.
    let mut seen = vec![0; MIB];
    (0..bytes / 2).step_by(MIB).for_each(|at| mapping.read(at, &mut seen));
    let stretches = 4096 / stretch_pages;
    for index in 0..stretches {
        let at = index * (bytes / stretches) / PAGE * PAGE;
        for page in 0..stretch_pages {
            let at = at + page * PAGE;
            match (index + page) % 16 {
                0 => mapping.write(at, &[0; PAGE]),
                1 => {
                    let mut same = [0; PAGE];
                    mapping.read(at, &mut same);
                    mapping.write(at, &same);
                }
                other => mapping.write(at, &[other as u8 + 100; PAGE]),
            }
        }
    }
    let prepared = Prepared::of(std::process::id(), base, &files.patch_data)?;
    let captured = prepared.capture()?;
    tell("  capture", captured.timings());
    let begin = Instant::now();
    let captured = captured.sort_out()?;
    println!(
        "  sorted out in {:?}: {:?}, {} runs",
        begin.elapsed(),
        captured.counts,
        captured.patch.runs().list().len()
    );
    drop(mapping);
    let sealing = timed(|| captured.patch.seal(&files.patch_map))?;
    let folding = timed(|| fold(&files))?;
    println!("  seal {sealing:?}, fold {folding:?}");
    Ok(())
}

/// A first capture: 114 MiB over nothing.
fn first(dir: &Path) -> Result<(), Box<dyn Error>> {
    let files = Files::in_folder(dir);
    let zero = Arc::new(Base::create_zero(&dir.join("zero"), (256 * MIB) as u64)?);
    let mut mapping = PrivateMapping::of(zero.file())?;
    (0..114).for_each(|mib| mapping.write(mib * 2 * MIB, &vec![mib as u8 + 1; MIB]));
    let captured = Prepared::of(std::process::id(), Arc::clone(&zero), &files.patch_data)?.capture()?;
    tell("first capture of 114 MiB", captured.timings());
    let begin = Instant::now();
    captured.sort_out()?.patch.into_base(&zero, &files)?;
    println!("  made a base, durable: {:?}", begin.elapsed());
    Ok(())
}

fn tell(what: &str, times: Timings) {
    println!("{what} {:?}: scan {:?}, read {:?}, spill {:?}", times.total, times.scan, times.read, times.spill);
}

/// 128 MiB of data in a memory of 256 MiB, all of it in the page cache.
fn check(dir: &Path) -> Result<(), Box<dyn Error>> {
    let path = dir.join("memory");
    let zero = Base::create_zero(&path, (256 * MIB) as u64)?;
    let file = std::fs::File::options().write(true).open(&path)?;
    (0..128).try_for_each(|mib| file.write_all_at(&vec![mib as u8 + 1; MIB], (mib * 2 * MIB) as u64))?;
    file.sync_all()?;
    let sums = Checksums::of(zero.file(), &path)?;
    for _ in 0..5 {
        println!("verify 128 MiB: {:?}", timed(|| verify(zero.file(), &path, &sums))?);
    }
    Ok(())
}

fn timed<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<Duration, E> {
    let begin = Instant::now();
    work()?;
    Ok(begin.elapsed())
}

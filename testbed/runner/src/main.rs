//! The first process of the emulated host: brings it up, runs one job, says how it went, and switches the host off.
//!
//! ```text
//! kernel ─► /init (initramfs) ─► modules ─► root disk ─► switch root ─► supplies ─► job ─► files ─► off
//! ```
//!
//! What fails before the job could run is told over the port, or on the console while there is none.

mod job;
mod place;

use std::fs::File;

use anyhow::{Context, Result};
use wrenn_testbed_runner::Frame;

fn main() {
    if std::process::id() != 1 {
        eprintln!("this is the first process of the testbed's emulated host, and does nothing elsewhere");
        std::process::exit(2);
    }
    if let Err(error) = live() {
        println!("testbed: FATAL: {error:#}");
    }
    place::switch_off();
}

fn live() -> Result<()> {
    place::come_up()?;
    let mut port = place::port()?;
    if let Err(error) = run(&port) {
        // What a panic hook would print goes to the console; the testbed wants to know why nothing ran.
        Frame::Failed(format!("{error:#}")).write(&mut port).context("cannot tell why the job was not run")?;
    }
    Ok(())
}

fn run(port: &File) -> Result<()> {
    let job = place::supplies()?;
    job::run(&job, port)
}

//! The testbed: an emulated host that has what this one may lack (KVM, device-mapper, cgroups v2), for one job.
//!
//! ```text
//! host_image   Debian + QEMU, built once, cached by a hash of what goes in ─┐
//! supplies     what the job needs, as a disk made for this run ─────────────┼─► machine (QEMU) ◄─frames─► session
//! runner       the host's first process, in its initramfs ──────────────────┘
//! ```
//!
//! The emulated host has no network device at all. Its disks are thrown away with it: a job's results are its output, its
//! exit code, and the files it was told to bring back. It does not know what a test is; `cargo xtask testbed` does.

mod host_image;
mod machine;
mod session;
mod supplies;
mod terminal;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use wrenn_engine::units::Mib;
use wrenn_testbed_runner::Job;

use machine::Hardware;
use supplies::{Supplies, Supply};

/// Exit code of a job that did not come to its end.
const EXIT_BROKEN: u8 = 125;
/// Exit code when the emulated host stands still: whoever wants to may try again.
const EXIT_STANDS_STILL: u8 = 124;

/// Run one job in an emulated host with KVM, device-mapper and cgroups.
#[derive(Debug, Parser)]
#[command(name = "wrenn-testbed")]
struct Cli {
    /// Where the host's image is kept between runs
    #[arg(long)]
    cache: PathBuf,
    /// The host's first process, a static program
    #[arg(long)]
    runner: PathBuf,
    /// A file or folder of this host and the absolute path at which the job sees it (SOURCE=PATH)
    #[arg(long = "put")]
    puts: Vec<Supply>,
    /// A folder of the emulated host that is one mount, with all that is put below it
    #[arg(long = "volume")]
    volumes: Vec<PathBuf>,
    /// A file that is brought back from the emulated host, and where to (PATH=TARGET)
    #[arg(long = "bring")]
    bring: Vec<Supply>,
    /// A variable of the job's environment (NAME=VALUE)
    #[arg(long = "env")]
    env: Vec<String>,
    /// The job's working directory
    #[arg(long, default_value = "/")]
    cwd: PathBuf,
    /// Memory of the emulated host
    #[arg(long, default_value_t = 6144)]
    memory_mib: u32,
    /// CPUs of the emulated host; as many as this one has by default
    #[arg(long)]
    cpus: Option<u32>,
    /// Seconds the job may take
    #[arg(long, default_value_t = 1800)]
    limit_s: u64,
    /// Give the job this terminal
    #[arg(long)]
    terminal: bool,
    /// Program and arguments
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("testbed: {error:#}");
            ExitCode::from(if error.is::<session::StandsStill>() { EXIT_STANDS_STILL } else { EXIT_BROKEN })
        }
    }
}

fn run(cli: Cli) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let image = runtime.block_on(host_image::prepare(&cli.cache))?;
    let supplies = Supplies { puts: cli.puts, volumes: cli.volumes };
    let job = Job {
        command: cli.command,
        env: environment(&cli.env)?,
        cwd: cli.cwd,
        binds: supplies.binds(),
        bring: cli.bring.iter().map(|file| file.source.clone()).collect(),
        terminal: cli.terminal,
    };
    let work = tempfile::Builder::new().prefix("run-").tempdir_in(&cli.cache).context("cannot make a work folder")?;
    let disk = runtime.block_on(supplies.disk(work.path(), &job))?;
    let hardware =
        Hardware { accel: machine::accel(), memory: Mib(cli.memory_mib), cpus: cli.cpus.unwrap_or_else(cpus) };
    let initramfs = work.path().join("initrd.img");
    image.make_initramfs(&cli.runner, &initramfs)?;
    let disks = machine::Disks { root: &image.disk, supplies: &disk };
    let machine = machine::start(&image.kernel, &initramfs, disks, work.path(), hardware)?;
    session::run(machine, &job, &cli.bring, Duration::from_secs(cli.limit_s))
}

fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u32)
}

/// The job's environment: what every program needs, then what was asked for.
fn environment(asked: &[String]) -> Result<Vec<(String, String)>> {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut env: Vec<(String, String)> = [("PATH", path), ("HOME", "/root"), ("LANG", "C.UTF-8"), ("TMPDIR", "/tmp")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    for variable in asked {
        let (name, value) = variable.split_once('=').with_context(|| format!("`{variable}` is not NAME=VALUE"))?;
        env.push((name.to_owned(), value.to_owned()));
    }
    Ok(env)
}

//! The shim: one small process per sandbox, the parent of its VMM. It outlives the agent.
//!
//! ```text
//! start:  spec ─► socket bound ─► VMM started ─► ready line
//! then:   one poll loop over
//!           signals ───► SIGTERM ends the VMM, then the shim
//!           VMM ───────► its end is recorded (exit record), told to who waits, then the shim lingers
//!           console ───► ring file, at a limited rate (the guest blocks itself, not us)
//!           stderr ────► the last 16 KiB, in memory
//!           faults ────► pages of the VM's memory, where the VMM has them served (`pager`)
//!           listener ──► clients, at most 16, each with bounded buffers
//! end:    on Shutdown, or alone for long enough after the VMM's end
//! ```
//!
//! Invariants. The VMM never outlives the shim: a shim that is killed takes it along (PDEATHSIG; for which it matters
//! that this program has one thread only). The exit record is on disk before anyone hears of the end. Nothing a guest, a
//! VMM or a client sends makes the shim grow: every buffer has its limit in `limits.rs`. What it does not know: what a
//! sandbox is, what the VMM's arguments mean, what is done about an end.
//!
//! Exit codes: 0 as asked, 1 the VMM could not be started or the shim could not go on, 2 called wrongly.

mod clients;
mod console;
mod limits;
mod pager;
mod record;
mod service;
mod setup;
mod supervisor;
mod throttle;
mod vmm;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use wrenn_proto::shim::{Ready, Spec};
use wrenn_sys::fds::Inherited;

use setup::SetupError;
use supervisor::Supervisor;

fn main() -> ExitCode {
    // First of all, before anything else is open.
    let inherited = match Inherited::take_all() {
        Ok(inherited) => inherited,
        Err(error) => return refuse(&error),
    };
    let mut arguments = std::env::args_os().skip(1);
    let (Some(path), None) = (arguments.next(), arguments.next()) else {
        complain("usage: wrenn-shim SPEC (the path of a JSON file; started by the agent, not by hand)");
        return ExitCode::from(2);
    };
    match Spec::read(Path::new(&path)) {
        Ok(spec) => run(spec, inherited),
        Err(error) => refuse(&error),
    }
}

fn run(spec: Spec, mut inherited: Inherited) -> ExitCode {
    let Some(ready) = inherited.take(spec.ready_fd) else {
        return refuse(&SetupError::Descriptor { number: spec.ready_fd });
    };
    let (line, supervisor) = begin(spec, inherited);
    if let Err(error) = std::fs::File::from(ready).write_all(&line.to_line()) {
        // Whoever started us is gone; the VMM is not theirs alone, others may connect.
        complain(&format!("nobody reads that this shim is ready: {error}"));
    }
    match supervisor.map(Supervisor::run) {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            complain(&with_causes(&error));
            ExitCode::FAILURE
        }
        None => ExitCode::FAILURE,
    }
}

/// Sets everything up; the line says how that went.
fn begin(spec: Spec, inherited: Inherited) -> (Ready, Option<Supervisor>) {
    match setup::set_up(spec, inherited) {
        Ok(supervisor) => {
            (Ready::Started { shim_pid: std::process::id(), vmm_pid: supervisor.vmm_pid() }, Some(supervisor))
        }
        Err(SetupError::Spawn(record)) => {
            complain(&format!("the VMM {}", record.end));
            (Ready::SpawnFailed(*record), None)
        }
        Err(error) => {
            let message = with_causes(&error);
            complain(&message);
            (Ready::Failed { message }, None)
        }
    }
}

fn refuse(error: &dyn std::error::Error) -> ExitCode {
    complain(&with_causes(error));
    ExitCode::from(2)
}

/// Says something on stderr. It may be closed or full, and nobody could be told about that.
fn complain(message: &str) {
    writeln!(std::io::stderr(), "wrenn-shim: {message}").ok();
}

/// An error and its causes on one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

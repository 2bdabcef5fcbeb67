//! Named steps of a sandbox's life, and faults that can be asked for at them: for tests of what no real host does on demand.
//!
//! Every step that leaves something behind has a name here. What is asked for happens once, right after the step. Nothing is
//! asked for unless somebody passes `--fault STEP:FAULT`, which no help text mentions.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, Signal, getpid, kill_process};
use wrenn_engine::vmm::Shim;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident => $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Its name.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let found = Self::ALL.iter().copied().find(|one| one.as_str() == text);
                found.ok_or_else(|| format!("`{text}` is none of {}", Self::ALL.iter().map(|one| one.as_str()).collect::<Vec<_>>().join(", ")))
            }
        }
    };
}

named! {
    /// A step, just done.
    Step {
        /// Folder, lock and manifest of a new sandbox are there.
        CreateBegun => "create-begun",
        /// It has its network.
        CreateNetworked => "create-networked",
        /// It has its disk.
        CreateDisked => "create-disked",
        /// Its VMM runs.
        CreateLaunched => "create-launched",
        /// The VMM has taken a captured state over; CPUs stand still.
        CreateLoaded => "create-loaded",
        /// The CPUs of a captured guest run.
        CreateThawed => "create-thawed",
        /// Its guest answers.
        CreateReady => "create-ready",
        /// Its guest knows its token; the manifest does not say `running` yet.
        CreateInited => "create-inited",
        /// The manifest says `running`.
        CreateDone => "create-done",
        /// The manifest says `pausing`.
        PauseBegun => "pause-begun",
        /// The guest's users stand still.
        PauseUsersFrozen => "pause-users-frozen",
        /// The guest's CPUs stand still.
        PauseFrozen => "pause-frozen",
        /// State and memory are in files.
        PauseCaptured => "pause-captured",
        /// They are durable.
        PauseDurable => "pause-durable",
        /// The manifest says that there is no way back.
        PauseDecided => "pause-decided",
        /// The VM has ended.
        PauseEnded => "pause-ended",
        /// The disk's devices are gone.
        PauseDetached => "pause-detached",
        /// The disk is in the generation.
        PauseMoved => "pause-moved",
        /// The generation is whole.
        PauseCommitted => "pause-committed",
        /// The network is free.
        PauseFreed => "pause-freed",
        /// The manifest says `paused`.
        PauseDone => "pause-done",
        /// What changed in memory is in the base.
        PauseFolded => "pause-folded",
        /// The manifest says `resuming`.
        ResumeBegun => "resume-begun",
        /// It has a network again.
        ResumeNetworked => "resume-networked",
        /// It has a live disk again.
        ResumeDisked => "resume-disked",
        /// Its VMM runs.
        ResumeLaunched => "resume-launched",
        /// The VMM has taken the captured state over; CPUs stand still.
        ResumeLoaded => "resume-loaded",
        /// The guest's CPUs run.
        ResumeThawed => "resume-thawed",
        /// The guest answers.
        ResumeReady => "resume-ready",
        /// The guest has confirmed clock, entropy and hooks; its users still stand still.
        ResumeConfirmed => "resume-confirmed",
        /// The manifest says `running`; users still stand still.
        ResumeDone => "resume-done",
        /// The folder of a snapshot is begun.
        CaptureBegun => "capture-begun",
        /// The users of a guest that is captured stand still.
        CaptureUsersFrozen => "capture-users-frozen",
        /// Its CPUs stand still.
        CaptureFrozen => "capture-frozen",
        /// State and memory were taken.
        CaptureTaken => "capture-taken",
        /// Its disk was copied.
        CaptureSealed => "capture-sealed",
        /// It goes on.
        CaptureThawed => "capture-thawed",
        /// All of the snapshot is durable, under a name that nobody looks for.
        CaptureDurable => "capture-durable",
        /// The snapshot is there.
        CaptureDone => "capture-done",
        /// A snapshot's files are in the folder of the sandbox that is to become it.
        RollbackPlaced => "rollback-placed",
        /// The manifest says `rolling_back`: there is no way back.
        RollbackDecided => "rollback-decided",
        /// The VM has ended, and nothing of it is left.
        RollbackEnded => "rollback-ended",
        /// The manifest says `paused`.
        RollbackDone => "rollback-done",
        /// The layers of a snapshot's disk are as they were written.
        FlattenBegun => "flatten-begun",
        /// The image is written, and has no name yet.
        FlattenWritten => "flatten-written",
        /// The template is there; its warm image is not.
        FlattenNamed => "flatten-named",
        /// All of it is there.
        FlattenDone => "flatten-done",
        /// The manifest says `destroying`.
        DestroyBegun => "destroy-begun",
        /// The VM has ended.
        DestroyEnded => "destroy-ended",
        /// The network is free.
        DestroyFreed => "destroy-freed",
        /// The disk is gone.
        DestroyDisk => "destroy-disk",
    }
}

named! {
    /// What goes wrong.
    Fault {
        /// This process is killed.
        KillAgent => "kill-agent",
        /// The VMM is killed.
        KillVmm => "kill-vmm",
        /// The shim is killed, and its VMM with it.
        KillShim => "kill-shim",
        /// The step fails.
        Fail => "fail",
        /// The step finds no room on the disk.
        Full => "full",
    }
}

/// A step failed because somebody asked for it.
#[derive(Debug, thiserror::Error)]
#[error("the step {step} failed on request")]
pub struct Injected {
    step: Step,
    #[source]
    source: io::Error,
}

/// The fault that is asked for, if any.
#[derive(Debug, Default)]
pub struct Faults {
    wanted: Option<(Step, Fault)>,
    done: AtomicBool,
}

impl Clone for Faults {
    /// The same wish, not yet granted.
    fn clone(&self) -> Self {
        Self { wanted: self.wanted, done: AtomicBool::new(false) }
    }
}

impl FromStr for Faults {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (step, fault) = text.split_once(':').ok_or("expected STEP:FAULT")?;
        Ok(Self { wanted: Some((step.parse()?, fault.parse()?)), done: AtomicBool::new(false) })
    }
}

impl Faults {
    /// `step` was just done, in the sandbox whose shim is `shim`.
    pub(crate) fn at(&self, step: Step, shim: Option<&Shim>) -> Result<(), Injected> {
        match self.wanted {
            Some((wanted, fault)) if wanted == step && !self.done.swap(true, Ordering::Relaxed) => {
                cause(step, fault, shim)
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn cause(step: Step, fault: Fault, shim: Option<&Shim>) -> Result<(), Injected> {
    tracing::warn!(%step, %fault, "a fault that was asked for");
    let fail = |source: io::Error| Err(Injected { step, source });
    match fault {
        Fault::KillAgent => kill(Some(getpid())),
        Fault::KillVmm => {
            kill(shim.and_then(|shim| shim.vmm_pid().ok()?).and_then(|pid| Pid::from_raw(pid.cast_signed())))
        }
        Fault::KillShim => kill(shim.and_then(|shim| shim.pid().ok()).and_then(|pid| Pid::from_raw(pid.cast_signed()))),
        Fault::Fail => return fail(io::Error::other("as asked")),
        Fault::Full => return fail(io::ErrorKind::StorageFull.into()),
    }
    Ok(())
}

fn kill(pid: Option<Pid>) {
    let Some(pid) = pid else { return };
    if let Err(error) = kill_process(pid, Signal::KILL) {
        tracing::warn!(%error, "cannot kill what was to be killed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_named_and_happens_once() {
        let faults: Faults = "pause-captured:full".parse().unwrap();
        faults.at(Step::PauseFrozen, None).unwrap();
        let error = faults.at(Step::PauseCaptured, None).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::StorageFull);
        faults.at(Step::PauseCaptured, None).unwrap();
        for wrong in ["", "pause-captured", "pause-captured:explode", "never:fail"] {
            assert!(wrong.parse::<Faults>().is_err(), "{wrong}");
        }
        assert!(Faults::default().at(Step::CreateDone, None).is_ok());
    }
}

//! What is allowed when: a pure table of phases and verbs, with every refusal by its name.
//!
//! ```text
//!  create ─► Creating ─► Running ◄──────────────┐            VM gone ─► Stopped ── resume (cold boot) ─► Running
//!                          │ pause              │ resume
//!                          ▼                    │
//!                       Pausing ─► Paused ─► Resuming
//!  any ── destroy ─► Destroying ─► gone          any step that cannot be undone ─► NeedsRepair ── repair ─► Paused | Stopped
//!  Running | Paused ── snapshot, fork ─► Capturing ─► as before
//!  Running | Paused | Stopped ── rollback ─► RollingBack ─► Paused ─► Resuming ─► Running
//! ```
//!
//! Destroy is allowed always. It knows neither locks nor tasks: whoever owns a sandbox asks before it acts.

use crate::host_agent::Phase;

/// What can be asked of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// A connection to its guest.
    Use,
    /// To rest.
    Pause,
    /// Back from rest.
    Resume,
    /// To be captured, and to go on.
    Capture,
    /// Back to a snapshot.
    RollBack,
    /// Another deadline.
    SetTimeout,
    /// Out of need of repair.
    Repair,
    /// Away with it.
    Destroy,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Use,
        Self::Pause,
        Self::Resume,
        Self::Capture,
        Self::RollBack,
        Self::SetTimeout,
        Self::Repair,
        Self::Destroy,
    ];
}

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It is still being built, or coming back.
    #[error("the sandbox is {0}; wait until it runs")]
    NotReady(Phase),
    /// It is at rest.
    #[error("the sandbox is {0}; resume it first")]
    AtRest(Phase),
    /// It runs.
    #[error("the sandbox is running: there is nothing to resume")]
    Running,
    /// It is at rest already.
    #[error("the sandbox is {0}: there is nothing to pause")]
    RestsAlready(Phase),
    /// Its memory is lost, and its disk not whole.
    #[error("the sandbox is {0}: there is nothing to capture; resume it first")]
    NothingToCapture(Phase),
    /// A step failed halfway.
    #[error("the sandbox needs a repair first: `wrenn repair ID`, or destroy it")]
    NeedsRepair,
    /// Nothing is broken.
    #[error("the sandbox is {0}: there is nothing to repair")]
    NothingToRepair(Phase),
    /// It never comes back.
    #[error("the sandbox is being destroyed")]
    Destroying,
}

/// Whether `verb` is allowed in `phase`.
pub const fn check(phase: Phase, verb: Verb) -> Result<(), Denied> {
    match (verb, phase) {
        (Verb::Destroy, _) => Ok(()),
        (_, Phase::Destroying) => Err(Denied::Destroying),
        (Verb::Repair, Phase::NeedsRepair) => Ok(()),
        (Verb::Repair, phase) => Err(Denied::NothingToRepair(phase)),
        (_, Phase::NeedsRepair) => Err(Denied::NeedsRepair),
        (Verb::Use | Verb::Pause | Verb::SetTimeout, Phase::Running) => Ok(()),
        // It stands still for a moment and goes on: whoever asks then waits that long.
        (Verb::Use, Phase::Capturing) => Ok(()),
        (Verb::Capture, Phase::Running | Phase::Paused) => Ok(()),
        (Verb::RollBack, Phase::Running | Phase::Paused | Phase::Stopped) => Ok(()),
        (Verb::Resume, Phase::Paused | Phase::Stopped) => Ok(()),
        (Verb::Resume, Phase::Running) => Err(Denied::Running),
        (Verb::Capture, Phase::Stopped) => Err(Denied::NothingToCapture(phase)),
        (Verb::Use | Verb::SetTimeout, Phase::Paused | Phase::Pausing | Phase::Stopped) => Err(Denied::AtRest(phase)),
        (Verb::Pause, Phase::Paused | Phase::Pausing | Phase::Stopped) => Err(Denied::RestsAlready(phase)),
        (
            Verb::Use | Verb::Pause | Verb::SetTimeout | Verb::Resume | Verb::Capture | Verb::RollBack,
            Phase::Creating | Phase::Pausing | Phase::Resuming | Phase::Capturing | Phase::RollingBack,
        ) => Err(Denied::NotReady(phase)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 10] = [
        Phase::Creating,
        Phase::Running,
        Phase::Pausing,
        Phase::Paused,
        Phase::Resuming,
        Phase::Capturing,
        Phase::RollingBack,
        Phase::Stopped,
        Phase::NeedsRepair,
        Phase::Destroying,
    ];

    /// The phases in which a verb is allowed.
    fn allowed(verb: Verb) -> Vec<Phase> {
        PHASES.into_iter().filter(|phase| check(*phase, verb).is_ok()).collect()
    }

    #[test]
    fn each_verb_has_its_phases() {
        assert_eq!(allowed(Verb::Use), [Phase::Running, Phase::Capturing]);
        assert_eq!(allowed(Verb::Pause), [Phase::Running]);
        assert_eq!(allowed(Verb::SetTimeout), [Phase::Running]);
        assert_eq!(allowed(Verb::Resume), [Phase::Paused, Phase::Stopped]);
        assert_eq!(allowed(Verb::Capture), [Phase::Running, Phase::Paused]);
        assert_eq!(allowed(Verb::RollBack), [Phase::Running, Phase::Paused, Phase::Stopped]);
        assert_eq!(allowed(Verb::Repair), [Phase::NeedsRepair]);
        assert_eq!(allowed(Verb::Destroy), PHASES);
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let words = |phase, verb| check(phase, verb).unwrap_err().to_string();
        assert_eq!(words(Phase::Paused, Verb::Use), "the sandbox is paused; resume it first");
        assert!(words(Phase::NeedsRepair, Verb::Resume).contains("wrenn repair"));
        assert_eq!(check(Phase::Destroying, Verb::Repair), Err(Denied::Destroying));
        assert!(Verb::ALL.into_iter().all(|verb| verb == Verb::Destroy || check(Phase::Destroying, verb).is_err()));
    }
}

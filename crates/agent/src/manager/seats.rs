//! Memory of the host, given out to VMs before they start: what all of them may come to take together never exceeds it.
//!
//! A guest's memory is its own page by page, as it writes; a host that runs out of it kills somebody, mostly the one who
//! is least to blame. So each VM is counted with all that it may take.

use std::sync::{Arc, Mutex, PoisonError};

use wrenn_engine::limits;
use wrenn_engine::units::Mib;

use crate::host_agent::{AgentError, Code};

/// The memory that is given out.
#[derive(Debug)]
pub(super) struct Seats {
    most: Mib,
    taken: Mutex<Mib>,
}

/// A VM's share; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    size: Mib,
}

/// What of a host's memory sandboxes may have: all but a reserve for the host itself.
pub(super) fn most(host: Mib) -> Mib {
    let reserve = (host.0 / 100 * limits::HOST_MEMORY_RESERVE_PERCENT).max(limits::HOST_MEMORY_RESERVE_LEAST.0);
    Mib(host.0.saturating_sub(reserve))
}

impl Seats {
    /// So much may be given out.
    pub(super) fn new(most: Mib) -> Self {
        Self { most, taken: Mutex::new(Mib(0)) }
    }

    /// How much may be given out.
    pub(super) fn most(&self) -> Mib {
        self.most
    }

    /// How much is given out.
    pub(super) fn taken(&self) -> Mib {
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A share for a VM with so much memory.
    pub(super) fn take(self: &Arc<Self>, memory: Mib) -> Result<Seat, AgentError> {
        let size = Mib(memory.0.saturating_add(limits::VMM_MEMORY_TYPICAL.0));
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = Mib(taken.0.saturating_add(size.0));
        if wanted > self.most {
            let message = format!(
                "no memory for another {size}: sandboxes may have {} of this host together, and those that run may take \
                 {}; pause or destroy some",
                self.most, *taken
            );
            return Err(AgentError { code: Code::Exhausted, message });
        }
        *taken = wanted;
        Ok(Seat { seats: Arc::clone(self), size })
    }

    /// A share of a VM that runs already, whether there is room or not.
    pub(super) fn insist(self: &Arc<Self>, memory: Mib) -> Seat {
        let size = Mib(memory.0.saturating_add(limits::VMM_MEMORY_TYPICAL.0));
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken = Mib(taken.0.saturating_add(size.0));
        Seat { seats: Arc::clone(self), size }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken = Mib(taken.0.saturating_sub(self.size.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_out_never_exceeds_what_there_is() {
        let overhead = limits::VMM_MEMORY_TYPICAL.0;
        let seats = Arc::new(Seats::new(Mib(2 * (100 + overhead))));
        let first = seats.take(Mib(100)).unwrap();
        let second = seats.take(Mib(100)).unwrap();
        assert_eq!(seats.taken(), seats.most());
        let error = seats.take(Mib(0)).unwrap_err();
        assert_eq!(error.code, Code::Exhausted);
        assert!(error.message.contains("pause or destroy"), "{error}");
        drop(first);
        let adopted = seats.insist(Mib(1000));
        assert!(seats.take(Mib(0)).is_err(), "what runs already counts");
        drop((second, adopted));
        assert_eq!(seats.taken(), Mib(0));
        drop(seats.take(Mib(200)).unwrap());
        assert!(seats.take(Mib(u32::MAX)).is_err());
    }

    #[test]
    fn the_host_keeps_a_reserve() {
        assert!(most(Mib(24_000)) < Mib(23_000));
        assert_eq!(most(Mib(100)), Mib(0));
    }
}

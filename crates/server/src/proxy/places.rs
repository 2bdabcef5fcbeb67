//! How many pass at once: in all, and to each sandbox.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use wrenn_engine::names::SandboxId;

use super::limits;
use super::refused::Refused;

/// What a place is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request, until its answer's body has ended.
    Request,
    /// A request that may become a connection of its own, until that has ended.
    Upgrade,
}

impl Kind {
    const fn max(self) -> usize {
        match self {
            Self::Request => limits::REQUESTS_MAX,
            Self::Upgrade => limits::UPGRADES_MAX,
        }
    }

    const fn per_sandbox_max(self) -> usize {
        match self {
            Self::Request => limits::REQUESTS_PER_SANDBOX_MAX,
            Self::Upgrade => limits::UPGRADES_PER_SANDBOX_MAX,
        }
    }

    const fn what(self) -> &'static str {
        match self {
            Self::Request => "requests",
            Self::Upgrade => "upgraded connections",
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    requests: usize,
    upgrades: usize,
}

impl Taken {
    fn of(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Request => &mut self.requests,
            Kind::Upgrade => &mut self.upgrades,
        }
    }

    fn is_none(self) -> bool {
        self.requests + self.upgrades == 0
    }
}

#[derive(Debug, Default)]
struct Count {
    all: Taken,
    each: HashMap<SandboxId, Taken>,
}

/// All places.
#[derive(Debug, Default)]
pub struct Places(Mutex<Count>);

impl Places {
    /// Takes one, or says that there is none.
    pub fn take(self: &Arc<Self>, id: &SandboxId, kind: Kind) -> Result<Place, Refused> {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = *count.all.of(kind);
        let here = count.each.get(id).copied().unwrap_or_default().of(kind).to_owned();
        if all >= kind.max() {
            let message = format!("there are {all} {} to sandboxes already", kind.what());
            return Err(Refused::full(message).with_remedy("try again when some have ended"));
        }
        if here >= kind.per_sandbox_max() {
            let message = format!("there are {here} {} to sandbox {id} already", kind.what());
            return Err(Refused::full(message).with_remedy("try again when some have ended"));
        }
        *count.all.of(kind) += 1;
        *count.each.entry(id.clone()).or_default().of(kind) += 1;
        Ok(Place { places: Arc::clone(self), id: id.clone(), kind })
    }

    /// How many are taken.
    #[cfg(test)]
    pub fn taken(&self) -> usize {
        let count = self.0.lock().unwrap();
        assert_eq!(count.each.is_empty(), count.all.is_none());
        count.all.requests + count.all.upgrades
    }

    fn leave(&self, id: &SandboxId, kind: Kind) {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *count.all.of(kind) -= 1;
        let here = count.each.get_mut(id).expect("who leaves has taken");
        *here.of(kind) -= 1;
        if here.is_none() {
            count.each.remove(id);
        }
    }
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    id: SandboxId,
    kind: Kind,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.leave(&self.id, self.kind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> SandboxId {
        SandboxId::from_random([number; 18])
    }

    #[test]
    fn a_sandbox_has_its_share_and_gives_it_back() {
        let places = Arc::new(Places::default());
        let take = |kind| places.take(&id(1), kind);
        let held: Vec<_> = (0..limits::REQUESTS_PER_SANDBOX_MAX).map(|_| take(Kind::Request).unwrap()).collect();
        let refused = take(Kind::Request).unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.retry_after_s), (503, Some(limits::RETRY_AFTER_S)));
        let upgrade = take(Kind::Upgrade).unwrap();
        drop((held, upgrade));
        assert_eq!(places.taken(), 0);
        take(Kind::Request).unwrap();
    }

    #[test]
    fn all_together_have_a_limit() {
        let places = Arc::new(Places::default());
        let mut held = Vec::new();
        for number in 0..4 {
            held.extend(
                (0..limits::UPGRADES_PER_SANDBOX_MAX).map(|_| places.take(&id(number), Kind::Upgrade).unwrap()),
            );
        }
        assert_eq!(held.len(), limits::UPGRADES_MAX);
        assert!(places.take(&id(9), Kind::Upgrade).is_err());
        held.pop();
        assert!(places.take(&id(9), Kind::Upgrade).is_ok());
    }
}

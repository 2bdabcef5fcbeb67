//! How much a key may have at once: what it has, and what is being made for it.
//!
//! What a key has is counted from the agent's own list, so nothing can be forgotten or counted twice; what is under way is held
//! as a [`Claim`] until the list has it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use wrenn_agent::host_agent::{Phase, View};
use wrenn_client::types::{Code, Key};

use crate::attributes::Attributes;
use crate::db::Database;
use crate::error::ApiError;
use crate::world::World;

/// An amount of what is limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Sandboxes.
    pub sandboxes: u64,
    /// Virtual CPUs.
    pub vcpus: u64,
    /// Memory, in MiB.
    pub memory_mib: u64,
}

impl Amount {
    fn plus(self, other: Self) -> Self {
        Self {
            sandboxes: self.sandboxes + other.sandboxes,
            vcpus: self.vcpus + other.vcpus,
            memory_mib: self.memory_mib + other.memory_mib,
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            sandboxes: self.sandboxes.saturating_sub(other.sandboxes),
            vcpus: self.vcpus.saturating_sub(other.vcpus),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
        }
    }

    /// `count` sandboxes of this size, that run.
    pub fn of(count: u32, vcpus: u32, memory_mib: u32) -> Self {
        let count = u64::from(count);
        Self { sandboxes: count, vcpus: count * u64::from(vcpus), memory_mib: count * u64::from(memory_mib) }
    }

    /// The same, but for sandboxes that are there already.
    #[must_use]
    pub fn resumed(self) -> Self {
        Self { sandboxes: 0, ..self }
    }
}

/// What is being made.
#[derive(Clone, Default)]
pub struct Claims(Arc<Mutex<HashMap<String, Amount>>>);

/// A part of a quota, held for something that is being made.
pub struct Claim {
    claims: Claims,
    key: String,
    amount: Amount,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = self.claims.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(claimed) = claims.get_mut(&self.key) {
            *claimed = claimed.minus(self.amount);
            if *claimed == Amount::default() {
                claims.remove(&self.key);
            }
        }
    }
}

impl Claims {
    /// Holds `amount` for `key`, which has what is its own among `views` already.
    pub fn claim<'a>(
        &self,
        key: &Key,
        views: impl IntoIterator<Item = &'a View>,
        amount: Amount,
    ) -> Result<Claim, ApiError> {
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let claimed = claims.get(&key.id).copied().unwrap_or_default();
        check(key, taken(&key.id, views).plus(claimed).plus(amount))?;
        claims.insert(key.id.clone(), claimed.plus(amount));
        Ok(Claim { claims: self.clone(), key: key.id.clone(), amount })
    }

    /// Holds what a sandbox at rest takes once it runs, for the key that it counts for; nothing, if it counts for none.
    pub async fn claim_resumed(&self, db: &Database, world: &World, view: &View) -> Result<Option<Claim>, ApiError> {
        let Some(id) = Attributes::read(&view.attributes).key else { return Ok(None) };
        let Some(key) = db.key(&id).await? else { return Ok(None) };
        let views = world.all()?;
        let amount = Amount::of(1, view.vcpus, view.memory.0).resumed();
        self.claim(&key, views.iter().map(AsRef::as_ref), amount).map(Some)
    }
}

/// What the key `id` has among `views`.
fn taken<'a>(id: &str, views: impl IntoIterator<Item = &'a View>) -> Amount {
    let own = views.into_iter().filter(|view| Attributes::read(&view.attributes).key.as_deref() == Some(id));
    own.fold(Amount::default(), |sum, view| {
        let whole = Amount::of(1, view.vcpus, view.memory.0);
        let counts = if runs(view.phase) { whole } else { Amount { sandboxes: 1, ..Amount::default() } };
        sum.plus(counts)
    })
}

/// Whether it takes CPUs and memory.
fn runs(phase: Phase) -> bool {
    match phase {
        Phase::Creating | Phase::Running | Phase::Pausing | Phase::Resuming | Phase::Capturing | Phase::RollingBack => {
            true
        }
        Phase::Paused | Phase::Stopped | Phase::NeedsRepair | Phase::Destroying => false,
    }
}

fn check(key: &Key, wanted: Amount) -> Result<(), ApiError> {
    let limits = [
        ("sandboxes", wanted.sandboxes, key.sandboxes_max),
        ("virtual CPUs", wanted.vcpus, key.vcpus_max),
        ("MiB of memory", wanted.memory_mib, key.memory_mib_max),
    ];
    for (what, wanted, most) in limits {
        if let Some(most) = most.filter(|most| wanted > u64::from(*most)) {
            let message =
                format!("the key {} may have {most} {what} at once, and this would make {wanted}", key.prefix);
            let remedy = "destroy or pause what is not needed, or have the key's quota raised";
            return Err(ApiError::new(Code::QuotaExceeded, message).remedy(remedy));
        }
    }
    Ok(())
}

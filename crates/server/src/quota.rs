//! How much a key may have at once: what it has, and what is being made for it.
//!
//! What a key has is counted from the agent's own list, so nothing can be forgotten; what is under way is held as a [`Claim`]
//! until it is done. The list has it sooner than that: sandboxes of a claim carry its id, and are not counted twice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wrenn_agent::host_agent::{Phase, View};
use wrenn_client::types::{Code, Key};

use crate::attributes::Attributes;
use crate::db::Database;
use crate::error::ApiError;
use crate::ids::new_id;
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

/// What is being made: of each key, by the ids of the claims.
#[derive(Clone, Default)]
pub struct Claims(Arc<Mutex<HashMap<String, HashMap<String, Held>>>>);

/// What is held, and by how many: several may want the same sandbox to come back.
struct Held {
    amount: Amount,
    holders: usize,
}

/// A part of a quota, held for something that is being made.
pub struct Claim {
    claims: Claims,
    key: String,
    id: String,
}

impl Claim {
    /// What sandboxes that are made under it carry.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = self.claims.held();
        let Some(own) = claims.get_mut(&self.key) else { return };
        if let Some(held) = own.get_mut(&self.id) {
            held.holders -= 1;
        }
        own.retain(|_, held| held.holders > 0);
        if own.is_empty() {
            claims.remove(&self.key);
        }
    }
}

impl Claims {
    fn held(&self) -> MutexGuard<'_, HashMap<String, HashMap<String, Held>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds `amount` of new sandboxes for `key`, which has what is its own among `views` already.
    pub fn claim<'a>(
        &self,
        key: &Key,
        views: impl IntoIterator<Item = &'a View>,
        amount: Amount,
    ) -> Result<Claim, ApiError> {
        self.hold(key, views, new_id("cl")?, amount)
    }

    fn hold<'a>(
        &self,
        key: &Key,
        views: impl IntoIterator<Item = &'a View>,
        id: String,
        amount: Amount,
    ) -> Result<Claim, ApiError> {
        let mut claims = self.held();
        let own = claims.entry(key.id.clone()).or_default();
        own.entry(id.clone()).or_insert(Held { amount, holders: 0 }).holders += 1;
        let held = own.values().fold(Amount::default(), |sum, held| sum.plus(held.amount));
        let wanted = taken(&key.id, views, own).plus(held);
        drop(claims);
        // If it is too much it is given up here.
        let claim = Claim { claims: self.clone(), key: key.id.clone(), id };
        check(key, wanted).map(|()| claim)
    }

    /// Holds what a sandbox at rest takes once it runs, for the key that it counts for; nothing, if it counts for none.
    pub async fn claim_resumed(&self, db: &Database, world: &World, view: &View) -> Result<Option<Claim>, ApiError> {
        let Some(id) = Attributes::read(&view.attributes).key else { return Ok(None) };
        let Some(key) = db.key(&id).await? else { return Ok(None) };
        let views = world.all()?;
        let amount = Amount::of(1, view.vcpus, view.memory.0).resumed();
        self.hold(&key, views.iter().map(AsRef::as_ref), view.id.to_string(), amount).map(Some)
    }
}

/// What the key `id` has among `views`, but for what is held for them.
fn taken<'a>(id: &str, views: impl IntoIterator<Item = &'a View>, held: &HashMap<String, Held>) -> Amount {
    let counts = |view: &View| {
        let attributes = Attributes::read(&view.attributes);
        let is_new = attributes.claim.is_some_and(|claim| held.contains_key(&claim));
        if attributes.key.as_deref() != Some(id) || is_new {
            return Amount::default();
        }
        let whole = Amount::of(1, view.vcpus, view.memory.0);
        let comes_back = held.contains_key(view.id.as_str());
        if runs(view.phase) && !comes_back { whole } else { Amount { sandboxes: 1, ..Amount::default() } }
    };
    views.into_iter().map(counts).fold(Amount::default(), Amount::plus)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wrenn_agent::fake;
    use wrenn_agent::host_agent::{CreateRequest, Source, Wishes};
    use wrenn_client::types::Scope;

    use super::*;

    const ONE: Amount = Amount { sandboxes: 1, vcpus: 1, memory_mib: 256 };

    fn key(sandboxes_max: u32) -> Key {
        Key {
            id: "ky1".to_owned(),
            name: String::new(),
            prefix: "wrn_012345".to_owned(),
            scope: Scope::Write,
            tenant: "default".to_owned(),
            created_unix_ms: 0,
            last_used_unix_ms: None,
            revoked_unix_ms: None,
            sandboxes_max: Some(sandboxes_max),
            vcpus_max: None,
            memory_mib_max: None,
        }
    }

    fn listed(claim: &Claim) -> View {
        let attributes =
            Attributes { key: Some("ky1".to_owned()), claim: Some(claim.id().to_owned()), ..Attributes::default() };
        let wishes = Wishes { attributes: attributes.write(), ..Wishes::bound(Duration::ZERO) };
        let view = fake::view(1, &CreateRequest { source: Source::Snapshot(String::new()), wishes });
        View { phase: Phase::Creating, ..view }
    }

    #[test]
    fn what_is_being_made_and_listed_is_counted_once() {
        let (claims, key) = (Claims::default(), key(2));
        let first = claims.claim(&key, [], ONE).unwrap();
        let view = listed(&first);
        let second = claims.claim(&key, [&view], ONE).unwrap();
        assert!(claims.claim(&key, [&view], ONE).is_err());
        drop(first);
        assert!(claims.claim(&key, [&view], ONE).is_err(), "it is in the list alone, and counts");
        drop(second);
        claims.claim(&key, [&view], ONE).unwrap();
        assert!(claims.held().is_empty(), "nothing is left of claims that ended or were refused");
    }
}

//! Who asks: keys, and what they allow.
//!
//! A key is one secret of 160 bits, written `wrn_` (or `e2b_`: old clients check the form) and 40 hexadecimal digits. Kept is its
//! SHA-256 alone, so that a database that is read by others tells nobody a key. A look-up is believed for two seconds: so long at
//! most does a key go on that was revoked by another process; a server's own revocations take effect at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;
use tokio::time::timeout;
use wrenn_agent::host_agent::View;
use wrenn_client::types::{Code, Key, Scope};

use crate::attributes::Attributes;
use crate::db::{Database, DbError};
use crate::error::ApiError;
use crate::ids::{NoRandom, new_secret};
use crate::{limits, time};

/// What a secret begins with.
const PREFIX: &str = "wrn_";
/// What it may begin with as well.
const PREFIXES: [&str; 2] = [PREFIX, "e2b_"];
/// Hexadecimal digits of a secret.
const DIGITS: usize = 40;
/// Characters of a secret by which people tell keys apart.
const SHOWN: usize = PREFIX.len() + 6;

/// How the subprotocol begins in which a browser's WebSocket brings its key.
const PROTOCOL_PREFIX: &str = "key.";

/// A secret that has the form of one.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A new one.
    pub fn new() -> Result<Self, NoRandom> {
        Ok(Self(new_secret::<{ DIGITS / 2 }>()?))
    }

    /// As somebody shows it.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix))?;
        let well_formed =
            digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'));
        well_formed.then(|| Self(digits.to_owned()))
    }

    /// The whole of it, to be shown once.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", self.0)
    }

    /// Its beginning.
    pub fn prefix(&self) -> String {
        self.reveal()[..SHOWN].to_owned()
    }

    /// What is kept of it.
    pub fn digest(&self) -> SecretDigest {
        SecretDigest(Sha256::digest(self.0.as_bytes()).into())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// What is kept of a secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SecretDigest([u8; 32]);

impl SecretDigest {
    /// In hexadecimal digits, as the database has it.
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    /// With which key.
    pub key: Arc<Key>,
    digest: SecretDigestShown,
}

/// A digest that is not printed.
#[derive(Clone, Copy)]
struct SecretDigestShown(SecretDigest);

impl std::fmt::Debug for SecretDigestShown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

impl Caller {
    /// That the key allows at least this.
    pub fn demand(&self, scope: Scope) -> Result<(), ApiError> {
        if self.key.scope >= scope {
            return Ok(());
        }
        let (has, needs) = (self.key.scope.as_str(), scope.as_str());
        let message = format!("the key {} has the scope `{has}`, and this needs `{needs}`", self.key.prefix);
        let remedy = format!("use a key of that scope: `wrenn key create --scope {needs}`");
        Err(ApiError::new(Code::Forbidden, message).remedy(remedy))
    }

    /// Whether it may see what belongs to `tenant`.
    pub fn sees(&self, tenant: &str) -> bool {
        self.key.scope == Scope::Admin || self.key.tenant == tenant
    }

    /// Whether it may see this sandbox.
    pub fn sees_sandbox(&self, view: &View) -> bool {
        self.sees(Attributes::read(&view.attributes).owner())
    }

    /// The tenant whose things it lists; `None` is everybody's.
    pub fn tenant(&self) -> Option<&str> {
        (self.key.scope != Scope::Admin).then_some(self.key.tenant.as_str())
    }

    /// Whether it is told secrets.
    pub fn is_told_secrets(&self) -> bool {
        self.key.scope >= Scope::Write
    }
}

/// The keys that were looked up lately.
pub struct Keys {
    db: Database,
    known: Mutex<HashMap<SecretDigest, Known>>,
    /// How often all were forgotten; who waits for a revocation looks again then.
    forgotten: watch::Sender<u64>,
}

#[derive(Clone)]
struct Known {
    key: Arc<Key>,
    digest: SecretDigest,
    at: Instant,
}

impl Keys {
    /// Those of a database.
    pub fn new(db: Database) -> Self {
        Self { db, known: Mutex::default(), forgotten: watch::Sender::new(0) }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<SecretDigest, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose secret this is; `None` if it is no valid key's.
    pub async fn caller(&self, secret: &Secret) -> Result<Option<Caller>, DbError> {
        self.caller_of(secret.digest()).await
    }

    async fn caller_of(&self, digest: SecretDigest) -> Result<Option<Caller>, DbError> {
        if let Some(known) = self.remembered(digest) {
            return Ok(Some(Caller { key: known.key, digest: SecretDigestShown(known.digest) }));
        }
        let forgotten = *self.forgotten.borrow();
        let key = self.db.find_key(&digest.to_hex()).await?.filter(|key| key.revoked_unix_ms.is_none());
        let Some(key) = key else {
            self.known().remove(&digest);
            return Ok(None);
        };
        let key = Arc::new(key);
        self.remember(digest, &key, forgotten);
        self.note_use(&key).await;
        Ok(Some(Caller { key, digest: SecretDigestShown(digest) }))
    }

    fn remembered(&self, digest: SecretDigest) -> Option<Known> {
        let known = self.known().get(&digest).cloned()?;
        // The map found it by its hash; the comparison that decides takes the same time wherever they differ.
        let is_it = bool::from(known.digest.0.ct_eq(&digest.0));
        (is_it && known.at.elapsed() < limits::KEY_BELIEVED_FOR).then_some(known)
    }

    /// What was looked up after all were `forgotten` so often.
    fn remember(&self, digest: SecretDigest, key: &Arc<Key>, forgotten: u64) {
        let mut known = self.known();
        // It may have been revoked since it was read.
        if *self.forgotten.borrow() != forgotten {
            return;
        }
        if known.len() >= limits::KEYS_REMEMBERED_MAX {
            known.clear();
        }
        known.insert(digest, Known { key: Arc::clone(key), digest, at: Instant::now() });
    }

    /// Once a minute is enough to tell a key that is used from one that is not.
    async fn note_use(&self, key: &Key) {
        let now = time::now_unix_ms();
        if key.last_used_unix_ms.is_some_and(|last| now < last + 60_000) {
            return;
        }
        if let Err(error) = self.db.note_key_use(&key.id, now).await {
            tracing::warn!(key = key.id, %error, "cannot note that a key was used");
        }
    }

    /// Nothing is remembered any more: some key is not what it was.
    pub fn forget(&self) {
        let mut known = self.known();
        known.clear();
        self.forgotten.send_modify(|times| *times += 1);
    }

    /// Ready when the caller's key is valid no more. While the database is not there, it is believed. Cancel safe.
    pub async fn revoked(&self, caller: &Caller) {
        let mut forgotten = self.forgotten.subscribe();
        // From before it is known who waits: what was revoked in between is seen, too.
        forgotten.mark_changed();
        loop {
            // Its sender is in self.
            drop(timeout(limits::KEY_BELIEVED_FOR, forgotten.changed()).await);
            match self.caller_of(caller.digest.0).await {
                Ok(None) => return,
                Ok(Some(_still)) => {}
                Err(error) => tracing::debug!(%error, "cannot ask whether a key is still valid"),
            }
        }
    }
}

/// The secret that a request shows; `Ok(None)` if it shows none.
pub fn shown_secret(headers: &HeaderMap) -> Result<Option<Secret>, ApiError> {
    let Some(text) = shown_text(headers) else { return Ok(None) };
    match Secret::parse(text.trim()) {
        Some(secret) => Ok(Some(secret)),
        None => Err(wrong_key("that is no key: one is `wrn_` and 40 hexadecimal digits")),
    }
}

fn shown_text(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = || {
        let (scheme, token) = text(header::AUTHORIZATION.as_str())?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    };
    let protocol = || {
        let protocols = text(header::SEC_WEBSOCKET_PROTOCOL.as_str())?;
        protocols.split(',').find_map(|protocol| protocol.trim().strip_prefix(PROTOCOL_PREFIX))
    };
    text("x-api-key").or_else(bearer).or_else(protocol)
}

/// The refusal of somebody whose key is none.
pub fn wrong_key(message: &str) -> ApiError {
    ApiError::new(Code::Unauthenticated, message)
        .remedy("send a valid key as X-API-Key; `wrenn key create` on the host makes one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_one_form() {
        let secret = Secret::new().unwrap();
        assert_eq!(Secret::parse(&secret.reveal()).unwrap(), secret);
        assert_eq!(
            Secret::parse(&secret.reveal().replace("wrn_", "e2b_")).unwrap().digest().to_hex(),
            secret.digest().to_hex()
        );
        let long = format!("{}0", secret.reveal());
        for wrong in ["", "wrn_", "abc", &secret.0, &long, &secret.reveal().to_uppercase()] {
            assert_eq!(Secret::parse(wrong), None, "{wrong}");
        }
        assert!(!format!("{secret:?}").contains(&secret.0));
    }

    #[test]
    fn a_key_is_shown_in_three_ways() {
        let secret = Secret::new().unwrap();
        let shown = |name: &'static str, value: String| {
            let headers = HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())]);
            shown_secret(&headers)
        };
        for (name, value) in [
            ("x-api-key", secret.reveal()),
            ("authorization", format!("bearer {}", secret.reveal())),
            ("sec-websocket-protocol", format!("wrenn.v1, key.{}", secret.reveal())),
        ] {
            assert_eq!(shown(name, value).unwrap().as_ref(), Some(&secret), "{name}");
        }
        assert_eq!(shown("authorization", "Basic eDp5".to_owned()).unwrap(), None);
        assert_eq!(shown("x-api-key", "nonsense".to_owned()).unwrap_err().body.code, Code::Unauthenticated);
    }
}

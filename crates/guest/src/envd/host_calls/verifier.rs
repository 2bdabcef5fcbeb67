//! Whether it was the host who made a call: its signature, and a nonce that only grows, also when the sandbox becomes
//! another one.
//!
//! A nonce counts as used only when its signature holds, so that nobody else can use one up. A memory that is restored
//! brings back the last nonce of its capture: the calls that were made since then could be made again, by nobody but those
//! who can read the host's traffic to its own guest.

use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use http::HeaderMap;
use wrenn_proto::envd::{NONCE_HEADER, SIGNATURE_HEADER, host_call_message};

/// A text is not the public half of an Ed25519 key.
#[derive(Debug, thiserror::Error)]
#[error("the host's key is not an Ed25519 public key in 64 hex digits")]
pub struct KeyError;

/// Checks the host's signatures.
#[derive(Debug)]
pub struct Verifier {
    key: VerifyingKey,
    known: Mutex<Known>,
}

/// What changes over the guest's life.
#[derive(Debug)]
struct Known {
    sandbox_id: String,
    last_nonce: u64,
}

impl Verifier {
    /// A verifier for calls to this sandbox, by the key's 64 hex digits.
    pub fn new(sandbox_id: &str, key: &str) -> Result<Self, KeyError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(key, &mut bytes).map_err(|_| KeyError)?;
        let key = VerifyingKey::from_bytes(&bytes).ok().filter(|key| !key.is_weak()).ok_or(KeyError)?;
        Ok(Self { key, known: Mutex::new(Known { sandbox_id: sandbox_id.to_owned(), last_nonce: 0 }) })
    }

    /// The sandbox that calls must be meant for.
    pub fn sandbox_id(&self) -> String {
        self.known().sandbox_id.clone()
    }

    /// From now on calls must be meant for this one.
    pub(super) fn rename(&self, sandbox_id: String) {
        self.known().sandbox_id = sandbox_id;
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the host made this call, and for the first time.
    pub(super) fn accept(&self, headers: &HeaderMap, path: &str, body: &[u8]) -> bool {
        let Some((nonce, signature)) = credentials(headers) else { return false };
        let mut known = self.known();
        let message = host_call_message(&known.sandbox_id, nonce, path, body);
        if self.key.verify_strict(&message, &signature).is_err() {
            return false;
        }
        let is_new = nonce > known.last_nonce;
        known.last_nonce = nonce.max(known.last_nonce);
        is_new
    }
}

fn credentials(headers: &HeaderMap) -> Option<(u64, Signature)> {
    let nonce = headers.get(NONCE_HEADER)?.to_str().ok()?;
    // `parse` alone would take "+1" for another writing of "1".
    let nonce = nonce.bytes().all(|byte| byte.is_ascii_digit()).then(|| nonce.parse().ok()).flatten()?;
    let signature = STANDARD.decode(headers.get(SIGNATURE_HEADER)?.as_bytes()).ok()?;
    Some((nonce, Signature::from_slice(&signature).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer, SigningKey};

    const ID: &str = "sb0123456789abcdefgh";

    fn host() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn verifier() -> Verifier {
        Verifier::new(ID, &hex::encode(host().verifying_key().as_bytes())).unwrap()
    }

    fn signed(key: &SigningKey, id: &str, nonce: u64, path: &str, body: &[u8]) -> HeaderMap {
        let signature = key.sign(&host_call_message(id, nonce, path, body));
        headers(&nonce.to_string(), &STANDARD.encode(signature.to_bytes()))
    }

    fn headers(nonce: &str, signature: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(NONCE_HEADER, nonce.parse().unwrap());
        headers.insert(SIGNATURE_HEADER, signature.parse().unwrap());
        headers
    }

    #[test]
    fn the_host_is_believed_once_per_nonce() {
        let verifier = verifier();
        let call = |nonce| verifier.accept(&signed(&host(), ID, nonce, "/init", b"{}"), "/init", b"{}");
        assert!(call(5));
        assert!(!call(5), "replayed");
        assert!(!call(4), "older");
        assert!(call(6));
        assert!(call(u64::MAX));
    }

    #[test]
    fn everything_that_is_signed_counts() {
        let verifier = verifier();
        let other = SigningKey::from_bytes(&[8; 32]);
        let good = signed(&host(), ID, 9, "/init", b"{}");
        for (what, headers, path, body) in [
            ("another key", signed(&other, ID, 9, "/init", b"{}"), "/init", &b"{}"[..]),
            ("another sandbox", signed(&host(), "sbother", 9, "/init", b"{}"), "/init", b"{}"),
            ("another path", good.clone(), "/freeze", b"{}"),
            ("another body", good.clone(), "/init", b"{ }"),
            ("another nonce", headers("10", good[SIGNATURE_HEADER].to_str().unwrap()), "/init", b"{}"),
            ("a nonce's other writing", headers("+9", good[SIGNATURE_HEADER].to_str().unwrap()), "/init", b"{}"),
            ("no number", headers("x", good[SIGNATURE_HEADER].to_str().unwrap()), "/init", b"{}"),
            ("no signature", headers("9", ""), "/init", b"{}"),
            ("half a signature", headers("9", "AAAA"), "/init", b"{}"),
            ("nothing", HeaderMap::new(), "/init", b"{}"),
        ] {
            assert!(!verifier.accept(&headers, path, body), "{what}");
        }
        assert!(verifier.accept(&good, "/init", b"{}"), "none of them used the nonce up");
    }

    #[test]
    fn a_sandbox_that_was_renamed_has_a_new_id_and_its_old_nonces() {
        let verifier = verifier();
        let call = |id, nonce| verifier.accept(&signed(&host(), id, nonce, "/thaw", b""), "/thaw", b"");
        assert!(call(ID, 5));
        verifier.rename("sbother".to_owned());
        assert_eq!(verifier.sandbox_id(), "sbother");
        assert!(!call(ID, 6), "it is not called that any more");
        assert!(!call("sbother", 5), "replayed");
        assert!(call("sbother", 6));
    }

    #[test]
    fn a_key_is_64_hex_digits_of_a_point() {
        for key in [
            "",
            "00",
            "zz",
            &"0".repeat(63),
            &"g".repeat(64),
            &format!("02{}", "0".repeat(62)),
            &format!("01{}", "0".repeat(62)),
        ] {
            assert!(Verifier::new(ID, key).is_err(), "{key}");
        }
    }
}

//! Signed file URLs: whoever holds the access token can hand out a link to one file, for one operation, for a time.
//!
//! The signature is `v1_` and the unpadded base64 of the SHA-256 of `path:operation:user:token[:expiration]`. Path and
//! user are the caller's own words, before any of them is resolved. Pure: time is passed in.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sha2::{Digest as _, Sha256};

/// What a signed URL allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// GET /files
    Read,
    /// POST /files
    Write,
}

/// What the query of a `/files` request says about its signature; bytes as they were after form decoding.
#[derive(Debug, Clone, Copy, Default)]
pub struct Claim<'a> {
    /// `path`, verbatim; empty when absent.
    pub path: &'a [u8],
    /// `username`; empty when absent.
    pub user: &'a [u8],
    /// `signature`.
    pub signature: Option<&'a [u8]>,
    /// `signature_expiration`: Unix seconds.
    pub expiration: Option<&'a [u8]>,
}

/// Why a URL does not count as signed. The texts are part of E2B's contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Neither a token nor a signature.
    #[error("missing signature query parameter")]
    Missing,
    /// Made for something else, or with another token.
    #[error("invalid signature")]
    Invalid,
    /// Right, but too old.
    #[error("signature is already expired")]
    Expired,
}

/// Checks a claim against the access token at `now`, in Unix seconds.
pub fn check(claim: &Claim<'_>, operation: Operation, token: &str, now: i64) -> Result<(), SignatureError> {
    let given = claim.signature.filter(|signature| !signature.is_empty()).ok_or(SignatureError::Missing)?;
    let expiration = claim.expiration.map(parse_seconds).transpose()?;
    let wanted = sign(claim.path, operation, claim.user, token, expiration);
    if !equal(given, wanted.as_bytes()) {
        return Err(SignatureError::Invalid);
    }
    match expiration {
        Some(end) if end < now => Err(SignatureError::Expired),
        Some(_) | None => Ok(()),
    }
}

/// The signature over a path and user as the caller wrote them; `expiration` in Unix seconds.
pub fn sign(path: &[u8], operation: Operation, user: &[u8], token: &str, expiration: Option<i64>) -> String {
    let operation: &[u8] = match operation {
        Operation::Read => b"read",
        Operation::Write => b"write",
    };
    let mut message = [path, operation, user, token.as_bytes()].join(&b':');
    if let Some(expiration) = expiration {
        message.extend_from_slice(format!(":{expiration}").as_bytes());
    }
    format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(&message)))
}

fn parse_seconds(text: &[u8]) -> Result<i64, SignatureError> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(SignatureError::Invalid)
}

/// Compares in a time that depends on the lengths alone, so that a signature cannot be guessed byte by byte.
fn equal(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "s3cret";
    const NOW: i64 = 1_700_000_000;

    fn check_read(path: &str, signature: &str, expiration: Option<&str>) -> Result<(), SignatureError> {
        let claim = Claim {
            path: path.as_bytes(),
            user: b"user",
            signature: Some(signature.as_bytes()),
            expiration: expiration.map(str::as_bytes),
        };
        check(&claim, Operation::Read, TOKEN, NOW)
    }

    #[test]
    fn signatures_are_those_of_the_published_clients() {
        // printf %s '/a b:read:user:s3cret' | openssl dgst -sha256 -binary | base64
        let known = sign(b"/a b", Operation::Read, b"user", TOKEN, None);
        assert_eq!(known, "v1_o2UnpgQGD4Ze/XnTA6v+3T6EyFe5Hkn/mktUuASCleQ");
        let known = sign(b"", Operation::Write, b"", TOKEN, Some(-1));
        assert_eq!(known, "v1_EUCJRYf67r9DT0jJwbVqpDNGKobYz+2A/+41Xd4G8P0");
    }

    #[test]
    fn a_right_signature_is_taken_until_it_expires() {
        let bound = |seconds| sign(b"x", Operation::Read, b"user", TOKEN, Some(seconds));
        assert_eq!(check_read("x", &sign(b"x", Operation::Read, b"user", TOKEN, None), None), Ok(()));
        assert_eq!(check_read("x", &bound(NOW), Some(&NOW.to_string())), Ok(()));
        assert_eq!(check_read("x", &bound(NOW - 1), Some(&(NOW - 1).to_string())), Err(SignatureError::Expired));
        assert_eq!(check_read("x", &bound(-5), Some("-5")), Err(SignatureError::Expired));
    }

    #[test]
    fn wrong_signatures_are_refused_before_their_age_matters() {
        let right = sign(b"x", Operation::Read, b"user", TOKEN, None);
        for (path, signature, expiration) in [
            ("y", right.as_str(), None),
            ("x", "v1_", None),
            ("x", &right[..right.len() - 1], None),
            ("x", right.as_str(), Some("1")),
            ("x", right.as_str(), Some("soon")),
            ("x", &format!("{right}="), None),
            ("x", &sign(b"x", Operation::Write, b"user", TOKEN, None), None),
            ("x", &sign(b"x", Operation::Read, b"", TOKEN, None), None),
            ("x", &sign(b"x", Operation::Read, b"user", "other", None), None),
        ] {
            assert_eq!(check_read(path, signature, expiration), Err(SignatureError::Invalid), "{path} {signature}");
        }
        assert_eq!(check_read("x", "", None), Err(SignatureError::Missing));
        assert_eq!(check(&Claim::default(), Operation::Read, TOKEN, NOW), Err(SignatureError::Missing));
    }
}

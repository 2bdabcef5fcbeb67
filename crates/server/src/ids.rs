//! Ids and secrets that the server makes.

/// Why there is none: the kernel gives no random bytes.
pub type NoRandom = getrandom::Error;

/// A new id: `prefix` and 18 characters of `[a-z0-9]`.
pub fn new_id(prefix: &str) -> Result<String, NoRandom> {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = [0u8; 18];
    getrandom::fill(&mut random)?;
    let tail = random.iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
    Ok(prefix.chars().chain(tail).collect())
}

/// A new secret of `N` random bytes, as hexadecimal digits.
pub fn new_secret<const N: usize>() -> Result<String, NoRandom> {
    let mut random = [0u8; N];
    getrandom::fill(&mut random)?;
    Ok(hex::encode(random))
}

/// Whether this is an id with that prefix.
pub fn is_id(prefix: &str, text: &str) -> bool {
    let tail = text.strip_prefix(prefix);
    tail.is_some_and(|tail| {
        tail.len() == 18 && tail.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_of_their_kind() {
        let id = new_id("op").unwrap();
        assert!(is_id("op", &id) && !is_id("ky", &id));
        assert_ne!(id, new_id("op").unwrap());
        assert!(!is_id("op", "op") && !is_id("op", "opABCDEFGHIJKLMNOPQR"));
        assert_eq!(new_secret::<20>().unwrap().len(), 40);
    }
}

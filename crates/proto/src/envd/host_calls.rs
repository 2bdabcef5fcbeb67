//! The bodies of the host's signed calls that say more than their name, and of their answers.
//!
//! A guest refuses a field that it does not know: its host is newer, and wants something done that it cannot do. A host
//! ignores what it does not know in an answer.

use serde::{Deserialize, Serialize};

/// Bytes of entropy in [`Resumed`].
pub const ENTROPY_BYTES: std::ops::RangeInclusive<usize> = 32..=512;

/// What /clock is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Clock {
    /// Move the clock by this many nanoseconds first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_ns: Option<i64>,
}

/// What /clock answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockAnswer {
    /// The guest's time at the moment of answering: nanoseconds since 1970, in decimal.
    pub unix_ns: String,
}

/// What /resumed is told: that the guest's memory was restored, maybe not for the first time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resumed {
    /// Standard Base64 of random bytes, [`ENTROPY_BYTES`] of them, that no other guest was or will be given.
    pub entropy: String,
    /// The host name from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The machine id from now on, machine-id(5): 32 hex digits in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
}

/// What /resumed answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumedAnswer {
    /// Names of the hooks that were run, in that order.
    pub hooks: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(body: &impl Serialize) -> String {
        serde_json::to_string(body).unwrap()
    }

    #[test]
    fn bodies_are_spelled_as_agreed() {
        assert_eq!(json(&Clock::default()), "{}");
        assert_eq!(json(&Clock { step_ns: Some(-5) }), r#"{"step_ns":-5}"#);
        assert_eq!(json(&ClockAnswer { unix_ns: "1".into() }), r#"{"unix_ns":"1"}"#);
        let resumed = Resumed { entropy: "AAAA".into(), ..Resumed::default() };
        assert_eq!(json(&resumed), r#"{"entropy":"AAAA"}"#);
        let fork = Resumed { hostname: Some("sb1".into()), machine_id: Some("0f".into()), ..resumed };
        assert_eq!(json(&fork), r#"{"entropy":"AAAA","hostname":"sb1","machine_id":"0f"}"#);
        assert_eq!(json(&ResumedAnswer { hooks: vec!["10-a".into()] }), r#"{"hooks":["10-a"]}"#);
    }

    #[test]
    fn a_guest_refuses_what_it_does_not_know_and_a_host_ignores_it() {
        assert!(serde_json::from_str::<Clock>(r#"{"step_ns":1,"slew":true}"#).is_err());
        assert!(serde_json::from_str::<Resumed>(r#"{"entropy":"","boot_id":""}"#).is_err());
        assert!(serde_json::from_str::<Resumed>("{}").is_err(), "entropy is not optional");
        assert!(serde_json::from_str::<ClockAnswer>(r#"{"unix_ns":"1","leap":0}"#).is_ok());
        assert!(serde_json::from_str::<ResumedAnswer>(r#"{"hooks":[],"took_ms":1}"#).is_ok());
    }
}

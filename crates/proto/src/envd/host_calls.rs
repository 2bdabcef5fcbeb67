//! The bodies of the host's signed calls that say more than their name, and of their answers.
//!
//! A guest refuses a field that it does not know: its host is newer, and wants something done that it cannot do. A host
//! ignores what it does not know in an answer.

use std::collections::BTreeMap;

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
    /// The host's time at the moment of sending, as in [`ClockAnswer`]: what the guest's clock is to say from the call's
    /// arrival on.
    pub host_unix_ns: String,
    /// Standard Base64 of random bytes, [`ENTROPY_BYTES`] of them, that no other guest was or will be given.
    pub entropy: String,
    /// Who the guest is from now on; who it was if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
}

/// Everything by which a guest of a shared memory is told from the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// What signed calls are meant for from the answer on; the call that says so is still meant for the old one.
    pub sandbox_id: String,
    /// What guards the guest's other calls instead of the old token.
    pub access_token: String,
    /// Environment of every process, added to what was told earlier.
    pub env_vars: BTreeMap<String, String>,
    /// The host name.
    pub hostname: String,
    /// The machine id, machine-id(5): 32 hex digits in lower case.
    pub machine_id: String,
    /// What /proc/sys/kernel/random/boot_id says: a UUID in lower case.
    pub boot_id: String,
}

/// What /resumed answers. Both times are told by the clock that it has set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumedAnswer {
    /// When the call had arrived, as in [`ClockAnswer`].
    pub arrived_unix_ns: String,
    /// When the answer was made, last of all.
    pub answered_unix_ns: String,
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
        let resumed = Resumed { host_unix_ns: "5".into(), entropy: "AAAA".into(), identity: None };
        assert_eq!(json(&resumed), r#"{"host_unix_ns":"5","entropy":"AAAA"}"#);
        let identity = Identity {
            sandbox_id: "sb1".into(),
            access_token: "t".into(),
            env_vars: [("A".to_owned(), "1".to_owned())].into(),
            hostname: "h".into(),
            machine_id: "0f".into(),
            boot_id: "0-f".into(),
        };
        let spelled = r#"{"sandbox_id":"sb1","access_token":"t","env_vars":{"A":"1"},"hostname":"h","machine_id":"0f","boot_id":"0-f"}"#;
        assert_eq!(json(&identity), spelled);
        let fork = Resumed { identity: Some(identity), ..resumed };
        assert_eq!(json(&fork), format!(r#"{{"host_unix_ns":"5","entropy":"AAAA","identity":{spelled}}}"#));
        let answer =
            ResumedAnswer { arrived_unix_ns: "5".into(), answered_unix_ns: "6".into(), hooks: vec!["10-a".into()] };
        assert_eq!(json(&answer), r#"{"arrived_unix_ns":"5","answered_unix_ns":"6","hooks":["10-a"]}"#);
    }

    #[test]
    fn a_guest_refuses_what_it_does_not_know_and_a_host_ignores_it() {
        assert!(serde_json::from_str::<Clock>(r#"{"step_ns":1,"slew":true}"#).is_err());
        assert!(serde_json::from_str::<Resumed>(r#"{"host_unix_ns":"5","entropy":"","boot_id":""}"#).is_err());
        assert!(serde_json::from_str::<Resumed>(r#"{"host_unix_ns":"5"}"#).is_err(), "entropy is not optional");
        assert!(serde_json::from_str::<Resumed>(r#"{"entropy":""}"#).is_err(), "nor is the time");
        assert!(
            serde_json::from_str::<Identity>(r#"{"sandbox_id":"sb1"}"#).is_err(),
            "nobody is half of somebody else"
        );
        assert!(serde_json::from_str::<ClockAnswer>(r#"{"unix_ns":"1","leap":0}"#).is_ok());
        let answer = r#"{"arrived_unix_ns":"1","answered_unix_ns":"2","hooks":[],"took_ms":1}"#;
        assert!(serde_json::from_str::<ResumedAnswer>(answer).is_ok());
    }
}

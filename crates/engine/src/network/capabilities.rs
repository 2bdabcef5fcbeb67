//! What of a sandbox's network this host can do, by trying it in a namespace that is thrown away.

use std::fs;
use std::path::Path;

use wrenn_sys::netns::NetNs;
use wrenn_sys::tap;

use super::addresses::{NetworkConfig, TAP};
use super::links::Netlink;
use super::resolvers::{self, Dns};
use super::{forwarding, nft, rules};
use crate::command::{Command, find};
use crate::names::{Slot, nft_table};

/// What this host can do; every missing thing says why and what helps.
#[derive(Clone, Debug)]
pub struct NetworkCapabilities {
    /// Network namespaces can be made.
    pub netns: Result<(), String>,
    /// TAPs can be made.
    pub tap: Result<(), String>,
    /// veth pairs can be made.
    pub veth: Result<(), String>,
    /// The rules that sandboxes need load; the version of `nft`.
    pub nft: Result<String, String>,
    /// The host's `ip_forward`; `None` if it cannot be read.
    pub ip_forward: Option<bool>,
    /// Rules of others that drop what is forwarded unless they know it, such as Docker's: sandboxes reach nothing through
    /// them. Each as `family table chain`.
    pub forward_drops: Vec<String>,
    /// What sandboxes get for DNS.
    pub dns: Dns,
}

/// Tries everything. Blocks for some milliseconds; changes nothing on the host.
pub fn capabilities(config: &NetworkConfig) -> NetworkCapabilities {
    let netns = NetNs::anonymous();
    let missing = |error: &dyn std::fmt::Display| format!("{error}; network namespaces need root (CAP_SYS_ADMIN)");
    let inside = |work: fn() -> Result<String, String>| match &netns {
        Ok(netns) => netns.run(work).unwrap_or_else(|error| Err(missing(&error))),
        Err(error) => Err(missing(error)),
    };
    NetworkCapabilities {
        tap: inside(try_tap).map(drop),
        veth: inside(try_veth).map(drop),
        nft: inside(try_rules),
        netns: netns.as_ref().map(drop).map_err(|error| missing(error)),
        ip_forward: fs::read_to_string(forwarding::IP_FORWARD).ok().map(|value| value.trim() == "1"),
        forward_drops: forward_drops(),
        dns: resolvers::choose(&config.resolv_conf),
    }
}

fn try_tap() -> Result<String, String> {
    let made = tap::open(TAP, None);
    made.map(|_| String::new()).map_err(|error| format!("cannot make a TAP ({error}); modprobe tun"))
}

fn try_veth() -> Result<String, String> {
    let made = NetNs::current().and_then(|here| Netlink::open()?.add_veth("v0", "v1", here));
    made.map(|()| String::new()).map_err(|error| format!("cannot make a veth pair ({error}); modprobe veth"))
}

/// Loads the very rules a sandbox gets, both sides.
fn try_rules() -> Result<String, String> {
    let tag = "test".parse().expect("a tag");
    let slot = Slot::new(0).expect("there is a slot 0");
    let addresses = NetworkConfig::default().addresses(tag, slot).expect("the default ranges hold a slot 0");
    let resolver = Some(addresses.host);
    let version = nft::version().map_err(|error| error.to_string())?;
    let script = rules::outer(tag) + &rules::admit(&addresses, resolver) + &rules::inner(&addresses, resolver);
    nft::apply(script)
        .map_err(|error| format!("{error}; the kernel needs nf_tables with inet, nat, ct, masquerade and reject"))?;
    match nft::table(&nft_table(tag)) {
        Ok(Some(_)) => Ok(version),
        Ok(None) => Err("nft loaded the rules, but they are not there".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Best effort: rules that cannot be listed are not reported.
fn forward_drops() -> Vec<String> {
    let listed = nft::ruleset_json().unwrap_or_default();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap_or_default();
    let chains = listed["nftables"].as_array().cloned().unwrap_or_default();
    let mut drops: Vec<String> = chains.iter().filter_map(|object| forward_drop(&object["chain"])).collect();
    drops.extend(legacy_forward_drop());
    drops
}

fn forward_drop(chain: &serde_json::Value) -> Option<String> {
    let text = |key: &str| chain[key].as_str();
    let drops = text("hook") == Some("forward") && text("policy") == Some("drop");
    let (family, table, name) = (text("family")?, text("table")?, text("name")?);
    (drops && !table.starts_with("wrenn_") && family != "ip6").then(|| format!("{family} {table} {name}"))
}

/// The old iptables keeps rules where nft does not see them. Asked only if its table is loaded: asking would load it.
fn legacy_forward_drop() -> Option<String> {
    let tables = fs::read_to_string(Path::new("/proc/thread-self/net/ip_tables_names")).ok()?;
    if !tables.lines().any(|table| table == "filter") || find("iptables-legacy").is_err() {
        return None;
    }
    let rules = nft::run(Command::new("iptables-legacy").args(["-S", "FORWARD"])).ok()?;
    rules.contains("-P FORWARD DROP").then(|| "iptables-legacy filter FORWARD".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropping_forward_chain_of_others_is_found() {
        let chain = |table: &str, hook: &str, policy: &str| serde_json::json!({"family": "ip", "table": table, "name": "FORWARD", "hook": hook, "policy": policy});
        assert_eq!(forward_drop(&chain("filter", "forward", "drop")).as_deref(), Some("ip filter FORWARD"));
        for other in [
            chain("filter", "forward", "accept"),
            chain("filter", "input", "drop"),
            chain("wrenn_abcd", "forward", "drop"),
        ] {
            assert_eq!(forward_drop(&other), None, "{other}");
        }
        assert_eq!(forward_drop(&serde_json::Value::Null), None);
    }

    #[test]
    fn root_this_host_can_do_what_sandboxes_need() {
        let found = capabilities(&NetworkConfig::default());
        assert_eq!((&found.netns, &found.tap, &found.veth), (&Ok(()), &Ok(()), &Ok(())));
        assert!(found.nft.as_ref().is_ok_and(|version| version.starts_with("nftables")), "{:?}", found.nft);
        assert!(found.ip_forward.is_some());
    }
}

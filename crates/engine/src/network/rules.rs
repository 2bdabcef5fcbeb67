//! The nftables rules as text: what packets of a sandbox may do. Pure; [`super::nft`] runs them.
//!
//! ```text
//!  guest ──tap0──► namespace's table `wrenn` ──veth0──► wvTAGn ──► host's table `wrenn_TAG` ──► world
//!                  source must be the guest's           source must be the peer's, from its own veth
//!                  private destinations refused         private destinations, the host and other sandboxes dropped
//!                  DNS ► the host's resolver            DNS to that resolver passes, the rest goes out masqueraded
//!                  source becomes the peer's
//! ```
//!
//! The two tables say the same thing twice on purpose: the inner one stands when somebody flushes the host's rules
//! (`systemctl reload nftables` does), the outer one when a VMM was taken over and speaks from inside the namespace.
//!
//! A NAT rule matches the address *after* the hop before it: by the time a packet reaches the host its source is the
//! peer's address, so that is what MASQUERADE matches. The outer table's rules are the same for any number of sandboxes:
//! what differs between them are elements of its sets, and veths are matched by the instance's name prefix, so that a
//! veth whose elements are lost can do nothing, rather than everything.

use std::fmt::Write;
use std::net::Ipv4Addr;

use super::addresses::{Addresses, GATEWAY, GUEST, PEER, TAP};
use crate::names::{InstanceTag, Slot, SlotName, nft_table};

/// The table in every sandbox's namespace.
pub const INNER_TABLE: &str = "wrenn";

/// Where no sandbox may go, whatever the host's routes say: this network, private, shared (CGN), loopback, link-local
/// (with the clouds' metadata services), multicast, reserved and broadcast.
pub const DENIED: [&str; 9] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// What `nft` is told to set up a sandbox's namespace. One transaction, for a namespace without rules.
pub fn inner(addresses: &Addresses, resolver: Option<Ipv4Addr>) -> String {
    let Addresses { host, peer, guest_from_host, .. } = addresses;
    let denied = DENIED.join(", ");
    let dns_out = resolver.map(|resolver| {
        format!("iifname \"{TAP}\" ip daddr {GATEWAY} meta l4proto {{ tcp, udp }} th dport 53 dnat ip to {resolver}")
    });
    let dns_pass =
        resolver.map(|resolver| format!("ip daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept"));
    let (dns_out, dns_pass) = (dns_out.unwrap_or_default(), dns_pass.unwrap_or_default());
    format!(
        r#"table inet {INNER_TABLE} {{
  chain source {{
    type filter hook prerouting priority raw; policy accept;
    meta nfproto ipv6 drop
    iifname "{TAP}" ip saddr != {GUEST} drop
  }}
  chain destination {{
    type nat hook prerouting priority dstnat; policy accept;
    {dns_out}
    iifname "{PEER}" ip saddr {host} ip daddr {guest_from_host} dnat ip to {GUEST}
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname "{TAP}" meta l4proto {{ tcp, udp }} th dport 53 reject with icmpx admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    ct state != new drop
    iifname "{PEER}" oifname "{TAP}" ip saddr {host} ip daddr {GUEST} accept
    iifname "{TAP}" oifname "{PEER}" goto egress
  }}
  chain egress {{
    {dns_pass}
    ip daddr {{ {denied} }} reject with icmpx admin-prohibited
    accept
  }}
  chain output {{
    type filter hook output priority filter; policy drop;
    oifname "{TAP}" ip daddr {GUEST} accept
    ct state established,related accept
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{PEER}" ip saddr {GUEST} snat ip to {peer}
  }}
}}
"#
    )
}

/// What `nft` is told to make an instance's table on the host, or to bring it up to date: sets keep their elements, the
/// rules are replaced, all in one transaction.
pub fn outer(tag: InstanceTag) -> String {
    let table = nft_table(tag);
    let veths = veth_pattern(tag);
    let denied = DENIED.join(", ");
    let mut text = format!(
        r#"add table inet {table}
add set inet {table} sources {{ type ifname . ipv4_addr; }}
add set inet {table} guests {{ type ifname . ipv4_addr; }}
add set inet {table} peers {{ type ipv4_addr; }}
add set inet {table} resolvers {{ type ifname . ipv4_addr; }}
add set inet {table} denied {{ type ipv4_addr; flags interval; }}
add element inet {table} denied {{ {denied} }}
"#
    );
    for (chain, kind, hook, priority) in [
        ("source", "filter", "prerouting", "raw"),
        ("input", "filter", "input", "filter"),
        ("forward", "filter", "forward", "filter"),
        ("outgoing", "nat", "postrouting", "srcnat"),
    ] {
        text += &format!(
            "add chain inet {table} {chain} {{ type {kind} hook {hook} priority {priority}; policy accept; }}\n"
        );
        text += &format!("flush chain inet {table} {chain}\n");
    }
    for (chain, rule) in outer_rules(&veths) {
        text += &format!("add rule inet {table} {chain} {rule}\n");
    }
    text
}

/// Every veth of the instance, as nftables matches them: its slots' names differ in their end alone.
fn veth_pattern(tag: InstanceTag) -> String {
    let slot = Slot::new(0).expect("there is a slot 0");
    let first = SlotName { tag, slot }.veth();
    format!("\"{}*\"", first.strip_suffix('0').expect("a veth's name ends with its slot"))
}

fn outer_rules(veths: &str) -> Vec<(&'static str, String)> {
    let rules = |chain: &'static str, rules: &[&str]| -> Vec<_> {
        rules.iter().map(|rule| (chain, rule.replace("VETHS", veths))).collect()
    };
    let dns = "iifname . ip daddr @resolvers meta l4proto { tcp, udp } th dport 53 accept";
    [
        rules(
            "source",
            &[
                "iifname != VETHS accept",
                "meta nfproto ipv6 drop",
                "iifname . ip saddr @sources accept",
                // Answers to the host's own connections; that they are answers is seen in `input` and `forward`.
                "iifname . ip saddr @guests accept",
                "drop",
            ],
        ),
        rules("input", &["iifname != VETHS accept", "ct state established,related accept", dns, "drop"]),
        rules(
            "forward",
            &[
                "oifname VETHS ct state established,related accept",
                "oifname VETHS drop",
                "iifname != VETHS accept",
                "ct state established,related accept",
                // What conntrack does not know is not masqueraded and would leave with an address of ours.
                "ct state != new drop",
                "iifname . ip saddr != @sources drop",
                dns,
                "ip daddr @denied drop",
                // Uplinks with a smaller MTU than a veth's are common, and so are paths that lose the ICMP about it.
                "tcp flags syn tcp option maxseg size set rt mtu",
            ],
        ),
        rules("outgoing", &["ip saddr @peers oifname != VETHS masquerade"]),
    ]
    .concat()
}

/// What `nft` is told to let a slot's packets in.
pub fn admit(addresses: &Addresses, resolver: Option<Ipv4Addr>) -> String {
    elements("add", addresses, resolver)
}

/// What `nft` is told to shut a slot out. Adding first makes it succeed whether or not the elements are there.
pub fn expel(addresses: &Addresses, resolver: Option<Ipv4Addr>) -> String {
    elements("add", addresses, resolver) + &elements("delete", addresses, resolver)
}

/// What `nft` is told to remove an instance's table, whether or not it is there.
pub fn remove(tag: InstanceTag) -> String {
    let table = nft_table(tag);
    format!("add table inet {table}\ndelete table inet {table}\n")
}

fn elements(verb: &str, addresses: &Addresses, resolver: Option<Ipv4Addr>) -> String {
    let (table, veth) = (nft_table(addresses.name.tag), addresses.name.veth());
    let Addresses { peer, guest_from_host, .. } = addresses;
    let mut text = String::new();
    let mut element = |set: &str, element: String| {
        writeln!(text, "{verb} element inet {table} {set} {{ {element} }}").expect("writing to a String");
    };
    element("sources", format!("\"{veth}\" . {peer}"));
    element("guests", format!("\"{veth}\" . {guest_from_host}"));
    element("peers", peer.to_string());
    if let Some(resolver) = resolver {
        element("resolvers", format!("\"{veth}\" . {resolver}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::addresses::NetworkConfig;
    use super::*;

    fn addresses(slot: u16) -> Addresses {
        NetworkConfig::default().addresses("k3f0".parse().unwrap(), Slot::new(slot).unwrap()).unwrap()
    }

    #[test]
    fn masquerade_matches_peers_and_a_slot_adds_its_peer() {
        let table = outer("k3f0".parse().unwrap());
        assert!(table.contains("outgoing ip saddr @peers oifname != \"wvk3f0*\" masquerade"), "{table}");
        let admitted = admit(&addresses(5), None);
        assert!(admitted.contains("add element inet wrenn_k3f0 peers { 10.12.0.11 }"), "{admitted}");
        assert!(!admitted.contains("10.12.0.10"), "the host's end is in no set: {admitted}");
    }

    #[test]
    fn every_slot_takes_the_same_rules() {
        assert!(admit(&addresses(0), None).lines().all(|line| line.starts_with("add element ")));
        assert!(admit(&addresses(9999), None).lines().all(|line| line.starts_with("add element ")));
    }

    #[test]
    fn without_a_resolver_there_is_no_hole() {
        let without = inner(&addresses(0), None);
        assert!(!without.contains("dport 53 accept") && !without.contains("dport 53 dnat"), "{without}");
        let with = inner(&addresses(0), Some(Ipv4Addr::new(10, 99, 53, 53)));
        assert_eq!(with.matches("10.99.53.53").count(), 2, "{with}");
    }

    #[test]
    fn shutting_out_undoes_letting_in() {
        let resolver = Some(Ipv4Addr::new(192, 0, 2, 53));
        let expelled = expel(&addresses(3), resolver);
        for line in admit(&addresses(3), resolver).lines() {
            assert!(expelled.contains(&line.replacen("add", "delete", 1)), "{line}");
        }
    }
}

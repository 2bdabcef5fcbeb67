//! What a sandbox can reach, and what it cannot: with real namespaces, links and rules, in a world without a way out.

mod network;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use network::{Host, SILENCE, Sandbox};
use wrenn_engine::network::addresses::{GATEWAY, GUEST, PEER};
use wrenn_engine::network::links::Netlink;
use wrenn_engine::network::{Network, NetworkConfig, nft};
use wrenn_testworld::{
    HOST, PAGE, PRIVATE_DNS, PRIVATE_TARGETS, Packet, ROUTER, WEB, WEB_NAME, client, ipv6_udp_frame, udp_frame,
};

/// A port nobody listens on, to be found in the router's record.
const PROBE_PORT: u16 = 4242;

#[test]
fn root_a_guest_resolves_a_name_and_fetches_a_page_through_masquerade() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let sandbox = host.sandbox(&network);
    let address = sandbox.guest.run(|| client::resolve(GATEWAY, WEB_NAME)).unwrap().expect("the name is known");
    assert_eq!(address, WEB);
    assert_eq!(sandbox.guest.run(|| client::resolve_tcp(GATEWAY, WEB_NAME)).unwrap(), Some(WEB));
    assert_eq!(sandbox.guest.run(|| client::resolve(GATEWAY, "nobody.example.test")).unwrap(), None);
    let page = sandbox.guest.run(|| client::fetch(address, "/")).unwrap();
    assert_eq!(String::from_utf8(page).unwrap(), PAGE);
    let seen: Vec<_> =
        host.world.connections().into_iter().filter(|(_, local)| local.ip() == IpAddr::V4(WEB)).collect();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].0.ip(), IpAddr::V4(HOST), "the internet sees the host's address");
    host.world.flush();
    let foreign: Vec<_> = host.world.packets().into_iter().filter(|packet| packet.source != IpAddr::V4(HOST)).collect();
    assert_eq!(foreign, [], "nothing leaves with an address of ours");
    host.destroy(sandbox);
    host.assert_nothing_left(&network);
}

#[test]
fn root_what_a_guest_sends_and_is_sent_is_counted() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let sandbox = host.sandbox(&network);
    let before = sandbox.lease.traffic().unwrap().unwrap();
    let send = || {
        let socket = UdpSocket::bind((GUEST, 0))?;
        (0..10).try_for_each(|_| socket.send_to(&[0; 1000], (WEB, PROBE_PORT)).map(drop))
    };
    sandbox.guest.run(send).unwrap();
    host.world.flush();
    let after = sandbox.lease.traffic().unwrap().unwrap();
    let (received, sent) = (after.received_bytes - before.received_bytes, after.sent_bytes - before.sent_bytes);
    // The answers, if any, are shorter: that nobody listens there.
    assert!(sent >= 10_000 && received < sent, "{received} bytes received, {sent} sent");
    assert!(sandbox.fetches());
    assert!(sandbox.lease.traffic().unwrap().unwrap().received_bytes > after.received_bytes);
    host.destroy(sandbox);
    host.assert_nothing_left(&network);
}

/// Why MASQUERADE matches the veth *peer's* address: a rule on the host's end never matches, for the namespace's SNAT has
/// rewritten the source to the peer's by then.
#[test]
fn root_masquerade_on_the_hosts_end_of_the_veth_would_not_work() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let sandbox = host.sandbox(&network);
    let (peer, host_end) = (sandbox.lease.addresses().peer, sandbox.lease.addresses().host);
    let swap = |from: Ipv4Addr, to: Ipv4Addr| {
        host.nft(&format!(
            "delete element inet wrenn_aaaa peers {{ {from} }}\nadd element inet wrenn_aaaa peers {{ {to} }}\n"
        ));
    };
    swap(peer, host_end);
    host.world.forget();
    sandbox.fetch_within(SILENCE).expect_err("no answer finds its way back");
    host.world.flush();
    let to_web = |packet: &Packet| packet.destination == IpAddr::V4(WEB);
    let sources: Vec<_> = host.world.packets().into_iter().filter(to_web).map(|packet| packet.source).collect();
    assert!(!sources.is_empty() && sources.iter().all(|source| *source == IpAddr::V4(peer)), "{sources:?}");
    swap(host_end, peer);
    assert!(sandbox.fetches(), "and with the peer's address it works again");
    host.destroy(sandbox);
    host.assert_nothing_left(&network);
}

/// Where no sandbox may get: the host under each of its addresses, another sandbox under each of its, and the private
/// ranges. All of them listen, which the host proves first.
struct Forbidden {
    _listeners: Vec<TcpListener>,
    addresses: Vec<Ipv4Addr>,
}

impl Forbidden {
    fn new(host: &Host, sandbox: &Sandbox, other: &Sandbox) -> Self {
        let (own, others) = (sandbox.lease.addresses(), other.lease.addresses());
        let on_host = [HOST, own.host, others.host];
        let mut listeners: Vec<_> = on_host.iter().map(|address| TcpListener::bind((*address, 80)).unwrap()).collect();
        // The other guest serves to the host, which is allowed to reach it.
        listeners.push(other.guest.run(|| TcpListener::bind((GUEST, 80)).unwrap()));
        let reached = on_host.into_iter().chain([others.guest_from_host]).chain(PRIVATE_TARGETS);
        let reached: Vec<_> = reached.collect();
        for address in &reached {
            assert_eq!(client::connects(*address, 80, Duration::from_secs(10)), Ok(()), "{address} listens");
        }
        host.world.await_connections(PRIVATE_TARGETS.len());
        host.world.forget();
        let addresses = reached.into_iter().chain([others.peer, own.peer, own.guest_from_host]).collect();
        Self { _listeners: listeners, addresses }
    }

    /// Asserts that `connects` reaches none of them, and that nothing comes out of the uplink either.
    fn assert_out_of_reach(&self, host: &Host, mut connects: impl FnMut(Ipv4Addr) -> bool) {
        for address in &self.addresses {
            assert!(!connects(*address), "{address} was reached");
        }
        host.world.flush();
        let leaked = host.world.packets().into_iter().filter(|packet| packet.destination != IpAddr::V4(ROUTER));
        assert_eq!(leaked.collect::<Vec<_>>(), []);
        assert_eq!(host.world.connections(), []);
    }
}

#[test]
fn root_a_guest_reaches_neither_the_host_nor_other_sandboxes_nor_private_ranges() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let (sandbox, other) = (host.sandbox(&network), host.sandbox(&network));
    let forbidden = Forbidden::new(&host, &sandbox, &other);
    forbidden.assert_out_of_reach(&host, |address| sandbox.connects(address, 80));
    // Broadcast and multicast reach nobody, and the namespace itself serves nothing.
    let heard = UdpSocket::bind(("0.0.0.0", PROBE_PORT)).unwrap();
    heard.set_read_timeout(Some(SILENCE)).unwrap();
    for destination in ["255.255.255.255", "224.0.0.1", "239.1.2.3", "240.0.0.1", "192.0.2.255", "10.12.0.1"] {
        sandbox.guest.send_frame(&udp_frame(GUEST, destination.parse().unwrap(), PROBE_PORT)).unwrap();
    }
    assert!(heard.recv(&mut [0; 1]).is_err(), "the host heard a broadcast");
    let inside = sandbox.lease.netns();
    let _ssh = inside.run(|| TcpListener::bind(("0.0.0.0", 22)).unwrap()).unwrap();
    assert!(!sandbox.connects(GATEWAY, 22) && !sandbox.connects(sandbox.lease.addresses().peer, 22));
    assert_eq!(client::connects(sandbox.lease.addresses().peer, 22, SILENCE).err(), Some(ErrorKind::TimedOut));
    assert_eq!(leaked_probes(&host), []);
    assert!(sandbox.fetches(), "the internet is still there");
    host.destroy(other);
    host.destroy(sandbox);
    host.assert_nothing_left(&network);
}

/// A VMM that was taken over speaks from inside the namespace and may undo what is there: the host's rules hold alone.
#[test]
fn root_the_hosts_rules_hold_without_those_of_the_namespace() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let (sandbox, other) = (host.sandbox(&network), host.sandbox(&network));
    let forbidden = Forbidden::new(&host, &sandbox, &other);
    let inside = sandbox.lease.netns();
    inside.run(|| nft::apply("flush ruleset".to_owned())).unwrap().unwrap();
    let own = [sandbox.lease.addresses().peer, sandbox.lease.addresses().guest_from_host];
    forbidden.assert_out_of_reach(&host, |address| {
        !own.contains(&address) && inside.run(|| client::connects(address, 80, SILENCE)).unwrap().is_ok()
    });
    // From the host's uplink nobody gets in.
    let peer = sandbox.lease.addresses().peer;
    let _served = inside.run(|| TcpListener::bind((peer, 80)).unwrap()).unwrap();
    host.world.internet().run(|| route_through_host(["10.11.0.0/16", "10.12.0.0/17"])).unwrap();
    assert!(host.world.internet().run(|| client::connects(peer, 80, SILENCE)).unwrap().is_err());
    assert_eq!(client::connects(peer, 80, SILENCE), Ok(()), "the host itself may");
    host.world.forget();
    // An address that is not the peer's gets nowhere, not even to the internet.
    let spoofed = Ipv4Addr::new(198, 51, 100, 200);
    inside.run(|| add_address_and_send(spoofed)).unwrap();
    assert_eq!(leaked_probes(&host), []);
    assert!(inside.run(|| client::fetch(WEB, "/")).unwrap().is_ok(), "the peer's own address passes");
    host.destroy(other);
    host.destroy(sandbox);
    host.assert_nothing_left(&network);
}

/// Somebody's `nft flush ruleset` must not open the private network: the namespace's rules hold alone.
#[test]
fn root_the_namespaces_rules_hold_without_those_of_the_host() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let (sandbox, other) = (host.sandbox(&network), host.sandbox(&network));
    let forbidden = Forbidden::new(&host, &sandbox, &other);
    host.nft("flush ruleset");
    // The uplink's address is no private one: only the host's own rules keep sandboxes from it.
    forbidden.assert_out_of_reach(&host, |address| address != HOST && sandbox.connects(address, 80));
    for source in [HOST, GATEWAY, sandbox.lease.addresses().host, other.lease.addresses().peer, WEB] {
        sandbox.guest.send_frame(&udp_frame(source, WEB, PROBE_PORT)).unwrap();
    }
    assert_eq!(leaked_probes(&host), [], "spoofed sources do not even leave the namespace");
    sandbox.guest.send_frame(&udp_frame(GUEST, WEB, PROBE_PORT)).unwrap();
    assert_eq!(leaked_probes(&host).len(), 1, "the guest's own does");
    host.destroy(other);
    host.destroy(sandbox);
    host.assert_nothing_left(&network);
}

#[test]
fn root_flushed_host_rules_come_back_for_all_with_the_next_sandbox() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let first = host.sandbox(&network);
    host.nft("flush ruleset");
    first.fetch_within(SILENCE).expect_err("nobody masquerades any more");
    let second = host.sandbox(&network);
    assert!(second.fetches() && first.fetches());
    host.destroy(first);
    host.destroy(second);
    host.assert_nothing_left(&network);
}

#[test]
fn root_spoofed_sources_are_dropped() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let (sandbox, other) = (host.sandbox(&network), host.sandbox(&network));
    host.world.forget();
    let others = other.lease.addresses();
    let own = sandbox.lease.addresses();
    for source in [HOST, GATEWAY, own.peer, own.host, own.guest_from_host, others.peer, others.guest_from_host, WEB] {
        sandbox.guest.send_frame(&udp_frame(source, WEB, PROBE_PORT)).unwrap();
    }
    sandbox.guest.send_frame(&udp_frame(Ipv4Addr::new(169, 254, 0, 20), WEB, PROBE_PORT)).unwrap();
    assert!(sandbox.fetches(), "behind the spoofed ones");
    assert_eq!(leaked_probes(&host), []);
    sandbox.guest.send_frame(&udp_frame(GUEST, WEB, PROBE_PORT)).unwrap();
    assert!(sandbox.fetches());
    let own = leaked_probes(&host);
    assert_eq!(own.len(), 1, "the same frame with the guest's own address passes");
    assert_eq!(own[0].source, IpAddr::V4(HOST));
    host.destroy(other);
    host.destroy(sandbox);
    host.assert_nothing_left(&network);
}

#[test]
fn root_ipv6_leads_nowhere() {
    let host = Host::enter();
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    let network = host.instance("aaaa");
    let sandbox = host.sandbox(&network);
    let addresses = || std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
    assert_eq!(sandbox.lease.netns().run(addresses).unwrap(), "", "the namespace has no IPv6 address");
    let veth = sandbox.lease.addresses().name.veth();
    assert!(addresses().contains("uplink"), "the host has IPv6");
    assert!(!addresses().contains(&veth), "but not towards sandboxes: {}", addresses());
    let source = "2001:db8:1::21".parse().unwrap();
    for destination in ["2001:db8:ffff::80", "fd00::1", "fe80::1", "ff02::1", "::1", "::ffff:203.0.113.80"] {
        sandbox.guest.send_frame(&ipv6_udp_frame(source, destination.parse().unwrap(), PROBE_PORT)).unwrap();
    }
    assert!(sandbox.fetches(), "behind the IPv6 frames");
    assert_eq!(leaked_probes(&host), []);
    host.destroy(sandbox);
    host.assert_nothing_left(&network);
}

#[test]
fn root_a_private_resolver_is_reached_on_port_53_and_no_other() {
    let host = Host::enter();
    std::fs::write("/run/private.conf", format!("nameserver {PRIVATE_DNS}\n")).unwrap();
    let network = resolving_through(&host, "/run/private.conf");
    let sandbox = host.sandbox(&network);
    assert_eq!(sandbox.lease.resolver(), Some(PRIVATE_DNS));
    assert_eq!(sandbox.guest.run(|| client::resolve(GATEWAY, WEB_NAME)).unwrap(), Some(WEB));
    assert_eq!(sandbox.guest.run(|| client::resolve_tcp(GATEWAY, WEB_NAME)).unwrap(), Some(WEB));
    assert_eq!(client::connects(PRIVATE_DNS, 80, SILENCE), Ok(()), "it also has a web server");
    assert!(!sandbox.connects(PRIVATE_DNS, 80), "which is none of the sandbox's business");
    // And each side's rules say so by themselves.
    host.nft("flush ruleset");
    host.world.forget();
    assert!(!sandbox.connects(PRIVATE_DNS, 80));
    host.world.flush();
    assert!(host.world.packets().iter().all(|packet| packet.port != Some(80)));
    let renews_the_table = host.wait(network.acquire()).unwrap();
    let inside = sandbox.lease.netns();
    inside.run(|| nft::apply("flush ruleset".to_owned())).unwrap().unwrap();
    assert_eq!(inside.run(|| client::resolve(PRIVATE_DNS, WEB_NAME)).unwrap().unwrap(), Some(WEB));
    assert!(inside.run(|| client::connects(PRIVATE_DNS, 80, SILENCE)).unwrap().is_err());
    host.wait(renews_the_table.destroy()).unwrap();
    host.destroy(sandbox);
    host.assert_nothing_left(&network);
}

#[test]
fn root_a_resolver_on_the_host_itself_is_reached_on_port_53_alone() {
    let host = Host::enter();
    std::fs::write("/run/own.conf", format!("nameserver {HOST}\n")).unwrap();
    let network = resolving_through(&host, "/run/own.conf");
    let sandbox = host.sandbox(&network);
    let resolver = UdpSocket::bind((HOST, 53)).unwrap();
    let _web = TcpListener::bind((HOST, 80)).unwrap();
    let answering = std::thread::spawn(move || {
        let mut query = [0; 512];
        let (length, from) = resolver.recv_from(&mut query).unwrap();
        query[2..4].copy_from_slice(&[0x81, 0x83]); // no such name
        resolver.send_to(&query[..length], from).unwrap();
    });
    assert_eq!(sandbox.guest.run(|| client::resolve(GATEWAY, WEB_NAME)).unwrap(), None);
    answering.join().unwrap();
    assert!(!sandbox.connects(HOST, 80));
    host.destroy(sandbox);
    host.assert_nothing_left(&network);
}

#[test]
fn root_without_a_usable_resolver_a_sandbox_is_told_at_once() {
    let host = Host::enter();
    std::fs::write("/run/none.conf", "nameserver 127.0.0.1\nnameserver 2001:db8::53\n").unwrap();
    let network = resolving_through(&host, "/run/none.conf");
    let sandbox = host.sandbox(&network);
    assert_eq!(sandbox.lease.resolver(), None);
    let asked = std::time::Instant::now();
    sandbox.guest.run(|| client::resolve(GATEWAY, WEB_NAME)).unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(5), "refused, not left waiting");
    assert!(sandbox.fetches(), "addresses work without names");
    host.destroy(sandbox);
}

#[test]
fn root_only_the_host_reaches_a_guest_from_outside() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let sandbox = host.sandbox(&network);
    let listener = sandbox.guest.run(|| TcpListener::bind((GUEST, 80)).unwrap());
    let address = sandbox.lease.addresses().guest_from_host;
    assert_eq!(client::connects(address, 80, Duration::from_secs(10)), Ok(()));
    // This host forwards: somebody on its uplink's network could make it the router to its sandboxes.
    host.world.internet().run(|| route_through_host(["10.11.0.0/16", "10.12.0.0/17"])).unwrap();
    let from_outside = |to: Ipv4Addr| host.world.internet().run(move || client::connects(to, 80, SILENCE)).unwrap();
    assert!(from_outside(address).is_err());
    assert!(from_outside(sandbox.lease.addresses().peer).is_err());
    host.nft("flush ruleset");
    assert!(from_outside(address).is_err(), "the namespace takes the host's address alone");
    drop(listener);
    host.destroy(sandbox);
}

#[test]
fn root_control_connections_pass_whatever_the_host_filters() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let sandbox = host.sandbox(&network);
    host.nft(
        "add table inet paranoid
         add chain inet paranoid incoming { type filter hook input priority -5; policy drop; }
         add chain inet paranoid outgoing { type filter hook output priority -5; policy drop; }
         add chain inet paranoid through { type filter hook forward priority -5; policy drop; }",
    );
    let listener = sandbox.guest.run(|| TcpListener::bind((GUEST, 49983)).unwrap());
    let connector = sandbox.lease.connector();
    host.wait(connector.connect(49983, Duration::from_secs(10))).unwrap();
    assert_eq!(listener.accept().unwrap().1.ip(), IpAddr::V4(GATEWAY));
    let refused = host.wait(connector.connect(49984, Duration::from_secs(10))).unwrap_err();
    assert_eq!(refused.to_string(), "cannot connect to port 49984 of the guest");
    drop(sandbox.guest);
    let dead = host.wait(connector.connect(49983, Duration::from_millis(50))).unwrap_err();
    assert_eq!(dead.to_string(), "the guest does not answer on port 49983 within 50 ms");
    host.wait(sandbox.lease.destroy()).unwrap();
}

/// The neighbour is pinned: a connection to a guest that boots is not held up by ARP's one-second steps.
#[test]
fn root_a_guest_is_reached_at_once_when_it_comes_up() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let lease = host.wait(network.acquire()).unwrap();
    let (connector, tap) = (lease.connector(), lease.open_tap().unwrap());
    host.wait(connector.connect(80, Duration::from_millis(50))).unwrap_err();
    // A guest without a driver yet loses what comes.
    while rustix::io::read(&tap, &mut [0; 2048]).is_ok() {}
    let guest = wrenn_testworld::Guest::boot(tap);
    let _listener = guest.run(|| TcpListener::bind((GUEST, 80)).unwrap());
    let tried = std::time::Instant::now();
    host.wait(connector.connect(80, Duration::from_secs(10))).unwrap();
    assert!(tried.elapsed() < Duration::from_millis(500), "{:?}", tried.elapsed());
    drop(guest);
    host.wait(lease.destroy()).unwrap();
}

fn resolving_through(host: &Host, resolv_conf: &str) -> Network {
    host.instance_with("aaaa", NetworkConfig { resolv_conf: resolv_conf.into(), ..NetworkConfig::default() })
}

/// Probes that came out of the uplink.
fn leaked_probes(host: &Host) -> Vec<Packet> {
    host.world.flush();
    host.world.packets().into_iter().filter(|packet| packet.port == Some(PROBE_PORT)).collect()
}

fn route_through_host(ranges: [&str; 2]) {
    let mut netlink = Netlink::open().unwrap();
    let link = netlink.index("router").unwrap().unwrap();
    for range in ranges {
        netlink.add_route(range.parse().unwrap(), HOST, link).unwrap();
    }
}

fn add_address_and_send(source: Ipv4Addr) {
    let mut netlink = Netlink::open().unwrap();
    let veth = netlink.index(PEER).unwrap().unwrap();
    netlink.add_address(veth, source, 32).unwrap();
    UdpSocket::bind((source, 0)).unwrap().send_to(b"x", (WEB, PROBE_PORT)).unwrap();
}

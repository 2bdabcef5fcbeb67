//! The life of networks: made, released, left over, adopted and swept, by one instance and by several, without a trace.

mod network;

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use network::{Host, Sandbox, assert_same, slot};
use wrenn_engine::command::Command;
use wrenn_engine::network::links::Netlink;
use wrenn_engine::network::{HostObject, Ipv4Range, Network, NetworkConfig, NetworkError, Pool, Step, SweepReport};
use wrenn_sys::netns::NetNs;
use wrenn_testworld::{Guest, ROUTER, UPLINK, WEB};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

#[test]
fn root_the_host_is_as_before_byte_for_byte() {
    let host = Host::enter();
    // A host with settings of its own, some of which the kernel overwrites when forwarding is turned on.
    host.nft(
        "add table ip mine\nadd chain ip mine c { type filter hook forward priority 0; }\nadd rule ip mine c accept",
    );
    for (setting, value) in [("uplink/forwarding", "1"), ("all/accept_redirects", "0"), ("default/forwarding", "1")] {
        fs::write(format!("/proc/sys/net/ipv4/conf/{setting}"), value).unwrap();
    }
    let network = host.instance("aaaa");
    let before = host.state();
    let (first, second) = (host.wait(network.acquire()).unwrap(), host.wait(network.acquire()).unwrap());
    assert_eq!(fs::read_to_string(IP_FORWARD).unwrap(), "1\n");
    assert_ne!(host.state(), before);
    host.wait(first.destroy()).unwrap();
    assert_eq!(fs::read_to_string(IP_FORWARD).unwrap(), "1\n", "one is left");
    host.wait(second.destroy()).unwrap();
    assert_same(&before, &host.state());
    host.assert_nothing_left(&network);
}

#[test]
fn root_a_host_that_forwards_goes_on_to_do_so() {
    let host = Host::enter();
    fs::write(IP_FORWARD, "1").unwrap();
    let network = host.instance("aaaa");
    let before = host.state();
    let lease = host.wait(network.acquire()).unwrap();
    host.wait(lease.destroy()).unwrap();
    assert_same(&before, &host.state());
}

#[test]
fn root_every_step_may_fail_and_nothing_is_left() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let before = host.state();
    for step in Step::ALL {
        network.fail_at(Some(step));
        let error = host.wait(network.acquire()).unwrap_err();
        assert!(matches!(error, NetworkError::Build { step: failed, .. } if failed == step), "{error}");
        host.assert_nothing_left(&network);
        assert_same(&before, &host.state());
    }
    network.fail_at(None);
    let lease = host.wait(network.acquire()).unwrap();
    assert_eq!(lease.slot(), slot(0), "no slot was lost");
    host.wait(lease.destroy()).unwrap();
}

#[test]
fn root_a_dropped_lease_is_taken_down() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let before = host.state();
    drop(host.wait(network.acquire()).unwrap());
    host.assert_nothing_left(&network);
    assert_same(&before, &host.state());
}

#[test]
fn root_fifty_networks_at_once_come_and_go() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let before = host.state();
    let leases = host.wait(async {
        let acquire = |network: Network| async move { network.acquire().await.unwrap() };
        let made: Vec<_> = (0..50).map(|_| tokio::spawn(acquire(network.clone()))).collect();
        let mut leases = Vec::new();
        for lease in made {
            leases.push(lease.await.unwrap());
        }
        leases
    });
    let mut slots: Vec<_> = leases.iter().map(|lease| lease.slot().index()).collect();
    slots.sort();
    assert_eq!(slots, (0..50).collect::<Vec<_>>());
    host.wait(async {
        let ended: Vec<_> = leases.into_iter().map(|lease| tokio::spawn(lease.destroy())).collect();
        for end in ended {
            end.await.unwrap().unwrap();
        }
    });
    host.assert_nothing_left(&network);
    assert_same(&before, &host.state());
}

#[test]
fn root_a_pool_has_networks_ready_and_leaves_none() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let before = host.state();
    host.wait(async {
        let pool = Pool::new(network.clone(), 3);
        while pool.ready() < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let taken = [pool.take().await.unwrap(), pool.take().await.unwrap()];
        for lease in taken {
            lease.destroy().await.unwrap();
        }
        pool.close().await.unwrap();
    });
    host.assert_nothing_left(&network);
    assert_same(&before, &host.state());
}

#[test]
fn root_a_slot_whose_names_are_taken_is_refused_and_passed_over() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    Netlink::open().unwrap().add_veth("wvaaaa0", "other", NetNs::current().unwrap()).unwrap();
    fs::write("/run/wrenn/netns/wrn-aaaa-1", "").unwrap();
    for (index, object) in
        [(0, HostObject::Veth("wvaaaa0".to_owned())), (1, HostObject::Netns("/run/wrenn/netns/wrn-aaaa-1".into()))]
    {
        let error = host.wait(network.acquire_slot(slot(index))).unwrap_err();
        assert!(matches!(&error, NetworkError::SlotTaken { object: taken, .. } if *taken == object), "{error}");
        assert!(error.to_string().contains("remove it by hand"), "{error}");
    }
    let lease = host.wait(network.acquire()).unwrap();
    assert_eq!(lease.slot(), slot(2));
    host.wait(lease.destroy()).unwrap();
    assert!(Netlink::open().unwrap().index("wvaaaa0").unwrap().is_some(), "what is not ours stays");
}

#[test]
fn root_a_slot_of_another_instance_is_refused_and_passed_over() {
    let host = Host::enter();
    let (a, b) = (host.instance("aaaa"), host.instance("bbbb"));
    let of_b = host.wait(b.acquire()).unwrap();
    let error = host.wait(a.acquire_slot(of_b.slot())).unwrap_err();
    assert_eq!(error.to_string(), "network slot 0 belongs to a running process");
    fs::write("/run/wrenn/slots/1", r#"{"tag":"cccc","wrenn_dir":"/srv/other","resolver":null}"#).unwrap();
    let error = host.wait(a.acquire_slot(slot(1))).unwrap_err();
    assert_eq!(error.to_string(), "network slot 1 belongs to the instance cccc (/srv/other)");
    let of_a = host.wait(a.acquire()).unwrap();
    assert_eq!(of_a.slot(), slot(2));
    assert_eq!(
        host.wait(a.sweep(&Default::default())).unwrap().removed,
        [],
        "a sweep of one's own leaves others' records alone"
    );
    assert!(Path::new("/run/wrenn/slots/1").metadata().unwrap().len() > 0);
    host.wait(of_a.destroy()).unwrap();
    host.wait(of_b.destroy()).unwrap();
}

#[test]
fn root_addresses_that_the_host_uses_are_not_given_away() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let mut netlink = Netlink::open().unwrap();
    let uplink = netlink.index(UPLINK).unwrap().unwrap();
    netlink.add_route("10.12.0.0/30".parse().unwrap(), ROUTER, uplink).unwrap();
    netlink.add_address(uplink, Ipv4Addr::new(10, 11, 0, 2), 32).unwrap();
    let lease = host.wait(network.acquire()).unwrap();
    assert_eq!(lease.slot(), slot(3), "two slots under the route, one under the address");
    host.wait(lease.destroy()).unwrap();
    // Halves of everything are a VPN's default route, not a range in use.
    netlink.add_route("0.0.0.0/1".parse().unwrap(), ROUTER, uplink).unwrap();
    let lease = host.wait(network.acquire()).unwrap();
    host.wait(lease.destroy()).unwrap();
    netlink.add_route("10.0.0.0/8".parse().unwrap(), ROUTER, uplink).unwrap();
    let error = host.wait(network.acquire()).unwrap_err();
    assert!(error.to_string().contains("10.0.0.0/8 (uplink); choose other ranges"), "{error}");
    let range = |text: &str| text.parse::<Ipv4Range>().unwrap();
    let config =
        NetworkConfig { links: range("172.20.0.0/24"), guests: range("172.21.0.0/24"), ..NetworkConfig::default() };
    let elsewhere = host.instance_with("aaaa", config);
    let sandbox = host.sandbox(&elsewhere);
    assert!(sandbox.fetches());
    host.destroy(sandbox);
    host.assert_nothing_left(&network);
}

#[test]
fn root_all_slots_taken_is_an_error_that_says_so() {
    let host = Host::enter();
    let config = NetworkConfig { links: "10.12.0.0/30".parse().unwrap(), ..NetworkConfig::default() };
    let network = host.instance_with("aaaa", config);
    let leases = [host.wait(network.acquire()).unwrap(), host.wait(network.acquire()).unwrap()];
    let error = host.wait(network.acquire()).unwrap_err();
    assert!(error.to_string().starts_with("all 2 network slots of this host are taken"), "{error}");
    for lease in leases {
        host.wait(lease.destroy()).unwrap();
    }
}

#[test]
fn root_a_network_that_was_left_is_adopted_whole() {
    let host = Host::enter();
    let first_process = host.instance("aaaa");
    let Sandbox { guest, lease } = host.sandbox(&first_process);
    let (taken, netns) = (lease.slot(), lease.netns().identity().unwrap());
    let busy = host.wait(host.instance("aaaa").adopt(taken)).unwrap_err();
    assert!(matches!(busy, NetworkError::SlotOwned { .. }), "{busy}");
    lease.leave();
    host.nft("flush ruleset"); // somebody does, while no agent runs
    let second_process = host.instance("aaaa");
    let other = host.wait(second_process.acquire()).unwrap();
    assert_ne!(other.slot(), taken, "what waits to be adopted is not given away");
    let lease = host.wait(second_process.adopt(taken)).unwrap();
    assert_eq!(lease.netns().identity().unwrap(), netns);
    let sandbox = Sandbox { guest, lease };
    assert!(sandbox.fetches(), "its guest never noticed");
    host.destroy(sandbox);
    host.wait(other.destroy()).unwrap();
    host.assert_nothing_left(&second_process);
}

#[test]
fn root_half_a_network_is_not_adopted_but_swept() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let before = host.state();
    let lease = host.wait(network.acquire()).unwrap();
    let taken = lease.slot();
    lease.leave();
    Netlink::open().unwrap().delete("wvaaaa0").unwrap();
    let error = host.wait(network.adopt(taken)).unwrap_err();
    assert_eq!(error.to_string(), "network slot 0 cannot be adopted: the network interface wvaaaa0 is gone; sweep it");
    assert_eq!(host.wait(network.sweep(&Default::default())).unwrap().removed, [taken]);
    host.assert_nothing_left(&network);
    assert_same(&before, &host.state());
    assert!(matches!(host.wait(network.adopt(taken)).unwrap_err(), NetworkError::SlotOwned { .. }));
}

/// Not a test: the process that the next ones kill.
#[test]
#[ignore = "run by other tests as a process to be killed"]
fn child_holds_two_networks() {
    let tag = std::env::var("WRENN_TEST_TAG").expect("only other tests run this");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let network = Network::open(tag.parse().unwrap(), Path::new("/tmp"), NetworkConfig::default()).unwrap();
    runtime.block_on(async {
        let _leases = [network.acquire().await.unwrap(), network.acquire().await.unwrap()];
        fs::write(format!("/run/{tag}.ready"), "").unwrap();
        std::future::pending::<()>().await;
    });
}

/// Lets another process of `tag` make two networks, and kills it with SIGKILL.
fn crash(host: &Host, tag: &str) {
    let program = std::env::current_exe().unwrap();
    let child = Command::new(program)
        .args(["--exact", "child_holds_two_networks", "--ignored", "--nocapture", "--test-threads=1"])
        .env("WRENN_TEST_TAG", tag);
    let ready = format!("/run/{tag}.ready");
    host.wait(async {
        tokio::select! {
            ended = child.run() => panic!("the process ended by itself: {ended:?}"),
            // Dropping the run kills its process group.
            () = async { while !Path::new(&ready).exists() { tokio::time::sleep(Duration::from_millis(2)).await } } => {}
        }
    });
}

#[test]
fn root_what_a_killed_process_left_is_swept() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let before = host.state();
    crash(&host, "aaaa");
    let left = host.wait(network.inventory()).unwrap();
    assert_eq!(left.len(), 2 * 4 + 1, "record, namespace, veth and elements of each, and the table: {left:?}");
    let report = swept_when_unlocked(&host, &network, 2);
    assert_eq!((report.removed, report.in_use), (vec![slot(0), slot(1)], vec![]));
    host.assert_nothing_left(&network);
    assert_same(&before, &host.state());
}

#[test]
fn root_an_instance_never_notices_that_another_was_killed() {
    let host = Host::enter();
    let (a, b) = (host.instance("aaaa"), host.instance("bbbb"));
    let before = host.state();
    let sandbox = host.sandbox(&b);
    crash(&host, "aaaa");
    assert!(sandbox.fetches());
    let of_b = host.wait(b.inventory()).unwrap();
    // Sweeps of both, in both orders: each removes its own left-overs and nothing else.
    assert_eq!(host.wait(b.sweep(&Default::default())).unwrap().in_use, [sandbox.lease.slot()]);
    assert_eq!(host.wait(a.inventory()).unwrap().len(), 2 * 4 + 1);
    swept_when_unlocked(&host, &a, 2);
    host.assert_nothing_left(&a);
    assert_eq!(host.wait(b.inventory()).unwrap(), of_b);
    assert!(sandbox.fetches(), "its rules and the host's forwarding are still there");
    assert_eq!(fs::read_to_string(IP_FORWARD).unwrap(), "1\n");
    host.destroy(sandbox);
    host.assert_nothing_left(&b);
    assert_same(&before, &host.state());
}

#[test]
fn root_forwarding_stays_until_the_last_instance_is_done() {
    let host = Host::enter();
    let (a, b) = (host.instance("aaaa"), host.instance("bbbb"));
    let of_a = host.wait(a.acquire()).unwrap();
    let of_b = host.wait(b.acquire()).unwrap();
    host.wait(of_a.destroy()).unwrap();
    assert_eq!(fs::read_to_string(IP_FORWARD).unwrap(), "1\n");
    // What a killed instance left counts, too: its VMs may live on.
    crash(&host, "aaaa");
    host.wait(of_b.destroy()).unwrap();
    assert_eq!(fs::read_to_string(IP_FORWARD).unwrap(), "1\n");
    swept_when_unlocked(&host, &a, 2);
    assert_eq!(fs::read_to_string(IP_FORWARD).unwrap(), "0\n");
}

#[test]
fn root_objects_without_a_record_are_swept() {
    let host = Host::enter();
    let before = host.state();
    crash(&host, "aaaa");
    fs::remove_dir_all("/run/wrenn/slots").unwrap();
    let network = host.instance("aaaa");
    assert_eq!(host.wait(network.sweep(&Default::default())).unwrap().removed, [slot(0), slot(1)]);
    host.assert_nothing_left(&network);
    assert_same(&before, &host.state());
}

#[test]
fn root_a_tap_can_be_attached_again_after_its_vm_ended() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let Sandbox { guest, lease } = host.sandbox(&network);
    let busy = lease.open_tap().unwrap_err();
    assert!(busy.to_string().contains("tap"), "{busy}");
    drop(guest);
    let guest = Guest::boot(lease.open_tap().unwrap());
    let sandbox = Sandbox { guest, lease };
    assert!(sandbox.fetches());
    host.destroy(sandbox);
}

/// A VM that is ended closes nothing: without help the host would remember its connections for days.
#[test]
fn root_the_host_forgets_the_connections_of_a_sandbox() {
    let host = Host::enter();
    let network = host.instance("aaaa");
    let (gone, stays) = (host.sandbox(&network), host.sandbox(&network));
    let remembered = |peer: Ipv4Addr| {
        let tracked = fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
        tracked.lines().filter(|line| line.contains(&format!("src={peer} "))).count()
    };
    let (of_gone, of_other) = (gone.lease.addresses().peer, stays.lease.addresses().peer);
    let open = |sandbox: &Sandbox| sandbox.guest.run(|| TcpStream::connect((WEB, 80)).unwrap());
    let _connections = [open(&gone), open(&gone), open(&stays)];
    assert!(gone.fetches() && stays.fetches());
    assert_eq!((remembered(of_gone), remembered(of_other)), (3, 2));
    host.destroy(gone);
    assert_eq!((remembered(of_gone), remembered(of_other)), (0, 2));
    host.destroy(stays);
    assert_eq!(remembered(of_other), 0);
}

/// The locks of a killed process are free when the kernel has closed its files, a moment after its end.
fn swept_when_unlocked(host: &Host, network: &Network, slots: usize) -> SweepReport {
    let mut report = SweepReport::default();
    while report.removed.len() < slots {
        let swept = host.wait(network.sweep(&Default::default())).unwrap();
        report.removed.extend(swept.removed);
        report.in_use = swept.in_use;
    }
    report
}

/// Prints what each step takes; the bounds are far above what is measured, for machines are shared.
#[test]
fn root_a_network_is_made_in_milliseconds() {
    const ROUNDS: usize = 20;
    let host = Host::enter();
    let network = host.instance("aaaa");
    let keeps_the_table = host.wait(network.acquire()).unwrap();
    let (mut made, mut ended) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let start = Instant::now();
        let lease = host.wait(network.acquire()).unwrap();
        made.push(start.elapsed());
        if round == ROUNDS / 2 {
            eprintln!("{:?}", lease.timings());
        }
        let start = Instant::now();
        host.wait(lease.destroy()).unwrap();
        ended.push(start.elapsed());
    }
    made.sort();
    ended.sort();
    let (median_made, median_ended) = (made[ROUNDS / 2], ended[ROUNDS / 2]);
    eprintln!(
        "acquire: median {median_made:?}, best {:?}; destroy: median {median_ended:?}, best {:?}",
        made[0], ended[0]
    );
    assert!(median_made < Duration::from_millis(200), "{made:?}");
    host.wait(keeps_the_table.destroy()).unwrap();
}

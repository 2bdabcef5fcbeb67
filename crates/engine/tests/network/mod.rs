//! What the network's tests share: a host in an outer world, instances on it, and everything of the host that must be the
//! same afterwards.

#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use tokio::runtime::Runtime;
use wrenn_engine::command::Command;
use wrenn_engine::names::Slot;
use wrenn_engine::network::links::Netlink;
use wrenn_engine::network::{Lease, Network, NetworkConfig};
use wrenn_testworld::{Guest, World, client};

/// How long a packet that must not arrive has to do so. A refused one is answered at once; this is for the dropped.
pub const SILENCE: Duration = Duration::from_millis(300);

/// A host in a world of its own, with a runtime whose threads live there, too.
pub struct Host {
    pub runtime: Runtime,
    pub world: World,
}

impl Host {
    /// Moves the calling thread into a new world.
    pub fn enter() -> Self {
        let world = World::enter();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { runtime, world }
    }

    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub fn instance(&self, tag: &str) -> Network {
        self.instance_with(tag, NetworkConfig::default())
    }

    pub fn instance_with(&self, tag: &str, config: NetworkConfig) -> Network {
        Network::open(tag.parse().unwrap(), Path::new("/var/lib/wrenn"), config).unwrap()
    }

    /// A sandbox with a guest that is up.
    pub fn sandbox(&self, network: &Network) -> Sandbox {
        let lease = self.wait(network.acquire()).unwrap();
        let guest = Guest::boot(lease.open_tap().unwrap());
        Sandbox { guest, lease }
    }

    /// Ends a sandbox, which must succeed.
    pub fn destroy(&self, sandbox: Sandbox) {
        drop(sandbox.guest);
        self.wait(sandbox.lease.destroy()).unwrap();
    }

    /// Asserts that nothing of the instance is on the host.
    pub fn assert_nothing_left(&self, network: &Network) {
        self.wait(network.settle()).unwrap();
        assert_eq!(self.wait(network.inventory()).unwrap(), []);
    }

    /// Hands rules to `nft`, in the host's namespace.
    pub fn nft(&self, script: &str) {
        self.wait(Command::new("nft").args(["-f", "-"]).stdin(script).run()).unwrap();
    }

    /// Everything of the host's network that sandboxes must leave as it was.
    pub fn state(&self) -> BTreeMap<String, String> {
        let ruleset = self.wait(Command::new("nft").args(["list", "ruleset"]).run()).unwrap();
        let mut state = BTreeMap::from([("nft list ruleset".to_owned(), ruleset.text())]);
        for table in ["route", "fib_trie"] {
            let path = format!("/proc/thread-self/net/{table}");
            state.insert(table.to_owned(), fs::read_to_string(path).unwrap());
        }
        for tree in ["/proc/sys/net/ipv4", "/proc/sys/net/ipv6", "/proc/sys/net/core", "/proc/sys/net/netfilter"] {
            settings_below(Path::new(tree), &mut state);
        }
        // They tell of moments, not of settings.
        state.retain(|name, _| !name.ends_with("nf_conntrack_count") && !name.ends_with("rt_cache_stat"));
        let links = Netlink::open().unwrap().links().unwrap();
        state.insert("links".to_owned(), format!("{links:?}"));
        state
    }
}

/// Fails with the lines that differ.
pub fn assert_same(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
    let differs = |name: &&String| before.get(*name) != after.get(*name);
    let names: BTreeSet<_> = before.keys().chain(after.keys()).filter(differs).collect();
    for name in &names {
        eprintln!("{name}\n  before: {:?}\n  after:  {:?}", before.get(*name), after.get(*name));
    }
    assert!(names.is_empty(), "the host is not as it was: {names:?}");
}

fn settings_below(tree: &Path, state: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(tree).into_iter().flatten().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            settings_below(&path, state);
        } else if let Ok(value) = fs::read_to_string(&path) {
            state.insert(path.display().to_string(), value);
        }
    }
}

/// A leased network with a guest on it.
pub struct Sandbox {
    pub guest: Guest,
    pub lease: Lease,
}

impl Sandbox {
    /// Whether a program in the guest fetches the internet's page.
    pub fn fetches(&self) -> bool {
        self.fetch_within(Duration::from_secs(10)).is_ok()
    }

    pub fn fetch_within(&self, limit: Duration) -> std::io::Result<Vec<u8>> {
        self.guest.run(|| client::fetch_within(wrenn_testworld::WEB, "/", limit))
    }

    pub fn connects(&self, address: Ipv4Addr, port: u16) -> bool {
        self.guest.run(|| client::connects(address, port, SILENCE)).is_ok()
    }
}

pub fn slot(index: u16) -> Slot {
    Slot::new(index).unwrap()
}

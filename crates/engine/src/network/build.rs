//! Making a slot's network, adopting one, and taking one down: the acting side of [`super::rules`] and
//! [`super::addresses`].
//!
//! ```text
//!   claim (host's lock: slot free? names free? addresses free? ─► on record ─► forwarding)
//!     ├─ namespace, its settings and TAP ─► its rules      (a thread inside)
//!     └─ the host's rules                                  (meanwhile)
//!   veth pair ─► addresses, routes, up
//! ```
//!
//! Taking down is one idempotent function by name, used by the normal end, by a failed acquire, by a dropped lease and by
//! the sweep.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wrenn_sys::netns::{self, NetNs};
use wrenn_sys::tap;

use super::addresses::{self, Addresses, GATEWAY, GUEST, GUEST_MAC, GUEST_PREFIX, Ipv4Range, PEER, TAP, TAP_MAC};
use super::links::{LinkIndex, Netlink};
use super::slots::{Content, Record, SlotLock};
use super::{BuildError, HostObject, Lease, NetworkError, Shared, conntrack, forwarding, nft, rules};
use crate::names::{Slot, SlotName, nft_table};

/// Routes with at most this prefix are default routes in disguise (VPNs split 0/0 in two), not ranges in use.
const DEFAULT_ROUTE_PREFIX_MAX: u8 = 1;
/// Prefix length of a link between host and namespace.
const LINK_PREFIX: u8 = 31;

/// The steps of making a network, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// The host's `ip_forward`.
    Forwarding,
    /// The namespace and its handle.
    Namespace,
    /// Forwarding on, IPv6 off, in the namespace.
    Settings,
    /// The TAP.
    Tap,
    /// The rules in the namespace.
    InnerRules,
    /// The rules on the host.
    HostRules,
    /// The veth pair.
    Veth,
    /// Addresses and routes on the host's side.
    HostLinks,
    /// Addresses and routes in the namespace.
    InnerLinks,
}

impl Step {
    /// All steps.
    pub const ALL: [Self; 9] = [
        Self::Forwarding,
        Self::Namespace,
        Self::Settings,
        Self::Tap,
        Self::InnerRules,
        Self::HostRules,
        Self::Veth,
        Self::HostLinks,
        Self::InnerLinks,
    ];

    /// The step's name in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forwarding => "forwarding",
            Self::Namespace => "namespace",
            Self::Settings => "settings",
            Self::Tap => "tap",
            Self::InnerRules => "inner rules",
            Self::HostRules => "host rules",
            Self::Veth => "veth",
            Self::HostLinks => "host links",
            Self::InnerLinks => "inner links",
        }
    }

    pub(super) fn remedy(self) -> &'static str {
        match self {
            Self::Forwarding | Self::Namespace | Self::Settings => {
                "; this needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN"
            }
            Self::Tap => "; this needs /dev/net/tun (modprobe tun)",
            Self::InnerRules | Self::HostRules => {
                "; this needs nftables with inet, nat and conntrack (modprobe nf_tables nf_nat)"
            }
            Self::Veth => "; this needs veth devices (modprobe veth)",
            Self::HostLinks | Self::InnerLinks => "",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How long each step of an acquire took; `claim` is the part under the host's lock.
pub(super) type Timings = Vec<(&'static str, Duration)>;

/// Takes `wanted`, or the first free slot, and makes its network.
pub(super) fn acquire(shared: &Arc<Shared>, wanted: Option<Slot>) -> Result<Lease, NetworkError> {
    let mut clock = Clock::start();
    let resolver = super::resolvers::choose(&shared.config.resolv_conf).resolver();
    let claim = claim(shared, wanted, resolver)?;
    clock.lap("claim");
    match build(shared, &claim, &mut clock) {
        Ok(netns) => Ok(lease(shared, claim, netns, clock.laps)),
        Err((step, source)) => {
            let slot = claim.lock.slot();
            if let Err(left) = take_down(shared, claim.lock, Some(&claim.addresses), resolver) {
                tracing::warn!(%slot, error = %left, "an unfinished network is left over; the next sweep removes it");
            }
            Err(NetworkError::Build { slot, step, source })
        }
    }
}

/// Takes over a slot left by an earlier process: all of it must be there.
pub(super) fn adopt(shared: &Arc<Shared>, slot: Slot) -> Result<Lease, NetworkError> {
    let _host = shared.slots.lock_host()?;
    let Some(lock) = shared.slots.try_lock(slot)? else {
        return Err(NetworkError::SlotOwned { slot, owner: "a running process".to_owned() });
    };
    let (addresses, resolver) = match (lock.content()?, shared.config.addresses(shared.tag, slot)) {
        (Content::Owned(record), Some(addresses)) if record.tag == shared.tag => (addresses, record.resolver),
        (content, _) => return Err(NetworkError::SlotOwned { slot, owner: owner(&content) }),
    };
    let incomplete = |missing| NetworkError::Incomplete { slot, missing };
    let path = shared.netns_path(&addresses.name.netns());
    let netns = NetNs::open(&path).map_err(|_gone| incomplete(HostObject::Netns(path.clone())))?;
    let veth = addresses.name.veth();
    let found = Netlink::open().and_then(|mut host| host.index(&veth));
    let listed = found.map_err(|source| NetworkError::List { what: "links", source: source.into() })?;
    listed.ok_or_else(|| incomplete(HostObject::Veth(veth)))?;
    shared.state().held.insert(slot, resolver);
    let claim = Claim { lock, addresses, resolver };
    // The rules may be those of an older version, or flushed by somebody: bring them up to date.
    host_rules(shared, &claim).map_err(|source| NetworkError::Build { slot, step: Step::HostRules, source })?;
    Ok(lease(shared, claim, netns, Timings::new()))
}

fn lease(shared: &Arc<Shared>, claim: Claim, netns: NetNs, timings: Timings) -> Lease {
    Lease::new(Arc::clone(shared), claim.lock, claim.addresses, claim.resolver, netns, timings)
}

/// A slot that is ours, on record, without objects yet.
struct Claim {
    lock: SlotLock,
    addresses: Addresses,
    resolver: Option<Ipv4Addr>,
}

fn claim(shared: &Shared, wanted: Option<Slot>, resolver: Option<Ipv4Addr>) -> Result<Claim, NetworkError> {
    let _host = shared.slots.lock_host()?;
    let mut netlink = Netlink::open().map_err(|source| NetworkError::List { what: "links", source: source.into() })?;
    let (mut lock, addresses) = match wanted {
        Some(slot) => free_slot(shared, &mut netlink, slot)?,
        None => first_free_slot(shared, &mut netlink)?,
    };
    let slot = lock.slot();
    lock.write(&record(shared, resolver, false)?)?;
    let forwarding = check_failing(shared, Step::Forwarding)
        .and_then(|()| forwarding::ensure(&shared.config.run_dir).map_err(BuildError::from));
    if let Err(source) = forwarding {
        lock.clear()?;
        restore_forwarding_unless_needed(shared, None)?;
        return Err(NetworkError::Build { slot, step: Step::Forwarding, source });
    }
    shared.state().held.insert(slot, resolver);
    Ok(Claim { lock, addresses, resolver })
}

/// The first slot that can be taken. If there is none, the error tells why the first one that nobody uses could not be.
fn first_free_slot(shared: &Shared, netlink: &mut Netlink) -> Result<(SlotLock, Addresses), NetworkError> {
    let mut first_obstacle = None;
    for slot in (0..shared.config.slots()).filter_map(Slot::new) {
        if shared.state().held.contains_key(&slot) {
            continue;
        }
        match free_slot(shared, netlink, slot) {
            Ok(found) => return Ok(found),
            Err(NetworkError::SlotOwned { .. }) => {}
            Err(conflict) if covers_a_whole_range(shared, &conflict) => return Err(conflict),
            Err(obstacle @ (NetworkError::SlotTaken { .. } | NetworkError::RangeConflict { .. })) => {
                tracing::warn!(error = %obstacle, "a network slot is passed over");
                first_obstacle.get_or_insert(obstacle);
            }
            Err(other) => return Err(other),
        }
    }
    Err(first_obstacle.unwrap_or(NetworkError::NoFreeSlot { slots: shared.config.slots() }))
}

/// A route over a whole range meets every slot: no use in trying them all.
fn covers_a_whole_range(shared: &Shared, error: &NetworkError) -> bool {
    let NetworkError::RangeConflict { route, .. } = error else { return false };
    route.covers(shared.config.links) || route.covers(shared.config.guests)
}

fn free_slot(shared: &Shared, netlink: &mut Netlink, slot: Slot) -> Result<(SlotLock, Addresses), NetworkError> {
    let Some(addresses) = shared.config.addresses(shared.tag, slot) else {
        return Err(NetworkError::NoFreeSlot { slots: shared.config.slots() });
    };
    let Some(lock) = shared.slots.try_lock(slot)? else {
        return Err(NetworkError::SlotOwned { slot, owner: "a running process".to_owned() });
    };
    match lock.content()? {
        Content::Empty => {}
        content @ (Content::Owned(_) | Content::Unreadable) => {
            return Err(NetworkError::SlotOwned { slot, owner: owner(&content) });
        }
    }
    check_names(shared, netlink, &addresses)?;
    check_routes(netlink, &addresses)?;
    Ok((lock, addresses))
}

fn owner(content: &Content) -> String {
    match content {
        Content::Empty => "nobody".to_owned(),
        Content::Owned(record) => format!("the instance {} ({})", record.tag, record.wrenn_dir.display()),
        Content::Unreadable => "somebody whose record cannot be read".to_owned(),
    }
}

fn check_names(shared: &Shared, netlink: &mut Netlink, addresses: &Addresses) -> Result<(), NetworkError> {
    let taken = |object| NetworkError::SlotTaken { slot: addresses.name.slot, object };
    let handle = shared.netns_path(&addresses.name.netns());
    if handle.symlink_metadata().is_ok() {
        return Err(taken(HostObject::Netns(handle)));
    }
    let veth = addresses.name.veth();
    match netlink.index(&veth) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(taken(HostObject::Veth(veth))),
        Err(source) => Err(NetworkError::List { what: "links", source: source.into() }),
    }
}

fn check_routes(netlink: &mut Netlink, addresses: &Addresses) -> Result<(), NetworkError> {
    for address in addresses.all() {
        let covering = netlink.covering(address);
        let covering = covering.map_err(|source| NetworkError::List { what: "routes", source: source.into() })?;
        let in_use = covering.filter(|route| route.destination.prefix() > DEFAULT_ROUTE_PREFIX_MAX);
        if let Some(route) = in_use {
            let links = netlink.links().unwrap_or_default(); // only for the message
            let link = links.into_iter().find(|(index, _)| Some(*index) == route.link).map(|(_, name)| name);
            let (slot, route) = (addresses.name.slot, route.destination);
            return Err(NetworkError::RangeConflict { slot, address, route, link });
        }
    }
    Ok(())
}

fn check_failing(shared: &Shared, step: Step) -> Result<(), BuildError> {
    if shared.state().failing == Some(step) { Err(BuildError::OnRequest) } else { Ok(()) }
}

/// Attributes an error to its step.
fn at<E: Into<BuildError>>(step: Step) -> impl FnOnce(E) -> (Step, BuildError) {
    move |source| (step, source.into())
}

fn build(shared: &Shared, claim: &Claim, clock: &mut Clock) -> Result<NetNs, (Step, BuildError)> {
    let step = |step| check_failing(shared, step).map_err(at(step));
    step(Step::Namespace)?;
    let netns = NetNs::create(&shared.netns_path(&claim.addresses.name.netns())).map_err(at(Step::Namespace))?;
    clock.lap("namespace");
    let mut inner = std::thread::scope(|scope| {
        let host_rules = scope.spawn(|| {
            step(Step::HostRules)?;
            host_rules(shared, claim).map_err(at(Step::HostRules))
        });
        let inner = netns.run(|| furnish(shared, claim)).map_err(at(Step::Namespace))?;
        host_rules.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        inner
    })?;
    clock.lap("rules");
    step(Step::Veth)?;
    let mut host = Netlink::open().map_err(at(Step::Veth))?;
    host.add_veth(&claim.addresses.name.veth(), PEER, &netns).map_err(at(Step::Veth))?;
    clock.lap("veth");
    step(Step::HostLinks)?;
    connect_host(&mut host, &claim.addresses).map_err(at(Step::HostLinks))?;
    step(Step::InnerLinks)?;
    connect_inner(&mut inner, &claim.addresses).map_err(at(Step::InnerLinks))?;
    clock.lap("links");
    Ok(netns)
}

/// Runs inside the namespace: settings, TAP, rules. Returns a socket that speaks of the namespace.
fn furnish(shared: &Shared, claim: &Claim) -> Result<Netlink, (Step, BuildError)> {
    let step = |step| check_failing(shared, step).map_err(at(step));
    step(Step::Settings)?;
    set_inner_settings().map_err(at(Step::Settings))?;
    step(Step::Tap)?;
    // Closed again at once: it persists, and who runs the VM attaches to it. A TAP without an owner would be anybody's.
    tap::open(TAP, Some(claim.lock.slot().vmm_uid())).map_err(at(Step::Tap))?;
    step(Step::InnerRules)?;
    nft::apply(rules::inner(&claim.addresses, claim.resolver)).map_err(at(Step::InnerRules))?;
    Netlink::open().map_err(at(Step::InnerLinks))
}

/// /proc/sys/net shows the namespace of the thread that looks.
fn set_inner_settings() -> io::Result<()> {
    std::fs::write(forwarding::IP_FORWARD, "1")?;
    for scope in ["all", "default"] {
        disable_ipv6(scope)?;
    }
    Ok(())
}

fn disable_ipv6(scope: &str) -> io::Result<()> {
    match std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1") {
        // A kernel without IPv6 has nothing to turn off.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !Path::new("/proc/sys/net/ipv6").exists() => Ok(()),
        other => other,
    }
}

/// The table is made or renewed once per process; later slots add their elements. If the table is gone by then, somebody
/// flushed the host's rules: it is made again with the elements of all slots of this process.
fn host_rules(shared: &Shared, claim: &Claim) -> Result<(), BuildError> {
    let admitted = || rules::admit(&claim.addresses, claim.resolver);
    if shared.state().table_ready && nft::apply_if_table(admitted())? {
        return Ok(());
    }
    let _renewing = shared.renewing();
    // Somebody else may have renewed it while this one waited.
    if shared.state().table_ready && nft::apply_if_table(admitted())? {
        return Ok(());
    }
    let held: Vec<_> = shared.state().held.iter().map(|(slot, resolver)| (*slot, *resolver)).collect();
    let elements = held
        .into_iter()
        .filter_map(|(slot, resolver)| Some(rules::admit(&shared.config.addresses(shared.tag, slot)?, resolver)));
    nft::apply(elements.fold(rules::outer(shared.tag), |text, elements| text + &elements))?;
    shared.state().table_ready = true;
    Ok(())
}

fn connect_host(host: &mut Netlink, addresses: &Addresses) -> Result<(), BuildError> {
    let veth = addresses.name.veth();
    let index = existing(host, &veth)?;
    disable_ipv6(&veth)?;
    host.add_address(index, addresses.host, LINK_PREFIX)?;
    host.set_up(index, None)?;
    host.add_route(Ipv4Range::around(addresses.guest_from_host, 32), addresses.peer, index)?;
    Ok(())
}

fn connect_inner(inner: &mut Netlink, addresses: &Addresses) -> Result<(), BuildError> {
    let tap = existing(inner, TAP)?;
    inner.set_up(tap, Some(TAP_MAC))?;
    inner.add_address(tap, GATEWAY, GUEST_PREFIX)?;
    inner.pin_neighbour(tap, GUEST, GUEST_MAC)?;
    let veth = existing(inner, PEER)?;
    inner.set_up(veth, None)?;
    inner.add_address(veth, addresses.peer, LINK_PREFIX)?;
    inner.add_route(addresses::DEFAULT_ROUTE, addresses.host, veth)?;
    Ok(())
}

fn existing(netlink: &mut Netlink, name: &str) -> io::Result<LinkIndex> {
    netlink.index(name)?.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("the link {name} is gone")))
}

/// Removes every object of a slot and frees it; after a failure the slot stays on record. Rules stand until the link is
/// silent: without them it would be open. Removing the link takes the kernel some 25 ms, in which the rest is done.
/// `addresses` is `None` for a slot beyond the ranges.
pub(super) fn take_down(
    shared: &Shared,
    mut lock: SlotLock,
    addresses: Option<&Addresses>,
    resolver: Option<Ipv4Addr>,
) -> Result<(), NetworkError> {
    let slot = lock.slot();
    let name = SlotName { tag: shared.tag, slot };
    let veth = name.veth();
    on_veth(&veth, Netlink::set_down)?;
    std::thread::scope(|scope| {
        let link = scope.spawn(|| on_veth(&veth, Netlink::delete));
        let rules = remove_rules(shared, &mut lock, addresses, resolver);
        link.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).and(rules)
    })?;
    if let Some(addresses) = addresses {
        forget_connections(addresses);
    }
    let _host = shared.slots.lock_host()?;
    restore_forwarding_unless_needed(shared, Some(slot))?;
    // Last, because the kernel clears the namespace away afterwards, and holds up other changes of links meanwhile.
    remove_handle(&shared.netns_path(&name.netns()))?;
    Ok(lock.clear()?)
}

/// Best effort: entries that stay end by themselves, and a kernel may be built without a way to delete them.
fn forget_connections(addresses: &Addresses) {
    match conntrack::forget(addresses.peer) {
        Ok(count) => tracing::debug!(slot = %addresses.name.slot, count, "forgot the sandbox's connections"),
        Err(error) => {
            tracing::warn!(slot = %addresses.name.slot, %error, "cannot delete the sandbox's tracked connections")
        }
    }
}

/// Does something to a veth that may be gone already.
pub(super) fn on_veth(name: &str, act: fn(&mut Netlink, &str) -> io::Result<bool>) -> Result<(), NetworkError> {
    let done = Netlink::open().and_then(|mut netlink| act(&mut netlink, name));
    let object = || HostObject::Veth(name.to_owned());
    done.map(drop).map_err(|source| NetworkError::Remove { object: object(), source: source.into() })
}

pub(super) fn remove_handle(handle: &Path) -> Result<(), NetworkError> {
    let object = || HostObject::Netns(handle.to_owned());
    netns::remove_handle(handle)
        .map(drop)
        .map_err(|source| NetworkError::Remove { object: object(), source: source.into() })
}

/// With the instance's last slot its table goes.
fn remove_rules(
    shared: &Shared,
    lock: &mut SlotLock,
    addresses: Option<&Addresses>,
    resolver: Option<Ipv4Addr>,
) -> Result<(), NetworkError> {
    let _host = shared.slots.lock_host()?;
    let _renewing = shared.renewing();
    shared.state().held.remove(&lock.slot());
    // Of two that end at once, the second one sees that the first one ends.
    lock.write(&record(shared, resolver, true)?)?;
    let last = !shared.slots.owned()?.iter().any(|(_, content)| content.is_in_use_by(shared.tag));
    let removed = match (last, addresses) {
        (true, _) => remove_table(shared),
        (false, Some(addresses)) => nft::apply_if_table(rules::expel(addresses, resolver)).map(drop),
        (false, None) => Ok(()),
    };
    removed.map_err(|source| NetworkError::Remove {
        object: HostObject::Table(nft_table(shared.tag)),
        source: source.into(),
    })
}

/// Puts the host's forwarding back if no slot but `released` needs it. The caller holds the host's lock.
pub(super) fn restore_forwarding_unless_needed(shared: &Shared, released: Option<Slot>) -> Result<(), NetworkError> {
    let host_netns = forwarding::host_netns()?;
    let needed = |(slot, content): &(Slot, Content)| Some(*slot) != released && content.needs_forwarding_of(host_netns);
    if !shared.slots.owned()?.iter().any(needed) {
        forwarding::restore(&shared.config.run_dir)?;
    }
    Ok(())
}

fn record(shared: &Shared, resolver: Option<Ipv4Addr>, ending: bool) -> Result<Record, forwarding::ForwardingError> {
    let host_netns = forwarding::host_netns()?;
    Ok(Record { tag: shared.tag, wrenn_dir: shared.wrenn_dir.clone(), resolver, host_netns, ending })
}

pub(super) fn remove_table(shared: &Shared) -> Result<(), crate::command::CommandError> {
    nft::apply(rules::remove(shared.tag))?;
    shared.state().table_ready = false;
    Ok(())
}

struct Clock {
    last: Instant,
    laps: Timings,
}

impl Clock {
    fn start() -> Self {
        Self { last: Instant::now(), laps: Timings::new() }
    }

    fn lap(&mut self, name: &'static str) {
        let now = Instant::now();
        self.laps.push((name, now - self.last));
        self.last = now;
    }
}

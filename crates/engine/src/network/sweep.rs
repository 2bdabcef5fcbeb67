//! What an instance has on the host, and removing what nobody holds.
//!
//! Objects are found by their names and owners by the slots' locks, not by memory: it works the same after a crash, in
//! another process, and when half of it is gone. An object is swept if its slot is free to lock, or if the slot has become
//! another instance's meanwhile (its objects then have other names).

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::PathBuf;

use super::links::Netlink;
use super::slots::Content;
use super::{BuildError, NetworkError, Shared, build, nft};
use crate::names::{Slot, SlotName, nft_table};

pub(super) const REMEDY: &str =
    "if a crashed wrenn left it, the next start of that instance removes it; else remove it by hand";

/// An object of an instance on the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostObject {
    /// The slot's file names the instance as its owner.
    SlotRecord(Slot),
    /// The handle of a network namespace.
    Netns(PathBuf),
    /// A veth pair, by its outer end.
    Veth(String),
    /// The nftables table.
    Table(String),
    /// Elements of the table's sets that belong to this veth.
    RuleElements(String),
}

impl fmt::Display for HostObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SlotRecord(slot) => write!(f, "the record of slot {slot}"),
            Self::Netns(handle) => write!(f, "the network namespace {}", handle.display()),
            Self::Veth(name) => write!(f, "the network interface {name}"),
            Self::Table(name) => write!(f, "the nftables table inet {name}"),
            Self::RuleElements(veth) => write!(f, "the nftables set elements of {veth}"),
        }
    }
}

/// What a sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Slots whose objects were removed.
    pub removed: Vec<Slot>,
    /// Slots that somebody holds.
    pub in_use: Vec<Slot>,
}

/// Every object of the instance.
pub(super) fn inventory(shared: &Shared) -> Result<Vec<HostObject>, NetworkError> {
    let mut objects = Vec::new();
    for (slot, content) in shared.slots.owned()? {
        if content.is_of(shared.tag) {
            objects.push(HostObject::SlotRecord(slot));
        }
    }
    objects.extend(handles(shared)?.into_iter().map(|name| HostObject::Netns(shared.netns_path(&name.netns()))));
    objects.extend(veths(shared)?.into_iter().map(|name| HostObject::Veth(name.veth())));
    let name = nft_table(shared.tag);
    if let Some(text) = table(&name)? {
        objects.push(HostObject::Table(name));
        objects.extend(named_in(&text, shared).into_iter().map(|name| HostObject::RuleElements(name.veth())));
    }
    Ok(objects)
}

/// Removes what nobody holds, but for the slots in `kept`. Goes on after a failure; the first one is returned.
pub(super) fn sweep(shared: &Shared, kept: &BTreeSet<Slot>) -> Result<SweepReport, NetworkError> {
    let mut report = SweepReport::default();
    let mut first_failure = None;
    for slot in slots_with_objects(shared)?.difference(kept).copied() {
        match sweep_slot(shared, slot) {
            Ok(true) => report.removed.push(slot),
            Ok(false) => report.in_use.push(slot),
            Err(failure) => drop(first_failure.get_or_insert(failure)),
        }
    }
    let ended = end_if_unused(shared);
    match (first_failure, ended) {
        (Some(failure), _) | (None, Err(failure)) => Err(failure),
        (None, Ok(())) => Ok(report),
    }
}

/// `false` if somebody holds the slot.
fn sweep_slot(shared: &Shared, slot: Slot) -> Result<bool, NetworkError> {
    let addresses = shared.config.addresses(shared.tag, slot);
    let Some(lock) = shared.slots.try_lock(slot)? else {
        return match shared.slots.peek(slot)? {
            Content::Owned(record) if record.tag != shared.tag => remove_by_name(shared, slot).map(|()| true),
            // Ours, or somebody's who is just taking it.
            Content::Owned(_) | Content::Empty | Content::Unreadable => Ok(false),
        };
    };
    match lock.content()? {
        Content::Owned(record) if record.tag == shared.tag => {
            build::take_down(shared, lock, addresses.as_ref(), record.resolver)?;
        }
        // Objects without a record, such as a table from before a reboot of /run.
        Content::Empty => build::take_down(shared, lock, addresses.as_ref(), None)?,
        Content::Owned(_) | Content::Unreadable => remove_by_name(shared, slot)?,
    }
    Ok(true)
}

/// Removes the objects that carry our name, and leaves the slot to whose it is.
fn remove_by_name(shared: &Shared, slot: Slot) -> Result<(), NetworkError> {
    let name = SlotName { tag: shared.tag, slot };
    build::on_veth(&name.veth(), Netlink::delete)?;
    build::remove_handle(&shared.netns_path(&name.netns()))
}

/// Without a slot of the instance its table goes; without any on the host its forwarding is put back.
fn end_if_unused(shared: &Shared) -> Result<(), NetworkError> {
    let _host = shared.slots.lock_host()?;
    let owned = shared.slots.owned()?;
    let in_use = owned.iter().any(|(_, content)| content.is_of(shared.tag));
    if !in_use && table(&nft_table(shared.tag))?.is_some() {
        build::remove_table(shared).map_err(|source| NetworkError::Remove {
            object: HostObject::Table(nft_table(shared.tag)),
            source: source.into(),
        })?;
    }
    build::restore_forwarding_unless_needed(shared, None)
}

fn slots_with_objects(shared: &Shared) -> Result<BTreeSet<Slot>, NetworkError> {
    let owned = shared.slots.owned()?.into_iter().filter(|(_, content)| content.is_of(shared.tag));
    let mut slots: BTreeSet<Slot> = owned.map(|(slot, _)| slot).collect();
    slots.extend(handles(shared)?.into_iter().map(|name| name.slot));
    slots.extend(veths(shared)?.into_iter().map(|name| name.slot));
    if let Some(text) = table(&nft_table(shared.tag))? {
        slots.extend(named_in(&text, shared).into_iter().map(|name| name.slot));
    }
    Ok(slots)
}

fn handles(shared: &Shared) -> Result<Vec<SlotName>, NetworkError> {
    let dir = shared.config.run_dir.join("netns");
    let names = fs::read_dir(dir).and_then(|entries| {
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<Vec<_>, _>>()
    });
    let names = names.map_err(listing("namespaces"))?;
    let parsed = names.iter().filter_map(|name| SlotName::parse_netns(name).ok());
    Ok(parsed.filter(|name| name.tag == shared.tag).collect())
}

fn veths(shared: &Shared) -> Result<Vec<SlotName>, NetworkError> {
    let links = Netlink::open().and_then(|mut netlink| netlink.links()).map_err(listing("links"))?;
    let parsed = links.iter().filter_map(|(_, name)| SlotName::parse_veth(name).ok());
    Ok(parsed.filter(|name| name.tag == shared.tag).collect())
}

fn table(name: &str) -> Result<Option<String>, NetworkError> {
    nft::table(name).map_err(listing("nftables rules"))
}

/// The veths that a table's text names: quoted, as elements of its sets.
fn named_in(text: &str, shared: &Shared) -> BTreeSet<SlotName> {
    let quoted = text.split('"').skip(1).step_by(2);
    quoted.filter_map(|name| SlotName::parse_veth(name).ok()).filter(|name| name.tag == shared.tag).collect()
}

fn listing<E: Into<BuildError>>(what: &'static str) -> impl FnOnce(E) -> NetworkError {
    move |source| NetworkError::List { what, source: source.into() }
}

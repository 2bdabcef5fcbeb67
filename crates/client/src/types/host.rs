//! The host behind the server, and how the server is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Vmm;

/// A host that sandboxes are on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Host {
    /// Its name.
    pub host: String,
    /// Version of Wrenn on it.
    pub version: String,
    /// CPUs.
    pub cpus: u32,
    /// Memory that all VMs may have together, in MiB.
    pub memory_mib: u32,
    /// What of it is taken, in MiB.
    pub memory_taken_mib: u32,
    /// What is free where sandboxes are kept.
    pub disk_free_bytes: u64,
    /// How large that file system is.
    pub disk_total_bytes: u64,
    /// What runs sandboxes.
    pub vmm: Vmm,
    /// What disks are made of: `dm` or `qcow2`.
    pub storage: String,
    /// How many sandboxes are in which state, the caller's own.
    pub sandboxes: BTreeMap<String, u32>,
}

/// Whether all that the server needs is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// It is.
    Ok,
    /// Something is not; requests that need it are refused.
    Degraded,
}

/// How the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Health {
    /// All together.
    pub status: HealthStatus,
    /// Whether the host's agent answers.
    pub agent: bool,
    /// Whether the database answers.
    pub database: bool,
}

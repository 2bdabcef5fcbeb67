//! Snapshots.

use serde::{Deserialize, Serialize};

use super::{Timing, Vmm};

/// What a sandbox was at one moment, kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Snapshot {
    /// `sn` and 18 characters of `[a-z0-9]`.
    pub id: String,
    /// The host that it is on.
    pub host: String,
    /// The name that its tenant gave it, if it has one. Another tenant may have one of the same name.
    pub name: Option<String>,
    /// When it was captured.
    pub created_unix_ms: u64,
    /// The sandbox that was captured; it may be gone.
    pub sandbox: String,
    /// Id of the template.
    pub template: String,
    /// Id of the kernel.
    pub kernel: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Size of its disk, in MiB.
    pub disk_mib: u32,
    /// What can run it.
    pub vmm: Vmm,
    /// Whether it has the sandbox's memory, or its disk alone.
    pub has_memory: bool,
    /// What it takes alone.
    pub own_bytes: u64,
    /// What it takes together with sandboxes and other snapshots.
    pub shared_bytes: u64,
    /// Whose it is.
    pub tenant: String,
}

/// A snapshot as somebody asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// Id of the sandbox to capture; it goes on.
    #[cfg_attr(feature = "openapi", schema(pattern = "^sb[a-z0-9]{18}$"))]
    pub sandbox: String,
    /// A name that no other snapshot of the tenant has: 1 to 64 characters of `[a-z0-9._-]`, beginning with a letter or digit.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(pattern = "^[a-z0-9][a-z0-9._-]{0,63}$"))]
    pub name: Option<String>,
}

/// A new snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewSnapshot {
    /// It.
    pub snapshot: Snapshot,
    /// How long each step took.
    pub timings: Vec<Timing>,
}

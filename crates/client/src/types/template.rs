//! Templates, and the warm images of them.

use serde::{Deserialize, Serialize};

use super::{Timing, Vmm};

/// What sandboxes start from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Template {
    /// Hash of what is in it.
    pub id: String,
    /// The host that it is on.
    pub host: String,
    /// Its name.
    pub name: String,
    /// When it was built, RFC 3339.
    pub created: String,
    /// The size of its disk.
    pub size_bytes: u64,
    /// What it takes on the host.
    pub own_bytes: u64,
    /// VMs of it that were captured when their guest was ready.
    pub warm: Vec<Warm>,
}

/// A VM that was captured when its guest was ready: sandboxes of this size go on from it instead of booting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Warm {
    /// What it fits to, as a hash.
    pub key: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Size of its disk, in MiB.
    pub disk_mib: u32,
    /// Id of the kernel.
    pub kernel: String,
    /// What can run it.
    pub vmm: Vmm,
    /// What it takes on the host.
    pub own_bytes: u64,
}

/// A template as somebody asks for it: either `build`, or `snapshot` and `name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct NewTemplate {
    /// Build this one: `minimal` or `base`.
    #[cfg_attr(feature = "openapi", schema(max_length = 64, min_length = 1))]
    pub build: Option<String>,
    /// Make it of this snapshot, by its name or id.
    #[cfg_attr(feature = "openapi", schema(max_length = 64, min_length = 1))]
    pub snapshot: Option<String>,
    /// The name of the one that is made of a snapshot: 1 to 64 characters of `[a-z0-9._-]`, beginning with a letter or digit.
    #[cfg_attr(feature = "openapi", schema(pattern = "^[a-z0-9][a-z0-9._-]{0,63}$"))]
    pub name: Option<String>,
}

/// The size of the sandboxes that are to start warm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct WarmRequest {
    /// Virtual CPUs; 1 if nothing is said.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 32))]
    pub vcpus: Option<u32>,
    /// Memory, in MiB; 256 if nothing is said.
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub memory_mib: Option<u32>,
    /// Size of the disk, in MiB; the template's if nothing is said.
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub disk_mib: Option<u32>,
    /// How long the guest may take to become ready; 60 if nothing is said.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 3600))]
    pub boot_timeout_s: Option<u64>,
}

/// A warm image that is there now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Warmed {
    /// It.
    pub warm: Warm,
    /// Whether it was made now; else it was there.
    pub made: bool,
    /// How long each step took.
    pub timings: Vec<Timing>,
}

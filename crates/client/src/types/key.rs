//! Keys, and the record of what was done with them.

use serde::{Deserialize, Serialize};

/// What a key allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// To look at what its tenant has.
    Read,
    /// To make, use and destroy what its tenant has, too.
    #[default]
    Write,
    /// Everything, of every tenant: keys and templates too.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    /// Its name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

/// A key, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Key {
    /// `ky` and 18 characters of `[a-z0-9]`.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// The beginning of the secret, to tell keys apart.
    pub prefix: String,
    /// What it allows.
    pub scope: Scope,
    /// Whose it is: what it makes belongs to this tenant.
    pub tenant: String,
    /// When it was made.
    pub created_unix_ms: u64,
    /// When it was used last, to the minute.
    pub last_used_unix_ms: Option<u64>,
    /// When it was revoked; null while it is valid.
    pub revoked_unix_ms: Option<u64>,
    /// Sandboxes that it may have at once.
    pub sandboxes_max: Option<u32>,
    /// Virtual CPUs of those of them that are not at rest.
    pub vcpus_max: Option<u32>,
    /// Memory of those of them that are not at rest, in MiB.
    pub memory_mib_max: Option<u32>,
}

/// A key as somebody asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct NewKeyRequest {
    /// What it is to be called: at most 64 characters.
    #[cfg_attr(feature = "openapi", schema(max_length = 64))]
    pub name: String,
    /// What it is to allow.
    pub scope: Scope,
    /// Whose it is to be: 1 to 64 characters of `[a-z0-9._-]`; `default` if nothing is said.
    #[cfg_attr(feature = "openapi", schema(pattern = "^[a-z0-9][a-z0-9._-]{0,63}$"))]
    pub tenant: Option<String>,
    /// Sandboxes that it may have at once; any number if nothing is said.
    pub sandboxes_max: Option<u32>,
    /// Virtual CPUs of those of them that are not at rest.
    pub vcpus_max: Option<u32>,
    /// Memory of those of them that are not at rest, in MiB.
    pub memory_mib_max: Option<u32>,
}

/// A new key: the only time its secret is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewKey {
    /// The secret: `wrn_` and 40 hexadecimal digits. It is kept as a hash alone.
    pub secret: String,
    /// The rest of it.
    pub key: Key,
}

/// Who did what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditEntry {
    /// Grows with each entry.
    pub id: u64,
    /// When.
    pub unix_ms: u64,
    /// With which key; null if it was none of ours.
    pub key_id: Option<String>,
    /// Whose.
    pub tenant: Option<String>,
    /// What was asked for: method and route.
    pub action: String,
    /// On what: the path's own parts.
    pub object: Option<String>,
    /// `ok`, or the code of the error.
    pub outcome: String,
    /// The request's id, as it was answered and logged.
    pub request_id: String,
    /// From where: the address of the connection.
    pub remote: Option<String>,
}

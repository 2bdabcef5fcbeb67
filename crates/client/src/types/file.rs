//! Files of sandboxes. Paths are the guest's: absolute, `~`, or relative to the user's home; `..` and links are the guest's business.

use serde::{Deserialize, Serialize};

/// What an entry of a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// Something else: a device, a socket, a link that leads nowhere.
    Other,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileEntry {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: String,
    /// What it is; of a link, what it leads to.
    #[serde(rename = "type")]
    pub kind: EntryKind,
    /// In bytes.
    pub size: i64,
    /// Its mode bits.
    pub mode: u32,
    /// Its mode as `ls` prints it.
    pub permissions: String,
    /// Its owner.
    pub owner: String,
    /// Its group.
    pub group: String,
    /// When it was last changed.
    pub modified_unix_ms: Option<i64>,
    /// Where it leads, if it is a link.
    pub symlink_target: Option<String>,
}

/// The entries of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileList {
    /// Sorted by name, each directory before what is in it.
    pub entries: Vec<FileEntry>,
}

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Written {
    /// Where it is.
    pub path: String,
    /// In bytes.
    pub size: u64,
}

/// A directory to make, with its parents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MakeDirRequest {
    /// Where.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 4096))]
    pub path: String,
    /// Whose it is to be.
    #[serde(default)]
    pub user: Option<String>,
}

/// Something to move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MoveRequest {
    /// Where it is.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 4096))]
    pub from: String,
    /// Where it is to be.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 4096))]
    pub to: String,
    /// Who does it.
    #[serde(default)]
    pub user: Option<String>,
}

/// Something to remove, with all that is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RemoveRequest {
    /// Where it is.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 4096))]
    pub path: String,
    /// Who does it.
    #[serde(default)]
    pub user: Option<String>,
}

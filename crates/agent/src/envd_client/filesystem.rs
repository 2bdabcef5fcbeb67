//! `filesystem.Filesystem`: what is in a guest's directories, and changes there. Bytes of files go over HTTP ([`super::http`]).

use connectrpc::client::SharedHttp2Connection;
use wrenn_proto::envd::filesystem::{
    EntryInfo, FileType, FilesystemClient, ListDirRequest, MakeDirRequest, MoveRequest, RemoveRequest, StatRequest,
};

use super::process::{as_user, within};
use super::{EnvdClient, EnvdError};

/// Largest listing, in bytes: ten thousand entries with long paths.
const LISTING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// An entry of a directory. All texts are the guest's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: String,
    /// What it is; of a link, what it leads to.
    pub kind: EntryKind,
    /// In bytes.
    pub size: i64,
    /// Its mode bits.
    pub mode: u32,
    /// Its mode as `ls` prints it.
    pub permissions: String,
    /// Its owner's name.
    pub owner: String,
    /// Its group's name.
    pub group: String,
    /// When it was last changed, Unix milliseconds.
    pub modified_unix_ms: Option<i64>,
    /// Where it leads, if it is a link.
    pub symlink_target: Option<String>,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// Anything else.
    Other,
}

impl EnvdClient {
    /// What is at `path`; of a link, what it leads to.
    pub async fn stat(&self, path: &str, user: Option<&str>) -> Result<Entry, EnvdError> {
        let request = StatRequest { path: path.to_owned() };
        let answer = within("Filesystem/Stat", self.filesystem().stat_with_options(request, as_user(user))).await?;
        Ok(entry(answer.into_owned().entry.into_option().unwrap_or_default()))
    }

    /// A directory's entries and those of directories in it, `depth` deep, sorted by name.
    pub async fn list_dir(&self, path: &str, depth: u32, user: Option<&str>) -> Result<Vec<Entry>, EnvdError> {
        let options = as_user(user).with_max_message_size(LISTING_BYTES_MAX);
        let request = ListDirRequest { path: path.to_owned(), depth };
        let answer = within("Filesystem/ListDir", self.filesystem().list_dir_with_options(request, options)).await?;
        Ok(answer.into_owned().entries.into_iter().map(entry).collect())
    }

    /// Makes a directory and its parents.
    pub async fn make_dir(&self, path: &str, user: Option<&str>) -> Result<(), EnvdError> {
        let request = MakeDirRequest { path: path.to_owned() };
        let call = self.filesystem();
        within("Filesystem/MakeDir", call.make_dir_with_options(request, as_user(user))).await.map(drop)
    }

    /// Renames `source`, in place of what is at `destination`.
    pub async fn rename(&self, source: &str, destination: &str, user: Option<&str>) -> Result<(), EnvdError> {
        let request = MoveRequest { source: source.to_owned(), destination: destination.to_owned() };
        let call = self.filesystem();
        within("Filesystem/Move", call.r#move_with_options(request, as_user(user))).await.map(drop)
    }

    /// Removes a file or a whole directory; nothing there is success.
    pub async fn remove(&self, path: &str, user: Option<&str>) -> Result<(), EnvdError> {
        let request = RemoveRequest { path: path.to_owned() };
        let call = self.filesystem();
        within("Filesystem/Remove", call.remove_with_options(request, as_user(user))).await.map(drop)
    }

    fn filesystem(&self) -> FilesystemClient<SharedHttp2Connection> {
        let (connection, config) = self.rpc();
        FilesystemClient::new(connection, config)
    }
}

fn entry(info: EntryInfo) -> Entry {
    let modified = info.modified_time.into_option();
    Entry {
        name: info.name,
        path: info.path,
        kind: match info.r#type.to_i32() {
            file if file == FileType::FILE_TYPE_FILE as i32 => EntryKind::File,
            directory if directory == FileType::FILE_TYPE_DIRECTORY as i32 => EntryKind::Directory,
            _other => EntryKind::Other,
        },
        size: info.size,
        mode: info.mode,
        permissions: info.permissions,
        owner: info.owner,
        group: info.group,
        modified_unix_ms: modified.map(|time| time.seconds.saturating_mul(1000) + i64::from(time.nanos) / 1_000_000),
        symlink_target: info.symlink_target,
    }
}

//! The snapshots of one instance: found by id or name, listed, removed.

use std::path::Path;

use wrenn_engine::names::SnapshotId;

use super::{Record, Shelf, SnapshotError, Stored, Unfinished};
use crate::host_agent::{SnapshotView, with_causes};

/// Longest name of a snapshot, and longest part of it that says whose it is; in bytes.
const NAME_MAX: usize = 64;

/// The snapshots in one `WRENN_DIR`. One agent at a time makes and removes them.
#[derive(Clone, Debug)]
pub struct Snapshots(Shelf);

impl Snapshots {
    /// Those in the instance folder `dir`.
    pub fn of(dir: &Path) -> Self {
        Self(Shelf(dir.join("snapshots")))
    }

    /// Begins one.
    pub fn begin(&self, id: &SnapshotId) -> Result<Unfinished, SnapshotError> {
        self.0.begin(id.as_str(), None)
    }

    /// The one of this name or id.
    pub fn find(&self, name_or_id: &str) -> Result<Stored, SnapshotError> {
        if let Ok(id) = name_or_id.parse::<SnapshotId>() {
            let stored = self.0.at(id.as_str());
            return if stored.path().exists() {
                Ok(stored)
            } else {
                Err(SnapshotError::Unknown(name_or_id.to_owned()))
            };
        }
        let named = self.records().into_iter().find(|(_, record)| record.name.as_deref() == Some(name_or_id));
        named.map(|(stored, _)| stored).ok_or_else(|| SnapshotError::Unknown(name_or_id.to_owned()))
    }

    /// Refuses a name that is none, or that another one has.
    pub fn check_free(&self, name: &str) -> Result<(), SnapshotError> {
        check_name(name)?;
        match self.find(name) {
            Ok(_) => Err(SnapshotError::NameTaken(name.to_owned())),
            Err(SnapshotError::Unknown(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// All of them, the oldest first. One that cannot be read is logged and left out.
    pub fn list(&self) -> Vec<SnapshotView> {
        let views = self.0.names().into_iter().map(|name| self.0.at(&name)).map(|stored| (stored.view(), stored));
        let mut views: Vec<_> = views.filter_map(|(view, stored)| readable(&stored, view)).collect();
        views.sort_by_key(|view| (view.created_unix_ms, view.id.clone()));
        views
    }

    /// All that can be read.
    pub fn records(&self) -> Vec<(Stored, Record)> {
        let all = self.0.names().into_iter().map(|name| self.0.at(&name));
        all.filter_map(|stored| readable(&stored, stored.record()).map(|record| (stored.clone(), record))).collect()
    }

    /// Removes one; whoever was started from it keeps what it needs.
    pub fn remove(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        self.0.remove(id.as_str())
    }

    /// Throws away what a crash left half made or half removed; answers how much it was.
    pub fn sweep(&self) -> usize {
        self.0.sweep(|_| Some(()))
    }
}

fn readable<T>(stored: &Stored, read: Result<T, SnapshotError>) -> Option<T> {
    read.map_err(|error| {
        let reason = with_causes(&error);
        tracing::warn!(path = %stored.path().display(), reason, "a snapshot that cannot be used");
    })
    .ok()
}

/// Refuses a name that is none. An id is none either: what has that form is looked up as an id. Who keeps snapshots for several
/// owners puts `OWNER/` before their names, so that these are apart.
pub fn check_name(name: &str) -> Result<(), SnapshotError> {
    let (owner, own) = name.split_once('/').map_or((None, name), |(owner, own)| (Some(owner), own));
    let is_name = owner.is_none_or(is_part) && is_part(own) && own.parse::<SnapshotId>().is_err();
    if is_name { Ok(()) } else { Err(SnapshotError::BadName(name.to_owned())) }
}

fn is_part(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let rest = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte));
    first && rest && text.len() <= NAME_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_and_ids_are_ids() {
        for good in ["a", "before-upgrade", "2026.11_x", &"a".repeat(64), "snapshot", "acme/before"] {
            check_name(good).unwrap();
        }
        let id = SnapshotId::from_random([3; 18]);
        for bad in [
            "",
            "-a",
            ".",
            "..",
            "/a",
            "a/",
            "../a",
            "a/..",
            "a/b/c",
            "A",
            "a b",
            "ä",
            &"a".repeat(65),
            id.as_str(),
            &format!("acme/{id}"),
        ] {
            assert!(matches!(check_name(bad), Err(SnapshotError::BadName(_))), "{bad}");
        }
    }

    #[test]
    fn what_is_half_made_is_found_by_nobody_and_swept() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::of(dir.path());
        let id = SnapshotId::from_random([1; 18]);
        let begun = snapshots.begin(&id).unwrap();
        assert!(matches!(snapshots.find(id.as_str()), Err(SnapshotError::Unknown(_))));
        assert!(snapshots.list().is_empty() && snapshots.records().is_empty());
        let folder = begun.stored().path().to_owned();
        std::mem::forget(begun);
        assert!(folder.exists());
        assert_eq!(snapshots.sweep(), 1);
        assert!(!folder.exists() && snapshots.sweep() == 0);
        drop(snapshots.begin(&id).unwrap());
        assert!(!folder.exists(), "one that is not finished is thrown away");
    }
}

//! The operations on real directories. Those that give files to another user need root.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rustix::fs::{CWD, Mode};
use tempfile::TempDir;

use super::operations::{FsError, list, make_dir, make_dirs, remove, rename, stat};
use super::unix_time;
use crate::envd::files_limits as limits;
use crate::envd::users::{Accounts, User};

/// A directory with its links resolved, which goes when it is dropped.
fn world() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(dir.path()).unwrap();
    (dir, path)
}

fn user(uid: u32, gid: u32) -> User {
    User { name: "user".into(), uid, gid, groups: vec![gid], home: "/home/user".into(), shell: "/bin/sh".into() }
}

fn myself() -> User {
    user(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

fn names(path: &Path, depth: u32) -> Vec<String> {
    let entries = list(path, depth, &Accounts::default()).unwrap();
    entries.iter().map(|entry| entry.path.strip_prefix(path).unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn a_listing_is_sorted_with_each_directory_before_its_contents() {
    let (_dir, top) = world();
    for path in ["b/y/deep", "b/x", "a", "c.d", "b-", "B"] {
        fs::create_dir_all(top.join(path)).unwrap();
    }
    fs::write(top.join("b/x/file"), "").unwrap();
    assert_eq!(names(&top, 0), ["B", "a", "b", "b-", "c.d"]);
    assert_eq!(names(&top, 1), names(&top, 0));
    assert_eq!(names(&top, 2), ["B", "a", "b", "b/x", "b/y", "b-", "c.d"]);
    assert_eq!(names(&top, u32::MAX), ["B", "a", "b", "b/x", "b/x/file", "b/y", "b/y/deep", "b-", "c.d"]);
    assert_eq!(names(&top.join("a"), 9), [""; 0]);
}

#[test]
fn a_listing_enters_a_link_that_was_asked_for_and_no_other() {
    let (_dir, top) = world();
    fs::create_dir_all(top.join("real/sub")).unwrap();
    symlink("real", top.join("link")).unwrap();
    symlink("..", top.join("real/up")).unwrap();
    assert_eq!(names(&top.join("link"), 5), ["sub", "up"], "with the path as it was asked for, not as resolved");
}

#[test]
fn only_directories_are_listed() {
    let (_dir, top) = world();
    fs::write(top.join("file"), "").unwrap();
    let refusal = |path: &str| list(&top.join(path), 1, &Accounts::default()).unwrap_err();
    assert!(matches!(refusal("file"), FsError::NotADirectory(_)));
    assert!(matches!(refusal("missing"), FsError::NotFound(_)));
    assert!(matches!(refusal("file/below"), FsError::NotFound(_)));
}

#[test]
fn a_listing_has_a_limit() {
    // On tmpfs, where 50,000 files are made in no time.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let fill = |sub: &str, from: usize, to: usize| {
        fs::create_dir_all(dir.path().join(sub)).unwrap();
        for at in from..to {
            fs::File::create(dir.path().join(sub).join(at.to_string())).unwrap();
        }
    };
    fill("a", 0, limits::LIST_ENTRIES_MAX / 2);
    fill("b", 0, limits::LIST_ENTRIES_MAX / 2 - 2);
    assert_eq!(names(dir.path(), 2).len(), limits::LIST_ENTRIES_MAX);
    fill("b", limits::LIST_ENTRIES_MAX, limits::LIST_ENTRIES_MAX + 1);
    let error = list(dir.path(), 2, &Accounts::default()).unwrap_err();
    assert!(matches!(error, FsError::TooMuch(_)), "{error}");
    assert_eq!(names(dir.path(), 1).len(), 2);
}

#[test]
fn stat_tells_what_is_missing() {
    let (_dir, top) = world();
    fs::write(top.join("file"), "").unwrap();
    for missing in ["nothing", "no/thing", "file/below"] {
        let error = stat(&top.join(missing), &Accounts::default()).unwrap_err();
        assert!(matches!(error, FsError::NotFound(_)), "{missing}: {error}");
        assert!(error.to_string().ends_with("does not exist"));
    }
    assert!(matches!(stat(&top.join("x".repeat(256)), &Accounts::default()).unwrap_err(), FsError::Io { .. }));
}

#[test]
fn a_directory_is_made_with_its_parents() {
    let (_dir, top) = world();
    make_dir(&top.join("a/b/c"), &myself()).unwrap();
    for made in ["a", "a/b", "a/b/c"] {
        assert_eq!(fs::metadata(top.join(made)).unwrap().mode() & 0o7777, 0o755, "{made}");
    }
    assert!(matches!(make_dir(&top.join("a/b"), &myself()), Err(FsError::AlreadyExists(_))));
    make_dirs(&top.join("a/b"), &myself()).unwrap();
}

#[test]
fn no_directory_is_made_where_something_else_is() {
    let (_dir, top) = world();
    fs::write(top.join("file"), "").unwrap();
    symlink("nowhere", top.join("dangling")).unwrap();
    symlink("file", top.join("to-file")).unwrap();
    for path in ["file", "file/a", "file/a/b", "dangling", "dangling/a", "to-file", "to-file/a"] {
        let error = make_dir(&top.join(path), &myself()).unwrap_err();
        assert!(matches!(error, FsError::NotADirectory(_)), "{path}: {error}");
    }
    assert!(!top.join("nowhere").exists());
}

#[test]
fn directories_are_made_through_links_to_directories() {
    let (_dir, top) = world();
    fs::create_dir(top.join("real")).unwrap();
    symlink("real", top.join("link")).unwrap();
    make_dir(&top.join("link/a/b"), &myself()).unwrap();
    assert!(top.join("real/a/b").is_dir());
    assert!(matches!(make_dir(&top.join("link"), &myself()), Err(FsError::AlreadyExists(_))));
}

#[test]
fn root_new_directories_belong_to_the_user_and_old_ones_stay_as_they_are() {
    let (_dir, top) = world();
    fs::create_dir(top.join("old")).unwrap();
    fs::set_permissions(top.join("old"), fs::Permissions::from_mode(0o700)).unwrap();
    make_dir(&top.join("old/a/b"), &user(1234, 4321)).expect("this test needs root");
    let about = |path: &str| fs::metadata(top.join(path)).map(|about| (about.uid(), about.gid(), about.mode() & 0o777));
    assert_eq!(about("old/a").unwrap(), (1234, 4321, 0o755));
    assert_eq!(about("old/a/b").unwrap(), (1234, 4321, 0o755));
    assert_eq!(about("old").unwrap(), (myself().uid, myself().gid, 0o700));
}

#[test]
fn a_move_makes_parents_and_replaces_files() {
    let (_dir, top) = world();
    fs::write(top.join("one"), "1").unwrap();
    fs::write(top.join("two"), "2").unwrap();
    rename(&top.join("one"), &top.join("new/dir/file"), &myself()).unwrap();
    rename(&top.join("two"), &top.join("new/dir/file"), &myself()).unwrap();
    assert_eq!(fs::read_to_string(top.join("new/dir/file")).unwrap(), "2");
    rename(&top.join("new"), &top.join("newer"), &myself()).unwrap();
    assert_eq!(names(&top, 9), ["newer", "newer/dir", "newer/dir/file"]);
    rename(&top.join("newer"), &top.join("newer"), &myself()).unwrap();
    symlink("nowhere", top.join("link")).unwrap();
    rename(&top.join("link"), &top.join("link2"), &myself()).unwrap();
    assert_eq!(fs::read_link(top.join("link2")).unwrap(), Path::new("nowhere"), "a link itself is moved");
}

#[test]
fn a_move_that_makes_no_sense_changes_nothing() {
    let (_dir, top) = world();
    fs::create_dir_all(top.join("dir/sub")).unwrap();
    fs::create_dir_all(top.join("full/x")).unwrap();
    fs::write(top.join("file"), "1").unwrap();
    let refusal = |from: &str, to: &str| rename(&top.join(from), &top.join(to), &myself()).unwrap_err();
    assert!(matches!(refusal("missing", "a/b/c"), FsError::NotFound(_)));
    assert!(matches!(refusal("file/x", "a"), FsError::NotFound(_)));
    assert!(matches!(refusal("dir", "dir/sub/x"), FsError::Unmovable { .. }));
    assert!(matches!(refusal("dir", "file"), FsError::Unmovable { .. }));
    assert!(matches!(refusal("file", "dir"), FsError::Unmovable { .. }));
    assert!(matches!(refusal("dir", "full"), FsError::AlreadyExists(_)));
    assert!(matches!(refusal("dir", "file/x"), FsError::NotADirectory(_)));
    assert!(matches!(rename(Path::new("/"), &top.join("x"), &myself()), Err(FsError::Root)));
    assert!(matches!(rename(&top.join("file"), Path::new("/"), &myself()), Err(FsError::Root)));
    assert_eq!(names(&top, 9), ["dir", "dir/sub", "file", "full", "full/x"], "no parents of a move that failed");
}

#[test]
fn a_move_to_another_file_system_keeps_everything() {
    let (_dir, top) = world();
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    assert_ne!(fs::metadata(&top).unwrap().dev(), fs::metadata(other.path()).unwrap().dev(), "not two file systems");
    let from = top.join("tree");
    fs::create_dir_all(from.join("sub/empty")).unwrap();
    fs::write(from.join("sub/file"), vec![7; 300_000]).unwrap();
    fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(from.join("sub"), fs::Permissions::from_mode(0o1700)).unwrap();
    symlink("../sub/file", from.join("sub/link")).unwrap();
    rustix::fs::mkfifoat(CWD, from.join("fifo"), Mode::from_raw_mode(0o622)).unwrap();
    let before = list(&from, 9, &Accounts::default()).unwrap();

    let to = other.path().join("new/parent/tree");
    rename(&from, &to, &myself()).unwrap();
    assert!(!from.exists());
    let after = list(&to, 9, &Accounts::default()).unwrap();
    assert_eq!(before.len(), after.len());
    for (old, new) in before.iter().zip(&after) {
        assert_eq!(
            (&old.name, old.kind, &old.permissions, old.is_symlink),
            (&new.name, new.kind, &new.permissions, new.is_symlink)
        );
        assert_eq!(old.modified, new.modified, "{}", old.name);
        assert_eq!((&old.owner, &old.group), (&new.owner, &new.group));
    }
    assert_eq!(fs::read(to.join("sub/file")).unwrap(), vec![7; 300_000]);
    assert_eq!(fs::read_link(to.join("sub/link")).unwrap(), Path::new("../sub/file"));
}

#[test]
fn a_move_to_another_file_system_that_fails_leaves_nothing_behind() {
    let (_dir, top) = world();
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::create_dir(top.join("tree")).unwrap();
    fs::write(top.join("tree/a"), "a").unwrap();
    let _listener = UnixListener::bind(top.join("tree/socket")).unwrap();
    let error = rename(&top.join("tree"), &other.path().join("x"), &myself()).unwrap_err();
    assert!(matches!(error, FsError::Socket(_)), "{error}");
    fs::remove_file(top.join("tree/socket")).unwrap();

    fs::create_dir_all(top.join("tree").join("d/".repeat(limits::COPY_DEPTH_MAX))).unwrap();
    let error = rename(&top.join("tree"), &other.path().join("x"), &myself()).unwrap_err();
    assert!(matches!(error, FsError::TooDeep(_)), "{error}");

    fs::create_dir_all(other.path().join("full/x")).unwrap();
    let error = rename(&top.join("tree"), &other.path().join("full"), &myself()).unwrap_err();
    assert!(matches!(error, FsError::TooDeep(_) | FsError::AlreadyExists(_)), "{error}");
    assert_eq!(names(other.path(), 9), ["full", "full/x"]);
    assert!(top.join("tree/a").exists());
}

#[test]
fn removal_takes_everything_and_follows_nothing() {
    let (_dir, top) = world();
    fs::create_dir_all(top.join("tree/a/b")).unwrap();
    fs::create_dir(top.join("kept")).unwrap();
    fs::write(top.join("kept/file"), "").unwrap();
    fs::write(top.join("tree/a/file"), "").unwrap();
    symlink(top.join("kept"), top.join("tree/a/link")).unwrap();
    symlink("nowhere", top.join("tree/dangling")).unwrap();
    rustix::fs::mkfifoat(CWD, top.join("tree/fifo"), Mode::from_raw_mode(0o600)).unwrap();
    symlink("kept", top.join("link")).unwrap();
    remove(&top.join("tree")).unwrap();
    remove(&top.join("link")).unwrap();
    assert_eq!(names(&top, 9), ["kept", "kept/file"]);
    remove(&top.join("kept/file")).unwrap();
    for missing in ["tree", "kept/file", "no/such", "x/y/z"] {
        remove(&top.join(missing)).unwrap();
    }
    assert!(matches!(remove(Path::new("/")), Err(FsError::Root)));
}

#[test]
fn removal_goes_as_deep_as_directories_do() {
    let (_dir, top) = world();
    // Deeper than a path can name and than we hold directories open, with files on the way, and a name we use ourselves.
    let depth = 3 * limits::REMOVE_OPEN_DIRS_MAX + 2100;
    let mut at = rustix::fs::open(&top, rustix::fs::OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..depth {
        for name in ["d", ".wrenn-removing-1"] {
            rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
        }
        at = rustix::fs::openat(&at, "d", rustix::fs::OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    remove(&top.join("d")).unwrap();
    remove(&top.join(".wrenn-removing-1")).unwrap();
    assert_eq!(names(&top, 9), [""; 0]);
}

#[test]
fn removal_copes_with_somebody_who_writes_meanwhile() {
    let (_dir, top) = world();
    let tree = top.join("tree");
    fs::create_dir(&tree).unwrap();
    for name in 0..2000 {
        fs::write(tree.join(name.to_string()), "").unwrap();
    }
    let writer = std::thread::spawn({
        let tree = tree.clone();
        move || {
            // Ends once the directory is gone.
            let mut written = 0;
            while fs::write(tree.join(format!("new-{written}")), "").is_ok() && written < 100_000 {
                written += 1;
            }
        }
    });
    match remove(&tree) {
        Ok(()) => assert!(!tree.exists()),
        Err(error) => assert!(matches!(error, FsError::Refilled(_)), "{error}"),
    }
    remove(&tree).unwrap_or_else(|error| assert!(matches!(error, FsError::Refilled(_)), "{error}"));
    writer.join().unwrap();
}

#[test]
fn times_before_1970_round_down() {
    let epoch = SystemTime::UNIX_EPOCH;
    assert_eq!(unix_time(epoch + Duration::new(5, 7)), (5, 7));
    assert_eq!(unix_time(epoch - Duration::new(5, 0)), (-5, 0));
    assert_eq!(unix_time(epoch - Duration::new(5, 250)), (-6, 999_999_750));
}

#[test]
fn errors_keep_what_the_kernel_said() {
    let error = FsError::io("remove", Path::new("/x"))(io::Error::from_raw_os_error(28));
    assert!(error.is_no_space());
    assert_eq!(error.to_string(), "cannot remove '/x'");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "No space left on device (os error 28)");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_made_is_listed_and_can_be_removed(paths in proptest::collection::btree_set("[a-c]{1,2}(/[a-c]{1,2}){0,4}", 1..12)) {
        let (_dir, top) = world();
        let mut wanted = std::collections::BTreeSet::new();
        for path in &paths {
            make_dirs(&top.join(path), &myself()).unwrap();
            let ancestors = Path::new(path).ancestors().filter(|path| *path != Path::new(""));
            wanted.extend(ancestors.map(Path::to_owned));
        }
        // Paths compare part by part, which is the order of a walk.
        let wanted: Vec<_> = wanted.iter().map(|path| path.to_str().unwrap().to_owned()).collect();
        prop_assert_eq!(names(&top, 99), wanted);
        remove(&top).unwrap();
        prop_assert!(!top.exists());
    }
}

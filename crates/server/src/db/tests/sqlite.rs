//! What goes wrong with a file.

use std::error::Error as _;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;

/// A folder for a database.
pub(super) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(super) fn new() -> Self {
        Self { folder: tempfile::Builder::new().prefix("wrenn db % ü ").tempdir().unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("server.db")
    }

    pub(super) fn url(&self) -> DatabaseUrl {
        format!("sqlite:{}", self.file().display()).parse().unwrap()
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn the_file_is_its_owner_s_and_each_commit_is_on_the_disk() {
    let place = Place::new();
    let database = open(&place.url()).await;
    database.add_key(&key(1), &digest(1)).await.unwrap();
    for name in place.names() {
        assert_eq!(mode(&place.folder.path().join(&name)), 0o600, "{name}");
    }
    for (pragma, value) in [("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 2000)] {
        let mut call = database.read("ask").await.unwrap();
        let row = call.one("pragma", query(&format!("PRAGMA {pragma}"))).await.unwrap().unwrap();
        let column = if pragma == "busy_timeout" { "timeout" } else { pragma };
        assert_eq!(row.number::<i64>(column).unwrap(), value, "{pragma}");
    }
    let mut call = database.read("ask").await.unwrap();
    let row = call.one("pragma", query("PRAGMA journal_mode")).await.unwrap().unwrap();
    assert_eq!(row.text("journal_mode").unwrap(), "wal");
    drop(call);
    database.close().await;
    assert_eq!(place.names(), ["server.db"], "the log is folded in");
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_named() {
    let place = Place::new();
    let url: DatabaseUrl = format!("sqlite:{}/no/server.db", place.folder.path().display()).parse().unwrap();
    let error = Database::open(&url).await.err().unwrap();
    assert!(error.to_string().contains("/no/server.db"), "{error}");
    assert!(error.source().unwrap().to_string().contains("No such file"), "{error:?}");
}

#[tokio::test]
async fn a_lock_of_somebody_else_is_waited_for_but_not_for_ever() {
    let place = Place::new();
    let database = open(&place.url()).await;
    let mut other = beside(&place.url()).await;
    query("BEGIN EXCLUSIVE").execute(&mut other).await.unwrap();
    let begun = Instant::now();
    let error = database.add_key(&key(1), &digest(1)).await.unwrap_err();
    assert!(error.is_unavailable(), "{error:?}");
    let error = database.record(&[entry(1, "a")]).await.unwrap_err();
    assert!(error.is_unavailable(), "{error:?}");
    assert!(begun.elapsed() < 2 * limits::CALL, "{:?}", begun.elapsed());
    assert!(database.is_alive().await, "who only reads is not held up");

    let adds = async { database.add_key(&key(1), &digest(1)).await };
    let (added, _) = tokio::join!(adds, async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        query("COMMIT").execute(&mut other).await.unwrap();
    });
    added.unwrap();
    database.record(&[entry(1, "a")]).await.unwrap();
}

#[tokio::test]
async fn a_queue_of_writers_behind_a_lock_ends_in_time() {
    let place = Place::new();
    let database = open(&place.url()).await;
    let mut other = beside(&place.url()).await;
    query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let begun = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..20 {
        let database = database.clone();
        writers.spawn(async move { database.add_key(&key(number), &digest(number)).await });
    }
    for refused in writers.join_all().await {
        assert!(refused.unwrap_err().is_unavailable());
    }
    assert!(begun.elapsed() < limits::CALL + Duration::from_secs(1), "{:?}", begun.elapsed());
    query("ROLLBACK").execute(&mut other).await.unwrap();
    database.add_key(&key(100), &digest(100)).await.unwrap();
    assert_eq!(database.keys(None, 9).await.unwrap(), [key(100)], "what was refused was not done later");
}

#[tokio::test]
async fn what_is_no_database_is_refused() {
    let place = Place::new();
    fs::write(place.file(), "this is a letter, not a database\n".repeat(200)).unwrap();
    let error = Database::open(&place.url()).await.err().unwrap();
    assert!(matches!(error, DbError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("restore a backup"), "{error}");
}

#[tokio::test]
async fn garbage_over_an_open_database_is_told() {
    let place = Place::new();
    let database = open(&place.url()).await;
    database.add_key(&key(1), &digest(1)).await.unwrap();
    database.close().await;
    let database = open(&place.url()).await;
    let bytes = fs::metadata(place.file()).unwrap().len() as usize;
    std::os::unix::fs::FileExt::write_all_at(
        &OpenOptions::new().write(true).open(place.file()).unwrap(),
        &vec![0xa5; bytes],
        0,
    )
    .unwrap();
    database.inner.pool.acquire().await.unwrap().detach();
    let error = database.find_key(&digest(1)).await.unwrap_err();
    assert!(matches!(error, DbError::Corrupt { .. }), "{error:?}");
    assert!(matches!(Database::open(&place.url()).await, Err(DbError::Corrupt { .. })));
}

#[tokio::test]
async fn a_file_that_was_put_in_place_of_the_database_is_not_written_past() {
    let place = Place::new();
    let database = open(&place.url()).await;
    database.add_key(&key(1), &digest(1)).await.unwrap();
    let aside = place.folder.path().join("aside");
    fs::rename(place.file(), &aside).unwrap();
    for there in [false, true] {
        if there {
            fs::write(place.file(), "something else").unwrap();
        }
        let error = database.add_key(&key(2), &digest(2)).await.unwrap_err();
        assert!(matches!(error, DbError::Replaced { .. }) && error.is_unavailable(), "{error:?}");
        assert!(!database.is_alive().await);
    }
    fs::rename(&aside, place.file()).unwrap();
    database.add_key(&key(2), &digest(2)).await.unwrap();
    assert_eq!(database.keys(None, 9).await.unwrap(), [key(1), key(2)]);
}

#[tokio::test]
async fn a_full_disk_is_told_and_what_is_there_stays() {
    let place = Place::new();
    let database = open(&place.url()).await;
    database.add_key(&key(1), &digest(1)).await.unwrap();
    let mut call = database.write("fill the disk").await.unwrap();
    call.all("pragma", query("PRAGMA max_page_count = 1")).await.unwrap();
    call.begin().await.unwrap();
    let much = "x".repeat(1 << 20);
    let error = call.execute(query("UPDATE keys SET name = $1").bind(&much)).await.unwrap_err();
    assert!(matches!(error, DbError::Full { .. }), "{error:?}");
    assert!(!error.is_unavailable() && error.to_string().contains("make room"), "{error}");
    drop(call);
    assert_eq!(database.keys(None, 9).await.unwrap(), [key(1)]);
    database.add_key(&key(2), &digest(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_complete_while_writes_go_on() {
    let place = Place::new();
    let database = open(&place.url()).await;
    for number in 0..200 {
        database.add_key(&key(number), &digest(number)).await.unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (database, stop) = (database.clone(), Arc::clone(&stop));
        async move {
            let mut number = 200;
            while !stop.load(Ordering::Relaxed) {
                database.add_key(&key(number), &digest(number)).await.unwrap();
                number += 1;
            }
            number
        }
    });
    let copies: Vec<_> = (0..3).map(|number| place.folder.path().join(format!("copy {number}.db"))).collect();
    for copy in &copies {
        database.backup(copy).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let written = writer.await.unwrap();
    assert_eq!(database.keys(None, u32::MAX).await.unwrap().len() as u64, written.min(limits::PAGE_ROWS_MAX.into()));
    for copy in &copies {
        assert_eq!(mode(copy), 0o600);
        let copied = open(&format!("sqlite:{}", copy.display()).parse().unwrap()).await;
        for number in 0..200 {
            assert_eq!(copied.find_key(&digest(number)).await.unwrap(), Some(key(number)));
        }
        copied.add_key(&key(u64::MAX >> 1), &digest(u64::MAX)).await.unwrap();
        copied.close().await;
    }
    let left: Vec<_> = place.names().into_iter().filter(|name| name.contains("part")).collect();
    assert_eq!(left, [""; 0]);
}

#[tokio::test]
async fn a_backup_replaces_nothing_and_leaves_nothing_half_done() {
    let place = Place::new();
    let database = open(&place.url()).await;
    for path in [place.file(), place.folder.path().to_owned()] {
        let error = database.backup(&path).await.unwrap_err();
        assert!(matches!(error, DbError::BackupExists { .. }), "{error:?}");
    }
    let error = database.backup(&place.folder.path().join("no/copy.db")).await.unwrap_err();
    assert!(matches!(error, DbError::File { .. }), "{error:?}");
    assert!(place.names().iter().all(|name| name.starts_with("server.db")), "{:?}", place.names());
}

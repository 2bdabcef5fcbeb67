//! Into a sandbox.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use wrenn_agent::envd_client::EntryKind;

use super::guest::Guest;
use super::progress::Progress;
use super::{demand_recursive, left_out};
use crate::cli::Operand;

/// Bytes read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Copies `source` to `destination` in the guest.
pub async fn copy(
    guest: &Guest,
    progress: &Progress,
    source: Operand,
    destination: &str,
    recursive: bool,
) -> Result<()> {
    let Operand::Here(source) = source else {
        progress.file("standard input", None);
        let bytes = pieces(tokio::io::stdin(), progress.handle());
        return guest.write(destination, bytes, None).await.map(drop);
    };
    let about = about(&source)?;
    let mut executables = Vec::new();
    if about.is_dir() {
        demand_recursive(recursive, &source.to_string_lossy())?;
        let root = target(guest, &source, destination).await?;
        copy_tree(guest, progress, source, root, &mut executables).await?;
    } else {
        let target = target(guest, &source, destination).await?;
        copy_file(guest, progress, &source, &about, &target, &mut executables).await?;
    }
    guest.make_executable(&executables).await
}

/// Links of the command line are followed, as `cp` does.
fn about(path: &Path) -> Result<Metadata> {
    std::fs::metadata(path).with_context(|| format!("cannot copy {}", path.display()))
}

/// Where the source goes: into a directory that is there, or to that very name.
async fn target(guest: &Guest, source: &Path, destination: &str) -> Result<String> {
    let Some(name) = source.file_name() else { return Ok(destination.to_owned()) };
    let is_dir = destination.ends_with('/')
        || guest.look(destination).await?.is_some_and(|entry| entry.kind == EntryKind::Directory);
    if is_dir { Ok(below(destination, name_of(name)?)) } else { Ok(destination.to_owned()) }
}

fn below(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}

fn name_of(name: &std::ffi::OsStr) -> Result<&str> {
    name.to_str().with_context(|| format!("the name {} is not in UTF-8; a guest takes no other", name.display()))
}

async fn copy_tree(
    guest: &Guest,
    progress: &Progress,
    source: PathBuf,
    target: String,
    executables: &mut Vec<String>,
) -> Result<()> {
    let mut waiting = vec![(source, target)];
    while let Some((source, target)) = waiting.pop() {
        guest.make_dir(&target).await?;
        let cannot = || format!("cannot read the directory {}", source.display());
        let mut entries =
            std::fs::read_dir(&source).and_then(Iterator::collect::<io::Result<Vec<_>>>).with_context(cannot)?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let (from, to) = (entry.path(), below(&target, name_of(&entry.file_name())?));
            let kind = entry.file_type().with_context(cannot)?;
            if kind.is_dir() {
                waiting.push((from, to));
            } else if kind.is_file() {
                copy_file(guest, progress, &from, &about(&from)?, &to, executables).await?;
            } else {
                let why = if kind.is_symlink() { "it is a link" } else { "it is no regular file" };
                left_out(&from.to_string_lossy(), why);
            }
        }
    }
    Ok(())
}

async fn copy_file(
    guest: &Guest,
    progress: &Progress,
    source: &Path,
    about: &Metadata,
    target: &str,
    executables: &mut Vec<String>,
) -> Result<()> {
    let cannot = || format!("cannot copy {}", source.display());
    let file = tokio::fs::File::open(source).await.with_context(cannot)?;
    // A FIFO or a device has no size, and a file of /proc a wrong one.
    let size = Some(about.len()).filter(|size| about.is_file() && *size > 0);
    progress.file(&source.to_string_lossy(), size);
    let written = match size {
        // One that grows meanwhile is cut where it ended; one that shrinks is an error.
        Some(size) => guest.write(target, pieces(file.take(size), progress.handle()), Some(size)).await,
        None => guest.write(target, pieces(file, progress.handle()), None).await,
    };
    let written = written.with_context(cannot)?;
    if about.permissions().mode() & 0o111 != 0 && about.is_file() {
        executables.push(written);
    }
    Ok(())
}

fn pieces<R: AsyncRead + Send + Unpin + 'static>(
    reader: R,
    passed: impl Fn(usize) + Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold((reader, passed), |(mut reader, passed)| async move {
        let mut piece = BytesMut::with_capacity(CHUNK_BYTES);
        let count = reader.read_buf(&mut piece).await?;
        passed(count);
        Ok((count > 0).then(|| (piece.freeze(), (reader, passed))))
    })
}

#[cfg(test)]
mod tests {
    use super::super::guest::tests::guest;
    use super::*;

    #[test]
    fn names_are_put_below_directories() {
        assert_eq!(below("/", "a"), "/a");
        assert_eq!(below("/tmp//", "a"), "/tmp/a");
        assert_eq!(below(".", "a"), "./a");
        assert_eq!(name_of("ä".as_ref()).unwrap(), "ä");
        let odd = std::os::unix::ffi::OsStrExt::from_bytes(b"a\xff");
        assert!(name_of(odd).is_err());
    }

    #[tokio::test]
    async fn a_file_is_copied_and_whether_it_can_be_executed_is_kept() {
        let (guest, files) = guest().await;
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("run");
        std::fs::write(&source, "#!/bin/sh\n").unwrap();
        let mut executables = Vec::new();
        let progress = Progress::new(false);
        let plain = about(&source).unwrap();
        copy_file(&guest, &progress, &source, &plain, "bin/run", &mut executables).await.unwrap();
        assert_eq!(executables, [""; 0]);
        std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o755)).unwrap();
        copy_file(&guest, &progress, &source, &about(&source).unwrap(), "bin/run", &mut executables).await.unwrap();
        assert_eq!(executables, ["/home/me/bin/run"]);
        assert_eq!(files.lock().unwrap()["bin/run"], "#!/bin/sh\n");
        std::fs::write(&source, "").unwrap();
        copy_file(&guest, &progress, &source, &about(&source).unwrap(), "empty", &mut executables).await.unwrap();
        assert!(files.lock().unwrap()["empty"].is_empty());
        assert!(about(&dir.path().join("none")).is_err());
    }
}

//! Out of a sandbox.
//!
//! A file is written under another name beside its place, and renamed when it is whole: what was there stays until then.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use wrenn_agent::envd_client::{Entry, EntryKind};

use super::guest::Guest;
use super::progress::Progress;
use super::{demand_recursive, left_out};
use crate::cli::Operand;
use crate::words::printable_line;

/// Of a mode, what is kept: the usual restrictions of whoever copies apply as well.
const MODE_MASK: u32 = 0o777;
/// Directories that are in one another; a guest may make them without end.
const DEPTH_MAX: usize = 256;

/// Copies `source` of the guest to `destination`.
pub async fn copy(
    guest: &Guest,
    progress: &Progress,
    source: &str,
    destination: Operand,
    recursive: bool,
) -> Result<()> {
    let entry = guest.look(source).await?;
    let entry = entry.with_context(|| format!("there is no {} in the sandbox", printable_line(source)))?;
    let here = match destination {
        Operand::Here(here) => here,
        Operand::Standard | Operand::There(_) if entry.kind == EntryKind::Directory => {
            bail!("a directory has no bytes to print")
        }
        Operand::Standard | Operand::There(_) => {
            return pass_on(guest, progress, source, &mut tokio::io::stdout()).await;
        }
    };
    let target = target(source, &here)?;
    match entry.kind {
        EntryKind::Directory => {
            demand_recursive(recursive, source)?;
            copy_tree(guest, progress, source.to_owned(), target).await
        }
        EntryKind::File | EntryKind::Other => copy_file(guest, progress, source, entry.mode, &target).await,
    }
}

/// Where the source goes: into a directory that is there, or to that very name.
fn target(source: &str, here: &Path) -> Result<PathBuf> {
    let is_dir = here.is_dir() || here.as_os_str().as_encoded_bytes().ends_with(b"/");
    let last = source.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    // Of `.`, `..` or `~` what is in them is meant.
    if is_dir && !matches!(last, "" | "." | ".." | "~") { Ok(here.join(plain(last)?)) } else { Ok(here.to_owned()) }
}

/// A name of the guest's, if it is one name here.
fn plain(name: &str) -> Result<&str> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        bail!("the guest names something {:?}, which is no name of a file", printable_line(name));
    }
    Ok(name)
}

async fn copy_tree(guest: &Guest, progress: &Progress, source: String, target: PathBuf) -> Result<()> {
    let mut waiting = vec![(source, target, 0)];
    while let Some((source, target, depth)) = waiting.pop() {
        if depth > DEPTH_MAX {
            bail!("{} is too deep: more than {DEPTH_MAX} directories in one another", printable_line(&source));
        }
        make_dir(&target)?;
        for entry in guest.list(&source).await? {
            let name = plain(&entry.name)?;
            let (from, to) = (format!("{}/{name}", source.trim_end_matches('/')), target.join(name));
            match kind(&entry) {
                Kind::Directory => waiting.push((from, to, depth + 1)),
                Kind::File => copy_file(guest, progress, &from, entry.mode, &to).await?,
                Kind::LeftOut(why) => left_out(&from, why),
            }
        }
    }
    Ok(())
}

enum Kind {
    Directory,
    File,
    LeftOut(&'static str),
}

/// A link leads wherever the guest likes, also in circles.
fn kind(entry: &Entry) -> Kind {
    match entry.kind {
        _ if entry.symlink_target.is_some() => Kind::LeftOut("it is a link"),
        EntryKind::Directory => Kind::Directory,
        EntryKind::File => Kind::File,
        EntryKind::Other => Kind::LeftOut("it is no regular file"),
    }
}

fn make_dir(path: &Path) -> Result<()> {
    match std::fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot make the directory {}", path.display())),
    }
}

async fn copy_file(guest: &Guest, progress: &Progress, source: &str, mode: u32, target: &Path) -> Result<()> {
    let cannot = || format!("cannot copy {} to {}", printable_line(source), target.display());
    if target.exists() && !target.is_file() {
        // A device or a FIFO is written to; a directory refuses.
        let mut file = OpenOptions::new().write(true).open(target).await.with_context(cannot)?;
        return pass_on(guest, progress, source, &mut file).await.with_context(cannot);
    }
    let part = Part::beside(target);
    let mut file = part.create(mode & MODE_MASK).await.with_context(cannot)?;
    pass_on(guest, progress, source, &mut file).await.with_context(cannot)?;
    drop(file);
    part.finish(target).with_context(cannot)
}

async fn pass_on(guest: &Guest, progress: &Progress, source: &str, to: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
    let mut reading = guest.read(source).await?;
    progress.file(source, reading.size());
    while let Some(bytes) = reading.next().await? {
        to.write_all(&bytes).await?;
        progress.add(bytes.len());
    }
    to.flush().await?;
    Ok(())
}

/// A file that is not whole yet; removed if it never is.
struct Part {
    path: PathBuf,
    is_whole: bool,
}

impl Part {
    fn beside(target: &Path) -> Self {
        // One file at a time is copied, and the name is short wherever the file's may be as long as names can be.
        Self { path: target.with_file_name(format!(".wrenn-{}.part", std::process::id())), is_whole: false }
    }

    async fn create(&self, mode: u32) -> std::io::Result<File> {
        OpenOptions::new().write(true).create_new(true).mode(mode | 0o200).open(&self.path).await
    }

    fn finish(mut self, target: &Path) -> std::io::Result<()> {
        std::fs::rename(&self.path, target)?;
        self.is_whole = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.is_whole
            && self.path.exists()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, "cannot remove {}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::guest::tests::guest;
    use super::*;

    #[test]
    fn a_directory_that_is_there_gets_the_source_into_it() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path();
        let new = here.join("new");
        assert_eq!(target("/etc/passwd", here).unwrap(), here.join("passwd"));
        assert_eq!(target("/etc/", here).unwrap(), here.join("etc"));
        assert_eq!(target("passwd", &new).unwrap(), new);
        for whole in ["/", ".", "~", "/etc/..", ""] {
            assert_eq!(target(whole, here).unwrap(), here, "{whole:?}");
        }
    }

    #[test]
    fn a_guest_does_not_name_anything_elsewhere() {
        for name in ["", ".", "..", "/etc/passwd", "a/b", "../a", "a\0"] {
            assert!(plain(name).is_err(), "{name:?}");
        }
        for name in ["a", "...", ".a", "a b", "-r", "\u{1b}"] {
            assert_eq!(plain(name).unwrap(), name);
        }
    }

    #[tokio::test]
    async fn a_file_is_whole_or_as_it_was() {
        let (guest, files) = guest().await;
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("f");
        std::fs::write(&target, "before").unwrap();
        let progress = Progress::new(false);
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        assert!(copy_file(&guest, &progress, "none", 0o644, &target).await.is_err());
        assert_eq!((std::fs::read_to_string(&target).unwrap().as_str(), names()), ("before", 1));
        files.lock().unwrap().insert("f".to_owned(), "after".into());
        copy_file(&guest, &progress, "f", 0o4555, &target).await.unwrap();
        assert_eq!((std::fs::read_to_string(&target).unwrap().as_str(), names()), ("after", 1));
        let mode = target.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7111, 0o111 & mode, "no more than what may be executed: {mode:o}");
        assert!(copy_file(&guest, &progress, "f", 0o644, dir.path()).await.is_err(), "a directory");
        copy_file(&guest, &progress, "f", 0o644, Path::new("/dev/null")).await.unwrap();
    }
}

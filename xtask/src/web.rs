//! Builds the pages that the server carries: `web/` into `web/dist`, which the server's crate embeds.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::cargo;
use crate::process::Job;
use crate::ui::Step;

/// Fetching a few packages and building a page, on a small machine.
const DEADLINE: Duration = Duration::from_secs(10 * 60);

/// What is made, not written.
const MADE: [&str; 3] = ["node_modules", "dist", "test-build"];

/// Builds the pages unless they are newer than all that they are made of.
pub fn build() -> Result<()> {
    let step = Step::start("building the pages");
    let (web, page) = (dir(), dir().join("dist/test.html"));
    if is_built(&web, &page)? {
        step.done("built already");
        return Ok(());
    }
    install()?;
    npm(["run", "build"])?;
    step.done("built");
    Ok(())
}

/// Types, and the tests of what is pure.
pub fn check() -> Result<()> {
    install()?;
    npm(["run", "check"])?;
    npm(["test"])
}

/// Fetches what the lock names, unless it is there.
fn install() -> Result<()> {
    let web = dir();
    if is_newer(&web.join("node_modules/.package-lock.json"), modified(&web.join("package-lock.json"))?) {
        return Ok(());
    }
    npm(["ci"])
}

fn npm<const N: usize>(args: [&str; N]) -> Result<()> {
    Job::new("npm").args(args).dir(dir()).within(DEADLINE).quiet(str::to_owned)
}

fn dir() -> PathBuf {
    cargo::root().join("web")
}

fn is_built(web: &Path, page: &Path) -> Result<bool> {
    Ok(is_newer(page, newest(web)?))
}

fn is_newer(made: &Path, than: SystemTime) -> bool {
    fs::metadata(made).and_then(|about| about.modified()).is_ok_and(|made| made >= than)
}

fn modified(path: &Path) -> Result<SystemTime> {
    fs::metadata(path).and_then(|about| about.modified()).with_context(|| format!("cannot look at {}", path.display()))
}

/// When a file in `dir` was last written by a person. Folders do not count: they change when something is made in them.
fn newest(dir: &Path) -> Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let is_made = path.file_name().is_some_and(|name| MADE.iter().any(|made| name == *made));
        newest = match path.is_dir() {
            _ if is_made => newest,
            true => newest.max(self::newest(&path)?),
            false => newest.max(modified(&path)?),
        };
    }
    Ok(newest)
}

//! Cargo and the workspace's folders.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::Job;

/// A cold build of everything on a small machine.
const DEADLINE: Duration = Duration::from_secs(40 * 60);

/// A job for the cargo that runs us, in the workspace's root.
pub fn job<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Job {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    Job::new(cargo).args(args).dir(root()).within(DEADLINE)
}

/// The workspace's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Where cargo installs programs.
pub fn install_dir() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(std::env::home_dir()?.join(".cargo"))).map(|home| home.join("bin"))
}

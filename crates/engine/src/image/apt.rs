//! Getting Debian packages from wherever this machine gets its own: apt decides on mirrors, keys and versions.
//!
//! A package that was fetched once stays under `downloads/` with a record of what it is, and is not asked for again
//! unless the caller wants a newer one. So a second run needs no network.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Reporter;
use super::files::{self, FileError, at};
use crate::command::{Command, CommandError};

/// A kernel package is 35 MB; slow lines take a while.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// How often the growing file is looked at for the progress bar.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Debian's name of this host's architecture.
pub const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// Why a package cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AptError {
    /// apt knows no such package.
    #[error(
        "apt knows no package `{package}`; is `main` of a Debian release in this machine's apt sources, and was \
         `apt-get update` run?"
    )]
    Unknown {
        /// The package, or a pattern of its name.
        package: String,
    },
    /// apt could not be asked.
    #[error("cannot ask apt about the package `{package}`")]
    Ask {
        /// The package.
        package: String,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// apt could not fetch it.
    #[error("cannot fetch the package `{package}`; is there a network, and were the lists updated (`apt-get update`)?")]
    Fetch {
        /// The package.
        package: String,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// What apt fetched is not what its lists promise.
    #[error("the fetched package `{package}` has the hash {found}, apt's lists say {wanted}; run `apt-get update`")]
    WrongHash {
        /// The package.
        package: String,
        /// SHA-256 in apt's lists.
        wanted: String,
        /// SHA-256 of the file.
        found: String,
    },
    /// Files of ours.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A package in our downloads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the .deb file, lower case hex.
    pub sha256: String,
}

impl Package {
    /// The .deb file.
    pub fn path(&self, downloads: &Path) -> PathBuf {
        downloads.join(format!("{}_{}.deb", self.name, &self.sha256[..16]))
    }
}

/// What apt's lists say about a package's candidate version.
#[derive(Debug, PartialEq, Eq)]
struct Candidate {
    version: String,
    size: u64,
    sha256: Option<String>,
    depends: String,
}

/// The package recorded under `alias`, if its file is still there and whole.
pub fn cached(downloads: &Path, alias: &str) -> Result<Option<Package>, FileError> {
    let Some(package) = files::read_json::<Package>(&record(downloads, alias))? else { return Ok(None) };
    let path = package.path(downloads);
    if !path.exists() || files::hash_file(&path, |_| ())? != package.sha256 {
        tracing::warn!(package = %package.name, "the downloaded package is gone or damaged; fetching it again");
        return Ok(None);
    }
    Ok(Some(package))
}

/// Fetches a package into `downloads`, by way of the folder `work`, and records it under `alias`.
pub async fn fetch(
    downloads: &Path,
    work: &Path,
    name: &str,
    alias: &str,
    progress: &Reporter,
) -> Result<Package, AptError> {
    let candidate = show(name).await?.ok_or_else(|| AptError::Unknown { package: name.to_owned() })?;
    files::make_folder(downloads)?;
    let folder = work.join("apt");
    files::make_folder(&folder)?;
    download(&folder, name, candidate.size, progress).await?;
    let file = only_file(&folder)?;
    let package =
        Package { name: name.to_owned(), version: candidate.version, sha256: files::hash_file(&file, |_| ())? };
    if let Some(wanted) = candidate.sha256.filter(|wanted| *wanted != package.sha256) {
        return Err(AptError::WrongHash { package: package.name, wanted, found: package.sha256 });
    }
    let path = package.path(downloads);
    std::fs::rename(&file, &path).map_err(at("keep the package", &path))?;
    files::write_json(&record(downloads, alias), &package)?;
    Ok(package)
}

/// The kernel package that Debian's cloud meta-package stands for, or else the newest by name.
pub async fn kernel_package() -> Result<String, AptError> {
    let meta = format!("linux-image-cloud-{ARCHITECTURE}");
    if let Some(candidate) = show(&meta).await?
        && let Some(name) = kernel_dependency(&candidate.depends)
    {
        return Ok(name);
    }
    let listed = apt_cache(&["pkgnames", "linux-image-"], &meta).await?;
    newest_kernel(&listed).ok_or(AptError::Unknown { package: format!("linux-image-*-cloud-{ARCHITECTURE}") })
}

fn record(downloads: &Path, alias: &str) -> PathBuf {
    downloads.join(format!("{alias}.json"))
}

async fn show(package: &str) -> Result<Option<Candidate>, AptError> {
    Ok(parse_show(&apt_cache(&["show", "--no-all-versions", package], package).await?))
}

/// What apt-cache prints; nothing if it knows no such package.
async fn apt_cache(args: &[&str], package: &str) -> Result<String, AptError> {
    match Command::new("apt-cache").args(args).stdout_max(16 << 20).run().await {
        Ok(output) => Ok(output.text()),
        Err(error) if error.stderr().contains("No packages found") => Ok(String::new()),
        Err(source) => Err(AptError::Ask { package: package.to_owned(), source }),
    }
}

async fn download(folder: &Path, package: &str, size: u64, progress: &Reporter) -> Result<(), AptError> {
    let step = format!("fetch {package}");
    // As root: our folder is closed to apt's own user, and what it fetches is checked by hash.
    let args = ["-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2", "download", package];
    let run = Command::new("apt-get").args(args).cwd(folder).timeout(DOWNLOAD_TIMEOUT).run();
    tokio::pin!(run);
    let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
    loop {
        tokio::select! {
            done = &mut run => {
                done.map_err(|source| AptError::Fetch { package: package.to_owned(), source })?;
                progress.report(&step, size, size);
                return Ok(());
            }
            _ = tick.tick() => progress.report(&step, bytes_in(folder).min(size), size),
        }
    }
}

/// Bytes of the files below a folder; for the progress bar, so whatever cannot be read counts nothing.
fn bytes_in(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

fn only_file(folder: &Path) -> Result<PathBuf, FileError> {
    let entries = std::fs::read_dir(folder).map_err(at("list", folder))?;
    let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    let found = entries.flatten().map(|entry| entry.path()).find(is_package);
    found.ok_or_else(|| at("find the fetched package in", folder)(std::io::ErrorKind::NotFound.into()))
}

fn parse_show(text: &str) -> Option<Candidate> {
    let field = |name: &str| {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned);
        text.lines().take_while(|line| !line.is_empty()).find_map(value)
    };
    Some(Candidate {
        version: field("Version")?,
        size: field("Size")?.parse().ok()?,
        sha256: field("SHA256"),
        depends: field("Depends").unwrap_or_default(),
    })
}

/// The cloud kernel among a meta-package's dependencies.
fn kernel_dependency(depends: &str) -> Option<String> {
    let names = depends.split([',', '|']).filter_map(|part| part.split_whitespace().next());
    names.map(str::to_owned).find(|name| cloud_release(name).is_some())
}

/// The newest signed cloud kernel among package names.
fn newest_kernel(names: &str) -> Option<String> {
    let known = names.split_whitespace().filter_map(|name| Some((version_key(cloud_release(name)?), name)));
    known.max().map(|(_, name)| name.to_owned())
}

/// `6.1.0-56` of `linux-image-6.1.0-56-cloud-amd64`; `None` for meta-packages, debug symbols and unsigned ones.
fn cloud_release(name: &str) -> Option<&str> {
    let release = name.strip_prefix("linux-image-")?.strip_suffix(ARCHITECTURE)?.strip_suffix("-cloud-")?;
    // A meta-package has no patch level: `6.12`.
    let full = release.starts_with(|first: char| first.is_ascii_digit()) && release.matches('.').count() >= 2;
    full.then_some(release)
}

/// The numbers in a release, which order kernels of one distribution well enough.
fn version_key(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_first_paragraph_of_apt() {
        let text = "Package: busybox-static\nVersion: 1:1.35.0-4\nDepends: a, b\nSize: 928188\nSHA256: abc\n\n\
                    Package: busybox-static\nVersion: 0\nSize: 1\n";
        let wanted = Candidate {
            version: "1:1.35.0-4".into(),
            size: 928_188,
            sha256: Some("abc".into()),
            depends: "a, b".into(),
        };
        assert_eq!(parse_show(text), Some(wanted));
        assert_eq!(parse_show(""), None);
    }

    #[test]
    fn finds_the_kernel_of_the_meta_package() {
        let name = format!("linux-image-6.1.0-56-cloud-{ARCHITECTURE}");
        assert_eq!(kernel_dependency(&name), Some(name.clone()));
        assert_eq!(kernel_dependency(&format!("foo (>= 1), {name} (= 6.1.192-2)")), Some(name));
        assert_eq!(kernel_dependency("libc6"), None);
    }

    #[test]
    fn orders_kernels_by_number() {
        let arch = ARCHITECTURE;
        let names = [
            format!("linux-image-cloud-{arch}"),
            format!("linux-image-6.12-cloud-{arch}"),
            format!("linux-image-6.1.0-9-cloud-{arch}"),
            format!("linux-image-6.1.0-56-cloud-{arch}"),
            format!("linux-image-6.12.9+deb12-cloud-{arch}"),
            format!("linux-image-6.12.117+deb12-cloud-{arch}"),
            format!("linux-image-6.13.1+deb12-cloud-{arch}-dbg"),
            format!("linux-image-6.13.1+deb12-cloud-{arch}-unsigned"),
            format!("linux-image-6.13.1-{arch}"),
        ];
        assert_eq!(newest_kernel(&names[..4].join("\n")), Some(names[3].clone()));
        assert_eq!(newest_kernel(&names.join("\n")), Some(names[5].clone()));
        assert_eq!(newest_kernel("bash"), None);
    }

    #[test]
    fn a_damaged_download_is_not_used_again() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(cached(folder.path(), "x").unwrap(), None);
        std::fs::write(folder.path().join("f"), "content").unwrap();
        let sha256 = files::hash_file(&folder.path().join("f"), |_| ()).unwrap();
        let package = Package { name: "x".into(), version: "1".into(), sha256 };
        std::fs::rename(folder.path().join("f"), package.path(folder.path())).unwrap();
        files::write_json(&record(folder.path(), "x"), &package).unwrap();
        assert_eq!(cached(folder.path(), "x").unwrap(), Some(package.clone()));
        std::fs::write(package.path(folder.path()), "other").unwrap();
        assert_eq!(cached(folder.path(), "x").unwrap(), None);
    }
}

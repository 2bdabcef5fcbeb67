//! Debian packages, installed through a private view of apt: /etc/apt and the machine's own package lists stay as
//! they are.
//!
//! The view is a copy of the machine's sources. Where the QEMU they offer is too old, the same sources' backports
//! are added ([`sources::backports`]); whether that is needed is decided by the version on offer, never by the
//! release's name. All of QEMU's packages then come from there together, because they must agree with each other.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;

use super::needs::{Need, QEMU_OLDEST, version_of_package};
use super::redact;
use super::sources::{self, SourceFile};
use crate::process::{Job, remember};
use crate::ui::Step;

const UPDATE_DEADLINE: Duration = Duration::from_secs(5 * 60);
const INSTALL_DEADLINE: Duration = Duration::from_secs(20 * 60);
/// How long another package manager may hold dpkg's lock.
const LOCK_WAIT_SECONDS: u32 = 180;

/// Complaints of apt that an error quotes.
const COMPLAINTS_MAX: usize = 6;

/// Packages that must come from one release together: they depend on, or break, each other's other versions.
const QEMU_FAMILY: [&str; 2] = ["qemu-system-x86", "qemu-utils"];

/// Installs the packages of these needs.
pub fn install(missing: &[&Need], step: &Step) -> Result<()> {
    let mut view = View::of_this_machine()?;
    step.note("reading the package lists");
    let complaints = view.update()?;
    for need in missing {
        if !complaints.is_empty() && view.candidate(need.package, None)?.is_none() {
            bail!("{}", unread_lists(need, &complaints));
        }
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    let mut release = None;
    if wants_newer_qemu(&packages, view.candidate("qemu-system-x86", None)?.as_deref()) {
        release = Some(view.add_backports(step)?);
    }
    let groups = groups(&packages, release.as_deref());
    for group in &groups {
        for package in &group.packages {
            demand_candidate(&view, missing, package, group.release.as_deref())?;
        }
    }
    for group in &groups {
        view.install(group, step)?;
    }
    Ok(())
}

/// Packages installed in one go, from this release if it is not the machine's own.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    release: Option<String>,
    packages: Vec<String>,
}

/// Whether QEMU is to be installed and what the sources offer is missing or too old.
fn wants_newer_qemu(packages: &[&str], candidate: Option<&str>) -> bool {
    let offered = candidate.and_then(version_of_package);
    packages.iter().any(|package| QEMU_FAMILY.contains(package)) && offered.is_none_or(|version| version < QEMU_OLDEST)
}

/// What to install in which go; with a release for QEMU, its whole family comes from there, first.
fn groups(packages: &[&str], qemu_release: Option<&str>) -> Vec<Group> {
    let from_release = qemu_release
        .map(|release| Group { release: Some(release.to_owned()), packages: QEMU_FAMILY.map(str::to_owned).to_vec() });
    let own: Vec<String> = packages
        .iter()
        .filter(|package| qemu_release.is_none() || !QEMU_FAMILY.contains(package))
        .map(|package| (*package).to_owned())
        .collect();
    let from_own = (!own.is_empty()).then_some(Group { release: None, packages: own });
    from_release.into_iter().chain(from_own).collect()
}

fn unread_lists(need: &Need, complaints: &[String]) -> String {
    let list: String = complaints.iter().map(|line| format!("\n    {line}")).collect();
    format!("cannot get {} ({}): the package lists could not be read; is the network up?{list}", need.package, need.why)
}

fn demand_candidate(view: &View, missing: &[&Need], package: &str, release: Option<&str>) -> Result<()> {
    let why = missing.iter().find(|need| need.package == package).map_or("a part of QEMU", |need| need.why);
    let candidate = view.candidate(package, release)?;
    let Some(version) = candidate else {
        bail!(
            "no apt source of this machine has the package {package} ({why}); add one that has it, or install it by hand"
        );
    };
    if package == "qemu-system-x86" && version_of_package(&version).is_none_or(|version| version < QEMU_OLDEST) {
        bail!(
            "the apt sources of this machine offer {package} {version}, but Wrenn needs {QEMU_OLDEST} or newer ({why}); \
             add a source that has it, such as the release's backports, or install QEMU by hand"
        );
    }
    Ok(())
}

/// A private view of apt: its own sources and lists in a folder that goes away with it.
struct View {
    dir: TempDir,
    files: Vec<SourceFile>,
}

impl View {
    fn of_this_machine() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("wrenn-apt-")
            // apt downloads as the user _apt, who must be able to look in.
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir()
            .context("cannot make a folder for package lists")?;
        for folder in ["sources", "lists", "lists/partial"] {
            let path = dir.path().join(folder);
            fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let view = Self { dir, files: machine_sources()? };
        view.write(&view.files)?;
        Ok(view)
    }

    fn write(&self, files: &[SourceFile]) -> Result<()> {
        for file in files {
            let path = self.dir.path().join("sources").join(&file.name);
            fs::write(&path, &file.text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Adds the backports of the machine's release; returns the release's name for `-t`.
    fn add_backports(&mut self, step: &Step) -> Result<String> {
        let codename = codename(&fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?)
            .context("/etc/os-release has no VERSION_CODENAME; install QEMU 8.2 or newer by hand")?;
        let derived = sources::backports(&self.files, &codename);
        if derived.is_empty() {
            bail!(
                "the apt sources of this machine offer no QEMU of {QEMU_OLDEST} or newer, and none of them is of the release \
                 {codename}, whose backports could have one; add such a source or install QEMU by hand"
            );
        }
        step.note(&format!("QEMU on offer is older than {QEMU_OLDEST}: taking it from {codename}-backports"));
        self.write(&derived)?;
        // Somebody else's source may have no backports: what counts is the version on offer afterwards.
        if let Err(error) = self.update() {
            step.note(&format!(
                "not every source has backports: {}",
                error.to_string().lines().next().unwrap_or_default()
            ));
        }
        Ok(format!("{codename}-backports"))
    }

    /// Reads the lists of all sources; returns what apt complained about, which need not matter.
    fn update(&self) -> Result<Vec<String>> {
        let mut complaints = Vec::new();
        let job = self.apt("apt-get").args(["update"]).within(UPDATE_DEADLINE);
        let status = job.lines(|line| complaints.extend(complaint(line)))?;
        complaints.truncate(COMPLAINTS_MAX);
        if complaints.is_empty() && !status.success() {
            complaints.push(format!("apt-get update ended with {status}"));
        }
        Ok(complaints)
    }

    /// The version that would be installed, from this release or the usual one.
    fn candidate(&self, package: &str, release: Option<&str>) -> Result<Option<String>> {
        let target = release.map(|release| ["-t", release]);
        let policy = self
            .apt("apt-cache")
            .args(target.iter().flatten())
            .args(["policy", package])
            .capture()
            .map_err(|error| anyhow!("cannot ask apt for {package}: {}", shown(&error)))?;
        Ok(candidate_in(&policy))
    }

    fn install(&self, group: &Group, step: &Step) -> Result<()> {
        let packages = group.packages.join(" ");
        step.note(&format!("installing {packages}"));
        let target = group.release.as_ref().map(|release| ["-t", release]);
        let job = self
            .apt("apt-get")
            .args(["install", "-y", "--no-install-recommends"])
            .args(target.iter().flatten())
            .args(&group.packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .within(INSTALL_DEADLINE);
        let mut last = VecDeque::new();
        let status = job.lines(|line| {
            let line = redact::hosts(line);
            step.tick(&line);
            remember(&mut last, &line);
        })?;
        job.demand_success(status, &last).map_err(|error| {
            anyhow!("cannot install {packages}; is another package manager at work?\n{}", shown(&error))
        })
    }

    fn apt(&self, program: &str) -> Job {
        Job::new(program).args(options(self.dir.path())).env("LC_ALL", "C")
    }
}

/// An error of apt without this view's paths and options.
fn shown(error: &anyhow::Error) -> String {
    let text = error.to_string();
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    let status = first.rsplit_once('(').map_or("", |(_, status)| status.trim_end_matches(')'));
    std::iter::once(format!("  apt ended with {status}:"))
        .chain(lines.map(redact::hosts))
        .collect::<Vec<_>>()
        .join("\n")
}

/// A line in which apt complains, without hosts; `None` for other lines.
fn complaint(line: &str) -> Option<String> {
    (line.starts_with("W:") || line.starts_with("E:")).then(|| redact::hosts(line))
}

/// The options that make apt use this folder and nothing of the machine's lists.
fn options(dir: &Path) -> Vec<String> {
    let dir = dir.display();
    [
        "Dir::Etc::sourcelist=/dev/null".to_owned(),
        format!("Dir::Etc::sourceparts={dir}/sources"),
        format!("Dir::State::lists={dir}/lists"),
        "Dir::Cache::pkgcache=".to_owned(),
        "Dir::Cache::srcpkgcache=".to_owned(),
        format!("DPkg::Lock::Timeout={LOCK_WAIT_SECONDS}"),
        "Dpkg::Use-Pty=0".to_owned(),
        "Acquire::Retries=3".to_owned(),
    ]
    .into_iter()
    .flat_map(|option| ["-o".to_owned(), option])
    .collect()
}

/// The sources apt uses on this machine, wherever its configuration has them.
fn machine_sources() -> Result<Vec<SourceFile>> {
    let config = Job::new("apt-config")
        .args(["shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"])
        .capture()
        .context("cannot ask apt where its sources are")?;
    let setting = |name: &str| {
        let line = config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(PathBuf::from(line.trim_matches('\'')))
    };
    let list = setting("LIST").unwrap_or_else(|| "/etc/apt/sources.list".into());
    let parts = setting("PARTS").unwrap_or_else(|| "/etc/apt/sources.list.d".into());
    let mut paths = vec![list];
    if let Ok(entries) = fs::read_dir(&parts) {
        paths.extend(entries.flatten().map(|entry| entry.path()));
    }
    Ok(paths.iter().filter_map(|path| read_source(path)).collect())
}

/// A file of sources; `None` for one that is not there or has an ending that apt ignores.
fn read_source(path: &Path) -> Option<SourceFile> {
    let name = path.file_name()?.to_str()?.to_owned();
    if !name.ends_with(".list") && !name.ends_with(".sources") {
        return None;
    }
    Some(SourceFile { name, text: fs::read_to_string(path).ok()? })
}

fn codename(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim_matches('"').to_owned()).filter(|name| !name.is_empty())
}

fn candidate_in(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (version != "(none)").then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backports_are_wanted_by_version_alone() {
        for (packages, candidate, wanted) in [
            (vec!["qemu-system-x86", "nftables"], Some("1:7.2+dfsg-7"), true),
            (vec!["qemu-utils"], Some("1:7.2+dfsg-7"), true),
            (vec!["qemu-system-x86"], Some("1:10.0.2+ds-2"), false),
            (vec!["qemu-system-x86"], None, true),
            (vec!["nftables"], Some("1:7.2+dfsg-7"), false),
            (vec!["nftables"], None, false),
        ] {
            assert_eq!(wants_newer_qemu(&packages, candidate), wanted, "{packages:?} {candidate:?}");
        }
    }

    #[test]
    fn the_qemu_family_stays_together() {
        let group = |release: Option<&str>, packages: &[&str]| Group {
            release: release.map(str::to_owned),
            packages: packages.iter().map(|package| (*package).to_owned()).collect(),
        };
        let packages = ["qemu-system-x86", "nftables"];
        assert_eq!(groups(&packages, None), [group(None, &packages)]);
        assert_eq!(
            groups(&packages, Some("bookworm-backports")),
            [group(Some("bookworm-backports"), &QEMU_FAMILY), group(None, &["nftables"])]
        );
        assert_eq!(groups(&["qemu-utils"], Some("b")), [group(Some("b"), &QEMU_FAMILY)]);
    }

    #[test]
    fn reads_what_apt_and_the_system_say() {
        assert_eq!(candidate_in("qemu:\n  Installed: (none)\n  Candidate: 1:7.2\n"), Some("1:7.2".to_owned()));
        assert_eq!(candidate_in("qemu:\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_in(""), None);
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n"), Some("bookworm".to_owned()));
        assert_eq!(codename("VERSION_CODENAME=\"noble\"\n"), Some("noble".to_owned()));
        assert_eq!(codename("ID=other\n"), None);
    }

    #[test]
    fn errors_show_neither_hosts_nor_options() {
        let error = anyhow!(
            "`apt-get -o Dir=/tmp/x update` failed (exit status: 100)\n    E: Failed to fetch http://mirror.example.org/x"
        );
        let text = shown(&error);
        assert!(text.contains("exit status: 100") && text.contains("Failed to fetch"), "{text}");
        assert!(!text.contains("example") && !text.contains("/tmp/x"), "{text}");
    }
}

//! The template `base`: this host's Debian release with python3, curl, git, sudo and what a shell user expects.
//!
//! mmdebstrap installs the packages from this machine's own apt sources (those of Debian itself; third-party ones stay
//! out) into a folder, with its mounts in a mount namespace of their own. Then caches and documentation go, and the user,
//! the profile and a few names come.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::ext4::Room;
use super::files::{self, FileError, at};
use super::tree::{self, Attributes, Node, READABLE, USER, USER_ID, text};
use super::{Reporter, TemplateError};
use crate::command::{Command, CommandError};
use crate::units::Mib;

/// Changes whenever the same packages would give another tree.
pub const FORMAT: u32 = 1;
/// Room for work before a larger disk is asked for.
pub const ROOM: Room = Room { least: Mib(256), free: Mib(256), journal: Mib(16) };
/// Download, unpacking and configuration of some 150 packages.
const TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Standard output of mmdebstrap: apt's and dpkg's lines.
const STDOUT_MAX: usize = 16 << 20;
/// 2025-01-01: packages write the date of their installation into files otherwise.
const TIME: &str = "1735689600";

/// What is in it beside Debian's required packages and apt.
pub const PACKAGES: [&str; 12] = [
    "ca-certificates",
    "curl",
    "git",
    "iproute2",
    "iputils-ping",
    "less",
    "ncurses-bin",
    "netbase",
    "procps",
    "python3",
    "sudo",
    "xz-utils",
];

/// What dpkg does not even unpack: nobody reads manuals in a sandbox, and they are a third of the files.
const EXCLUDED: [&str; 7] = [
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/share/bug/*",
    "/usr/share/groff/*",
];

/// mmdebstrap mounts things into the tree, and package scripts run in it. In a mount and a process namespace that end with
/// it, and with us, nothing of that can stay behind, however it ends.
const CONTAINED: [&str; 8] = [
    "--pdeathsig=KILL",
    "unshare",
    "--mount",
    "--propagation=private",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
];

/// The apt sources of one release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// The release's code name.
    pub suite: String,
    /// The text of a sources.list.
    pub list: String,
}

/// The Debian sources of this machine, as apt itself understands them.
pub async fn sources() -> Result<Sources, TemplateError> {
    let release = fs::read_to_string("/etc/os-release").map_err(at("read", Path::new("/etc/os-release")))?;
    let suite = codename(&release).ok_or(TemplateError::NotDebian)?;
    let format = "$(CREATED_BY)|$(ORIGIN)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)|$(SIGNED_BY)";
    let output = Command::new("apt-get").args(["indextargets", "--format", format]).run().await;
    let listed = output.map_err(TemplateError::AptSources)?.text();
    let list = source_lines(&listed, &suite);
    if list.is_empty() {
        return Err(TemplateError::NoDebianSources { suite });
    }
    Ok(Sources { suite, list })
}

/// Fills the empty folder `root` with the tree.
pub async fn fill(root: &Path, work: &Path, sources: &Sources, progress: &Reporter) -> Result<(), TemplateError> {
    let list = work.join("sources.list");
    files::write_whole(&list, sources.list.as_bytes(), 0o644)?;
    bootstrap(root, &list, &sources.suite, progress).await.map_err(TemplateError::Bootstrap)?;
    let root = root.to_owned();
    tokio::task::spawn_blocking(move || finish(&root)).await.expect("finishing a tree does not panic")
}

async fn bootstrap(root: &Path, list: &Path, suite: &str, progress: &Reporter) -> Result<(), CommandError> {
    let step = format!("install Debian {suite}");
    let reporter = progress.clone();
    let mut lines = 0;
    Command::new("setpriv")
        .args(CONTAINED)
        .arg("mmdebstrap")
        .args(["--mode=root", "--variant=minbase", "--format=directory"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .args(EXCLUDED.map(|path| format!("--dpkgopt=path-exclude={path}")))
        .arg("--dpkgopt=path-include=/usr/share/locale/locale.alias")
        .arg("--aptopt=Acquire::Languages \"none\"")
        .arg("--aptopt=APT::Sandbox::User \"root\"")
        .arg(suite)
        .arg(root)
        .arg(list)
        .env("SOURCE_DATE_EPOCH", TIME)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout_max(STDOUT_MAX)
        .timeout(TIMEOUT)
        .on_line(move |_line| {
            lines += 1;
            reporter.report(&step, lines, 0);
        })
        .run()
        .await?;
    Ok(())
}

fn finish(root: &Path) -> Result<(), TemplateError> {
    for path in [
        "var/cache/apt",
        "var/lib/apt/lists",
        "var/log",
        "tmp",
        "var/tmp",
        "run",
        "var/cache/ldconfig",
        "var/cache/debconf",
    ] {
        empty(&root.join(path))?;
    }
    for path in ["etc/hostname", "etc/resolv.conf", "etc/ssh", "etc/.pwd.lock", "var/lib/dbus/machine-id"] {
        files::remove_tree(&root.join(path))?;
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).map_err(at("set the mode of", root))?;
    add_user(root)?;
    tree::write(root, &own_files())?;
    // Packages put device nodes there for chroots; the guest has devtmpfs.
    empty(&root.join("dev"))?;
    Ok(())
}

/// Removes what a folder holds; keeps the folder.
fn empty(folder: &Path) -> Result<(), FileError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(at("list", folder))?,
    };
    for entry in entries {
        files::remove_tree(&entry.map_err(at("list", folder))?.path())?;
    }
    Ok(())
}

fn add_user(root: &Path) -> Result<(), TemplateError> {
    let lines = [
        ("etc/passwd", format!("{USER}:x:{USER_ID}:{USER_ID}:{USER}:/home/user:/bin/bash\n")),
        ("etc/group", format!("{USER}:x:{USER_ID}:\n")),
        ("etc/shadow", format!("{USER}:*:20089:0:99999:7:::\n")),
        ("etc/gshadow", format!("{USER}:!::\n")),
    ];
    for (path, line) in lines {
        append(&root.join(path), &line)?;
    }
    let home = root.join("home/user");
    let skeleton = root.join("etc/skel");
    fs::create_dir_all(&home).map_err(at("make the folder", &home))?;
    for entry in fs::read_dir(&skeleton).map_err(at("list", &skeleton))? {
        let entry = entry.map_err(at("list", &skeleton))?;
        let copy = home.join(entry.file_name());
        fs::copy(entry.path(), &copy).map_err(at("copy", &copy))?;
    }
    Ok(tree::give(&home, USER_ID)?)
}

fn append(path: &Path, line: &str) -> Result<(), FileError> {
    let mut text = fs::read_to_string(path).map_err(at("read", path))?;
    text.push_str(line);
    fs::write(path, text).map_err(at("write", path))
}

fn own_files() -> Vec<Node> {
    vec![
        text("etc/profile", tree::PROFILE),
        text("etc/machine-id", ""),
        Node::File(
            "etc/sudoers.d/user",
            Attributes { mode: 0o440, ..READABLE },
            format!("{USER} ALL=(ALL:ALL) NOPASSWD:ALL\n").into_bytes(),
        ),
        Node::Link("usr/local/bin/python".into(), "/usr/bin/python3".into()),
        Node::Folder("tmp", Attributes { mode: 0o1777, owner: 0 }),
        Node::Folder("var/tmp", Attributes { mode: 0o1777, owner: 0 }),
    ]
}

fn codename(os_release: &str) -> Option<String> {
    let field = |name: &str| {
        let value =
            |line: &str| line.strip_prefix(name)?.strip_prefix('=').map(|value| value.trim_matches('"').to_owned());
        os_release.lines().find_map(value)
    };
    field("ID").filter(|id| id == "debian")?;
    field("VERSION_CODENAME").filter(|name| !name.is_empty())
}

/// One line for each suite of the release: the release itself, its updates and its security fixes; no backports.
fn source_lines(listed: &str, suite: &str) -> String {
    let mut lines: Vec<String> = listed.lines().filter_map(|line| source_line(line, suite)).collect();
    lines.sort();
    lines.dedup();
    lines.concat()
}

fn source_line(line: &str, suite: &str) -> Option<String> {
    let fields: Vec<&str> = line.split('|').collect();
    let &[created_by, origin, release, component, uri, signed_by] = fields.as_slice() else { return None };
    let ours = ["", "-updates", "-security", "/updates"].iter().any(|suffix| release == format!("{suite}{suffix}"));
    if created_by != "Packages" || origin != "Debian" || !ours {
        return None;
    }
    // apt leaves the name of a field that has no value.
    let key = match signed_by {
        "" | "$(SIGNED_BY)" => String::new(),
        path => format!("[signed-by={path}] "),
    };
    Some(format!("deb {key}{uri} {release} {component}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_debians_own_sources_of_the_release() {
        let listed = "Packages|Debian|trixie|main|http://192.0.2.1/debian/|/usr/share/keyrings/k.gpg\n\
                      Packages|Debian|trixie|main|http://192.0.2.1/debian/|/usr/share/keyrings/k.gpg\n\
                      DEP-11|Debian|trixie|main|http://192.0.2.1/debian/|$(SIGNED_BY)\n\
                      Packages|Debian|trixie-security|main|http://192.0.2.1/security/|$(SIGNED_BY)\n\
                      Packages|Debian|trixie-backports|main|http://192.0.2.1/debian/|$(SIGNED_BY)\n\
                      Packages|Somebody|trixie|main|http://192.0.2.9/x/|$(SIGNED_BY)\n";
        let wanted = "deb [signed-by=/usr/share/keyrings/k.gpg] http://192.0.2.1/debian/ trixie main\n\
                      deb http://192.0.2.1/security/ trixie-security main\n";
        assert_eq!(source_lines(listed, "trixie"), wanted);
    }

    #[test]
    fn only_debian_has_a_code_name_for_us() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=trixie\n").as_deref(), Some("trixie"));
        assert_eq!(codename("ID=\"ubuntu\"\nVERSION_CODENAME=noble\n"), None);
        assert_eq!(codename("ID=debian\n"), None);
    }
}

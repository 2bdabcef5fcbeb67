//! The template `minimal`: one static busybox under all its names, a user, and the few files a machine has.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::ext4::Room;
use super::files::{FileError, at};
use super::tree::{self, Attributes, Node, READABLE, RUNNABLE, USER, USER_ID, text};
use super::{TemplateError, deb};
use crate::command::Command;
use crate::units::Mib;

/// Changes whenever the same busybox would give another tree.
pub const FORMAT: u32 = 1;
/// Debian's static busybox.
pub const PACKAGE: &str = "busybox-static";
/// Small enough to be hashed and copied in no time; a sandbox's disk is as large as asked for.
pub const ROOM: Room = Room { least: Mib(64), free: Mib(16), journal: Mib(8) };

/// Fills the empty folder `root` with the tree.
pub async fn fill(root: &Path, package: &Path) -> Result<(), TemplateError> {
    let busybox = busybox(package)?;
    write_base(root, busybox)?;
    let applets = list_applets(&root.join(BUSYBOX)).await?;
    tree::write(root, &applets)?;
    tree::write(root, &user_files())?;
    Ok(())
}

const BUSYBOX: &str = "bin/busybox";

fn busybox(package: &Path) -> Result<Vec<u8>, TemplateError> {
    let files = deb::read(package, |path| path == BUSYBOX || path == "usr/bin/busybox")?;
    let file = files.into_iter().next();
    file.map(|file| file.content).ok_or_else(|| TemplateError::NoBusybox { package: package.to_owned() })
}

fn write_base(root: &Path, busybox: Vec<u8>) -> Result<(), FileError> {
    const FOLDERS: [&str; 21] = [
        "bin",
        "dev",
        "etc",
        "etc/profile.d",
        "home",
        "mnt",
        "opt",
        "proc",
        "run",
        "sbin",
        "srv",
        "sys",
        "usr",
        "usr/bin",
        "usr/lib",
        "usr/local",
        "usr/local/bin",
        "usr/local/sbin",
        "usr/sbin",
        "var",
        "var/log",
    ];
    let mut nodes = FOLDERS.map(|path| Node::Folder(path, RUNNABLE)).to_vec();
    nodes.push(Node::Folder("tmp", Attributes { mode: 0o1777, owner: 0 }));
    nodes.push(Node::Folder("var/tmp", Attributes { mode: 0o1777, owner: 0 }));
    nodes.push(Node::Folder("root", Attributes { mode: 0o700, owner: 0 }));
    nodes.push(Node::Folder("home/user", Attributes { mode: 0o755, owner: USER_ID }));
    nodes.push(Node::Link("var/run".into(), "/run".into()));
    nodes.push(Node::File(BUSYBOX, RUNNABLE, busybox));
    tree::write(root, &nodes)?;
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).map_err(at("set the mode of", root))
}

/// Links for all names busybox says it has; it knows best, and it runs anywhere.
async fn list_applets(busybox: &Path) -> Result<Vec<Node>, TemplateError> {
    let output = Command::new(busybox).arg("--list-full").run().await.map_err(TemplateError::Busybox)?;
    Ok(applets(&output.text()))
}

fn applets(listed: &str) -> Vec<Node> {
    let in_a_bin = |path: &&str| {
        ["bin/", "sbin/", "usr/bin/", "usr/sbin/"]
            .iter()
            .any(|folder| path.strip_prefix(folder).is_some_and(|name| !name.is_empty() && !name.contains('/')))
    };
    let paths = listed.lines().map(str::trim).filter(in_a_bin).filter(|path| *path != BUSYBOX);
    paths.map(|path| Node::Link(path.to_owned(), format!("/{BUSYBOX}"))).collect()
}

fn user_files() -> Vec<Node> {
    let passwd = format!(
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n\
         {USER}:x:{USER_ID}:{USER_ID}:{USER}:/home/user:/bin/sh\n"
    );
    let group = format!("root:x:0:\ntty:x:5:\nsudo:x:27:{USER}\nnogroup:x:65534:\n{USER}:x:{USER_ID}:\n");
    let shadow = format!("root:*:20089:0:99999:7:::\nnobody:*:20089:0:99999:7:::\n{USER}:*:20089:0:99999:7:::\n");
    vec![
        text("etc/passwd", &passwd),
        text("etc/group", &group),
        Node::File("etc/shadow", Attributes { mode: 0o600, ..READABLE }, shadow.into_bytes()),
        text("etc/profile", tree::PROFILE),
        text("etc/shells", "/bin/sh\n"),
        text("etc/os-release", "NAME=\"Wrenn minimal\"\nPRETTY_NAME=\"Wrenn minimal (busybox)\"\nID=wrenn-minimal\n"),
        // Filled in by wrenn-init, new for each sandbox.
        text("etc/machine-id", ""),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applets_are_links_in_the_program_folders() {
        let listed = "bin/busybox\nbin/sh\nusr/bin/env\nlinuxrc\nsbin/../etc/x\nusr/sbin/\n";
        let link = |path: &str| Node::Link(path.into(), "/bin/busybox".into());
        assert_eq!(applets(listed), [link("bin/sh"), link("usr/bin/env")]);
    }
}

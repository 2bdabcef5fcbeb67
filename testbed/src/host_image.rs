//! The emulated host's disk and kernel: a small Debian with this host's QEMU in it, built once.
//!
//! ```text
//! mmdebstrap (this machine's own apt sources) ─► tree + QEMU and its libraries ─► mke2fs -d ─► host.img
//!                                                 └─ /boot/vmlinuz ─► vmlinux
//!                                                 └─ /lib/modules ─► modules/ ┬─► initrd.img (for each run)
//!                                                                     runner ─┘
//! ```
//!
//! It is named after a hash of what goes in, so that a change of the packages or of QEMU gives another one; older ones are
//! removed. QEMU is this host's own, not the release's: that may be too old for Wrenn, and both hosts should run the same.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use wrenn_engine::command::{self, Command};
use wrenn_engine::image::modules::{Module, ModuleTree};
use wrenn_engine::image::{self, Sources, initramfs, vmlinux};

/// Changes whenever the same inputs would give another image.
const FORMAT: u32 = 2;

/// What Wrenn uses on a host, and what its tests look at a host with.
const PACKAGES: [&str; 14] = [
    "busybox-static",
    "dmsetup",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "linux-image-cloud-amd64",
    "mount",
    "nftables",
    "procps",
    "python3-minimal",
    "strace",
    "udev",
    "util-linux",
    "zstd",
];

/// Drivers of the emulated machine, then what a host of sandboxes needs; with all they depend on.
const MODULES: [&str; 12] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "kvm_amd",
    "kvm_intel",
    "loop",
    "dm_snapshot",
    "dm_zero",
    "tun",
    "veth",
    "nf_tables",
];

const QEMU: &str = "qemu-system-x86_64";
/// Firmware that QEMU's `microvm` machine loads, and the folders where distributions put it.
const FIRMWARE: [&str; 5] = ["bios-microvm.bin", "kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin", "qboot.rom"];
const FIRMWARE_FOLDERS: [&str; 2] = ["/usr/share/qemu", "/usr/share/seabios"];

/// Room on the root disk beyond what is on it.
const FREE_MIB: u64 = 1024;
/// Some 120 packages; half a minute on a small machine.
const BOOTSTRAP_LIMIT: Duration = Duration::from_secs(15 * 60);
const BOOTSTRAP_OUTPUT_MAX: usize = 16 << 20;

/// A host that can be booted.
#[derive(Debug)]
pub struct HostImage {
    /// Its root disk; never written.
    pub disk: PathBuf,
    /// Its kernel, unpacked.
    pub kernel: PathBuf,
    /// The modules its first process loads, in this order.
    pub modules: Vec<Module>,
}

impl HostImage {
    /// Makes the initramfs with `runner` as the first process.
    pub fn make_initramfs(&self, runner: &Path, target: &Path) -> Result<()> {
        let runner = fs::read(runner).with_context(|| format!("cannot read {}", runner.display()))?;
        fs::write(target, initramfs::build(&runner, &self.modules)).context("cannot write the initramfs")
    }
}

/// The image in `cache`, built if it is not there.
pub async fn prepare(cache: &Path) -> Result<HostImage> {
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let lock = fs::File::create(cache.join("lock")).context("cannot make the cache's lock")?;
    flock(&lock, FlockOperation::LockExclusive).context("cannot lock the cache")?;
    let sources = image::sources().await?;
    let qemu = Qemu::of_this_host().await?;
    let folder = cache.join(fingerprint(&sources, &qemu)?);
    if !folder.exists() {
        remove_older(cache)?;
        build(cache, &folder, &sources, &qemu).await?;
    }
    Ok(HostImage {
        disk: folder.join("host.img"),
        kernel: folder.join("vmlinux"),
        modules: read_modules(&folder.join("modules"))?,
    })
}

/// QEMU as it is installed here, with everything that its loader looks for.
struct Qemu {
    /// Program and libraries: where they are, and under which path they are looked for.
    files: Vec<(PathBuf, PathBuf)>,
}

impl Qemu {
    async fn of_this_host() -> Result<Self> {
        let program = command::find(QEMU)?;
        let listed = Command::new("ldd").arg(&program).run().await.context("cannot list QEMU's libraries")?.text();
        let mut files = vec![(program.canonicalize()?, Path::new("/usr/bin").join(QEMU))];
        for path in libraries(&listed) {
            files.push((Path::new(path).canonicalize()?, PathBuf::from(path)));
        }
        for name in FIRMWARE {
            let places = FIRMWARE_FOLDERS.map(|folder| Path::new(folder).join(name));
            let Some(place) = places.into_iter().find(|place| place.exists()) else { continue };
            files.push((place.canonicalize()?, Path::new("/usr/share/qemu").join(name)));
        }
        Ok(Self { files })
    }
}

/// The paths in what `ldd` prints: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f…)`.
fn libraries(listed: &str) -> Vec<&str> {
    let path = |line: &'_ str| -> Option<std::ops::Range<usize>> {
        let start = line.find("/")?;
        let end = line[start..].find(" (")? + start;
        Some(start..end)
    };
    listed.lines().filter_map(|line| path(line).map(|range| &line[range])).collect()
}

/// A name for what would be built from these inputs. The repositories' content is not in it: newer packages alone are no
/// reason to build again.
fn fingerprint(sources: &Sources, qemu: &Qemu) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(format!("{FORMAT} {} {PACKAGES:?} {MODULES:?}", sources.suite));
    for (file, place) in &qemu.files {
        let metadata = fs::metadata(file)?;
        hash.update(format!("{} {} {:?}", place.display(), metadata.len(), metadata.modified()?));
    }
    Ok(hex::encode(&hash.finalize()[..8]))
}

/// Removes images of other inputs, and what interrupted builds and runs have left. A machine that runs has its files open
/// and does not mind.
fn remove_older(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

async fn build(cache: &Path, folder: &Path, sources: &Sources, qemu: &Qemu) -> Result<()> {
    let began = Instant::now();
    eprintln!("testbed: building the emulated host (Debian {}), once", sources.suite);
    let work = tempfile::Builder::new().prefix("build-").tempdir_in(cache).context("cannot make a work folder")?;
    let (tree, made) = (work.path().join("tree"), work.path().join("made"));
    fs::create_dir(&tree)?;
    fs::create_dir(&made)?;
    bootstrap(&tree, work.path(), sources).await?;
    install(&tree, qemu)?;
    boot_files(&tree, &made)?;
    make_disk(&tree, &made.join("host.img"), FREE_MIB).await?;
    fs::rename(&made, folder).with_context(|| format!("cannot name the image {}", folder.display()))?;
    eprintln!("testbed: built in {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// Like the template `base`, in namespaces that end with it: nothing it mounts can stay behind.
async fn bootstrap(tree: &Path, work: &Path, sources: &Sources) -> Result<()> {
    let list = work.join("sources.list");
    fs::write(&list, &sources.list)?;
    Command::new("setpriv")
        .args(["--pdeathsig=KILL", "unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "mmdebstrap", "--mode=root", "--variant=essential", "--format=directory"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        // Nobody boots from the initramfs that the kernel's package would make: ours has another init.
        .args(["--dpkgopt=path-exclude=/etc/kernel/postinst.d/initramfs-tools"])
        .args(["doc", "man", "locale", "info"].map(|kind| format!("--dpkgopt=path-exclude=/usr/share/{kind}/*")))
        .arg("--aptopt=Acquire::Languages \"none\"")
        .arg("--aptopt=APT::Sandbox::User \"root\"")
        .arg(&sources.suite)
        .arg(tree)
        .arg(&list)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout_max(BOOTSTRAP_OUTPUT_MAX)
        .timeout(BOOTSTRAP_LIMIT)
        .run()
        .await
        .context("cannot install the emulated host's Debian")?;
    Ok(())
}

/// Puts QEMU and the mount points in; a library of the release that QEMU brings another build of is replaced.
fn install(tree: &Path, qemu: &Qemu) -> Result<()> {
    for (file, place) in &qemu.files {
        let target = inside(tree, place)?;
        fs::copy(file, &target).with_context(|| format!("cannot copy {} to {}", file.display(), target.display()))?;
    }
    fs::set_permissions(tree, fs::Permissions::from_mode(0o755))?;
    fs::create_dir_all(inside(tree, Path::new("/var/lib/wrenn"))?)?;
    // There is no other name server than the one a test brings along.
    fs::write(inside(tree, Path::new("/etc/resolv.conf"))?, "")?;
    Ok(())
}

/// The path in the tree that `place` means there: in a merged tree /lib is a link, and an absolute one would lead out.
fn inside(tree: &Path, place: &Path) -> Result<PathBuf> {
    let relative = place.strip_prefix("/").with_context(|| format!("{} is not absolute", place.display()))?;
    let first = relative.components().next().context("an empty path")?;
    let merged = tree.join(first).is_symlink() && !relative.starts_with("usr");
    let path = if merged { tree.join("usr").join(relative) } else { tree.join(relative) };
    let folder = path.parent().context("a path without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // What is there may be a link; the copy must not go through it.
    if path.is_symlink() {
        fs::remove_file(&path)?;
    }
    Ok(path)
}

fn boot_files(tree: &Path, made: &Path) -> Result<()> {
    let packed = only_entry(&tree.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    let kernel = vmlinux::extract(&fs::read(&packed)?).context("cannot unpack the emulated host's kernel")?;
    fs::write(made.join("vmlinux"), kernel)?;
    let folder = only_entry(&tree.join("usr/lib/modules"), |_| true)?;
    let modules = ModuleTree::from_folder(&folder)?.load_order(&MODULES)?;
    fs::create_dir(made.join("modules"))?;
    for (number, module) in modules.iter().enumerate() {
        fs::write(made.join("modules").join(format!("{number:02}-{}.ko", module.name)), &module.bytes)?;
    }
    Ok(())
}

fn read_modules(folder: &Path) -> Result<Vec<Module>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    let read = |path: PathBuf| -> Result<Module> {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = stem.split_once('-').map_or(stem.as_ref(), |(_number, name)| name).to_owned();
        Ok(Module { name, bytes: fs::read(&path)? })
    };
    paths.into_iter().map(read).collect()
}

fn only_entry(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let found: BTreeSet<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(&wanted))
        .map(|entry| entry.path())
        .collect();
    match found.into_iter().collect::<Vec<_>>().as_slice() {
        [one] => Ok(one.clone()),
        other => bail!("{} kernels in {}, not one", other.len(), folder.display()),
    }
}

/// A disk with what is in `tree`, and `free_mib` beyond it.
pub async fn make_disk(tree: &Path, image: &Path, free_mib: u64) -> Result<()> {
    let listed = Command::new("du").args(["--summarize", "--block-size=1M"]).arg(tree).run().await?.text();
    let used: u64 = listed.split_whitespace().next().and_then(|size| size.parse().ok()).context("du says no size")?;
    // A tenth more for the file system's own tables.
    let size = used + used / 10 + free_mib;
    Command::new("mke2fs")
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0",
            "-m",
            "0",
            "-d",
        ])
        .arg(tree)
        .arg(image)
        .arg(format!("{size}M"))
        .timeout(Duration::from_secs(10 * 60))
        .run()
        .await
        .with_context(|| format!("cannot make the disk {}", image.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ldd_prints() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffc1)\n\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f3)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f4)\n\tlibmissing.so => not found\n";
        assert_eq!(libraries(listed), ["/lib/x86_64-linux-gnu/libz.so.1", "/lib64/ld-linux-x86-64.so.2"]);
    }

    #[test]
    fn a_path_never_leads_out_of_the_tree() {
        let tree = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("usr/lib", tree.path().join("lib")).unwrap();
        let merged = inside(tree.path(), Path::new("/lib/x/libz.so")).unwrap();
        assert_eq!(merged, tree.path().join("usr/lib/x/libz.so"));
        let plain = inside(tree.path(), Path::new("/usr/bin/qemu")).unwrap();
        assert_eq!(plain, tree.path().join("usr/bin/qemu"));
        std::os::unix::fs::symlink("/etc/passwd", &plain).unwrap();
        assert!(!inside(tree.path(), Path::new("/usr/bin/qemu")).unwrap().is_symlink());
    }
}

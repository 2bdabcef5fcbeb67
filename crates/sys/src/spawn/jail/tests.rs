//! The plan without a kernel, and the jail in a real one (as root; nothing of the host is changed by it).

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::super::{ExitStatus, Spawn};
use super::*;

const USER: u32 = 54_321;

fn device(path: &str, source: &str) -> JailEntry {
    JailEntry::Device { path: path.into(), source: source.into() }
}

fn read_only(path: &str, source: impl Into<PathBuf>) -> JailEntry {
    JailEntry::ReadOnly { path: path.into(), source: source.into() }
}

fn writable(path: &str, source: impl Into<PathBuf>) -> JailEntry {
    JailEntry::Writable { path: path.into(), source: source.into() }
}

/// A host on which names tell what a file is.
fn by_name(path: &Path) -> io::Result<Kind> {
    let text = path.to_str().unwrap();
    match text {
        _ if text.contains("gone") => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        _ if text.contains("char") => Ok(Kind::CharacterDevice(0x0103)),
        _ if text.contains("block") => Ok(Kind::BlockDevice(0x0700)),
        _ if text.contains("socket") => Ok(Kind::Other),
        _ if text.ends_with('d') => Ok(Kind::Folder),
        _ => Ok(Kind::File),
    }
}

fn planned(entries: Vec<JailEntry>) -> Result<Vec<Operation>, NoPlan> {
    let credentials = Credentials { uid: 7, gid: 8, groups: vec![] };
    plan(&Jail { mount_point: "/m".into(), entries }, Some(&credentials), by_name)
}

/// One line per operation, as a person would write it.
fn line(operation: &Operation) -> String {
    let of = operation.entry.map(|index| format!("[{index}] ")).unwrap_or_default();
    let text = |text: &CString| text.to_str().unwrap().to_owned();
    let call = match &operation.call {
        Call::Unshare { flags } => format!("unshare {flags:#x}"),
        Call::Mount { source, target, filesystem, flags, data } => {
            format!("mount {} {} {} {flags:#x} {}", text(source), text(target), text(filesystem), text(data))
        }
        Call::Mkdir { path, mode } => format!("mkdir {} {mode:o}", text(path)),
        Call::Mknod { path, mode, device } => format!("mknod {} {mode:o} {device:#x}", text(path)),
        Call::Chown { path, uid, gid } => format!("chown {} {uid}:{gid}", text(path)),
        Call::Chdir { path } => format!("chdir {}", text(path)),
        Call::PivotRoot => "pivot_root".to_owned(),
        Call::Detach => "detach".to_owned(),
    };
    format!("{of}{}: {}", operation.step, call.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[test]
fn the_plan_is_these_calls_in_this_order() {
    let entries = vec![
        device("/dev/kvm", "/host/char"),
        device("/dev/disk/root", "/host/block"),
        read_only("/vmm", "/host/vmm"),
        read_only("/snap", "/host/snapd"),
        writable("/run", "/host/rund"),
        writable("/capture", "/host/file"),
    ];
    let lines: Vec<String> = planned(entries).unwrap().iter().map(line).collect();
    let wanted = "\
namespaces: unshare 0xc020000
namespaces: mount none / 0x44000
jail_root: mount jail /m tmpfs 0xa mode=0755,size=65536,nr_inodes=26
[0] jail_folder: mkdir /m/dev 755
[0] jail_device: mknod /m/dev/kvm 20600 0x103
[0] jail_device: chown /m/dev/kvm 7:8
[1] jail_folder: mkdir /m/dev/disk 755
[1] jail_device: mknod /m/dev/disk/root 60600 0x700
[1] jail_device: chown /m/dev/disk/root 7:8
[2] jail_folder: mknod /m/vmm 100444 0x0
[2] jail_bind: mount /host/vmm /m/vmm 0x1000
[2] jail_bind: mount none /m/vmm 0x1027
[3] jail_folder: mkdir /m/snap 755
[3] jail_bind: mount /host/snapd /m/snap 0x1000
[3] jail_bind: mount none /m/snap 0x1027
[4] jail_folder: mkdir /m/run 755
[4] jail_bind: mount /host/rund /m/run 0x1000
[4] jail_bind: mount none /m/run 0x102e
[5] jail_folder: mknod /m/capture 100444 0x0
[5] jail_bind: mount /host/file /m/capture 0x1000
[5] jail_bind: mount none /m/capture 0x102e
jail_enter: chdir /m
jail_enter: pivot_root
jail_enter: detach
jail_enter: chdir /
jail_seal: mount jail / 0x2b";
    assert_eq!(lines.join("\n"), wanted);
}

#[test]
fn what_cannot_be_planned_names_its_entry() {
    let fine = || read_only("/fine", "/host/f");
    let deep = format!("/{}", ["d"; 9].join("/"));
    let table = [
        (vec![fine(), read_only("x", "/host/f")], (Step::Prepare, Some(1))),
        (vec![fine(), read_only("/", "/host/f")], (Step::Prepare, Some(1))),
        (vec![fine(), read_only("/a/../b", "/host/f")], (Step::Prepare, Some(1))),
        (vec![fine(), read_only("/a/./b", "/host/f")], (Step::Prepare, Some(1))),
        (vec![fine(), read_only("/a//b", "/host/f")], (Step::Prepare, Some(1))),
        (vec![fine(), read_only("/a/", "/host/f")], (Step::Prepare, Some(1))),
        (vec![fine(), read_only(&deep, "/host/f")], (Step::Prepare, Some(1))),
        (vec![fine(), read_only("/a", "host/f")], (Step::Prepare, Some(1))),
        (vec![fine(), read_only("/a", "/host/../f")], (Step::Prepare, Some(1))),
        (vec![fine(), read_only("/a", "/m/f")], (Step::Prepare, Some(1))),
        (vec![fine(), read_only("/a", "/")], (Step::Prepare, Some(1))),
        (vec![fine(), fine()], (Step::Prepare, Some(1))),
        (vec![fine(), read_only("/fine/beneath", "/host/f")], (Step::Prepare, Some(1))),
        (vec![read_only("/a/b", "/host/f"), writable("/a", "/host/d")], (Step::Prepare, Some(1))),
        (vec![fine(), read_only("/a", "/gone")], (Step::JailSource, Some(1))),
        (vec![fine(), read_only("/a", "/char")], (Step::JailSource, Some(1))),
        (vec![fine(), read_only("/a", "/socket")], (Step::JailSource, Some(1))),
        (vec![fine(), device("/a", "/host/f")], (Step::JailSource, Some(1))),
        (vec![fine(), writable("/a", "/socket")], (Step::JailSource, Some(1))),
        (vec![fine(), writable("/a", "/block")], (Step::JailSource, Some(1))),
        (vec![fine(); JAIL_ENTRIES_MAX + 1], (Step::Prepare, None)),
    ];
    for (entries, expected) in table {
        let what = format!("{:?}", entries.last());
        let (step, entry, error) = planned(entries).expect_err(&what);
        assert_eq!((step, entry), expected, "{what}: {error}");
    }
}

/// A folder of the host with what a jail needs, gone at the end.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        assert!(rustix::process::getuid().is_root(), "a jail needs mount namespaces and devices: run this as root");
        let folder = tempfile::tempdir().unwrap();
        for name in ["root", "out", "secret"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        std::fs::write(folder.path().join("data"), "data of the host").unwrap();
        std::fs::write(folder.path().join("secret/key"), "secret").unwrap();
        std::os::unix::fs::chown(folder.path().join("out"), Some(USER), Some(USER)).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// busybox (static), its applets by name, `/dev/null` and `/dev/zero`, a file and a writable folder.
    fn jail(&self) -> Jail {
        let entries = vec![
            read_only("/bin/busybox", "/bin/busybox"),
            device("/dev/null", "/dev/null"),
            device("/dev/zero", "/dev/zero"),
            read_only("/data", self.path("data")),
            writable("/out", self.path("out")),
        ];
        Jail { mount_point: self.path("root"), entries }
    }

    fn shell(&self, script: &str) -> Spawn<'static> {
        let credentials = Credentials { uid: USER, gid: USER, groups: vec![] };
        Spawn::new("/bin/busybox")
            .args(["sh", "-c", &format!("bb=/bin/busybox; {script}")])
            .jail(self.jail())
            .credentials(credentials)
            .drop_capabilities()
            .no_new_privs()
    }
}

/// stdout and stderr of the program, and its code.
fn output(spawn: Spawn<'_>) -> (String, ExitStatus) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let child = spawn.fd(writer.as_fd(), 1).fd(writer.as_fd(), 2).start().unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    (text, child.wait().unwrap())
}

/// The host's mounts that a jail could have made; other tests make other ones meanwhile.
fn mounts(place: &Place) -> String {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let folder = place.folder.path().to_str().unwrap();
    table.lines().filter(|line| line.contains(folder) || line.contains(" tmpfs jail ")).collect()
}

#[test]
fn root_the_inside_of_a_jail_is_its_entries_and_nothing_else() {
    let place = Place::new();
    let (text, status) = output(place.shell("$bb find / | $bb sort"));
    let wanted = "/\n/bin\n/bin/busybox\n/data\n/dev\n/dev/null\n/dev/zero\n/out\n";
    assert_eq!((text.as_str(), status), (wanted, ExitStatus::Exited(0)));
    let (text, _) = output(place.shell("$bb cat /data; cd ..; cd ../..; $bb ls; $bb cat /../../etc/passwd"));
    assert!(text.starts_with("data of the hostbin\ndata\ndev\nout\n"), "{text}");
    assert!(text.contains("can't open '/../../etc/passwd'"), "{text}");
}

#[test]
fn root_devices_work_and_are_the_users_own() {
    let place = Place::new();
    let script = "$bb stat -c '%t %T %u %g %a' /dev/zero; echo gone > /dev/null; $bb head -c 3 /dev/zero | $bb wc -c";
    let (text, status) = output(place.shell(script));
    assert_eq!((text.as_str(), status), (format!("1 5 {USER} {USER} 600\n3\n").as_str(), ExitStatus::Exited(0)));
    assert_eq!(std::fs::metadata("/dev/zero").unwrap().uid(), 0, "the host's own node is as it was");
}

#[test]
fn root_nothing_can_be_written_but_where_it_may() {
    let place = Place::new();
    let tries = ["/x", "/dev/x", "/bin/x", "/data", "/bin/busybox"];
    for path in tries {
        // Not even by root in there, had it the capabilities.
        for spawn in [place.shell(&format!("echo x > {path}")), as_root(&place, &format!("echo x > {path}"))] {
            let (text, status) = output(spawn);
            assert!(text.contains("Read-only file system") || text.contains("Permission denied"), "{path}: {text}");
            assert_ne!(status, ExitStatus::Exited(0), "{path}");
        }
    }
    let script =
        "echo made > /out/file; $bb cp /bin/busybox /out/program; $bb chmod 755 /out/program; /out/program true";
    let (text, status) = output(place.shell(script));
    assert_eq!(std::fs::read_to_string(place.path("out/file")).unwrap(), "made\n");
    assert!(text.contains("Permission denied") && status == ExitStatus::Exited(126), "no programs there: {text}");
}

/// The jail with all of root's rights: what it still cannot do is not a matter of permissions.
fn as_root(place: &Place, script: &str) -> Spawn<'static> {
    Spawn::new("/bin/busybox").args(["sh", "-c", script]).jail(place.jail())
}

#[test]
fn root_a_writable_file_can_be_written_and_nothing_be_made_beside_it() {
    let place = Place::new();
    let (file, beside) = (place.path("one"), place.path("two"));
    for path in [&file, &beside] {
        std::fs::write(path, "").unwrap();
        std::os::unix::fs::chown(path, Some(USER), Some(USER)).unwrap();
    }
    let mut jail = place.jail();
    jail.entries.push(writable("/files/one", &file));
    let script =
        "echo 1 > /files/one; echo 2 > /files/two; /bin/busybox rm /files/one; /bin/busybox mv /files/one /out/x";
    let credentials = Credentials { uid: USER, gid: USER, groups: vec![] };
    let spawn = Spawn::new("/bin/busybox").args(["sh", "-c", script]).jail(jail).credentials(credentials);
    let (text, status) = output(spawn.drop_capabilities().no_new_privs());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "1\n", "{text}");
    assert_eq!(std::fs::read_to_string(&beside).unwrap(), "", "{text}");
    assert_ne!(status, ExitStatus::Exited(0), "{text}");
    assert!(text.contains("can't create /files/two") && text.contains("can't remove '/files/one'"), "{text}");
}

#[test]
fn root_device_nodes_outside_of_its_root_do_nothing() {
    let place = Place::new();
    let script = "bb=/bin/busybox; $bb mknod /out/zero c 1 5; $bb head -c 1 /out/zero";
    let (text, status) = output(as_root(&place, script));
    assert!(place.path("out/zero").metadata().unwrap().file_type().is_char_device());
    assert!(text.contains("Permission denied") && status != ExitStatus::Exited(0), "{text}");
}

#[test]
fn root_set_user_id_means_nothing_in_there() {
    let place = Place::new();
    let program = place.path("id");
    // Not busybox's: that one gives such rights up by itself.
    std::fs::copy("/usr/bin/id", &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let entries = vec![read_only("/id", &program), read_only("/lib", "/usr/lib"), read_only("/lib64", "/usr/lib64")];
    let jail = Jail { mount_point: place.path("root"), entries };
    let credentials = Credentials { uid: USER, gid: USER, groups: vec![] };
    let (text, _) = output(Spawn::new("/id").arg("-u").jail(jail).credentials(credentials));
    assert_eq!(text, format!("{USER}\n"));
}

#[test]
fn root_the_host_does_not_see_the_jail() {
    let place = Place::new();
    let (mut said, tell) = std::io::pipe().unwrap();
    let (hold, release) = std::io::pipe().unwrap();
    let spawn = place.shell("echo up; read line").fd(hold.as_fd(), 0).fd(tell.as_fd(), 1);
    let child = spawn.start().unwrap();
    drop((hold, tell));
    said.read_exact(&mut [0; 3]).unwrap();

    assert_eq!(mounts(&place), "", "while it runs");
    assert_eq!(std::fs::read_dir(place.path("root")).unwrap().count(), 0, "the mount point is an empty folder still");
    let theirs = |file: &str| std::fs::read_link(format!("/proc/{}/ns/{file}", child.pid())).unwrap();
    let ours = |file: &str| std::fs::read_link(format!("/proc/self/ns/{file}")).unwrap();
    for namespace in ["mnt", "ipc", "uts"] {
        assert_ne!(theirs(namespace), ours(namespace), "{namespace}");
    }
    let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", child.pid())).unwrap();
    assert_eq!(table.lines().count(), 4, "the root and three binds, nothing of the host:\n{table}");
    assert!(!table.contains("shared:") && !table.contains("master:"), "{table}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.pid())).unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{set} in {status}");
    }
    assert!(status.contains("NoNewPrivs:\t1") && status.contains(&format!("Uid:\t{USER}\t{USER}")), "{status}");

    drop(release);
    child.wait().unwrap();
    assert_eq!(mounts(&place), "", "after its end");
    std::fs::remove_dir(place.path("root")).expect("nothing holds the mount point");
}

#[test]
fn root_the_network_namespace_is_the_given_one() {
    let place = Place::new();
    let other = std::thread::spawn(|| {
        // SAFETY: only this thread gets a new network namespace; it shares no file table tricks with it.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    let netns = other.join().unwrap();
    let (hold, release) = std::io::pipe().unwrap();
    let child = place.shell("read line").netns(netns.as_fd()).fd(hold.as_fd(), 0).start().unwrap();
    let theirs = std::fs::metadata(format!("/proc/{}/ns/net", child.pid())).unwrap();
    assert_eq!(theirs.ino(), netns.metadata().unwrap().ino());
    drop(release);
    child.wait().unwrap();
}

#[test]
fn root_a_failing_entry_is_named_and_leaves_nothing() {
    let place = Place::new();
    let start = |jail: Jail| Spawn::new("/bin/busybox").arg("true").jail(jail).start().unwrap_err();
    let with = |entry: JailEntry| {
        let mut jail = place.jail();
        jail.entries.push(entry);
        jail
    };
    let gone = start(with(read_only("/gone", "/no/such/file")));
    assert_eq!((gone.step, gone.errno()), (Step::JailSource, libc::ENOENT));
    assert_eq!(gone.entry.as_deref(), Some(Path::new("/gone")));
    assert!(gone.to_string().contains("jail_source, of /gone in its jail"), "{gone}");

    // There is no file system in the kernel that lets a folder be made in this one: an entry's name is too long.
    let long = start(with(read_only(&format!("/dev/{}", "n".repeat(256)), "/bin/busybox")));
    assert_eq!((long.step, long.errno()), (Step::JailFolder, libc::ENAMETOOLONG));
    assert!(long.entry.is_some());

    let nowhere = start(Jail { mount_point: "/no/such/folder".into(), ..place.jail() });
    assert_eq!((nowhere.step, nowhere.errno(), nowhere.entry), (Step::JailRoot, libc::ENOENT, None));
    let outside = Spawn::new("/bin/true").jail(place.jail()).start().unwrap_err();
    assert_eq!((outside.step, outside.errno()), (Step::Exec, libc::ENOENT), "the program's path is one in there");

    assert_eq!(mounts(&place), "");
    assert_eq!(std::fs::read_to_string("/proc/thread-self/children").unwrap(), "");
    assert_eq!(std::fs::read_dir(place.path("root")).unwrap().count(), 0);
}

#[test]
fn root_a_host_that_shares_its_mounts_gets_none_of_them() {
    let place = Place::new();
    // A mount namespace of this thread in which everything is shared, as systemd has it.
    std::thread::scope(|scope| {
        let shared = || {
            // SAFETY: only this thread gets new namespaces and a working directory of its own.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
            let everything = rustix::mount::MountPropagationFlags::SHARED | rustix::mount::MountPropagationFlags::REC;
            rustix::mount::mount_change("/", everything).unwrap();
            let table = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            let before = table();
            assert!(before.contains("shared:"), "{before}");
            assert_eq!(output(place.shell("$bb cat /data")).0, "data of the host");
            assert_eq!(table(), before);
        };
        scope.spawn(shared).join().unwrap();
    });
}

//! Each test starts real programs (busybox or dash's `sh`, coreutils) and looks at what they see.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::*;

const NOBODY: u32 = 65534;

fn shell(script: &str) -> Spawn<'static> {
    Spawn::new("/bin/sh").arg("-c").arg(script).env("PATH", "/usr/bin:/bin")
}

/// Runs the program with its stdout on a pipe and answers all of it.
fn output(spawn: Spawn<'_>) -> (String, ExitStatus) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let child = spawn.fd(writer.as_fd(), 1).start().unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    (text, child.wait().unwrap())
}

fn failure(spawn: Spawn<'_>) -> (Step, i32) {
    let error = spawn.start().unwrap_err();
    (error.step, error.errno())
}

/// The calling process is a test's own under nextest, so no other test's children or descriptors are in these.
fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn children() -> String {
    std::fs::read_to_string("/proc/thread-self/children").unwrap()
}

fn require_root() {
    assert!(rustix::process::getuid().is_root(), "this test changes credentials: run it as root");
}

#[test]
fn reports_codes_and_signals() {
    for (script, expected) in [
        ("exit 0", ExitStatus::Exited(0)),
        ("exit 7", ExitStatus::Exited(7)),
        ("exit 255", ExitStatus::Exited(255)),
        ("kill -9 $$", ExitStatus::Signalled(9)),
        ("kill -15 $$", ExitStatus::Signalled(15)),
    ] {
        let child = shell(script).start().unwrap();
        assert_eq!(child.wait().unwrap(), expected, "{script}");
        assert_eq!(child.wait().unwrap(), expected, "{script}: the second answer");
        assert_eq!(child.try_wait().unwrap(), Some(expected), "{script}: the third answer");
    }
    assert_eq!(ExitStatus::Signalled(9).shell_code(), 137);
}

#[test]
fn the_environment_and_the_arguments_are_exact() {
    let program = Spawn::new("/usr/bin/env").env("A", "1").env("B", "x=y z").env("A", "2");
    assert_eq!(output(program).0, "B=x=y z\nA=2\n");
    let program = Spawn::new("/bin/sh").arg0("-name").args(["-c", "echo \"$0|$1|$#\"", "zero", "a b", ""]);
    assert_eq!(output(program).0, "zero|a b|2\n");
    let (text, _) = output(Spawn::new("/bin/cat").arg0("dog").arg("/proc/self/cmdline"));
    assert_eq!(text, "dog\0/proc/self/cmdline\0");
}

#[test]
fn descriptors_reach_their_numbers_even_when_they_collide() {
    let files: Vec<_> = (0..4).map(|n| named_file(&format!("content {n}"))).collect();
    let numbers: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
    // A rotation: each file's target is the number of the next one; one keeps its number; one is mapped twice.
    let mut spawn = Spawn::new("/bin/cat");
    for number in [numbers[0], numbers[1], numbers[2], numbers[3], 40] {
        spawn = spawn.arg(format!("/proc/self/fd/{number}"));
    }
    for (file, target) in files.iter().zip([numbers[1], numbers[2], numbers[0], numbers[3]]) {
        spawn = spawn.fd(file.as_fd(), target);
    }
    let (text, status) = output(spawn.fd(files[1].as_fd(), 40));
    assert_eq!(text, "content 2\ncontent 0\ncontent 1\ncontent 3\ncontent 1\n");
    assert_eq!(status, ExitStatus::Exited(0));
}

#[test]
fn descriptors_reach_numbers_that_are_free_here() {
    let (low, high) = (named_file("low"), named_file("high"));
    // One of these is where a careless copy of `high` would be.
    let free = rustix::io::dup(&low).unwrap().as_raw_fd();
    for target in free..free + 16 {
        let spawn = Spawn::new("/bin/cat").args([format!("/proc/self/fd/{target}"), "/proc/self/fd/60".into()]);
        let (text, _) = output(spawn.fd(low.as_fd(), target).fd(high.as_fd(), 60));
        assert_eq!(text, "low\nhigh\n", "{target}");
    }
}

fn named_file(content: &str) -> File {
    let path = std::env::temp_dir().join(format!("wrenn-spawn-{}-{}", std::process::id(), content.replace(' ', "-")));
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file.write_all(b"\n").unwrap();
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).unwrap();
    file
}

#[test]
fn nothing_else_is_inherited() {
    // Not close-on-exec, so that only `close_range` can have closed it; beyond and between the mapped numbers.
    let leaked = rustix::io::dup(File::open("/dev/null").unwrap()).unwrap();
    let others = [10, 11, 500].map(|number| rustix::io::fcntl_dupfd_cloexec(&leaked, number).unwrap());
    for other in &others {
        rustix::io::fcntl_setfd(other, rustix::io::FdFlags::empty()).unwrap();
    }
    let (text, _) = output(Spawn::new("/bin/ls").args(["-l", "/proc/self/fd"]).fd(leaked.as_fd(), 9));
    let links: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once(':')?.1.split_once(' ')?.1)).collect();
    let numbers: Vec<&str> = links.iter().map(|link| link.split(' ').next().unwrap()).collect();
    assert_eq!(numbers, ["0", "1", "2", "3", "9"], "{text}");
    assert_eq!((links[0], links[2]), ("0 -> /dev/null", "2 -> /dev/null"));
    assert!(links[3].ends_with("/fd"), "3 is the folder that ls reads: {text}");
}

#[test]
fn signals_are_back_at_their_defaults() {
    // Rust's runtime ignores SIGPIPE; block one signal on top.
    // SAFETY: plain signal set manipulation on this thread.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, libc::SIGUSR1);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
    let (text, _) = output(Spawn::new("/bin/cat").arg("/proc/self/status"));
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert_eq!(line("SigIgn:"), "SigIgn:\t0000000000000000");
    assert_eq!(line("SigBlk:"), "SigBlk:\t0000000000000000");
    let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    assert!(own.contains("SigBlk:\t0000000000000200"), "our own mask is as it was");
}

/// How often [`count_in_child`] ran in another process than the test's.
static HANDLED_IN_CHILD: AtomicU32 = AtomicU32::new(0);
static TEST_PID: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_in_child(_signal: i32) {
    // SAFETY: no arguments; a plain system call.
    let pid = unsafe { libc::syscall(libc::SYS_getpid) } as u32;
    if pid != TEST_PID.load(Ordering::SeqCst) {
        HANDLED_IN_CHILD.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn no_signal_handler_runs_in_a_child_that_shares_our_memory() {
    TEST_PID.store(std::process::id(), Ordering::SeqCst);
    // A group of our own, which is then showered with signals; the children are born into it.
    rustix::process::setpgid(None, None).unwrap();
    // SAFETY: the handler makes a system call and counts; zero is a valid rest of a `sigaction`.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count_in_child as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                rustix::process::kill_current_process_group(Signal::USR1).unwrap();
            }
        });
        for _ in 0..200 {
            // Most die of the signal once it is unblocked, just before or after the program begins.
            Spawn::new("/bin/true").start().unwrap().wait().unwrap();
        }
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!(HANDLED_IN_CHILD.load(Ordering::SeqCst), 0);
}

#[test]
fn each_refusal_names_its_step() {
    let folder = tempfolder("steps");
    let plain = folder.join("not-executable");
    std::fs::write(&plain, "text").unwrap();
    let null = File::open("/dev/null").unwrap();
    let table = [
        ("relative program", failure(Spawn::new("sh")), (Step::Prepare, 0)),
        ("NUL in an argument", failure(Spawn::new("/bin/sh").arg("a\0b")), (Step::Prepare, 0)),
        ("= in a name", failure(Spawn::new("/bin/sh").env("A=B", "c")), (Step::Prepare, 0)),
        ("mapped twice", failure(shell("").fd(null.as_fd(), 5).fd(null.as_fd(), 5)), (Step::Prepare, 0)),
        ("negative target", failure(shell("").fd(null.as_fd(), -1)), (Step::Prepare, 0)),
        ("no program", failure(Spawn::new("/no/such/program")), (Step::Exec, libc::ENOENT)),
        ("not executable", failure(Spawn::new(&plain)), (Step::Exec, libc::EACCES)),
        ("a folder", failure(Spawn::new("/tmp")), (Step::Exec, libc::EACCES)),
        ("no cwd", failure(shell("").cwd("/no/such/folder")), (Step::WorkingDirectory, libc::ENOENT)),
        ("cwd is a file", failure(shell("").cwd(&plain)), (Step::WorkingDirectory, libc::ENOTDIR)),
        ("not a netns", failure(shell("").netns(null.as_fd())), (Step::Netns, libc::EINVAL)),
        ("not a cgroup", failure(shell("").cgroup(null.as_fd())), (Step::Clone, libc::EBADF)),
        (
            "not a terminal",
            failure(shell("").session().controlling_terminal()),
            (Step::ControllingTerminal, libc::ENOTTY),
        ),
        ("bad oom score", failure(shell("").oom_score_adj(5000)), (Step::OomScore, libc::EINVAL)),
        (
            "soft above hard",
            failure(shell("").rlimit(Rlimit { resource: Resource::OpenFiles, soft: Some(9), hard: Some(8) })),
            (Step::Rlimit, libc::EINVAL),
        ),
    ];
    std::fs::remove_dir_all(&folder).unwrap();
    for (what, actual, expected) in table {
        assert_eq!(actual, expected, "{what}");
    }
    assert_eq!(children(), "", "every failed child is reaped");
}

#[test]
fn not_found_and_not_executable_have_the_codes_of_a_shell() {
    assert_eq!(Spawn::new("/no/such/program").start().unwrap_err().shell_code(), Some(127));
    assert_eq!(Spawn::new("/etc/passwd").start().unwrap_err().shell_code(), Some(126));
    assert_eq!(shell("").cwd("/no/such/folder").start().unwrap_err().shell_code(), None);
}

fn tempfolder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("wrenn-spawn-{}-{name}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    folder
}

#[test]
fn finds_programs_as_a_shell_does() {
    let folder = tempfolder("path");
    std::fs::write(folder.join("tool"), "").unwrap();
    let find = |name: &str, path: &str| find_program(OsStr::new(name), OsStr::new(path), &folder);
    let code = |answer: io::Result<PathBuf>| answer.unwrap_err().raw_os_error().unwrap();
    assert_eq!(find("sh", "/no/such:/bin").unwrap(), Path::new("/bin/sh"));
    assert_eq!(find("./tool", "/bin").unwrap(), folder.join("./tool"));
    assert_eq!(find("/bin/x", "").unwrap(), Path::new("/bin/x"));
    assert_eq!(code(find("no-such-tool", "/bin")), libc::ENOENT);
    assert_eq!(code(find("", "/bin")), libc::ENOENT);
    assert_eq!(code(find("tool", folder.to_str().unwrap())), libc::EACCES);
    std::fs::set_permissions(folder.join("tool"), std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(find("tool", folder.to_str().unwrap()).unwrap(), folder.join("tool"));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn five_hundred_spawns_leave_no_zombie_and_no_descriptor() {
    let before = open_descriptors();
    for n in 0..250 {
        let child = Spawn::new("/bin/true").start().unwrap();
        assert_eq!(child.wait().unwrap(), ExitStatus::Exited(0), "{n}");
        assert_eq!(failure(Spawn::new("/no/such/program")).0, Step::Exec);
    }
    assert_eq!(open_descriptors(), before);
    assert_eq!(children(), "");
}

#[test]
fn many_threads_spawn_at_once() {
    let before = open_descriptors();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for n in 0..40 {
                    let code = (thread * 40 + n) % 256;
                    let (text, status) = output(shell(&format!("echo {code}; exit {code}")));
                    assert_eq!((text, status), (format!("{code}\n"), ExitStatus::Exited(code)));
                }
            });
        }
    });
    assert_eq!(open_descriptors(), before);
}

#[test]
fn a_signal_to_a_reaped_process_is_refused_not_misdirected() {
    let child = shell("exec sleep 60").process_group().start().unwrap();
    assert!(child.try_wait().unwrap().is_none());
    assert!(child.signal(Signal::TERM).unwrap());
    assert_eq!(child.wait().unwrap(), ExitStatus::Signalled(libc::SIGTERM));
    assert!(!child.signal(Signal::TERM).unwrap());
    assert!(!child.signal_group(Signal::TERM).unwrap());
}

#[test]
fn a_group_signal_reaches_the_grandchildren() {
    // The pipe ends only when both the shell and its background child are gone.
    let (mut reader, writer) = std::io::pipe().unwrap();
    let child = shell("sleep 60 & echo up; wait").process_group().fd(writer.as_fd(), 1).start().unwrap();
    drop(writer);
    let mut up = [0; 3];
    reader.read_exact(&mut up).unwrap();
    assert!(child.signal_group(Signal::KILL).unwrap());
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap(), ExitStatus::Signalled(libc::SIGKILL));
}

#[test]
fn a_group_outlives_its_leader_and_is_still_reached() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let child = shell("sleep 60 & exit 3").process_group().fd(writer.as_fd(), 1).start().unwrap();
    drop(writer);
    assert_eq!(child.wait().unwrap(), ExitStatus::Exited(3));
    let reached = child.signal_group(Signal::KILL).unwrap();
    assert!(reached, "this kernel is older than 6.9, where the group of a reaped leader is out of reach");
    assert_eq!(reader.read_to_end(&mut Vec::new()).unwrap(), 0);
}

#[test]
fn the_pidfd_says_when_the_process_has_ended() {
    use rustix::event::{PollFd, PollFlags, poll};
    let (reader, writer) = std::io::pipe().unwrap();
    let child = shell("read line").fd(reader.as_fd(), 0).start().unwrap();
    let readable = |timeout| poll(&mut [PollFd::new(&child, PollFlags::IN)], Some(&timeout)).unwrap();
    assert_eq!(readable(rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }), 0);
    drop((reader, writer));
    assert_eq!(readable(rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 }), 1);
    assert!(child.try_wait().unwrap().is_some());
}

#[test]
fn sessions_groups_nice_umask_and_limits_are_set() {
    let limit = Rlimit { resource: Resource::OpenFiles, soft: Some(64), hard: Some(128) };
    let script = "read pid name state ppid group session rest < /proc/$$/stat; echo $((pid-group)) $((pid-session)); \
                  umask; ulimit -n; ulimit -H -n; nice; cat /proc/$$/oom_score_adj; pwd";
    let spawn = shell(script).session().umask(0o077).rlimit(limit).nice(5).oom_score_adj(300).cwd("/usr");
    assert_eq!(output(spawn).0, "0 0\n0077\n64\n128\n5\n300\n/usr\n");
    let (text, _) = output(shell("read pid n s p group rest < /proc/$$/stat; echo $((pid-group))").process_group());
    assert_eq!(text, "0\n");
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_ne!(own.trim(), "300", "ours is as it was although we shared the memory");
}

#[test]
fn a_terminal_becomes_the_controlling_one() {
    let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let terminal = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty()).unwrap();
    let spawn = shell("exec 3>/dev/tty && echo mine").fd(terminal.as_fd(), 0).session().controlling_terminal();
    assert_eq!(output(spawn), ("mine\n".to_owned(), ExitStatus::Exited(0)));
}

#[test]
fn the_child_dies_with_the_thread_that_started_it() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let child = std::thread::scope(|scope| {
        let start = || shell("exec sleep 60").fd(writer.as_fd(), 1).parent_death_signal(Signal::KILL).start().unwrap();
        scope.spawn(start).join().unwrap()
    });
    drop(writer);
    assert_eq!(reader.read_to_end(&mut Vec::new()).unwrap(), 0);
    assert_eq!(child.wait().unwrap(), ExitStatus::Signalled(libc::SIGKILL));
}

#[test]
fn root_credentials_are_those_of_the_user_and_nothing_more() {
    require_root();
    let credentials = Credentials { uid: NOBODY, gid: NOBODY, groups: vec![100, 1234] };
    let (text, _) = output(Spawn::new("/bin/cat").arg("/proc/self/status").credentials(credentials).no_new_privs());
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert_eq!(line("Uid:"), "Uid:\t65534\t65534\t65534\t65534");
    assert_eq!(line("Gid:"), "Gid:\t65534\t65534\t65534\t65534");
    assert_eq!(line("Groups:").trim_end(), "Groups:\t100 1234");
    assert_eq!(line("CapEff:"), "CapEff:\t0000000000000000");
    assert_eq!(line("CapPrm:"), "CapPrm:\t0000000000000000");
    assert_eq!(line("NoNewPrivs:"), "NoNewPrivs:\t1");
    assert!(rustix::process::getuid().is_root(), "our own threads keep their user");
}

#[test]
fn root_every_capability_set_can_be_emptied_also_for_root() {
    require_root();
    let (text, _) = output(Spawn::new("/bin/cat").arg("/proc/self/status").drop_capabilities());
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(text.contains(&format!("{name}:\t0000000000000000")), "{name} in {text}");
    }
}

#[test]
fn root_capabilities_can_be_dropped_together_with_the_user() {
    require_root();
    let credentials = Credentials { uid: NOBODY, gid: NOBODY, groups: vec![] };
    let spawn = Spawn::new("/bin/cat").arg("/proc/self/status").credentials(credentials).drop_capabilities();
    let (text, _) = output(spawn);
    assert!(text.contains("Uid:\t65534\t") && text.contains("CapBnd:\t0000000000000000"), "{text}");
}

#[test]
fn root_the_folder_is_entered_with_the_rights_of_the_user() {
    require_root();
    let folder = tempfolder("closed");
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    let nobody = Credentials { uid: NOBODY, gid: NOBODY, groups: vec![] };
    let refused = failure(shell("").cwd(&folder).credentials(nobody));
    std::fs::remove_dir(&folder).unwrap();
    assert_eq!(refused, (Step::WorkingDirectory, libc::EACCES));
}

#[test]
fn root_the_death_signal_survives_the_change_of_user() {
    require_root();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let nobody = Credentials { uid: NOBODY, gid: NOBODY, groups: vec![] };
    let child = std::thread::scope(|scope| {
        let spawn = shell("exec sleep 60").fd(writer.as_fd(), 1).credentials(nobody).parent_death_signal(Signal::KILL);
        scope.spawn(|| spawn.start().unwrap()).join().unwrap()
    });
    drop(writer);
    assert_eq!(reader.read_to_end(&mut Vec::new()).unwrap(), 0);
    assert_eq!(child.wait().unwrap(), ExitStatus::Signalled(libc::SIGKILL));
}

#[test]
fn root_the_network_namespace_is_entered() {
    require_root();
    let other = std::thread::spawn(|| {
        // SAFETY: only this thread gets a new network namespace; it shares no file table tricks with it.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    let netns = other.join().unwrap();
    let (inside, _) = output(Spawn::new("/bin/ls").arg("/sys/class/net").netns(netns.as_fd()));
    let (id, _) = output(Spawn::new("/bin/readlink").arg("/proc/self/ns/net").netns(netns.as_fd()));
    let inode = rustix::fs::fstat(&netns).unwrap().st_ino;
    assert_eq!(id.trim(), format!("net:[{inode}]"), "{inside}");
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_ne!(own.to_str().unwrap(), id.trim(), "we stay where we were");
}

#[test]
fn root_the_child_is_born_into_its_cgroup() {
    require_root();
    let Some(mount) = cgroup2_mount() else { panic!("no cgroup v2 is mounted here: mount -t cgroup2 none FOLDER") };
    let folder = mount.join(format!("wrenn-spawn-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let cgroup = File::open(&folder).unwrap();
    let (text, _) = output(Spawn::new("/bin/cat").arg("/proc/self/cgroup").cgroup(cgroup.as_fd()));
    remove_when_empty(&folder);
    let expected = format!("/{}", folder.file_name().unwrap().to_str().unwrap());
    let line = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    assert!(line.ends_with(&expected), "{text}");
}

fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.find(|fields| fields[2] == "cgroup2").map(|fields| PathBuf::from(fields[1]))
}

/// A cgroup may stay busy for a moment after its last process was reaped.
fn remove_when_empty(folder: &Path) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while let Err(error) = std::fs::remove_dir(folder) {
        assert!(Instant::now() < deadline, "cannot remove {}: {error}", folder.display());
        std::thread::yield_now();
    }
}

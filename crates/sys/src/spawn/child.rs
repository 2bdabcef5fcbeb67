//! The child's side of a spawn: from `clone3` to `execve`, system calls only.
//!
//! The child shares the parent's memory (`CLONE_VM`) and the calling thread sleeps until the child is gone from it
//! (`CLONE_VFORK`). Why this is sound:
//!
//! - *Its own stack.* The child never touches the frames of the sleeping thread; the stack is unmapped after it.
//! - *No lock, no allocation, no panic.* Other threads run on and may hold any lock; [`run`] makes system calls and walks
//!   slices with iterators, nothing else.
//! - *Thread-local `errno`* is that of the sleeping thread, which does not look at it meanwhile.
//! - *No signal handler runs in it.* All signals are blocked before `clone3` and unblocked when dispositions are default.
//! - *Per-process state is its own.* Without `CLONE_FS`, `CLONE_FILES`, `CLONE_SIGHAND` and `CLONE_THREAD` the working
//!   directory, umask, descriptors, dispositions, limits and credentials it changes are not ours. Credentials are set by
//!   raw system calls: the C library's wrappers would change all threads of the parent.
//! - *Another user cannot reach our memory through it.* The kernel makes the shared memory non-dumpable in the very
//!   step that changes the credentials, which refuses ptrace and /proc/PID/mem to that user.

use std::arch::asm;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::process::Signal;

use super::jail::{Call, Operation};
use super::{Child, Credentials, Resource, Rlimit, Step};

#[cfg(not(target_arch = "x86_64"))]
compile_error!("spawn needs `clone3` on a stack of its own, which is written for x86_64 only so far");

/// The child's stack in bytes. It needs a few KiB; the lowest page is a guard.
const STACK_BYTES: usize = 64 * 1024;
const GUARD_BYTES: usize = 4096;

/// libc's constant is an `int`, into which it does not fit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Since Linux 6.9; libc does not name it yet.
const PIDFD_SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;

/// A step that failed.
#[derive(Clone, Copy)]
pub(super) struct Failure {
    pub step: Step,
    /// Index of the jail's entry it was for.
    pub entry: Option<usize>,
    pub errno: c_int,
}

impl Failure {
    fn of(step: Step, errno: c_int) -> Self {
        Self { step, entry: None, errno }
    }
}

/// What the child is to do, in values it can use without allocating.
pub(super) struct Request {
    pub program: CString,
    pub argv: Vec<CString>,
    pub envp: Vec<CString>,
    pub cwd: CString,
    /// (our descriptor, the program's number), ascending by the latter.
    pub mappings: Vec<(RawFd, RawFd)>,
    pub credentials: Option<Credentials>,
    pub session: bool,
    pub process_group: bool,
    pub controlling_terminal: bool,
    pub parent_death_signal: Option<c_int>,
    pub cgroup: Option<RawFd>,
    pub netns: Option<RawFd>,
    /// What builds and enters the jail; empty without one.
    pub root: Vec<Operation>,
    pub no_new_privs: bool,
    pub drop_capabilities: bool,
    pub rlimits: Vec<Rlimit>,
    pub nice: Option<c_int>,
    pub oom_score_adj: Option<CString>,
    pub umask: u32,
}

/// A [`Request`] with the arrays `execve` wants, and room for the child's report.
pub(super) struct Prepared {
    request: Request,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    /// Where the child keeps the copies of the mapped descriptors between the two rounds of [`map_descriptors`].
    staged: Vec<RawFd>,
    parent: libc::pid_t,
    failure: Option<Failure>,
}

impl Prepared {
    pub(super) fn new(request: Request) -> Self {
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
        };
        Self {
            argv: pointers(&request.argv),
            envp: pointers(&request.envp),
            staged: vec![-1; request.mappings.len()],
            parent: rustix::process::getpid().as_raw_nonzero().get(),
            failure: None,
            request,
        }
    }
}

/// Starts the child and returns once it has executed the program or failed.
pub(super) fn launch(prepared: &mut Prepared) -> Result<Child, Failure> {
    let stack = Stack::new().map_err(|error| Failure::of(Step::Clone, error.raw_os_error().unwrap_or(libc::ENOMEM)))?;
    let blocked = SignalsBlocked::new();
    let cloned = clone_into(prepared, &stack);
    drop(blocked);
    drop(stack);
    let child = cloned.map_err(|errno| Failure::of(Step::Clone, errno))?;
    match prepared.failure {
        None => Ok(child),
        Some(failure) => {
            // It has ended or is about to; an error means that somebody else reaps for this process.
            child.wait().ok();
            Err(failure)
        }
    }
}

fn clone_into(prepared: &mut Prepared, stack: &Stack) -> Result<Child, c_int> {
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD;
    // SAFETY: all of `clone_args` is plain numbers, for which zero is "not used".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags as u64;
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.stack = stack.base as u64;
    args.stack_size = STACK_BYTES as u64;
    if let Some(cgroup) = prepared.request.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup as u64;
    }
    // SAFETY: the stack is mapped and used by nobody else, all signals are blocked (both upheld by `launch`), and
    // `prepared` is not touched here until the child is gone, because this thread sleeps that long.
    let answer = unsafe { clone3(&args, child_main, ptr::from_mut(prepared).cast()) };
    if answer < 0 {
        return Err(-answer as c_int);
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child::new(answer as u32, pidfd))
}

/// `clone3`, after which the child calls `entry(argument)` on the stack named in `args`. Returns the pid or -errno.
///
/// # Safety
/// `args` names a stack that nobody else uses; `entry` never returns and does only what a child that shares our memory
/// may; `argument` is what `entry` expects and outlives the child's time in our memory.
unsafe fn clone3(args: &libc::clone_args, entry: extern "C" fn(*mut c_void) -> c_int, argument: *mut c_void) -> isize {
    let answer: isize;
    // SAFETY: upheld by the caller. The system call clobbers rcx and r11 only; both operands of the child's branch are
    // therefore in other registers (`out`, not `lateout`), which the child inherits. The stack's top is aligned to 16
    // bytes, as `call` wants it.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {argument}",
            "call {entry}",
            "ud2",
            "2:",
            entry = in(reg) entry,
            argument = in(reg) argument,
            inlateout("rax") libc::SYS_clone3 as isize => answer,
            in("rdi") ptr::from_ref(args),
            in("rsi") size_of::<libc::clone_args>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    answer
}

extern "C" fn child_main(prepared: *mut c_void) -> c_int {
    // SAFETY: `clone_into` passes its exclusive reference and sleeps while we use it.
    let prepared = unsafe { &mut *prepared.cast::<Prepared>() };
    let Err(failure) = run(prepared);
    prepared.failure = Some(failure);
    // SAFETY: `_exit` runs no handlers and is always allowed.
    unsafe { libc::_exit(127) }
}

/// The steps in their order; each comment says why it is where it is.
fn run(prepared: &mut Prepared) -> Result<std::convert::Infallible, Failure> {
    let request = &prepared.request;
    enter_session(request)?;
    enter_netns(request)?;
    // These need privileges that the change of credentials takes away.
    set_oom_score(request)?;
    set_nice(request)?;
    // Before the limits: staging takes high numbers. After netns: the numbers given by the caller are gone then.
    map_descriptors(&request.mappings, &mut prepared.staged)?;
    take_terminal(request)?;
    // After everything that names a file of the host, before the rights to mount and to make devices are gone.
    enter_jail(&request.root)?;
    set_rlimits(request)?;
    drop_bounding_set(request)?;
    set_credentials(request)?;
    drop_capabilities(request)?;
    // After the credentials: changing them resets it.
    set_parent_death_signal(request, prepared.parent)?;
    forbid_new_privileges(request)?;
    // After the credentials: the folder must be open to the user, not to us.
    enter_folder(request)?;
    reset_signals()?;
    Err(execute(prepared))
}

fn check(step: Step, answer: impl Into<i64>) -> Result<(), Failure> {
    if answer.into() == -1 { Err(Failure::of(step, errno())) } else { Ok(()) }
}

fn errno() -> c_int {
    // SAFETY: the address of this thread's errno is always valid.
    unsafe { *libc::__errno_location() }
}

fn enter_session(request: &Request) -> Result<(), Failure> {
    if request.session {
        // SAFETY: no arguments.
        check(Step::Session, unsafe { libc::setsid() })?;
    } else if request.process_group {
        // SAFETY: plain numbers.
        check(Step::ProcessGroup, unsafe { libc::setpgid(0, 0) })?;
    }
    Ok(())
}

fn enter_netns(request: &Request) -> Result<(), Failure> {
    let Some(netns) = request.netns else { return Ok(()) };
    // SAFETY: plain numbers; a wrong descriptor is an error, nothing else.
    check(Step::Netns, unsafe { libc::setns(netns, libc::CLONE_NEWNET) })
}

fn set_oom_score(request: &Request) -> Result<(), Failure> {
    let Some(score) = &request.oom_score_adj else { return Ok(()) };
    // SAFETY: the paths and buffers are NUL-terminated and outlive the calls; the descriptor is our own.
    unsafe {
        let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        check(Step::OomScore, fd)?;
        let bytes = score.to_bytes();
        check(Step::OomScore, libc::write(fd, bytes.as_ptr().cast(), bytes.len()) as i64)?;
        check(Step::OomScore, libc::close(fd))
    }
}

fn set_nice(request: &Request) -> Result<(), Failure> {
    let Some(nice) = request.nice else { return Ok(()) };
    // SAFETY: plain numbers.
    check(Step::Nice, unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) })
}

/// Brings each descriptor to its number and closes all others.
///
/// Two rounds, because a target may be the number of another source: first copies above every number involved, then
/// from there to the targets.
fn map_descriptors(mappings: &[(RawFd, RawFd)], staged: &mut [RawFd]) -> Result<(), Failure> {
    let highest = mappings.iter().map(|(source, target)| (*source).max(*target)).max().unwrap_or(2);
    for ((source, _), copy) in mappings.iter().zip(staged.iter_mut()) {
        // SAFETY: plain numbers; a wrong descriptor is an error, nothing else.
        *copy = unsafe { libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, highest.saturating_add(1)) };
        check(Step::Descriptors, *copy)?;
    }
    for ((_, target), copy) in mappings.iter().zip(staged.iter()) {
        // SAFETY: the child's table is its own, so whatever had this number is ours to replace.
        check(Step::Descriptors, unsafe { libc::dup2(*copy, *target) })?;
    }
    let mut first = 0;
    for (_, target) in mappings {
        close_between(first, *target)?;
        first = target.saturating_add(1);
    }
    close_between(first, RawFd::MAX)
}

/// Closes the descriptors of `first..end`.
fn close_between(first: RawFd, end: RawFd) -> Result<(), Failure> {
    if first >= end {
        return Ok(());
    }
    // SAFETY: the child's table is its own; nothing in it uses these descriptors any more.
    check(Step::Descriptors, unsafe { libc::syscall(libc::SYS_close_range, first, end - 1, 0) })
}

fn take_terminal(request: &Request) -> Result<(), Failure> {
    if !request.controlling_terminal {
        return Ok(());
    }
    // SAFETY: TIOCSCTTY takes a plain number: 0, do not steal it from another session.
    check(Step::ControllingTerminal, unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })
}

fn enter_jail(root: &[Operation]) -> Result<(), Failure> {
    if !root.is_empty() {
        // The modes of the plan are meant literally; the program's own mask is set by `enter_folder`.
        // SAFETY: a plain number; cannot fail.
        unsafe { libc::umask(0) };
    }
    for Operation { step, entry, call } in root {
        check(*step, perform(call)).map_err(|failure| Failure { entry: *entry, ..failure })?;
    }
    Ok(())
}

/// One call of the jail's plan; -1 and `errno`, or 0.
fn perform(call: &Call) -> i64 {
    // SAFETY: every string is NUL-terminated and owned by the plan, which outlives the calls; the rest is plain numbers.
    // The namespaces, the root and the working directory that change are the child's own (no CLONE_FS).
    unsafe {
        match call {
            Call::Unshare { flags } => i64::from(libc::unshare(*flags)),
            Call::Mount { source, target, filesystem, flags, data } => i64::from(libc::mount(
                source.as_ptr(),
                target.as_ptr(),
                filesystem.as_ptr(),
                *flags,
                data.as_ptr().cast(),
            )),
            Call::Mkdir { path, mode } => i64::from(libc::mkdir(path.as_ptr(), *mode)),
            Call::Mknod { path, mode, device } => i64::from(libc::mknod(path.as_ptr(), *mode, *device)),
            Call::Chown { path, uid, gid } => i64::from(libc::lchown(path.as_ptr(), *uid, *gid)),
            Call::Chdir { path } => i64::from(libc::chdir(path.as_ptr())),
            Call::PivotRoot => libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()),
            Call::Detach => i64::from(libc::umount2(c".".as_ptr(), libc::MNT_DETACH)),
        }
    }
}

fn set_rlimits(request: &Request) -> Result<(), Failure> {
    for limit in &request.rlimits {
        let value = libc::rlimit {
            rlim_cur: limit.soft.unwrap_or(libc::RLIM_INFINITY),
            rlim_max: limit.hard.unwrap_or(libc::RLIM_INFINITY),
        };
        // SAFETY: the structure outlives the call.
        check(Step::Rlimit, unsafe { libc::setrlimit(resource_number(limit.resource), &value) })?;
    }
    Ok(())
}

fn resource_number(resource: Resource) -> libc::__rlimit_resource_t {
    match resource {
        Resource::AddressSpace => libc::RLIMIT_AS,
        Resource::Core => libc::RLIMIT_CORE,
        Resource::Cpu => libc::RLIMIT_CPU,
        Resource::FileSize => libc::RLIMIT_FSIZE,
        Resource::LockedMemory => libc::RLIMIT_MEMLOCK,
        Resource::OpenFiles => libc::RLIMIT_NOFILE,
        Resource::Processes => libc::RLIMIT_NPROC,
        Resource::Stack => libc::RLIMIT_STACK,
    }
}

/// Empties the bounding set; needs CAP_SETPCAP, so before the credentials.
fn drop_bounding_set(request: &Request) -> Result<(), Failure> {
    if !request.drop_capabilities {
        return Ok(());
    }
    for capability in 0..64 {
        // SAFETY: plain numbers.
        let answer = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match check(Step::Capabilities, answer) {
            // Past the last capability this kernel knows.
            Err(Failure { errno: libc::EINVAL, .. }) => break,
            other => other?,
        }
    }
    Ok(())
}

fn set_credentials(request: &Request) -> Result<(), Failure> {
    let Some(Credentials { uid, gid, groups }) = &request.credentials else { return Ok(()) };
    let (uid, gid) = (*uid, *gid);
    // SAFETY: raw calls on purpose (the C library's would change the parent's threads); the group list outlives its call.
    unsafe {
        check(Step::Groups, libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        check(Step::Gid, libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(Step::Uid, libc::syscall(libc::SYS_setresuid, uid, uid, uid))
    }
}

/// Empties the remaining sets, for the case that the user stays 0.
fn drop_capabilities(request: &Request) -> Result<(), Failure> {
    const VERSION_3: u32 = 0x2008_0522;
    if !request.drop_capabilities {
        return Ok(());
    }
    let header = [VERSION_3, 0_u32];
    let no_capabilities = [0_u32; 6];
    // SAFETY: header (version, pid 0 = self) and data (two times effective, permitted, inheritable) are as capset(2)
    // wants them for version 3 and outlive the call.
    unsafe {
        check(Step::Capabilities, libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))?;
        check(Step::Capabilities, libc::syscall(libc::SYS_capset, header.as_ptr(), no_capabilities.as_ptr()))
    }
}

fn set_parent_death_signal(request: &Request, parent: libc::pid_t) -> Result<(), Failure> {
    let Some(signal) = request.parent_death_signal else { return Ok(()) };
    // SAFETY: plain numbers.
    check(Step::ParentDeathSignal, unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) })?;
    // SAFETY: no arguments.
    let parent_now = unsafe { libc::getppid() };
    // If it died before the call above there will be no signal.
    if parent_now == parent { Ok(()) } else { Err(Failure::of(Step::ParentDeathSignal, libc::ESRCH)) }
}

fn forbid_new_privileges(request: &Request) -> Result<(), Failure> {
    if !request.no_new_privs {
        return Ok(());
    }
    // SAFETY: plain numbers.
    check(Step::NoNewPrivs, unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
}

fn enter_folder(request: &Request) -> Result<(), Failure> {
    // SAFETY: the path is NUL-terminated and outlives the call; umask takes a plain number and cannot fail.
    unsafe {
        libc::umask(request.umask);
        check(Step::WorkingDirectory, libc::chdir(request.cwd.as_ptr()))
    }
}

/// Every disposition to its default (`execve` would keep the ignored ones), then nothing blocked.
fn reset_signals() -> Result<(), Failure> {
    // The kernel's `sigaction` (handler, flags, restorer, mask): zero is SIG_DFL. Raw calls, because the C library
    // refuses the two signals it uses itself, and ignoring those can be inherited too.
    const DEFAULT: [u64; 4] = [0; 4];
    const SIGSET_BYTES: usize = 8;
    let nothing: *mut u64 = ptr::null_mut();
    // SAFETY: the structures are as the kernel wants them and outlive the calls.
    unsafe {
        // SIGKILL and SIGSTOP refuse, rightly; nothing else can fail.
        for signal in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), nothing, SIGSET_BYTES);
        }
        let none: u64 = 0;
        let how = libc::SIG_SETMASK;
        check(Step::Signals, libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const none, nothing, SIGSET_BYTES))
    }
}

fn execute(prepared: &Prepared) -> Failure {
    let program: &CStr = &prepared.request.program;
    // SAFETY: both arrays end with a null pointer and point to NUL-terminated strings that `Request` owns.
    unsafe { libc::execve(program.as_ptr(), prepared.argv.as_ptr(), prepared.envp.as_ptr()) };
    Failure::of(Step::Exec, errno())
}

/// The memory a child runs on.
struct Stack {
    base: *mut c_void,
}

impl Stack {
    fn new() -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping, of which we make the lowest page inaccessible.
        unsafe {
            let base = libc::mmap(ptr::null_mut(), STACK_BYTES, protection, flags, -1, 0);
            if base == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let stack = Self { base };
            if libc::mprotect(base, GUARD_BYTES, libc::PROT_NONE) == -1 {
                return Err(io::Error::last_os_error());
            }
            Ok(stack)
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this, and the child is gone from our memory (`launch`).
        unsafe { libc::munmap(self.base, STACK_BYTES) };
    }
}

/// All signals blocked on this thread, until dropped.
struct SignalsBlocked {
    before: libc::sigset_t,
}

impl SignalsBlocked {
    fn new() -> Self {
        // SAFETY: zero is a valid `sigset_t`; both sets outlive the calls. With valid arguments the calls cannot fail.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
            Self { before }
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: the set is the one the kernel gave us.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, ptr::null_mut()) };
    }
}

/// Sends a signal to the process group led by the pidfd's process; EINVAL before Linux 6.9.
pub(super) fn pidfd_signal_group(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    pidfd_send_signal(pidfd, signal.as_raw(), PIDFD_SIGNAL_PROCESS_GROUP)
}

/// Asks whether the pidfd's process was not reaped yet; ESRCH if it was.
pub(super) fn pidfd_probe(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    pidfd_send_signal(pidfd, 0, 0)
}

fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: c_int, flags: libc::c_uint) -> io::Result<()> {
    let no_info: *const libc::siginfo_t = ptr::null();
    // SAFETY: a null siginfo is allowed and means "as kill(2)".
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, flags) };
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

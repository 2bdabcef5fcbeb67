//! From a wish to a running program: [`plan`] is pure, [`start`] acts and blocks.
//!
//! What a process gets: its user with all groups, a session and so a process group of its own, the cgroup `user`, an
//! out-of-memory score above envd's, and exactly this environment: PATH, HOME, USER, LOGNAME, then the sandbox's, then
//! the request's. Nothing of envd's own is inherited.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, OFlags, Uid};
use rustix::pipe::PipeFlags;
use wrenn_sys::spawn::{Child, Credentials, Resource, Rlimit, Spawn, SpawnError, Step, find_program};

use super::log::Stream;
use super::pty::{self, Size};
use crate::envd::paths::{self, PathError};
use crate::envd::state::Settings;
use crate::envd::users::{User, UserError};
use crate::limits;

/// What a client wants started, as it said it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// A path, or a name to be found in PATH.
    pub cmd: String,
    /// Arguments after the command's own name.
    pub args: Vec<String>,
    /// Environment that wins over the sandbox's.
    pub envs: BTreeMap<String, String>,
    /// Working directory; none is the sandbox's default, else the user's home.
    pub cwd: Option<String>,
}

/// What the process has as its standard input, output and error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdio {
    /// Pipes.
    Pipes,
    /// Pipes for the output, /dev/null for the input.
    OutputPipes,
    /// A terminal.
    Terminal(Size),
}

/// What will be started, with nothing left to be decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The command as it was asked for.
    pub cmd: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Where it runs.
    pub cwd: WorkDir,
    /// As whom it runs.
    pub user: User,
    /// Its descriptors.
    pub stdio: Stdio,
}

/// A working directory and what to do when it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkDir {
    /// Somebody asked for it: it must be there.
    Asked(PathBuf),
    /// The user's home: `/` when it is not there, as login has it.
    Home(PathBuf),
}

/// A program that runs, and our ends of its descriptors, which do not block.
#[derive(Debug)]
pub struct Started {
    /// The process.
    pub child: Child,
    /// Where its input is written; none for /dev/null. Of a terminal: the master, which is also read.
    pub input: Option<OwnedFd>,
    /// Where its output is read; of a terminal nothing, see `input`.
    pub outputs: Vec<(Stream, OwnedFd)>,
}

/// Why a program was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The user is unknown, or nobody can say.
    #[error(transparent)]
    User(UserError),
    /// The working directory's path means nothing.
    #[error("cwd '{path}' is not usable: {source}")]
    CwdPath {
        /// As it was asked for.
        path: String,
        /// Why.
        source: PathError,
    },
    /// Nothing is there.
    #[error("cwd '{0}' does not exist")]
    CwdMissing(PathBuf),
    /// Something else is there.
    #[error("cwd '{0}' is not a directory")]
    CwdNoDirectory(PathBuf),
    /// It cannot be entered, by this user at least.
    #[error("cwd '{path}' cannot be entered")]
    Cwd {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No command was named.
    #[error("the command is empty")]
    NoCommand,
    /// A shell would say 127.
    #[error("command '{0}' not found")]
    NotFound(String),
    /// A shell would say 126.
    #[error("command '{cmd}' cannot be executed")]
    NotExecutable {
        /// The command.
        cmd: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A shell would say 126.
    #[error("command '{0}' cannot be executed: the interpreter it names does not exist")]
    NoInterpreter(String),
    /// The kernel would refuse arguments or environment.
    #[error("arguments or environment of '{cmd}' are not usable")]
    Arguments {
        /// The command.
        cmd: String,
        /// Why.
        source: io::Error,
    },
    /// More variables than anybody needs.
    #[error("{0} environment variables are more than {max}", max = limits::VARIABLES_MAX)]
    Variables(usize),
    /// No pipe or terminal could be made.
    #[error("cannot make {what} for '{cmd}'")]
    Stdio {
        /// What it was.
        what: &'static str,
        /// The command.
        cmd: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Any other step.
    #[error(transparent)]
    Spawn(SpawnError),
    /// The runtime took it away: envd ends.
    #[error("envd is shutting down")]
    Aborted,
}

/// Decides everything that can be decided without looking at the file system. `path` is PATH for who brings none.
pub fn plan(command: Command, stdio: Stdio, user: User, settings: &Settings, path: &str) -> Result<Plan, StartError> {
    if command.cmd.is_empty() {
        return Err(StartError::NoCommand);
    }
    let cwd = work_dir(command.cwd.as_deref(), &user, settings.default_workdir.as_deref())?;
    let env = environment(command.envs, &user, settings, path)?;
    Ok(Plan { cmd: command.cmd, args: command.args, env, cwd, user, stdio })
}

fn work_dir(asked: Option<&str>, user: &User, default: Option<&Path>) -> Result<WorkDir, StartError> {
    let asked = asked.unwrap_or_default();
    let resolved = paths::resolve(asked, &user.home, default)
        .map_err(|source| StartError::CwdPath { path: asked.to_owned(), source })?;
    let nobody_asked = asked.is_empty() && default.is_none();
    Ok(if nobody_asked { WorkDir::Home(resolved) } else { WorkDir::Asked(resolved) })
}

fn environment(
    asked: BTreeMap<String, String>,
    user: &User,
    settings: &Settings,
    path: &str,
) -> Result<BTreeMap<String, String>, StartError> {
    let home = user.home.to_string_lossy().into_owned();
    let own = [("PATH", path), ("HOME", home.as_str()), ("USER", user.name.as_str()), ("LOGNAME", user.name.as_str())];
    let mut env: BTreeMap<String, String> =
        own.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    env.extend(settings.env.clone());
    env.extend(asked);
    if env.len() > limits::VARIABLES_MAX { Err(StartError::Variables(env.len())) } else { Ok(env) }
}

/// Starts what was planned, in `cgroup` if there is one. Blocks, for as long as that cgroup is frozen.
pub fn start(plan: Plan, cgroup: Option<BorrowedFd<'_>>) -> Result<Started, StartError> {
    let cwd = check_work_dir(&plan.cwd)?;
    let path = plan.env.get("PATH").map(String::as_str).unwrap_or_default();
    let program = find_program(OsStr::new(&plan.cmd), OsStr::new(path), &cwd)
        .map_err(|source| not_found_or_executable(&plan.cmd, source))?;
    let (theirs, ours) = descriptors(&plan)?;
    let mut spawn = Spawn::new(&program)
        .arg0(&plan.cmd)
        .args(plan.args.iter().map(OsString::from))
        .envs(plan.env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))))
        .cwd(&cwd)
        .session()
        .oom_score_adj(limits::USER_OOM_SCORE)
        .rlimit(open_files());
    for (number, fd) in &theirs.numbered {
        spawn = spawn.fd(fd.as_fd(), *number);
    }
    if theirs.is_terminal {
        spawn = spawn.controlling_terminal();
    }
    if let Some(cgroup) = cgroup {
        spawn = spawn.cgroup(cgroup);
    }
    if let Some(credentials) = credentials(&plan.user) {
        spawn = spawn.credentials(credentials);
    }
    let child = spawn.start().map_err(|error| explain(error, &plan.cmd, &program, &cwd))?;
    Ok(Started { child, input: ours.input, outputs: ours.outputs })
}

fn check_work_dir(cwd: &WorkDir) -> Result<PathBuf, StartError> {
    let (WorkDir::Asked(path) | WorkDir::Home(path)) = cwd;
    match (std::fs::metadata(path), cwd) {
        (Ok(found), _) if found.is_dir() => Ok(path.clone()),
        (_, WorkDir::Home(_)) => Ok(PathBuf::from("/")),
        (Ok(_), WorkDir::Asked(_)) => Err(StartError::CwdNoDirectory(path.clone())),
        (Err(source), WorkDir::Asked(_)) => Err(match source.kind() {
            io::ErrorKind::NotFound => StartError::CwdMissing(path.clone()),
            io::ErrorKind::NotADirectory => StartError::CwdNoDirectory(path.clone()),
            _ => StartError::Cwd { path: path.clone(), source },
        }),
    }
}

/// Root becomes whom it was asked to be; anybody else can only stay who they are.
fn credentials(user: &User) -> Option<Credentials> {
    let root = rustix::process::geteuid().is_root();
    (root || rustix::process::geteuid().as_raw() != user.uid).then(|| Credentials {
        uid: user.uid,
        gid: user.gid,
        groups: user.groups.clone(),
    })
}

fn open_files() -> Rlimit {
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let hard = hard.map_or(limits::USER_FILES_HARD, |hard| hard.min(limits::USER_FILES_HARD));
    Rlimit { resource: Resource::OpenFiles, soft: Some(limits::USER_FILES_SOFT.min(hard)), hard: Some(hard) }
}

/// The process's ends by their numbers.
struct Theirs {
    numbered: Vec<(i32, OwnedFd)>,
    is_terminal: bool,
}

struct Ours {
    input: Option<OwnedFd>,
    outputs: Vec<(Stream, OwnedFd)>,
}

fn descriptors(plan: &Plan) -> Result<(Theirs, Ours), StartError> {
    let failed = |what| move |source| StartError::Stdio { what, cmd: plan.cmd.clone(), source };
    match plan.stdio {
        Stdio::Pipes => pipes(&plan.user, true).map_err(failed("pipes")),
        Stdio::OutputPipes => pipes(&plan.user, false).map_err(failed("pipes")),
        Stdio::Terminal(size) => terminal(&plan.user, size).map_err(failed("a terminal")),
    }
}

fn pipes(user: &User, with_input: bool) -> io::Result<(Theirs, Ours)> {
    let (stdout, stdout_theirs) = output_pipe(user)?;
    let (stderr, stderr_theirs) = output_pipe(user)?;
    let mut numbered = vec![(1, stdout_theirs), (2, stderr_theirs)];
    let mut input = None;
    if with_input {
        let (theirs, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&ours, OFlags::WRONLY | OFlags::NONBLOCK)?;
        give_to(&theirs, user)?;
        numbered.push((0, theirs));
        input = Some(ours);
    }
    let outputs = vec![(Stream::Stdout, stdout), (Stream::Stderr, stderr)];
    Ok((Theirs { numbered, is_terminal: false }, Ours { input, outputs }))
}

/// A pipe to read from (ours, does not block) and to write to (the process's, does).
fn output_pipe(user: &User) -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&ours, OFlags::RDONLY | OFlags::NONBLOCK)?;
    // A smaller pipe works as well: the kernel may refuse when its own limit is reached.
    rustix::pipe::fcntl_setpipe_size(&ours, limits::PIPE_BYTES).ok();
    give_to(&theirs, user)?;
    Ok((ours, theirs))
}

/// So that the process can open `/dev/stdout` and the like, which asks for the pipe's permissions.
fn give_to(pipe: &OwnedFd, user: &User) -> io::Result<()> {
    match rustix::fs::fchown(pipe, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid))) {
        // Without root it is ours already, and so is the process.
        Err(rustix::io::Errno::PERM) => Ok(()),
        answer => Ok(answer?),
    }
}

fn terminal(user: &User, size: Size) -> io::Result<(Theirs, Ours)> {
    let terminal = pty::open(size, user.uid, user.gid)?;
    let numbered = vec![(1, terminal.slave.try_clone()?), (2, terminal.slave.try_clone()?), (0, terminal.slave)];
    Ok((Theirs { numbered, is_terminal: true }, Ours { input: Some(terminal.master), outputs: Vec::new() }))
}

fn not_found_or_executable(cmd: &str, source: io::Error) -> StartError {
    match source.kind() {
        io::ErrorKind::NotFound => StartError::NotFound(cmd.to_owned()),
        _ => StartError::NotExecutable { cmd: cmd.to_owned(), source },
    }
}

/// What a failed step means to who asked.
fn explain(error: SpawnError, cmd: &str, program: &Path, cwd: &Path) -> StartError {
    let cmd = cmd.to_owned();
    match error.step {
        Step::Prepare => StartError::Arguments { cmd, source: error.source },
        Step::WorkingDirectory => StartError::Cwd { path: cwd.to_owned(), source: error.source },
        Step::Exec => match error.source.kind() {
            io::ErrorKind::ArgumentListTooLong => StartError::Arguments { cmd, source: error.source },
            io::ErrorKind::NotFound if program.exists() => StartError::NoInterpreter(cmd),
            _ => not_found_or_executable(&cmd, error.source),
        },
        Step::Clone
        | Step::Session
        | Step::ProcessGroup
        | Step::Netns
        | Step::OomScore
        | Step::Nice
        | Step::Descriptors
        | Step::ControllingTerminal
        | Step::JailSource
        | Step::Namespaces
        | Step::JailRoot
        | Step::JailFolder
        | Step::JailDevice
        | Step::JailBind
        | Step::JailEnter
        | Step::JailSeal
        | Step::Rlimit
        | Step::Capabilities
        | Step::Groups
        | Step::Gid
        | Step::Uid
        | Step::ParentDeathSignal
        | Step::NoNewPrivs
        | Step::Signals => StartError::Spawn(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        User {
            name: "ada".into(),
            uid: 1000,
            gid: 1000,
            groups: vec![1000],
            home: PathBuf::from("/home/ada"),
            shell: PathBuf::from("/bin/sh"),
        }
    }

    fn settings(env: &[(&str, &str)], workdir: Option<&str>) -> Settings {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Settings { token: None, env, default_user: "ada".into(), default_workdir: workdir.map(PathBuf::from) }
    }

    fn planned(cwd: Option<&str>, envs: &[(&str, &str)], settings: &Settings) -> Result<Plan, StartError> {
        let envs = envs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let command = Command { cmd: "true".into(), args: vec![], envs, cwd: cwd.map(str::to_owned) };
        plan(command, Stdio::Pipes, user(), settings, "/bin")
    }

    #[test]
    fn the_working_directory_is_asked_for_or_default_or_home() {
        let asked = |path: &str| WorkDir::Asked(PathBuf::from(path));
        for (cwd, default, expected) in [
            (None, None, WorkDir::Home("/home/ada".into())),
            (Some(""), None, WorkDir::Home("/home/ada".into())),
            (None, Some("/work"), asked("/work")),
            (Some(""), Some("code"), asked("/home/ada/code")),
            (Some("/tmp"), Some("/work"), asked("/tmp")),
            (Some("x/../y"), Some("/work"), asked("/home/ada/y")),
            (Some("~"), None, asked("/home/ada")),
        ] {
            assert_eq!(planned(cwd, &[], &settings(&[], default)).unwrap().cwd, expected, "{cwd:?} {default:?}");
        }
        let error = planned(Some("~bob"), &[], &settings(&[], None)).unwrap_err();
        assert!(matches!(error, StartError::CwdPath { .. }), "{error}");
    }

    #[test]
    fn the_environment_has_three_layers() {
        let settings = settings(&[("A", "sandbox"), ("B", "sandbox"), ("USER", "nobody")], None);
        let env = planned(None, &[("B", "request"), ("PATH", "/opt")], &settings).unwrap().env;
        let expected = [
            ("A", "sandbox"),
            ("B", "request"),
            ("HOME", "/home/ada"),
            ("LOGNAME", "ada"),
            ("PATH", "/opt"),
            ("USER", "nobody"),
        ];
        assert_eq!(env, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn what_cannot_be_started_is_refused_early() {
        let nothing = plan(Command::default(), Stdio::Pipes, user(), &settings(&[], None), "/bin");
        assert!(matches!(nothing, Err(StartError::NoCommand)));
        let names: Vec<String> = (0..limits::VARIABLES_MAX).map(|index| format!("V{index}")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
        assert!(matches!(planned(None, &many, &settings(&[], None)), Err(StartError::Variables(_))));
    }
}

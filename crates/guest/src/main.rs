//! The one program in every microVM: as PID 1 it is wrenn-init ([`init`]), otherwise envd ([`envd`]).
//!
//! ```text
//! envd [--port N] [--address IP] [--id ID] [--key HEX] [--cgroup FOLDER | --no-cgroup]
//! ```
//! wrenn-init passes the sandbox's id and the host's public key as WRENN_ID and WRENN_KEY. On a machine that is no guest
//! the flags do the same, so that envd can be tested there. Port 0 takes any free one; the line
//! `envd: listening on ADDRESS:PORT` on stdout says which, once clients can connect.

mod envd;
mod identity;
mod init;
mod limits;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::{env, fs, io};

use envd::cgroup::{self, CgroupError, UserCgroup};
use envd::host_calls::{KeyError, Verifier};
use envd::server;
use envd::state::{Machine, State};
use rustix::process::{Resource, Rlimit};

/// What the command line and the environment ask for.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    listen: SocketAddr,
    id: String,
    key: String,
    cgroup: Option<PathBuf>,
}

/// Why envd did not start.
#[derive(Debug, thiserror::Error)]
enum MainError {
    #[error("unknown argument `{0}`; there are --port, --address, --id, --key, --cgroup and --no-cgroup")]
    Argument(String),
    #[error("{0} needs a value")]
    NoValue(String),
    #[error("`{1}` is no value for {0}")]
    Value(String, String),
    #[error("no {0}: give {1}")]
    Missing(&'static str, &'static str),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::run();
    }
    match run() {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!(
                "envd: {error}{}",
                std::error::Error::source(&error).map_or(String::new(), |cause| format!(": {cause}"))
            );
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<std::convert::Infallible, MainError> {
    let variable = |name| env::var(name).ok();
    let options = parse(env::args().skip(1), variable("WRENN_ID"), variable("WRENN_KEY"))?;
    let verifier = Verifier::new(&options.id, &options.key)?;
    let cgroup = options.cgroup.as_deref().map(UserCgroup::open).transpose()?;
    wrenn_sys::malloc::limit_arenas();
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(limits::BLOCKING_THREADS_MAX)
        .build()
        .map_err(MainError::Runtime)?;
    runtime.block_on(async {
        let listen_failed = |source| MainError::Listen { address: options.listen, source };
        let listener = tokio::net::TcpListener::bind(options.listen).await.map_err(listen_failed)?;
        println!("envd: listening on {}", listener.local_addr().map_err(listen_failed)?);
        let state = State::new(&options.id, verifier, cgroup, machine());
        Ok(server::serve(listener, Arc::new(state)).await)
    })
}

fn parse(
    mut args: impl Iterator<Item = String>,
    id: Option<String>,
    key: Option<String>,
) -> Result<Options, MainError> {
    let (mut id, mut key) = (id, key);
    let mut listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, wrenn_proto::envd::PORT));
    let mut cgroup = Some(PathBuf::from(cgroup::PATH));
    while let Some(flag) = args.next() {
        let mut value = || args.next().ok_or_else(|| MainError::NoValue(flag.clone()));
        match flag.as_str() {
            "--port" => listen.set_port(parsed(&flag, value()?)?),
            "--address" => listen.set_ip(parsed::<IpAddr>(&flag, value()?)?),
            "--id" => id = Some(value()?),
            "--key" => key = Some(value()?),
            "--cgroup" => cgroup = Some(PathBuf::from(value()?)),
            "--no-cgroup" => cgroup = None,
            _ => return Err(MainError::Argument(flag)),
        }
    }
    let id = id.ok_or(MainError::Missing("sandbox id", "--id or WRENN_ID"))?;
    let key = key.ok_or(MainError::Missing("host's key", "--key or WRENN_KEY"))?;
    Ok(Options { listen, id, key, cgroup })
}

fn parsed<T: std::str::FromStr>(flag: &str, value: String) -> Result<T, MainError> {
    value.parse().map_err(|_| MainError::Value(flag.to_owned(), value))
}

/// It is a guest where PID 1 is this very program.
fn machine() -> Machine {
    let identity = |path: &str| fs::metadata(Path::new(path)).map(|file| (file.dev(), file.ino())).ok();
    let is_ours = identity("/proc/1/exe").is_some_and(|init| identity("/proc/self/exe") == Some(init));
    if is_ours { Machine::Guest } else { Machine::Other }
}

/// As far as allowed: with fewer, starting a process says so when they are used up.
fn raise_open_files() {
    let now = rustix::process::getrlimit(Resource::Nofile);
    let wanted = limits::OWN_FILES_MAX;
    if now.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let hard = now.maximum.map(|hard| hard.max(wanted));
    let raised = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: hard });
    if raised.is_err() {
        let allowed = Rlimit { current: now.maximum, maximum: now.maximum };
        // The soft limit may always be raised to the hard one; if not, what there is must do.
        rustix::process::setrlimit(Resource::Nofile, allowed).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(args: &[&str]) -> Result<Options, MainError> {
        parse(args.iter().map(|arg| (*arg).to_owned()), Some("sb1".into()), Some("00".into()))
    }

    #[test]
    fn in_a_guest_the_environment_says_everything() {
        let expected = Options {
            listen: "0.0.0.0:49983".parse().unwrap(),
            id: "sb1".into(),
            key: "00".into(),
            cgroup: Some("/sys/fs/cgroup/user".into()),
        };
        assert_eq!(options(&[]).unwrap(), expected);
    }

    #[test]
    fn flags_win() {
        let args = ["--port", "7", "--address", "127.0.0.1", "--id", "sb2", "--key", "11", "--no-cgroup"];
        let expected =
            Options { listen: "127.0.0.1:7".parse().unwrap(), id: "sb2".into(), key: "11".into(), cgroup: None };
        assert_eq!(options(&args).unwrap(), expected);
        assert_eq!(options(&["--cgroup", "/x"]).unwrap().cgroup, Some("/x".into()));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(matches!(options(&["--port"]), Err(MainError::NoValue(_))));
        assert!(matches!(options(&["--port", "65536"]), Err(MainError::Value(..))));
        assert!(matches!(options(&["--nonsense"]), Err(MainError::Argument(_))));
        assert!(matches!(parse([].into_iter(), None, Some("00".into())), Err(MainError::Missing(..))));
    }
}

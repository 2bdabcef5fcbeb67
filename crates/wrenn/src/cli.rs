//! The command line, as data.

mod files;
mod key;
mod sandbox;
mod serve;
mod shared;
mod snapshot;
mod template;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use wrenn_engine::probe::{Restore, Wishes};
use wrenn_engine::storage::Backend;
use wrenn_engine::vmm::{Accel, DriverKind};

pub use files::{CopyArgs, ForwardArgs, GuestPath, Operand, PortPair};
pub use key::{KeyVerb, NewKeyArgs};
pub use sandbox::{
    AgentArgs, AttachArgs, CreateArgs, ExecArgs, LoneAgentArgs, RepairArgs, SandboxVerb, ShellArgs, TlsArgs,
};
pub use serve::{DbVerb, ServeArgs, ServiceArgs, WorkerArgs};
pub use shared::{CommandArgs, WantedArgs};
pub use snapshot::{ForkArgs, ForkcheckArgs, RollbackArgs, SnapshotVerb};
pub use template::{TemplateVerb, WarmArgs};

/// Sandboxes in microVMs, self-hosted, from one binary.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
pub struct Cli {
    /// Where this instance keeps its files.
    #[arg(long, env = "WRENN_DIR", default_value = "/var/lib/wrenn", global = true)]
    pub dir: PathBuf,
    /// A server that is asked instead of this host's agent.
    #[command(flatten)]
    pub server: ServerArgs,
    /// Say what happens; twice: in detail.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Which programs to run.
    #[command(flatten)]
    pub programs: Programs,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// A server that is asked instead of this host's agent.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Ask the server at this URL, such as `https://wrenn.example.com`, instead of the agent of this host.
    #[arg(long, env = "WRENN_URL", value_name = "URL", global = true)]
    pub url: Option<String>,
    /// The server's key. Everybody on this host can read a command line: better set the variable.
    #[arg(long, env = "WRENN_API_KEY", value_name = "KEY", hide_env_values = true, global = true)]
    pub key: Option<String>,
}

/// Programs that are taken instead of the system's.
#[derive(Debug, Args)]
pub struct Programs {
    /// QEMU to run; the system's by default.
    #[arg(long, env = "WRENN_QEMU", value_name = "FILE", global = true)]
    pub qemu: Option<PathBuf>,
    /// Firecracker to run; the first in PATH by default.
    #[arg(long, env = "WRENN_FIRECRACKER", value_name = "FILE", global = true)]
    pub firecracker: Option<PathBuf>,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Boot a microVM, run a command in it, exit with the command's code, leave nothing behind.
    Run(RunArgs),
    /// Be the agent of this host: make sandboxes that stay, and look after them until SIGTERM or Ctrl-C.
    Agent(Box<LoneAgentArgs>),
    /// Be the agent of this host and a server beside it, or a server for the agent of another host (--agent): REST API, pages,
    /// ports of sandboxes; until SIGTERM or Ctrl-C.
    Serve(Box<ServeArgs>),
    /// The server's own process, which `serve` starts.
    #[command(hide = true)]
    Server(WorkerArgs),
    /// Look after the server's database.
    #[command(subcommand)]
    Db(DbVerb),
    /// Make and use sandboxes that stay; an agent looks after them.
    #[command(subcommand)]
    Sandbox(SandboxVerb),
    /// Open a terminal in a sandbox.
    Shell(ShellArgs),
    /// Finish or undo what left a sandbox in need of it.
    Repair(RepairArgs),
    /// Keep what sandboxes are, to start others from it or to go back to it.
    #[command(subcommand)]
    Snapshot(SnapshotVerb),
    /// Fork a sandbox many times, and see whether the forks have anything in common that they must not.
    Forkcheck(ForkcheckArgs),
    /// Build templates, keep them warm, list and remove them.
    #[command(subcommand)]
    Template(TemplateVerb),
    /// Copy files into a sandbox or out of one.
    Cp(CopyArgs),
    /// Listen on this host, and pass connections on to ports of a sandbox, until Ctrl-C.
    PortForward(ForwardArgs),
    /// Make and revoke the keys that a server is asked with.
    #[command(subcommand)]
    Key(KeyVerb),
    /// Print what a shell needs to complete command lines of wrenn: `source <(wrenn completions bash)`.
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Say what this host can do, and the remedy for what it cannot.
    Doctor(DoctorArgs),
}

/// Exit codes: the command's own; 128+n when signal n ended it; 124 after --timeout; 125 when Wrenn failed;
/// 126 when the command cannot be executed; 127 when it does not exist; 130 or 143 after Ctrl-C or SIGTERM.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: the command's own; 128+n when signal n ended it; 124 after --timeout; 125 when Wrenn \
                        itself failed; 126 when the command cannot be executed; 127 when it does not exist; 130 or 143 \
                        after Ctrl-C or SIGTERM."
)]
pub struct RunArgs {
    /// The sandbox.
    #[command(flatten)]
    pub wanted: WantedArgs,
    /// What the sandbox is made with; the best this host has by default.
    #[command(flatten)]
    pub drivers: Drivers,
    /// What runs in it.
    #[command(flatten)]
    pub command: CommandArgs,
    /// Print a table of how long each phase took.
    #[arg(long)]
    pub timing: bool,
    /// Print one JSON object with output, exit and timings instead of the live output.
    #[arg(long)]
    pub json: bool,
}

/// Drivers that are asked for; what this host lacks is an error that names it.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Drivers {
    /// The VMM: firecracker or qemu.
    #[arg(long, env = "WRENN_VMM", value_name = "VMM")]
    pub vmm: Option<DriverKind>,
    /// What executes the guest's instructions: kvm or tcg.
    #[arg(long, env = "WRENN_ACCEL", value_name = "ACCEL")]
    pub accel: Option<Accel>,
    /// What disks are made of: dm or qcow2.
    #[arg(long, env = "WRENN_STORAGE", value_name = "STORAGE")]
    pub storage: Option<Backend>,
    /// How a paused sandbox's memory comes back: file (mapped), or uffd (page by page, Firecracker only).
    #[arg(long, env = "WRENN_MEMORY_BACKEND", value_name = "BACKEND")]
    pub memory_backend: Option<Restore>,
}

impl Drivers {
    /// Whether anything in particular is asked for.
    pub fn are_chosen(&self) -> bool {
        self.vmm.is_some() || self.accel.is_some() || self.storage.is_some() || self.memory_backend.is_some()
    }

    /// As the probe takes them.
    pub fn wishes(&self) -> Wishes {
        let Self { vmm, accel, storage, memory_backend: restore } = *self;
        Wishes { vmm, accel, storage, restore, ..Wishes::default() }
    }
}

/// How `doctor` answers.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("expected KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn everything_after_the_command_is_the_commands() {
        let cli = Cli::parse_from(["wrenn", "run", "-e", "A=b=c", "--", "ls", "--json", "-t", "--cold"]);
        let Verb::Run(run) = cli.verb else { panic!("not run") };
        assert_eq!(run.command.command, ["ls", "--json", "-t", "--cold"]);
        assert_eq!(run.command.env, [("A".to_owned(), "b=c".to_owned())]);
        assert!(!run.json && !run.wanted.cold);
    }

    #[test]
    fn drivers_are_wishes() {
        let cli = Cli::parse_from(["wrenn", "run", "--vmm", "qemu", "--storage", "dm", "--accel", "tcg", "--", "true"]);
        let Verb::Run(run) = cli.verb else { panic!("not run") };
        let wanted = Wishes {
            vmm: Some(DriverKind::Qemu),
            accel: Some(Accel::Tcg),
            storage: Some(Backend::DeviceMapper),
            ..Wishes::default()
        };
        assert_eq!(run.drivers.wishes(), wanted);
        let cli = Cli::parse_from(["wrenn", "agent", "--memory-backend", "uffd"]);
        let Verb::Agent(agent) = cli.verb else { panic!("not agent") };
        assert_eq!(agent.agent.drivers.wishes().restore, Some(Restore::Userfaultfd));
        assert!(Cli::try_parse_from(["wrenn", "run", "--vmm", "xen", "--", "true"]).is_err());
    }

    #[test]
    fn an_agent_listens_for_other_hosts_with_all_that_this_takes() {
        let tls = ["--listen-tls", "[::1]:7443", "--tls-cert", "/c", "--tls-key", "/k", "--tls-ca", "/a"];
        let parse = |words: &[&str]| Cli::try_parse_from([&["wrenn", "agent"], words].concat());
        let Verb::Agent(agent) = parse(&tls).unwrap().verb else { panic!("not agent") };
        let (listen, files) = agent.tls.wanted().unwrap();
        assert_eq!((listen.port(), files.cert.to_str(), files.key.to_str()), (7443, Some("/c"), Some("/k")));
        let Verb::Agent(agent) = parse(&[]).unwrap().verb else { panic!("not agent") };
        assert!(agent.tls.wanted().is_none());
        for lacking in [0, 2, 4, 6] {
            let mut words = tls.to_vec();
            words.drain(lacking..lacking + 2);
            assert!(parse(&words).is_err(), "{words:?}");
        }
        assert!(Cli::try_parse_from([&["wrenn", "serve"], &tls[..]].concat()).is_err(), "its agent is its own");
    }

    #[test]
    fn a_server_reaches_the_agent_of_another_host_with_all_that_this_takes() {
        let tls = ["--agent", "[::1]:7443", "--agent-tls-cert", "/c", "--agent-tls-key", "/k", "--agent-tls-ca", "/a"];
        let parse = |words: &[&str]| Cli::try_parse_from([&["wrenn", "serve"], words].concat());
        let Verb::Serve(serve) = parse(&tls).unwrap().verb else { panic!("not serve") };
        let (address, files) = serve.far.wanted().unwrap();
        assert_eq!((address.to_string().as_str(), files.key.to_str()), ("[::1]:7443", Some("/k")));
        let Verb::Serve(serve) = parse(&[]).unwrap().verb else { panic!("not serve") };
        assert!(serve.far.wanted().is_none());
        for lacking in [0, 2, 4, 6] {
            let mut words = tls.to_vec();
            words.drain(lacking..lacking + 2);
            assert!(parse(&words).is_err(), "{words:?}");
        }
        for of_an_agent_here in [&["--pause-all"][..], &["--standby", "1"], &["--memory", "100"]] {
            assert!(parse(&[&tls[..], of_an_agent_here].concat()).is_err(), "{of_an_agent_here:?}");
        }
        let no_port = ["--agent", "host", "--agent-tls-cert", "/c", "--agent-tls-key", "/k", "--agent-tls-ca", "/a"];
        assert!(parse(&no_port).unwrap_err().to_string().contains("HOST:PORT"));
    }
}

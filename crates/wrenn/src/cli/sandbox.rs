//! The command line of `wrenn agent`, `wrenn sandbox …`, `wrenn repair` and `wrenn shell`, as data.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use wrenn_agent::faults::Faults;
use wrenn_agent::host_agent::OnTimeout;
use wrenn_agent::rpc::TlsFiles;
use wrenn_engine::names::SandboxId;

use super::{CommandArgs, Drivers, ForkArgs, RollbackArgs, WantedArgs, key_value};

/// How the agent starts and ends.
#[derive(Debug, Default, Args)]
pub struct AgentArgs {
    /// What sandboxes are made with; the best this host has by default.
    #[command(flatten)]
    pub drivers: Drivers,
    /// Networks that are made ahead, so that a new sandbox need not wait for its own.
    #[arg(long, value_name = "N")]
    pub pool: Option<u16>,
    /// Sandboxes that are made ahead, of the kinds that were created last, so that the next of them starts sooner. Memory is set
    /// aside for them as if they ran.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub standby: u16,
    /// Memory in MiB that all VMs that run may have together; by default what the host has, less a reserve.
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u32>,
    /// For tests: what goes wrong at a step.
    #[arg(long, hide = true, value_name = "STEP:FAULT")]
    pub fault: Option<Faults>,
    /// Pause all sandboxes when the agent ends; by default their VMs go on running.
    #[arg(long, conflicts_with = "destroy_all")]
    pub pause_all: bool,
    /// Destroy all sandboxes when the agent ends.
    #[arg(long)]
    pub destroy_all: bool,
}

/// An agent by itself, and who is served beside this host.
#[derive(Debug, Args)]
pub struct LoneAgentArgs {
    /// How it is.
    #[command(flatten)]
    pub agent: AgentArgs,
    /// Who else is served.
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// Whether other hosts are served as well, and which. Who gets in can do all that root can with the agent.
#[derive(Debug, Default, Args)]
pub struct TlsArgs {
    /// Listen there as well, for clients on any host that have a certificate of the CA (TLS 1.3). They can do all that root of
    /// this host can do with sandboxes.
    #[arg(long, value_name = "ADDRESS:PORT", requires_all = ["tls_cert", "tls_key", "tls_ca"])]
    pub listen_tls: Option<SocketAddr>,
    /// The agent's certificate for --listen-tls, of the name that clients use, and after it those up to its CA; PEM. It is read
    /// when the agent starts, as are the next two.
    #[arg(long, value_name = "FILE", requires = "listen_tls")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, unencrypted; PEM. Only the agent should be able to read it.
    #[arg(long, value_name = "FILE", requires = "listen_tls")]
    pub tls_key: Option<PathBuf>,
    /// The CA that has signed the certificates of clients; PEM. Whoever it signs gets in: use one that is there for this alone.
    #[arg(long, value_name = "FILE", requires = "listen_tls")]
    pub tls_ca: Option<PathBuf>,
}

impl TlsArgs {
    /// Where to listen, and with what; `None` when it is not asked for.
    pub fn wanted(self) -> Option<(SocketAddr, TlsFiles)> {
        let files = TlsFiles { cert: self.tls_cert?, key: self.tls_key?, ca: self.tls_ca? };
        Some((self.listen_tls?, files))
    }
}

/// What can be done with sandboxes.
#[derive(Debug, Subcommand)]
pub enum SandboxVerb {
    /// Make a sandbox that stays; prints its id.
    Create(CreateArgs),
    /// List the sandboxes.
    Ls {
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Show one sandbox.
    Get {
        /// Which sandbox.
        id: SandboxId,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Run a command in a sandbox and exit with the command's code.
    Exec(ExecArgs),
    /// Come back to a command that runs in a sandbox. Ctrl-C leaves it; the command goes on.
    Attach(AttachArgs),
    /// List the commands that run in a sandbox.
    Ps {
        /// Which sandbox.
        id: SandboxId,
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Put a sandbox to rest: it costs no memory and no CPU until it is resumed.
    Pause {
        /// Which sandbox.
        id: SandboxId,
        /// Keep the disk only: a resume boots it.
        #[arg(long)]
        disk_only: bool,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Bring a sandbox back from rest.
    Resume {
        /// Which sandbox.
        id: SandboxId,
        /// How long it runs until its time is up; as long as before by default, counted anew.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        timeout: Option<Duration>,
        /// How long the guest may take to become ready.
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
        boot_timeout: Duration,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Make new sandboxes that go on from where this one is now; it goes on as before. Prints their ids.
    Fork(ForkArgs),
    /// Take a sandbox back to one of its snapshots; what it did since is lost.
    Rollback(RollbackArgs),
    /// Change when a running sandbox's time is up.
    Timeout {
        /// Which sandbox.
        id: SandboxId,
        /// From now, such as 10m; or `never`.
        #[arg(value_name = "TIME|never")]
        time: TimeLimit,
        /// What happens then; as it was by default.
        #[arg(long, value_name = "WHAT")]
        on_timeout: Option<AtTimeout>,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Destroy sandboxes, whatever they are doing.
    Rm {
        /// Which sandboxes.
        #[arg(required = true)]
        ids: Vec<SandboxId>,
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Print the end of a sandbox's serial console.
    Logs {
        /// Which sandbox.
        id: SandboxId,
        /// At most this many bytes.
        #[arg(long, value_name = "BYTES", default_value_t = u32::MAX, hide_default_value = true)]
        bytes: u32,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Say what a sandbox takes of its host.
    Stat {
        /// Which sandbox.
        id: SandboxId,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// A sandbox as it is wanted.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The sandbox.
    #[command(flatten)]
    pub wanted: WantedArgs,
    /// Start from this snapshot instead, by its name or id: with its memory and disk, its size, environment and labels.
    #[arg(
        long,
        value_name = "SNAPSHOT",
        conflicts_with_all = ["template", "kernel", "vcpus", "memory", "disk", "cold"]
    )]
    pub snapshot: Option<String>,
    /// Set an environment variable for every process in it; may be repeated.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub env: Vec<(String, String)>,
    /// Attach a label; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub metadata: Vec<(String, String)>,
    /// How long it runs until its time is up, such as 10m; without end by default.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
    /// What happens when its time is up.
    #[arg(long, value_name = "WHAT", default_value = "destroy")]
    pub on_timeout: AtTimeout,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// A command to run in a sandbox. Exit codes are those of `wrenn run`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Which sandbox.
    pub id: SandboxId,
    /// What runs in it.
    #[command(flatten)]
    pub command: CommandArgs,
    /// Leave once it runs, and print its pid; see `attach` and `ps`.
    #[arg(short, long)]
    pub detach: bool,
    /// With --detach: keep its standard input open, for `attach --stdin`. Without, standard input is passed on anyway.
    #[arg(long, requires = "detach")]
    pub stdin: bool,
    /// Print one JSON object with output and exit instead of the live output.
    #[arg(long)]
    pub json: bool,
}

/// A command to come back to.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// Which sandbox.
    pub id: SandboxId,
    /// Pid of the command in the sandbox; see `ps`.
    pub pid: u32,
    /// Print its output from this place on, in bytes from its beginning; by default all that the sandbox still has.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub offset: u64,
    /// Pass standard input on to it.
    #[arg(long)]
    pub stdin: bool,
    /// Print one JSON object with output and exit instead of the live output.
    #[arg(long)]
    pub json: bool,
}

/// A terminal in a sandbox.
#[derive(Debug, Args)]
pub struct ShellArgs {
    /// Which sandbox.
    pub id: SandboxId,
    /// Set an environment variable for the shell; may be repeated.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub env: Vec<(String, String)>,
    /// Working directory of the shell; the user's home by default.
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User the shell runs as.
    #[arg(short, long, default_value = "root")]
    pub user: String,
    /// A command to run on the terminal instead of a login shell.
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// A sandbox to repair.
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// Which sandbox.
    pub id: SandboxId,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What happens when a sandbox's time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AtTimeout {
    /// It is paused, and can be resumed.
    Pause,
    /// It is destroyed.
    Destroy,
}

impl From<AtTimeout> for OnTimeout {
    fn from(at_timeout: AtTimeout) -> Self {
        match at_timeout {
            AtTimeout::Pause => Self::Pause,
            AtTimeout::Destroy => Self::Destroy,
        }
    }
}

/// A time from now, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimit(pub Option<Duration>);

impl std::str::FromStr for TimeLimit {
    type Err = humantime::DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "never" => Ok(Self(None)),
            text => humantime::parse_duration(text).map(|time| Self(Some(time))),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use clap::error::ErrorKind;

    use super::*;
    use crate::cli::{Cli, Verb};

    const ID: &str = "sbabcdefghijklmnopqr";

    fn parse(line: &str) -> Result<Verb, clap::Error> {
        Cli::try_parse_from(line.replace("ID", ID).split_whitespace()).map(|cli| cli.verb)
    }

    fn sandbox(line: &str) -> SandboxVerb {
        match parse(&format!("wrenn sandbox {line}")) {
            Ok(Verb::Sandbox(verb)) => verb,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn a_sandbox_as_it_is_wanted() {
        let line = "create -t base --vcpus 2 --memory 512 --disk 4096 -e A=b=c --metadata owner=me --timeout 10m \
                    --on-timeout pause --boot-timeout 2m --json";
        let SandboxVerb::Create(create) = sandbox(line) else { panic!("not create") };
        let wanted = &create.wanted;
        assert_eq!(
            (wanted.template.as_str(), wanted.size.vcpus, wanted.size.memory, wanted.size.disk),
            ("base", 2, 512, Some(4096))
        );
        assert_eq!(create.env, [("A".to_owned(), "b=c".to_owned())]);
        assert_eq!(create.metadata, [("owner".to_owned(), "me".to_owned())]);
        assert_eq!((create.timeout, create.on_timeout), (Some(Duration::from_secs(600)), AtTimeout::Pause));
        assert_eq!((wanted.size.boot_timeout, create.json), (Duration::from_secs(120), true));
        let SandboxVerb::Create(create) = sandbox("create") else { panic!("not create") };
        assert_eq!((create.timeout, create.on_timeout), (None, AtTimeout::Destroy));
        assert_eq!((create.snapshot, create.wanted.cold), (None, false));
        let SandboxVerb::Create(create) = sandbox("create --cold") else { panic!("not create") };
        assert!(create.wanted.cold);
    }

    #[test]
    fn what_a_snapshot_decides_cannot_be_asked_for() {
        let SandboxVerb::Create(create) = sandbox("create --snapshot before -e A=b --metadata a=b --timeout 1m") else {
            panic!("not create")
        };
        assert_eq!(create.snapshot.as_deref(), Some("before"));
        for other in ["-t base", "--kernel f", "--vcpus 1", "--memory 256", "--disk 64", "--cold"] {
            let error = parse(&format!("wrenn sandbox create --snapshot before {other}")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ArgumentConflict, "{other}");
        }
    }

    #[test]
    fn everything_after_the_command_is_the_commands() {
        let SandboxVerb::Exec(exec) = sandbox("exec --user user ID -- ls --json -d") else { panic!("not exec") };
        assert_eq!(
            (exec.command.command, exec.json, exec.detach),
            (vec!["ls".into(), "--json".into(), "-d".into()], false, false)
        );
        assert_eq!(exec.command.user, "user");
        let Ok(Verb::Shell(shell)) = parse("wrenn shell ID -- top -b") else { panic!("not shell") };
        assert_eq!(shell.command, ["top", "-b"]);
    }

    #[test]
    fn times_can_be_never() {
        let SandboxVerb::Timeout { time, on_timeout, .. } = sandbox("timeout ID never") else { panic!("not timeout") };
        assert_eq!((time, on_timeout), (TimeLimit(None), None));
        let SandboxVerb::Timeout { time, .. } = sandbox("timeout ID 90s --on-timeout destroy") else { panic!() };
        assert_eq!(time, TimeLimit(Some(Duration::from_secs(90))));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, kind) in [
            ("wrenn sandbox get sb1", ErrorKind::ValueValidation),
            ("wrenn sandbox rm", ErrorKind::MissingRequiredArgument),
            ("wrenn sandbox exec ID", ErrorKind::MissingRequiredArgument),
            ("wrenn sandbox exec --stdin ID -- cat", ErrorKind::MissingRequiredArgument),
            ("wrenn sandbox timeout ID soon", ErrorKind::ValueValidation),
            ("wrenn sandbox create --metadata owner", ErrorKind::ValueValidation),
            ("wrenn sandbox create --on-timeout explode", ErrorKind::InvalidValue),
            ("wrenn agent --pause-all --destroy-all", ErrorKind::ArgumentConflict),
        ] {
            assert_eq!(parse(line).unwrap_err().kind(), kind, "{line}");
        }
    }

    #[test]
    fn where_to_come_back_to() {
        let SandboxVerb::Attach(attach) = sandbox("attach ID 77 --offset 1234567890123") else { panic!("not attach") };
        assert_eq!((attach.pid, attach.offset, attach.stdin), (77, 1_234_567_890_123, false));
        let SandboxVerb::Rm { ids, .. } = sandbox("rm ID ID") else { panic!("not rm") };
        assert_eq!(ids.len(), 2);
    }
}

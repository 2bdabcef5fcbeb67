//! The command line of `wrenn snapshot …`, `wrenn sandbox fork`, `wrenn sandbox rollback` and `wrenn forkcheck`, as data.

use std::time::Duration;

use clap::{Args, Subcommand};
use wrenn_engine::names::SandboxId;

use super::key_value;

/// What can be done with snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
    /// Keep what a running or paused sandbox is now; a running one goes on. Prints the snapshot's id.
    Create {
        /// Which sandbox.
        id: SandboxId,
        /// A name that no other snapshot has; without one it is found by its id alone.
        #[arg(long)]
        name: Option<String>,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// List the snapshots.
    Ls {
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Remove snapshots. What others need of them stays with those.
    Rm {
        /// Which snapshots, by name or id.
        #[arg(required = true, value_name = "SNAPSHOT")]
        snapshots: Vec<String>,
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
}

/// Forks as they are wanted.
#[derive(Debug, Args)]
pub struct ForkArgs {
    /// Which sandbox.
    pub id: SandboxId,
    /// How many.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub count: u32,
    /// How long each runs until its time is up, such as 10m; by default as long as the sandbox that is forked.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
    /// Attach a label to each, instead of those of the sandbox that is forked; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub metadata: Vec<(String, String)>,
    /// How long each guest may take to become ready.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub boot_timeout: Duration,
    /// Print a JSON object: for each fork either the sandbox or the error.
    #[arg(long)]
    pub json: bool,
}

/// Where a sandbox goes back to.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// Which sandbox.
    pub id: SandboxId,
    /// Which of its snapshots, by name or id.
    pub snapshot: String,
    /// How long it runs until its time is up; as long as before by default, counted anew.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
    /// How long the guest may take to become ready.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub boot_timeout: Duration,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Exit codes: 0 when all checks passed, 1 when one did not, 125 when Wrenn itself failed.
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 when all checks passed; 1 when one did not; 125 when Wrenn itself failed.")]
pub struct ForkcheckArgs {
    /// How many forks.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub count: u32,
    /// Template of the sandbox that is forked; see `wrenn template ls`.
    #[arg(short, long, default_value = "minimal")]
    pub template: String,
    /// Memory of each in MiB.
    #[arg(long, default_value_t = 128, value_name = "MIB")]
    pub memory: u32,
    /// How long each guest may take to become ready.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub boot_timeout: Duration,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use clap::error::ErrorKind;

    use super::*;
    use crate::cli::{Cli, SandboxVerb, Verb};

    fn parse(line: &str) -> Result<Verb, clap::Error> {
        let line = line.replace("ID", "sbabcdefghijklmnopqr");
        Cli::try_parse_from(["wrenn"].into_iter().chain(line.split_whitespace())).map(|cli| cli.verb)
    }

    #[test]
    fn snapshots_are_made_and_removed_by_name() {
        let Ok(Verb::Snapshot(SnapshotVerb::Create { name, json, .. })) =
            parse("snapshot create ID --name before --json")
        else {
            panic!("not create")
        };
        assert_eq!((name.as_deref(), json), (Some("before"), true));
        let Ok(Verb::Snapshot(SnapshotVerb::Create { name: None, .. })) = parse("snapshot create ID") else {
            panic!("not create without a name")
        };
        let Ok(Verb::Snapshot(SnapshotVerb::Rm { snapshots, .. })) = parse("snapshot rm before snx") else {
            panic!("not rm")
        };
        assert_eq!(snapshots, ["before", "snx"]);
        assert!(matches!(parse("snapshot ls --json"), Ok(Verb::Snapshot(SnapshotVerb::Ls { json: true }))));
    }

    #[test]
    fn forks_as_they_are_wanted() {
        let line = "sandbox fork ID --count 16 --timeout 10m --metadata try=1 --metadata of=x --boot-timeout 2m --json";
        let Ok(Verb::Sandbox(SandboxVerb::Fork(fork))) = parse(line) else { panic!("not fork") };
        assert_eq!((fork.count, fork.timeout, fork.json), (16, Some(Duration::from_secs(600)), true));
        assert_eq!((fork.metadata.len(), fork.boot_timeout), (2, Duration::from_secs(120)));
        let Ok(Verb::Sandbox(SandboxVerb::Fork(fork))) = parse("sandbox fork ID") else { panic!("not fork") };
        assert_eq!((fork.count, fork.timeout, fork.metadata.len()), (1, None, 0));
    }

    #[test]
    fn the_way_back_names_a_snapshot() {
        let Ok(Verb::Sandbox(SandboxVerb::Rollback(back))) = parse("sandbox rollback ID before --timeout 1h") else {
            panic!("not rollback")
        };
        assert_eq!((back.snapshot.as_str(), back.timeout), ("before", Some(Duration::from_secs(3600))));
    }

    #[test]
    fn a_forkcheck_has_sixteen_forks() {
        let Ok(Verb::Forkcheck(check)) = parse("forkcheck") else { panic!("not forkcheck") };
        assert_eq!((check.count, check.template.as_str(), check.memory, check.json), (16, "minimal", 128, false));
        let Ok(Verb::Forkcheck(check)) = parse("forkcheck --count 3 -t base --json") else { panic!("not forkcheck") };
        assert_eq!((check.count, check.template.as_str(), check.json), (3, "base", true));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, kind) in [
            ("snapshot create", ErrorKind::MissingRequiredArgument),
            ("snapshot create before", ErrorKind::ValueValidation),
            ("snapshot rm", ErrorKind::MissingRequiredArgument),
            ("snapshot inspect x", ErrorKind::InvalidSubcommand),
            ("sandbox fork", ErrorKind::MissingRequiredArgument),
            ("sandbox fork sn0123456789abcdefgh", ErrorKind::ValueValidation),
            ("sandbox fork ID --count -1", ErrorKind::UnknownArgument),
            ("sandbox fork ID --count many", ErrorKind::ValueValidation),
            ("sandbox fork ID --count 4294967296", ErrorKind::ValueValidation),
            ("sandbox fork ID --timeout soon", ErrorKind::ValueValidation),
            ("sandbox fork ID --metadata try", ErrorKind::ValueValidation),
            ("sandbox rollback ID", ErrorKind::MissingRequiredArgument),
            ("sandbox rollback before ID", ErrorKind::ValueValidation),
            ("forkcheck ID", ErrorKind::UnknownArgument),
        ] {
            assert_eq!(parse(line).unwrap_err().kind(), kind, "{line}");
        }
    }
}

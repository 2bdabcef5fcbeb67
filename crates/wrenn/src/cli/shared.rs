//! What several verbs are asked in the same words: a sandbox as it is wanted, and a command to run in one.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use wrenn_agent::envd_client::Command;
use wrenn_agent::host_agent::{CreateRequest, Fresh, Source, Wishes};
use wrenn_agent::sandbox::Shape;
use wrenn_engine::units::Mib;

use super::key_value;

/// A sandbox as it is wanted.
#[derive(Debug, Args)]
pub struct WantedArgs {
    /// Template to start from; see `wrenn template ls`.
    #[arg(short, long, default_value = "minimal")]
    pub template: String,
    /// Its size.
    #[command(flatten)]
    pub size: SizeArgs,
    /// Boot it, even where a warm image is there.
    #[arg(long)]
    pub cold: bool,
}

/// What a fresh sandbox is made of, beside its template.
#[derive(Debug, Args)]
pub struct SizeArgs {
    /// Boot this kernel image instead of the one Wrenn prepared.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 1)]
    pub vcpus: u32,
    /// Memory in MiB.
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    pub memory: u32,
    /// Disk in MiB; at least, and by default, the template's size.
    #[arg(long, value_name = "MIB")]
    pub disk: Option<u32>,
    /// How long the guest may take to become ready.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub boot_timeout: Duration,
}

impl SizeArgs {
    /// Of this template, by name or id.
    pub fn fresh(&self, template: &str, cold: bool) -> std::io::Result<Fresh> {
        Ok(Fresh {
            template: template.to_owned(),
            kernel: self.kernel.as_deref().map(std::path::absolute).transpose()?,
            shape: Shape { vcpus: self.vcpus, memory: Mib(self.memory), disk: self.disk.map(Mib) },
            cold,
        })
    }
}

impl WantedArgs {
    /// As the agent is asked for it: without an environment or labels, and for as long as whoever asks is there.
    pub fn request(&self) -> std::io::Result<CreateRequest> {
        Ok(CreateRequest {
            source: Source::Template(self.size.fresh(&self.template, self.cold)?),
            wishes: Wishes::bound(self.size.boot_timeout),
        })
    }
}

/// A command to run in a sandbox.
#[derive(Debug, Args)]
pub struct CommandArgs {
    /// Set an environment variable for the command; may be repeated.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub env: Vec<(String, String)>,
    /// Working directory of the command; the user's home by default.
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User the command runs as.
    #[arg(short, long, default_value = "root")]
    pub user: String,
    /// End the command after this time, such as 30s or 5m (exit code 124).
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

impl CommandArgs {
    /// As the guest is asked for it; `stdin` says whether something comes on its standard input.
    pub fn command(&self, stdin: bool) -> Command {
        let mut words = self.command.iter().cloned();
        Command {
            program: words.next().expect("clap demands a command"),
            args: words.collect(),
            env: self.env.clone(),
            workdir: self.workdir.clone(),
            user: Some(self.user.clone()),
            timeout: self.timeout,
            stdin,
            ..Command::default()
        }
    }
}

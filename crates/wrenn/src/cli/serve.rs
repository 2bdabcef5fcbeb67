//! The command line of `wrenn serve`, `wrenn db …`, and of the server's own process, as data.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use wrenn_agent::rpc::{TlsAddress, TlsFiles};
use wrenn_server::traces::Endpoint;

use super::AgentArgs;

/// How the service is.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where it listens.
    #[arg(long, env = "WRENN_LISTEN", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// How the server is.
    #[command(flatten)]
    pub server: ServiceArgs,
    /// Whether the agent is on another host.
    #[command(flatten)]
    pub far: FarAgentArgs,
    /// How this host's own agent is.
    #[command(flatten)]
    pub agent: AgentArgs,
}

/// Which agent of another host is served instead of one of this host's own. Nothing of this is about this host then.
#[derive(Debug, Default, Args)]
pub struct FarAgentArgs {
    /// Be no agent: serve the sandboxes of the agent that listens there (`wrenn agent --listen-tls`), as the host of that name.
    #[arg(
        long = "agent",
        value_name = "HOST:PORT",
        requires_all = ["agent_tls_cert", "agent_tls_key", "agent_tls_ca"],
        conflicts_with_all = ["pool", "standby", "memory", "fault", "pause_all", "destroy_all"]
    )]
    pub far_agent: Option<TlsAddress>,
    /// The certificate to show to that agent, and after it those up to its CA; PEM. It is read when the service starts, as are
    /// the next two.
    #[arg(long, value_name = "FILE", requires = "far_agent")]
    pub agent_tls_cert: Option<PathBuf>,
    /// The certificate's private key, unencrypted; PEM. Only root should be able to read it.
    #[arg(long, value_name = "FILE", requires = "far_agent")]
    pub agent_tls_key: Option<PathBuf>,
    /// The CA that has signed the agent's certificate; PEM.
    #[arg(long, value_name = "FILE", requires = "far_agent")]
    pub agent_tls_ca: Option<PathBuf>,
}

impl FarAgentArgs {
    /// Where the agent is, and with what it is reached; `None` when this host's own is meant.
    pub fn wanted(self) -> Option<(TlsAddress, TlsFiles)> {
        let files = TlsFiles { cert: self.agent_tls_cert?, key: self.agent_tls_key?, ca: self.agent_tls_ca? };
        Some((self.far_agent?, files))
    }
}

/// How the server is.
#[derive(Clone, Debug, Args)]
pub struct ServiceArgs {
    /// The database: postgres://USER:PASSWORD@HOST/NAME; by default SQLite in WRENN_DIR. It is shown in lists of processes:
    /// prefer the environment. ?sslmode=require encrypts the connection; ?sslmode=verify-full, with &sslrootcert=FILE where the
    /// authority is one's own, makes sure of whose it is as well.
    #[arg(long, env = "WRENN_DATABASE", value_name = "URL", hide_env_values = true)]
    pub database: Option<String>,
    /// A domain whose hosts PORT-ID.DOMAIN are ports of sandboxes; may be repeated.
    #[arg(long, env = "WRENN_DOMAIN", value_name = "DOMAIN", value_delimiter = ',', default_value = "localhost")]
    pub domain: Vec<String>,
    /// Requests per second of one key.
    #[arg(long, value_name = "N", default_value_t = wrenn_server::limits::RATE_DEFAULT)]
    pub rate: u32,
    /// A collector that OpenTelemetry traces are sent to: http://HOST:PORT, OTLP over plain HTTP with protobuf. Nothing is
    /// traced without it.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<Endpoint>,
}

/// What can be done with the database.
#[derive(Debug, Subcommand)]
pub enum DbVerb {
    /// Write a copy of the database, also while a server uses it.
    Backup {
        /// Where to; nothing may be there.
        file: PathBuf,
        /// The database, as `wrenn serve` takes it.
        #[arg(long, env = "WRENN_DATABASE", value_name = "URL", hide_env_values = true)]
        database: Option<String>,
    },
}

/// What the server's own process does.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// The process that it belongs to.
    #[arg(long)]
    pub parent: u32,
    /// Where clients see it.
    #[arg(long)]
    pub listen: SocketAddr,
    /// How it is.
    #[command(flatten)]
    pub server: ServiceArgs,
    /// Write a copy of the database under this name in its folder, and end.
    #[arg(long)]
    pub backup: Option<String>,
}

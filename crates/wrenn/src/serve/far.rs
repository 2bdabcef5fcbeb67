//! An agent on another host: who the server is to it. Root reads that, and the server's process is handed it.
//!
//! ```text
//!   --agent, --agent-tls-… ── read, checked (root) ─► Far ── hand over ─► a file without a name ── receive ─► Remote
//! ```
//!
//! What is handed over is in memory alone, open in the two processes and nowhere else: the key's file stays root's. It is read
//! once: a renewed certificate counts from the next start of `wrenn serve`.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use wrenn_agent::rpc::{ClientTls, Remote, TlsAddress, TlsFiles, TlsHandover, TlsIdentity};

/// An agent on another host, and who one is to it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Far {
    address: String,
    tls: TlsHandover,
}

impl Far {
    /// What the files say, or all that is wrong with them.
    pub fn read(address: &TlsAddress, files: &TlsFiles) -> Result<Self> {
        Ok(Self { address: address.to_string(), tls: TlsHandover::read(files)? })
    }

    /// Where the agent is.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// For the server's process.
    pub fn hand_over(&self) -> Result<OwnedFd> {
        let handed = || -> std::io::Result<File> {
            let mut file = File::from(memfd_create("wrenn-agent", MemfdFlags::CLOEXEC)?);
            file.write_all(&serde_json::to_vec(self)?)?;
            file.rewind()?;
            Ok(file)
        };
        Ok(handed().context("cannot hand the agent's certificates to the server")?.into())
    }

    /// What was handed over.
    pub fn receive(handed: OwnedFd) -> Result<Self> {
        serde_json::from_reader(File::from(handed)).context("cannot read what the server was handed over")
    }

    /// The agent. Within a runtime.
    pub fn agent(self) -> Result<Remote> {
        let identity = TlsIdentity::try_from(self.tls)?;
        Ok(Remote::over_tls(self.address.parse()?, ClientTls::from(&identity)))
    }
}

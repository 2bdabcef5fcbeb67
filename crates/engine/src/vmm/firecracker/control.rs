//! Control over one Firecracker: its API, call by call, and its end.
//!
//! Firecracker says nothing on its own. One connection is kept open between calls (it never closes an idle one): when it
//! reads its end, the VMM has ended, which is checked with a handle of the process. A call that failed halfway, ran out of
//! time or was given up leaves its connection out of step; the next call makes a new one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use super::api::{
    Change, GetInstance, GetMachineConfig, InstanceState, Method, Query, SnapshotCreate, SnapshotType, VmState,
};
use super::http::{Connection, HttpError, Idle};
use super::socket::{self, Peer};
use super::{files, jail};
use crate::vmm::{Captured, DEVICES, Incident, MEMORY, Machine, RunState, Then, VmmError, capture, excerpt};

/// How long a Firecracker that was just started may take to listen.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);
/// The first and the longest pause between attempts to reach it; it listens after a few milliseconds.
const ATTEMPT_PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(16));
/// How long its process may take to end once it was killed: its memory is given back first.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How long its process may take to end once its connection closed, which is one of the last things it does.
const CLOSED_LIMIT: Duration = Duration::from_secs(1);

/// A client of one Firecracker's API.
#[derive(Debug)]
pub struct Client {
    folder: PathBuf,
    link: Option<Link>,
}

#[derive(Debug)]
struct Link {
    connection: Connection,
    peer: Peer,
}

/// What Firecracker says when it refuses; its HTTP server calls it `error` when it does not get as far as the API.
#[derive(Deserialize)]
struct Fault {
    #[serde(alias = "error")]
    fault_message: String,
}

impl Client {
    /// To the Firecracker that listens in `folder`. Fails if none does.
    pub(super) async fn connect(folder: &Path) -> Result<Self, VmmError> {
        let mut client = Self { folder: folder.to_owned(), link: None };
        client.link = Some(client.new_link("connect").await?);
        Ok(client)
    }

    /// To the Firecracker that is about to listen in `folder`.
    pub(super) async fn await_listening(folder: &Path) -> Result<Self, VmmError> {
        let (mut pause, longest) = ATTEMPT_PAUSES;
        let deadline = Instant::now() + LISTEN_LIMIT;
        loop {
            if let Some((stream, peer)) = socket::connect(folder).await? {
                let link = Link { connection: Connection::new(stream), peer };
                return Ok(Self { folder: folder.to_owned(), link: Some(link) });
            }
            if Instant::now() >= deadline {
                return Err(VmmError::Deadline { command: "listen", limit: LISTEN_LIMIT });
            }
            sleep(pause).await;
            pause = longest.min(pause * 2);
        }
    }

    async fn new_link(&self, command: &'static str) -> Result<Link, VmmError> {
        let (stream, peer) = socket::connect(&self.folder).await?.ok_or(VmmError::Gone { command })?;
        Ok(Link { connection: Connection::new(stream), peer })
    }

    /// Tells it something.
    pub async fn change(&mut self, change: &Change) -> Result<(), VmmError> {
        let (method, path, body) = change.request();
        self.call(change.name(), change.limit(), method, &path, &body).await.map(drop)
    }

    /// Asks it something.
    pub async fn ask<Q: Query>(&mut self) -> Result<Q::Answer, VmmError> {
        let body = self.call(Q::NAME, Q::LIMIT, Method::Get, Q::PATH, b"").await?;
        serde_json::from_slice(&body)
            .map_err(|error| VmmError::Protocol { command: Q::NAME, detail: format!("{error}: {}", excerpt(&body)) })
    }

    async fn call(
        &mut self,
        command: &'static str,
        limit: Duration,
        method: Method,
        path: &str,
        body: &[u8],
    ) -> Result<Vec<u8>, VmmError> {
        let Link { connection, peer } = match self.link.take() {
            Some(link) => link,
            None => self.new_link(command).await?,
        };
        let (connection, answer) = timeout(limit, connection.exchange(method, path, body))
            .await
            .map_err(|_elapsed| VmmError::Deadline { command, limit })?
            .map_err(|error| failed(command, error))?;
        self.link = Some(Link { connection, peer });
        match answer.status {
            200 | 204 => Ok(answer.body),
            status => Err(VmmError::Refused { command, status: Some(status), detail: fault(&answer.body) }),
        }
    }
}

fn failed(command: &'static str, error: HttpError) -> VmmError {
    match error {
        HttpError::Closed => VmmError::Gone { command },
        HttpError::CutOff => VmmError::CutOff { command },
        HttpError::TooLong(limit) => VmmError::TooLong { command, limit },
        HttpError::Malformed(detail) => VmmError::Protocol { command, detail },
    }
}

fn fault(body: &[u8]) -> String {
    let message = serde_json::from_slice::<Fault>(body).map(|fault| fault.fault_message);
    excerpt(message.as_deref().map_or(body, str::as_bytes))
}

/// A running microVM.
#[derive(Debug)]
pub(super) struct Microvm {
    client: Client,
    capture_dir: PathBuf,
}

impl Microvm {
    /// The one behind `client`, which writes captures into the files of `capture_dir`.
    pub(super) fn new(client: Client, capture_dir: PathBuf) -> Self {
        Self { client, capture_dir }
    }

    /// Has the files written. Only what differs: after a boot the pages that were ever touched, as the kernel has it, and
    /// after a restore those that were written, as KVM logs it. The kernel does not count pages that are in swap, where the
    /// VM's control group keeps them from being; on a host without such groups they may be, and then all is written.
    /// `whole`: what was written before is not in the files any more, so all of it is.
    async fn write_snapshot(&mut self, whole: bool) -> Result<(), VmmError> {
        if whole {
            return self.client.change(&snapshot(SnapshotType::Full)).await;
        }
        self.client.change(&snapshot(SnapshotType::Diff)).await?;
        let link = self.link().await?;
        let swapped = link.peer.is_swapped();
        let swapped = swapped.map_err(|source| VmmError::File { path: PathBuf::from("/proc"), source })?;
        if swapped && !self.client.ask::<GetMachineConfig>().await?.track_dirty_pages {
            self.client.change(&snapshot(SnapshotType::Full)).await?;
        }
        Ok(())
    }

    async fn link(&mut self) -> Result<&Link, VmmError> {
        if self.client.link.is_none() {
            self.client.link = Some(self.client.new_link("stop").await?);
        }
        Ok(self.client.link.as_ref().expect("just made"))
    }
}

fn snapshot(snapshot_type: SnapshotType) -> Change {
    Change::SnapshotCreate(SnapshotCreate {
        snapshot_type,
        snapshot_path: jail::CAPTURE.devices.to_owned(),
        mem_file_path: jail::CAPTURE.memory.to_owned(),
    })
}

#[async_trait]
impl Machine for Microvm {
    async fn run_state(&mut self) -> Result<RunState, VmmError> {
        match self.client.ask::<GetInstance>().await?.state {
            InstanceState::Running => Ok(RunState::Running),
            InstanceState::Paused => Ok(RunState::Frozen),
            InstanceState::NotStarted => {
                Err(VmmError::Protocol { command: GetInstance::NAME, detail: "it has not started its VM".to_owned() })
            }
        }
    }

    async fn freeze(&mut self) -> Result<(), VmmError> {
        self.client.change(&Change::Vm(VmState::Paused)).await
    }

    fn keeps_memory(&self) -> bool {
        false
    }

    async fn capture(&mut self, into: &Path, then: Then) -> Result<Captured, VmmError> {
        match self.client.ask::<GetInstance>().await?.state {
            InstanceState::Paused => {}
            state @ (InstanceState::Running | InstanceState::NotStarted) => {
                return Err(VmmError::NotFrozen { state: format!("{state:?}") });
            }
        }
        let into = jail::Snapshot { devices: capture::absent(into, DEVICES)?, memory: capture::absent(into, MEMORY)? };
        files::open(&self.capture_dir, socket::owner(&self.client.folder)?)?;
        let whole = files::are_emptied(&self.capture_dir);
        let written = self.write_snapshot(whole).await;
        files::close(&self.capture_dir)?;
        if let Err(error) = written {
            // A disk that it has filled must not stay full: then the guest could not go on either.
            if let Err(error) = files::empty(&self.capture_dir) {
                tracing::warn!(folder = %self.capture_dir.display(), %error, "cannot give back what a failed capture took");
            }
            return Err(error);
        }
        if whole {
            files::are_whole(&self.capture_dir)?;
        }
        let capture_dir = self.capture_dir.clone();
        let path = into.memory.clone();
        let taken = tokio::task::spawn_blocking(move || files::take(&capture_dir, &into, then)).await;
        taken.expect("copying does not panic, and nobody aborts it")?;
        Ok(Captured::Written { path })
    }

    async fn thaw(&mut self) -> Result<(), VmmError> {
        self.client.change(&Change::Vm(VmState::Resumed)).await
    }

    /// The API has no way to end it: its process is killed.
    async fn stop(&mut self) -> Result<(), VmmError> {
        let link = match self.link().await {
            Ok(link) => link,
            Err(VmmError::Gone { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let killed = link.peer.kill();
        killed.map_err(|source| VmmError::Socket { step: "end", path: self.client.folder.clone(), source })?;
        let link = self.client.link.take().expect("just used");
        if link.peer.ended(END_LIMIT).await {
            Ok(())
        } else {
            Err(VmmError::Deadline { command: "stop", limit: END_LIMIT })
        }
    }

    async fn incident(&mut self) -> Incident {
        let link = match self.link().await {
            Ok(link) => link,
            Err(VmmError::Gone { .. }) => return Incident::Ended,
            Err(error) => return Incident::Broken(error.to_string()),
        };
        let incident = match link.connection.idle().await {
            Idle::Ended if link.peer.ended(CLOSED_LIMIT).await => Incident::Ended,
            Idle::Ended => Incident::Broken("it closed its control connection and still runs".to_owned()),
            Idle::Spoke => Incident::Broken("it spoke without having been asked".to_owned()),
        };
        self.client.link = None;
        incident
    }
}

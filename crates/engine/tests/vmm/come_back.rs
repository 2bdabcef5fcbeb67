//! A guest is told that its memory was restored, and becomes somebody else.
//!
//! Nothing is captured here: what a guest does when it is told so is the same in one whose users were only frozen.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ed25519_dalek::SigningKey;
use wrenn_agent::envd_client::{
    CameBack, Command, Dial, EnvdClient, EnvdError, ExecEnd, ExecEvent, HostKey, Identity, Init, Nonces, Resumed,
};
use wrenn_agent::host_agent::Tunnel;
use wrenn_engine::names::SandboxId;
use wrenn_engine::vmm::{Accel, VmSpec, Vmm};

use crate::world::{ENVD, Process, READY_LIMIT, World, firecracker, qemu};

/// How far a guest's clock may be off afterwards.
const CLOCK_WITHIN: Duration = Duration::from_millis(50);
/// A guest on a busy host has this long for anything.
const LIMIT: Duration = Duration::from_secs(20);
const WHO: &str =
    "hostname; cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id; echo $E2B_SANDBOX_ID $ROLE $KEPT";

#[tokio::test]
async fn vm_a_guest_comes_back_and_becomes_others() {
    become_others(&qemu(Accel::Tcg), World::with_overlay()).await;
}

#[tokio::test]
async fn testbed_a_firecracker_s_guest_comes_back_and_becomes_others() {
    become_others(&firecracker(), World::new()).await;
}

async fn become_others(driver: &dyn Vmm, world: World) {
    let world = Arc::new(world);
    let key = SigningKey::from_bytes(&[3; 32]);
    let run_dir = world.run_dir("r");
    let spec = world.spec(driver, &run_dir);
    // The last of two wins.
    let command_line = format!("{} wrenn.key={}", spec.command_line, hex::encode(key.verifying_key().as_bytes()));
    let (process, boot) = world.launch_as(driver, VmSpec { command_line, ..spec });
    let mut machine = boot.boot().await.unwrap_or_else(|error| panic!("{error}; it said: {}", process.console()));
    let parent = Guest::new(&world, &key, SandboxId::from_random([7; 18]), Nonces::default());
    booted(&parent, &process).await;

    // As who it is: its clock is right, and what it was told before stays.
    let back = parent.come_back(None).await.unwrap();
    assert!(back.clock.off_by_at_most() < CLOCK_WITHIN && back.hooks.is_empty(), "{back:?}");
    let who = parent.says(WHO).await;
    assert!(who.ends_with(&format!("{} parent kept\n", parent.id)), "{who}");

    // As others, one after the other, the second from the first.
    let first = becomes(&parent, 1).await;
    let second = becomes(&first, 2).await;
    let mounts = second.says("grep -c ' /proc/sys/kernel/random/boot_id ' /proc/mounts").await;
    assert_eq!(mounts, "1\n", "the second one replaces the first");

    unfit(&second).await;
    machine.stop().await.unwrap();
}

/// A guest that has booted, has its token, and a clock of long ago.
async fn booted(parent: &Guest, process: &Process) {
    let ready = parent.client.wait_ready(READY_LIMIT).await;
    ready.unwrap_or_else(|error| panic!("{error}; its console: {}", process.console()));
    let init = Init {
        access_token: parent.token(),
        env_vars: [("ROLE".to_owned(), "parent".to_owned()), ("KEPT".to_owned(), "kept".to_owned())].into(),
        timestamp: "2020-01-01T00:00:00Z".to_owned(),
        ..Init::default()
    };
    parent.client.init(parent.host(), &init).await.unwrap();
}

/// Makes a guest another one, and sees that it is.
async fn becomes(old: &Guest, number: u8) -> Guest {
    let new = old.fork(number);
    let machine_id = format!("{number:02x}").repeat(16);
    let boot_id = format!("{number:08}-0000-4000-8000-000000000000");
    let identity = Identity {
        id: new.id.clone(),
        access_token: new.token(),
        env_vars: BTreeMap::from([
            ("E2B_SANDBOX_ID".to_owned(), new.id.to_string()),
            ("ROLE".to_owned(), "fork".to_owned()),
        ]),
        hostname: format!("fork-{number}"),
        machine_id: machine_id.clone(),
        boot_id: boot_id.clone(),
    };
    let mut reader = old.client.start(sh("sleep 1000")).await.unwrap();
    let back = old.come_back_as(&new, Some(identity)).await.unwrap();
    assert!(back.clock.off_by_at_most() < CLOCK_WITHIN, "{back:?}");
    assert!(reader.next().await.is_err(), "who came with the old token is cut off");
    let wanted = format!("fork-{number}\nfork-{number}\n{machine_id}\n{boot_id}\n{} fork kept\n", new.id);
    assert_eq!(new.says(WHO).await, wanted);
    let refused = old.client.list().await.unwrap_err();
    assert!(matches!(&refused, EnvdError::Refused { code, .. } if code == "unauthenticated"), "{refused}");
    let unknown = new.client.freeze(old.host()).await.unwrap_err();
    assert!(matches!(&unknown, EnvdError::Refused { code, .. } if code == "404"), "{unknown}");
    new
}

/// One whose hook fails goes on for nobody.
async fn unfit(guest: &Guest) {
    guest
        .says("mkdir -p /etc/wrenn/resume.d; cd /etc/wrenn/resume.d; printf '#!/bin/sh\\nexit 3\\n' > 10-no; chmod +x 10-no")
        .await;
    guest.client.freeze(guest.host()).await.unwrap();
    let failed = guest.come_back(None).await.unwrap_err();
    assert!(failed.to_string().contains("10-no exited with 3"), "{failed}");
    let kept = guest.client.thaw(guest.host()).await.unwrap_err();
    assert!(matches!(&kept, EnvdError::Refused { code, .. } if code == "503"), "{kept}");
}

/// A guest by one of its names.
struct Guest {
    client: EnvdClient,
    id: SandboxId,
    key: SigningKey,
    world: Arc<World>,
}

impl Guest {
    fn new(world: &Arc<World>, key: &SigningKey, id: SandboxId, nonces: Nonces) -> Self {
        let client = EnvdClient::new(Arc::new(Inside(Arc::clone(world))), token(&id), nonces);
        Self { client, id, key: key.clone(), world: Arc::clone(world) }
    }

    fn fork(&self, number: u8) -> Self {
        let nonces = Nonces::starting_above(self.client.nonces().ceiling());
        Self::new(&self.world, &self.key, SandboxId::from_random([number; 18]), nonces)
    }

    fn token(&self) -> String {
        token(&self.id)
    }

    fn host(&self) -> HostKey<'_> {
        HostKey { key: &self.key, id: &self.id }
    }

    async fn come_back(&self, identity: Option<Identity>) -> Result<CameBack, EnvdError> {
        self.come_back_as(self, identity).await
    }

    /// With frozen users, over the connection that lets them go on.
    async fn come_back_as(&self, new: &Self, identity: Option<Identity>) -> Result<CameBack, EnvdError> {
        self.client.freeze(self.host()).await?;
        let begun = Instant::now();
        let mut line = new.client.reach(LIMIT).await?;
        let reached = begun.elapsed();
        let resumed = Resumed { entropy: [5; 64], identity };
        let back = line.come_back(self.host(), &resumed, CLOCK_WITHIN, LIMIT).await?;
        let came_back = begun.elapsed();
        line.thaw(new.host()).await?;
        println!(
            "reached after {reached:?}, back after {came_back:?}, let go on after {:?}: {back:?}",
            begun.elapsed()
        );
        Ok(back)
    }

    /// What a script prints.
    async fn says(&self, script: &str) -> String {
        let mut exec = self.client.start(sh(script)).await.unwrap();
        let mut output = Vec::new();
        loop {
            match exec.next().await.unwrap() {
                ExecEvent::Stdout(piece) | ExecEvent::Stderr(piece) => output.extend_from_slice(&piece.bytes),
                ExecEvent::End(end) => {
                    assert_eq!(end, ExecEnd::Exited(0), "{script}: {}", String::from_utf8_lossy(&output));
                    return String::from_utf8(output).unwrap();
                }
                ExecEvent::Terminal(_) | ExecEvent::Gap { .. } => panic!("it has no terminal and loses nothing"),
            }
        }
    }
}

fn token(id: &SandboxId) -> String {
    format!("token of {id}")
}

fn sh(script: &str) -> Command {
    Command { program: "sh".to_owned(), args: vec!["-c".to_owned(), script.to_owned()], ..Command::default() }
}

/// Connections out of the guest's network namespace.
#[derive(Clone)]
struct Inside(Arc<World>);

impl std::fmt::Debug for Inside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inside")
    }
}

#[async_trait]
impl Dial for Inside {
    async fn dial(&self, port: u16, limit: Duration) -> io::Result<Tunnel> {
        assert_eq!(port, ENVD.port());
        let world = Arc::clone(&self.0);
        let connect = move || world.netns.run(|| TcpStream::connect_timeout(&ENVD, limit));
        let stream = tokio::task::spawn_blocking(connect).await.map_err(io::Error::other)???;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Box::new(tokio::net::TcpStream::from_std(stream)?))
    }
}

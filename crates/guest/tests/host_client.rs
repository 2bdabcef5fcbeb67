//! The host's own client against a real envd: what it starts, comes back to, types and signs.

mod common;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use common::{Envd, TOKEN};
use tokio::net::TcpStream;
use wrenn_agent::envd_client::{
    Command, Dial, EnvdClient, EnvdError, Exec, ExecEnd, ExecEvent, HostKey, Nonces, Resumed, RunningProcess,
    TerminalSize,
};
use wrenn_agent::host_agent::Tunnel;
use wrenn_engine::names::SandboxId;

#[derive(Debug)]
struct Loopback(SocketAddr);

#[async_trait]
impl Dial for Loopback {
    async fn dial(&self, _port: u16, limit: Duration) -> io::Result<Tunnel> {
        let stream = tokio::time::timeout(limit, TcpStream::connect(self.0)).await??;
        Ok(Box::new(stream))
    }
}

fn client(envd: &Envd) -> EnvdClient {
    // The test's own calls to /init have small numbers.
    EnvdClient::new(Arc::new(Loopback(envd.address)), TOKEN.to_owned(), Nonces::starting_above(1000))
}

fn sh(script: &str) -> Command {
    Command { program: "sh".to_owned(), args: vec!["-c".to_owned(), script.to_owned()], ..Command::default() }
}

/// What a stream told until its end, or until `enough` bytes.
#[derive(Debug, Default)]
struct Told {
    out: Vec<u8>,
    gap: u64,
    position: u64,
    end: Option<ExecEnd>,
}

async fn listen(exec: &mut Exec, enough: usize) -> Told {
    let mut told = Told::default();
    while told.end.is_none() && told.out.len() < enough {
        match exec.next().await.unwrap() {
            ExecEvent::Stdout(output) | ExecEvent::Stderr(output) | ExecEvent::Terminal(output) => {
                told.position = output.end();
                told.out.extend_from_slice(&output.bytes);
            }
            ExecEvent::Gap { bytes } => told.gap += bytes,
            ExecEvent::End(end) => told.end = Some(end),
        }
    }
    told
}

#[tokio::test]
async fn a_client_comes_back_to_where_it_was() {
    let envd = Envd::ready().await;
    let client = client(&envd);
    let mut exec =
        client.start(Command { stdin: true, ..sh("echo one; echo two >&2; read x; echo $x") }).await.unwrap();
    let pid = exec.pid();
    let first = listen(&mut exec, 8).await;
    assert_eq!((first.out.as_slice(), first.position), (&b"one\ntwo\n"[..], 8));
    // The stream is lost, and the process goes on.
    drop(exec);
    client.input(pid).write(Bytes::from_static(b"three\n")).await.unwrap();
    let mut back = client.attach(pid, Some(first.position)).await.unwrap();
    assert_eq!(back.pid(), pid);
    let rest = listen(&mut back, usize::MAX).await;
    assert_eq!((rest.out.as_slice(), rest.gap, rest.end), (&b"three\n"[..], 0, Some(ExecEnd::Exited(0))));
    let all = listen(&mut client.attach(pid, Some(0)).await.unwrap(), usize::MAX).await;
    assert_eq!(all.out, b"one\ntwo\nthree\n", "also after its end");
    let Err(error) = client.attach(4_000_000, Some(0)).await else { panic!("there is no such process") };
    assert!(
        matches!(&error, EnvdError::Refused { call: "Process/Connect", code, .. } if code == "not_found"),
        "{error}"
    );
}

#[tokio::test]
async fn what_nobody_read_is_told_as_a_gap() {
    let envd = Envd::ready().await;
    let client = client(&envd);
    let exec = client.start(Command { stdin: true, ..sh("read x; head -c 3000000 /dev/zero") }).await.unwrap();
    let (pid, input) = (exec.pid(), exec.input());
    drop(exec);
    tokio::time::sleep(Duration::from_millis(200)).await;
    input.write(Bytes::from_static(b"go\n")).await.unwrap();
    while !client.list().await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told = listen(&mut client.attach(pid, Some(0)).await.unwrap(), usize::MAX).await;
    assert_eq!((told.gap + told.out.len() as u64, told.position), (3_000_000, 3_000_000));
    assert!(told.gap > 1_500_000, "{}", told.gap);
}

#[tokio::test]
async fn processes_are_listed_and_signalled_without_a_stream() {
    let envd = Envd::ready().await;
    let client = client(&envd);
    assert_eq!(client.list().await.unwrap(), []);
    let mut exec = client.start(Command { tag: Some("one".to_owned()), ..sh("exec sleep 1000") }).await.unwrap();
    let command = ["sh", "-c", "exec sleep 1000"].map(str::to_owned).to_vec();
    let expected = RunningProcess { pid: exec.pid(), tag: Some("one".to_owned()), command };
    assert_eq!(client.list().await.unwrap(), [expected]);
    let input = client.input(exec.pid());
    assert!(matches!(input.signal(77).await, Err(EnvdError::Refused { .. })));
    input.signal(10).await.unwrap();
    assert_eq!(listen(&mut exec, 1).await.end, Some(ExecEnd::Signalled(10)));
    assert!(matches!(input.kill().await, Err(EnvdError::Refused { .. })), "it has ended");
}

#[tokio::test]
async fn a_terminal_is_typed_on_resized_and_told_its_end() {
    let envd = Envd::ready().await;
    let client = client(&envd);
    let terminal = Some(TerminalSize { cols: 100, rows: 30 });
    let script = "stty -echo; stty size; while read line; do stty size; echo got $line; done; echo bye";
    let mut exec = client.start(Command { terminal, ..sh(script) }).await.unwrap();
    let input = exec.input();
    assert_eq!(listen(&mut exec, 8).await.out, b"30 100\r\n");
    input.resize(TerminalSize { cols: 70, rows: 20 }).await.unwrap();
    input.type_in(Bytes::from_static(b"hello\n")).await.unwrap();
    assert_eq!(listen(&mut exec, 18).await.out, b"20 70\r\ngot hello\r\n");
    assert!(input.close().await.is_err(), "a terminal is not closed");
    assert!(input.write(Bytes::from_static(b"x")).await.is_err(), "nor is it a standard input");
    input.type_end().await.unwrap();
    let rest = listen(&mut exec, usize::MAX).await;
    assert_eq!((rest.out.as_slice(), rest.end), (&b"bye\r\n"[..], Some(ExecEnd::Exited(0))));
}

#[tokio::test]
async fn signed_calls_are_taken_and_answered() {
    let envd = Envd::ready().await;
    let client = client(&envd);
    let id: SandboxId = envd.id.parse().unwrap();
    let host = HostKey { key: envd.key(), id: &id };
    let mut line = client.reach(Duration::from_secs(5)).await.unwrap();
    let reading = line.clock(host).await.unwrap();
    assert!(reading.off_by_at_most() < Duration::from_secs(5), "{reading:?}");
    // This machine's own clock, which is right: it is not stepped, and would not let itself be.
    let reading = line.set_clock(host, Duration::from_secs(5), Duration::from_secs(10)).await.unwrap();
    assert!(reading.off_by_at_most() < Duration::from_secs(5), "{reading:?}");
    client.sync(host, Duration::from_secs(30)).await.unwrap();
    let resumed = Resumed { entropy: [0; 64], identity: None };
    let (within, limit) = (Duration::from_secs(5), Duration::from_secs(10));
    for (what, answer) in [
        ("no cgroup", client.freeze(host).await),
        ("no cgroup", client.thaw(host).await),
        ("no guest", client.fs_freeze(host).await),
        ("no guest", client.fs_thaw(host).await),
        ("no guest", line.come_back(host, &resumed, within, limit).await.map(drop)),
        ("no cgroup, on the same connection", line.thaw(host).await),
    ] {
        assert!(matches!(&answer, Err(EnvdError::Refused { code, .. }) if code == "503"), "{what}: {answer:?}");
    }
    let other = SandboxId::from_random([5; 18]);
    let stranger = client.sync(HostKey { key: envd.key(), id: &other }, Duration::from_secs(30)).await;
    assert!(matches!(&stranger, Err(EnvdError::Refused { code, .. }) if code == "404"), "{stranger:?}");
    client.power_off(host).await.unwrap();
    assert_eq!(envd.wait(), wrenn_sys::spawn::ExitStatus::Exited(0));
}

#[tokio::test]
async fn a_client_that_knows_the_ceiling_is_taken_after_the_clock_went_back() {
    let envd = Envd::ready().await;
    let id: SandboxId = envd.id.parse().unwrap();
    let host = HostKey { key: envd.key(), id: &id };
    let far = Nonces::starting_above(u64::MAX / 2);
    let dial: Arc<dyn Dial> = Arc::new(Loopback(envd.address));
    let (limit, token) = (Duration::from_secs(5), TOKEN.to_owned());
    EnvdClient::new(Arc::clone(&dial), token.clone(), far.clone()).sync(host, limit).await.unwrap();
    let forgetful = EnvdClient::new(Arc::clone(&dial), token.clone(), Nonces::default());
    assert!(forgetful.sync(host, limit).await.is_err(), "its numbers are of an earlier time");
    let mindful = EnvdClient::new(dial, token, Nonces::starting_above(far.ceiling()));
    mindful.sync(host, limit).await.unwrap();
}

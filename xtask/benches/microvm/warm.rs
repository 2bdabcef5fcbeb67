//! In a running sandbox: memory, a command and its output, each beside what the same would cost without us.
//!
//! - `exec`: from the call until the end is known, of `true`; beside it a fork and exec of `true` by a shell inside, and
//!   one byte to a program inside and back through the same TAP.
//! - `output`: a command's, 200 MB of it; beside it the same bytes by `nc` through the same TAP. An emulated guest takes
//!   minutes for that much, and gives a tenth.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::sync::watch;
use wrenn_agent::envd_client::{Command, Exec, ExecEnd, ExecEvent};
use wrenn_agent::instance::RUN_DIR;
use wrenn_agent::manifest::Manifest;
use wrenn_agent::sandbox::{self, Owner, Sandbox};
use wrenn_engine::names::{SandboxId, SlotName};
use wrenn_engine::vmm::Accel;
use wrenn_sys::netns::NetNs;

use crate::Round;
use crate::load::megabytes;
use crate::program::{read_off, status_bytes};
use crate::setting::Setting;

/// The guest's address on its TAP.
const GUEST: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
/// Where the echo listens in the guest.
const ECHO_PORT: u16 = 7000;
/// Where `nc` gives its output.
const OUTPUT_PORT: u16 = 7001;
/// Commands measured in a round.
const EXECS: usize = 50;
/// Commands before, so that the guest's code is translated and its caches are filled.
const EXECS_BEFORE: usize = 5;
/// Bytes sent there and back in a round, one by one.
const ROUND_TRIPS: usize = 200;
/// Programs a shell in the guest starts in a round.
const FORKS: u32 = 200;
/// Bytes of output in a round.
const OUTPUT_BYTES: u64 = 200_000_000;
/// Bytes of output in a round where the guest is emulated.
const OUTPUT_BYTES_EMULATED: u64 = 20_000_000;
/// How long a connection, and a byte on it, may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Everything that needs one running sandbox.
pub fn take(setting: &Setting, round: &mut Round) -> Result<()> {
    setting.runtime.block_on(async {
        round.doing("create a sandbox");
        let (_never, cancel) = watch::channel(false);
        let sandbox = sandbox::create(&setting.host, setting.request(), Owner::Process, cancel).await?;
        let taken = in_sandbox(setting, &sandbox, round).await;
        sandbox.destroy().await;
        taken
    })
}

async fn in_sandbox(setting: &Setting, sandbox: &Sandbox, round: &mut Round) -> Result<()> {
    let netns = netns(setting, sandbox.id())?;
    idle(setting, sandbox, round).await?;
    exec(sandbox, &netns, round).await?;
    output(sandbox, &netns, round).await
}

/// The namespace with the sandbox's TAP.
pub fn netns(setting: &Setting, id: &SandboxId) -> Result<NetNs> {
    let instance = &setting.host.instance;
    let manifest = Manifest::read(&instance.places(id).manifest())?.context("a sandbox without a manifest")?;
    let slot = manifest.slot.context("a running sandbox without a slot")?;
    let name = SlotName { tag: instance.tag(), slot }.netns();
    Ok(NetNs::open(&Path::new(RUN_DIR).join("netns").join(name))?)
}

async fn idle(setting: &Setting, sandbox: &Sandbox, round: &mut Round) -> Result<()> {
    round.doing("memory of the guest's init and agent");
    // One process looks at all: whatever else has memory of its own is init or the agent.
    let text = run(sandbox, "exec grep -E '^(Name|VmRSS|RssAnon):' /proc/[0-9]*/status").await?;
    let (mut resident, mut anonymous) = (0, 0);
    for status in processes(&text).values().filter(|status| !status.contains("Name:\tgrep")) {
        resident += status_bytes(status, "VmRSS").unwrap_or(0);
        anonymous += status_bytes(status, "RssAnon").unwrap_or(0);
    }
    ensure!(resident > 0, "the guest told of no memory: {text:?}");
    round.value("guest-idle-rss", "MB", megabytes(resident));
    round.value("guest-idle-anon", "MB", megabytes(anonymous));
    round.value("guest-binary", "MB", megabytes(setting.guest_bytes));
    Ok(())
}

/// What `grep` found in each status, without the paths in front.
fn processes(text: &str) -> std::collections::BTreeMap<&str, String> {
    let mut found = std::collections::BTreeMap::<&str, String>::new();
    for (path, line) in text.lines().filter_map(|line| line.split_once(':')) {
        let status = found.entry(path).or_default();
        status.push_str(line);
        status.push('\n');
    }
    found
}

async fn exec(sandbox: &Sandbox, netns: &NetNs, round: &mut Round) -> Result<()> {
    round.doing("true, over and over");
    let mut times = Vec::new();
    for _ in 0..EXECS_BEFORE + EXECS {
        let begun = Instant::now();
        finish(&mut start(sandbox, &["true"]).await?).await?;
        times.push(begun.elapsed());
    }
    round.value("warm-exec", "ms", median_ms(times.split_off(EXECS_BEFORE)));

    // What a new connection and one answer on it cost, for comparison.
    let mut times = Vec::new();
    for _ in 0..EXECS {
        let begun = Instant::now();
        sandbox.envd().wait_ready(ANSWER_LIMIT).await?;
        times.push(begun.elapsed());
    }
    round.value("warm-health", "ms", median_ms(times));

    round.doing("fork and exec in the guest");
    let fork = fork_exec_ms(sandbox).await?;
    round.doing("bytes there and back");
    let trip = round_trip_ms(sandbox, netns).await?;
    round.value("guest-fork-exec", "ms", fork);
    round.value("tcp-round-trip", "ms", trip);
    round.value("bare-exec", "ms", fork + trip);
    Ok(())
}

/// What a shell in the guest takes to start `/bin/true` and wait for it, without what its loop takes. The clock is the
/// host's: an emulated guest's may stand still for a while. The shell says when each loop is done.
async fn fork_exec_ms(sandbox: &Sandbox) -> Result<f64> {
    let count = |body: &str| format!("i=0; while [ $i -lt {FORKS} ]; do {body}; i=$((i+1)); done; echo");
    let script = format!("echo; {}; {}", count("/bin/true"), count(":"));
    let mut exec = start(sandbox, &["sh", "-c", &script]).await?;
    let mut told = Vec::new();
    loop {
        match exec.next().await? {
            ExecEvent::Stdout(lines) => told.extend(lines.bytes.iter().map(|_| Instant::now())),
            ExecEvent::Stderr(chunk) => bail!("a shell complained: {}", String::from_utf8_lossy(&chunk.bytes)),
            ExecEvent::Terminal(_) | ExecEvent::Gap { .. } => bail!("an event of no command without a terminal"),
            ExecEvent::End(_) => break,
        }
    }
    let [begun, forked, counted] = told[..] else { bail!("a shell said {} lines instead of 3", told.len()) };
    let loops = (forked - begun).saturating_sub(counted - forked);
    Ok(loops.as_secs_f64() * 1e3 / f64::from(FORKS))
}

/// One byte to a program in the guest and back, half of the times.
async fn round_trip_ms(sandbox: &Sandbox, netns: &NetNs) -> Result<f64> {
    let port = ECHO_PORT.to_string();
    let mut echo = start(sandbox, &["nc", "-l", "-p", &port, "-e", "cat"]).await?;
    let mut stream = connect(netns, ECHO_PORT).await?;
    let times = blocking(move || {
        let mut times = Vec::new();
        for _ in 0..ROUND_TRIPS {
            let begun = Instant::now();
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])?;
            times.push(begun.elapsed());
        }
        Ok(times)
    })
    .await?;
    finish(&mut echo).await?;
    Ok(median_ms(times))
}

async fn output(sandbox: &Sandbox, netns: &NetNs, round: &mut Round) -> Result<()> {
    let bytes = match sandbox.vmm().accel {
        Accel::Kvm => OUTPUT_BYTES,
        Accel::Tcg => OUTPUT_BYTES_EMULATED,
    };
    let rate = |begun: Instant| megabytes(bytes) / begun.elapsed().as_secs_f64();
    let head = format!("head -c {bytes} /dev/zero");
    round.doing("output through exec");
    let begun = Instant::now();
    let mut exec = start(sandbox, &["sh", "-c", &format!("exec {head}")]).await?;
    let came = finish(&mut exec).await?;
    ensure!(came == bytes, "{came} instead of {bytes} bytes of output came");
    round.value("exec-output", "MB/s", rate(begun));

    round.doing("output through nc");
    let mut bare = start(sandbox, &["sh", "-c", &format!("{head} | nc -l -p {OUTPUT_PORT}")]).await?;
    let mut stream = connect(netns, OUTPUT_PORT).await?;
    let begun = Instant::now();
    blocking(move || read_off(&mut stream, bytes)).await?;
    round.value("bare-output", "MB/s", rate(begun));
    finish(&mut bare).await?;
    Ok(())
}

async fn start(sandbox: &Sandbox, words: &[&str]) -> Result<Exec> {
    let (program, args) = words.split_first().context("no command")?;
    let command = Command {
        program: (*program).to_owned(),
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        user: Some("root".to_owned()),
        ..Command::default()
    };
    Ok(sandbox.envd().start(command).await?)
}

/// Sees a command through to its end, which must be a good one; returns how many bytes it wrote to its output.
async fn finish(exec: &mut Exec) -> Result<u64> {
    let mut bytes = 0;
    loop {
        match exec.next().await? {
            ExecEvent::Stdout(chunk) => bytes += chunk.bytes.len() as u64,
            ExecEvent::Stderr(chunk) => bail!("a command complained: {}", String::from_utf8_lossy(&chunk.bytes)),
            ExecEvent::Terminal(_) | ExecEvent::Gap { .. } => bail!("an event of no command without a terminal"),
            ExecEvent::End(ExecEnd::Exited(0)) => return Ok(bytes),
            ExecEvent::End(end) => bail!("a command ended with {end:?}"),
        }
    }
}

/// Runs a shell script in the guest; returns its output.
async fn run(sandbox: &Sandbox, script: &str) -> Result<String> {
    let mut exec = start(sandbox, &["sh", "-c", script]).await?;
    let mut text = Vec::new();
    loop {
        match exec.next().await? {
            ExecEvent::Stdout(chunk) => text.extend_from_slice(&chunk.bytes),
            // A process that ends while it is looked at.
            ExecEvent::Stderr(_) | ExecEvent::Terminal(_) | ExecEvent::Gap { .. } => {}
            ExecEvent::End(_) => return Ok(String::from_utf8(text)?),
        }
    }
}

/// Connects to a port of the guest as soon as something listens there.
pub async fn connect(netns: &NetNs, port: u16) -> Result<TcpStream> {
    let netns = netns.try_clone()?;
    let address = SocketAddr::from((GUEST, port));
    blocking(move || {
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            match netns.run(|| TcpStream::connect_timeout(&address, ANSWER_LIMIT))? {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error).with_context(|| format!("cannot connect to port {port} of the guest")),
            }
        }
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// The median, in milliseconds.
pub fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

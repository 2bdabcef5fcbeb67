//! A service over REST and by its port proxy, each beside the same without it.
//!
//! - `rest-exec`: `true` by a request, from when it is sent until the answer is there; `agent-exec`: the same of the agent
//!   itself. One after the other, a pair at a time: what both share is taken away in the difference.
//! - `rest-load-p99`: one sandbox asked for 500 times a second, agent and server on one CPU, from when each request was due.
//! - `proxy-*`: a port of the guest through the proxy; `port-*`: the same port, straight through the TAP.

use std::sync::Mutex;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wrenn_agent::host_agent::View;
use wrenn_sys::netns::NetNs;

use crate::Round;
use crate::cold::millis;
use crate::http::Http;
use crate::load::megabytes;
use crate::program::pin;
use crate::service::Service;
use crate::setting::Setting;
use crate::warm::{connect, median_ms, netns};

/// Commands measured in a round, by each way.
const EXECS: usize = 100;
/// Commands before.
const EXECS_BEFORE: usize = 10;
/// Requests per second, and for how long.
const LOAD_RATE: u32 = 500;
const LOAD_TIME: Duration = Duration::from_secs(5);
/// Connections that the load comes by.
const LOAD_CONNECTIONS: u32 = 10;
/// Requests measured in a round, by each way.
const REQUESTS: usize = 200;
/// The guest's agent, whose health everybody may ask for: it keeps connections open.
const HEALTH_PORT: u16 = 49983;
/// Where the guest's web server gives a file.
const FILE_PORT: u16 = 8000;
const FILE_MIB: u32 = 32;
/// How long a service is left alone before its memory is looked at.
const QUIET: Duration = Duration::from_secs(2);

/// Values of one round.
pub fn take(setting: &Setting, round: &mut Round) -> Result<()> {
    setting.runtime.block_on(async {
        round.doing("start a service");
        let (service, took) = Service::start(setting).await?;
        round.value("serve-start", "ms", millis(took));
        let taken = served(setting, &service, round).await;
        service.end(taken).await
    })
}

async fn served(setting: &Setting, service: &Service, round: &mut Round) -> Result<()> {
    service.agent.clear().await?;
    idle(service, round)?;
    round.doing("create a sandbox");
    let view = service.create(setting).await?;
    exec(service, &view, round).await?;
    let netns = netns(setting, &view.id)?;
    latency(service, &view, &netns, round).await?;
    throughput(service, &view, &netns, round).await?;
    // Last of all: the service stays on one CPU.
    load(service, &view, round)
}

fn idle(service: &Service, round: &mut Round) -> Result<()> {
    sleep(QUIET);
    let (agent, server) = service.rss()?;
    round.value("serve-rss-agent", "MB", megabytes(agent));
    round.value("serve-rss-server", "MB", megabytes(server));
    // Both have the same program, whose pages are counted twice here, and in halves there.
    round.value("serve-rss", "MB", megabytes(agent + server));
    round.value("serve-pss", "MB", megabytes(service.pss()?));
    Ok(())
}

async fn exec(service: &Service, view: &View, round: &mut Round) -> Result<()> {
    round.doing("true, by a request and without");
    let (mut http, path) = (service.http()?, format!("/v1/sandboxes/{}/exec", view.id));
    let wanted = json!({ "command": ["true"], "user": "root" }).to_string();
    let (mut by_rest, mut by_agent) = (Vec::new(), Vec::new());
    for _ in 0..EXECS_BEFORE + EXECS {
        let begun = Instant::now();
        service.agent.exec(view, &["true"]).await?;
        by_agent.push(begun.elapsed());
        let begun = Instant::now();
        let answer = http.ask("POST", &path, &wanted)?;
        by_rest.push(begun.elapsed());
        let answer: Value = serde_json::from_slice(&answer)?;
        ensure!(answer["exit"]["code"] == 0, "`true` ended so: {answer}");
    }
    let (rest, agent) = (median_ms(by_rest.split_off(EXECS_BEFORE)), median_ms(by_agent.split_off(EXECS_BEFORE)));
    round.value("rest-exec", "ms", rest);
    round.value("agent-exec", "ms", agent);
    round.value("rest-exec-overhead", "ms", rest - agent);
    Ok(())
}

async fn latency(service: &Service, view: &View, netns: &NetNs, round: &mut Round) -> Result<()> {
    round.doing("requests to a port of the guest");
    let mut straight = Http::over(connect(netns, HEALTH_PORT).await?, &[])?;
    let (mut through, path) = (service.http()?, proxied(HEALTH_PORT, view, "/health"));
    let (mut by_port, mut by_proxy) = (Vec::new(), Vec::new());
    for _ in 0..EXECS_BEFORE + REQUESTS {
        let begun = Instant::now();
        straight.get("/health")?;
        by_port.push(begun.elapsed());
        let begun = Instant::now();
        through.get(&path)?;
        by_proxy.push(begun.elapsed());
    }
    let (proxy, port) = (median_ms(by_proxy.split_off(EXECS_BEFORE)), median_ms(by_port.split_off(EXECS_BEFORE)));
    round.value("proxy-request", "ms", proxy);
    round.value("port-request", "ms", port);
    round.value("proxy-latency", "ms", proxy - port);
    Ok(())
}

async fn throughput(service: &Service, view: &View, netns: &NetNs, round: &mut Round) -> Result<()> {
    round.doing("a file from a port of the guest");
    let script = format!(
        "cd /dev/shm && dd if=/dev/zero of=file bs=1M count={FILE_MIB} 2>/dev/null && httpd -p {FILE_PORT} -h /dev/shm"
    );
    service.agent.exec(view, &["sh", "-c", &script]).await?;
    // Once for nothing: the guest's code is translated then. Its web server ends each connection after its answer.
    Http::over(connect(netns, FILE_PORT).await?, &[])?.read_off("/file")?;
    // First and second in turn: what comes later finds the guest warmer.
    let mut ways = [("port-throughput", "/file".to_owned()), ("proxy-throughput", proxied(FILE_PORT, view, "/file"))];
    if round.number().is_multiple_of(2) {
        ways.reverse();
    }
    for (name, path) in ways {
        let mut http =
            if path == "/file" { Http::over(connect(netns, FILE_PORT).await?, &[])? } else { service.http()? };
        let begun = Instant::now();
        let bytes = http.read_off(&path)?;
        round.value(name, "MB/s", megabytes(bytes) / begun.elapsed().as_secs_f64());
    }
    Ok(())
}

/// The proxy's path to one of the guest's.
fn proxied(port: u16, view: &View, path: &str) -> String {
    format!("/proxy/{port}-{}{path}", view.id)
}

fn load(service: &Service, view: &View, round: &mut Round) -> Result<()> {
    round.doing("requests at a steady rate");
    pin(service.agent.pid(), 0)?;
    pin(service.server_pid()?, 0)?;
    let path = format!("/v1/sandboxes/{}", view.id);
    let times = Mutex::new(Vec::new());
    let begun = Instant::now();
    let each = Duration::from_secs(1) * LOAD_CONNECTIONS / LOAD_RATE;
    scope(|threads| {
        let client = |number: u32| {
            let mut http = service.http()?;
            let mut due = begun + each * number / LOAD_CONNECTIONS;
            let mut mine = Vec::new();
            while due < begun + LOAD_TIME {
                sleep(due.saturating_duration_since(Instant::now()));
                http.get(&path)?;
                // Of who came late all that waited behind it is late as well.
                mine.push(due.elapsed());
                due += each;
            }
            times.lock().expect("nobody panics with it").append(&mut mine);
            anyhow::Ok(())
        };
        let clients: Vec<_> = (0..LOAD_CONNECTIONS).map(|number| threads.spawn(move || client(number))).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client does not panic"))
    })?;
    let mut times = times.into_inner().expect("nobody panics with it");
    times.sort();
    let p99 = times.get(times.len() * 99 / 100).context("no request was sent")?;
    round.value("rest-load-p50", "ms", median_ms(times.clone()));
    round.value("rest-load-p99", "ms", millis(*p99));
    Ok(())
}

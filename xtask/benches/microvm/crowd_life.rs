//! An agent with many sandboxes that run: its memory, and how soon the next agent has taken them over after it was killed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::time::sleep;
use wrenn_engine::units::Mib;

use crate::Round;
use crate::agent::{Agent, all_run};
use crate::cold::millis;
use crate::load::megabytes;
use crate::setting::Setting;

/// How many sandboxes.
const CROWD: usize = 20;
/// The memory of each.
const MEMORY: Mib = Mib(128);
/// How long an agent is left alone before its memory is looked at.
const QUIET: Duration = Duration::from_secs(2);
/// How long a new agent may take to have them all.
const ADOPTED_LIMIT: Duration = Duration::from_secs(60);

/// Values of one round.
pub fn take(setting: &Setting, round: &mut Round) -> Result<()> {
    setting.runtime.block_on(async {
        let agent = Agent::start(setting).await?;
        match filled(setting, &agent, round).await {
            Ok(()) => {}
            failed @ Err(_) => return agent.end(failed).await,
        }
        round.doing("kill the agent and start another");
        agent.kill()?;
        let begun = Instant::now();
        let agent = Agent::start(setting).await?;
        let adopted = adopted(&agent, begun).await;
        if let Ok(took) = &adopted {
            round.value("adopt-20", "ms", millis(*took));
        }
        agent.end(adopted.map(drop)).await
    })
}

/// Has the sandboxes made, and looks at the agent's memory before and after.
async fn filled(setting: &Setting, agent: &Agent, round: &mut Round) -> Result<()> {
    agent.clear().await?;
    sleep(QUIET).await;
    let idle = agent.rss()?;
    for number in 1..=CROWD {
        round.doing(&format!("create sandbox {number} of {CROWD}"));
        agent.create(setting, MEMORY).await?;
    }
    sleep(QUIET).await;
    let full = agent.rss()?;
    round.value("agent-rss-20", "MB", megabytes(full));
    round.value("agent-rss-per-sandbox", "MB", (megabytes(full) - megabytes(idle)) / CROWD as f64);
    Ok(())
}

/// From `begun` until all are said to run.
async fn adopted(agent: &Agent, begun: Instant) -> Result<Duration> {
    loop {
        let views = agent.sandboxes().await?;
        let took = begun.elapsed();
        if all_run(&views, CROWD) {
            return Ok(took);
        }
        ensure!(took < ADOPTED_LIMIT, "not all of {CROWD} sandboxes run after {took:?}: {views:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

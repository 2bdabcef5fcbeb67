//! One sandbox, paused and resumed again and again, something new in its memory and on its disk each time: what its 50th resume
//! takes beside its first. Each is the middle of three in a row, until `true` has run.

use std::time::Instant;

use anyhow::Result;
use wrenn_agent::host_agent::{HostAgent as _, PauseOptions, ResumeOptions, View};

use crate::Round;
use crate::agent::Agent;
use crate::branch::warm;
use crate::cold::millis;
use crate::life::middle;
use crate::setting::{READY_LIMIT, Setting};

/// Which resumes are told of.
const DEPTHS: [usize; 3] = [1, 10, 50];
/// How many of each count.
const IN_A_ROW: usize = 3;

/// Values of one round.
pub fn take(setting: &Setting, round: &mut Round) -> Result<()> {
    setting.runtime.block_on(async {
        let agent = Agent::start(setting).await?;
        let taken = with_agent(setting, &agent, round).await;
        agent.end(taken).await
    })
}

async fn with_agent(setting: &Setting, agent: &Agent, round: &mut Round) -> Result<()> {
    agent.clear().await?;
    let view = agent.create_as(warm(setting)).await?.view;
    let mut took = Vec::new();
    for number in 1..DEPTHS[DEPTHS.len() - 1] + IN_A_ROW {
        round.doing(&format!("resume {number}"));
        took.push(once(agent, &view, number).await?);
    }
    for depth in DEPTHS {
        let mut times = took[depth - 1..depth - 1 + IN_A_ROW].to_vec();
        round.value(&format!("depth-{depth}-exec"), "ms", middle(&mut times));
    }
    Ok(())
}

/// Milliseconds of one resume.
async fn once(agent: &Agent, view: &View, number: usize) -> Result<f64> {
    let script =
        format!("for to in /dev/shm/some /root/some; do head -c 200000 /dev/urandom > ${{to}}{}; done", number % 10);
    agent.exec(view, &["sh", "-c", &script]).await?;
    agent.remote().pause(&view.id, PauseOptions::default()).await?;
    // Answered when what need not be waited for is done: it is not a part of the resume.
    agent.remote().stat(&view.id).await?;
    let begun = Instant::now();
    agent.remote().resume(&view.id, ResumeOptions { ready_limit: READY_LIMIT, timeout: None }).await?;
    agent.exec(view, &["true"]).await?;
    Ok(millis(begun.elapsed()))
}

//! How soon a service is ready that finds 100 sandboxes at rest.

use anyhow::Result;
use wrenn_agent::host_agent::{HostAgent as _, PauseOptions};

use crate::Round;
use crate::branch::warm;
use crate::cold::millis;
use crate::service::Service;
use crate::setting::Setting;

/// How many sandboxes.
const CROWD: usize = 100;

/// Values of one round.
pub fn take(setting: &Setting, round: &mut Round) -> Result<()> {
    setting.runtime.block_on(async {
        let (service, _took) = Service::start(setting).await?;
        match fill(setting, &service, round).await {
            Ok(()) => service.leave()?,
            failed @ Err(_) => return service.end(failed).await,
        }
        round.doing("start a service that finds them");
        let (service, took) = Service::start(setting).await?;
        round.value("serve-start-100", "ms", millis(took));
        service.end(Ok(())).await
    })
}

async fn fill(setting: &Setting, service: &Service, round: &mut Round) -> Result<()> {
    service.agent.clear().await?;
    for number in 1..=CROWD {
        round.doing(&format!("put sandbox {number} of {CROWD} to rest"));
        let view = service.agent.create_as(warm(setting)).await?.view;
        service.agent.remote().pause(&view.id, PauseOptions::default()).await?;
    }
    Ok(())
}

//! Keeps in the database what happens to sandboxes, and forgets here what is gone.
//!
//! It lags behind and catches up: nothing waits for it, and what it writes can be made anew from the agent's own list, all but
//! why a sandbox ended. While the database is not there it tries again; what ended meanwhile is kept until it is written. What
//! ended while there was no server is found out by the next one ([`settle`]): that it ended, nobody can tell any more why.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::sleep;
use wrenn_agent::host_agent::View;
use wrenn_client::types::Why;
use wrenn_engine::names::SandboxId;

use crate::app::App;
use crate::attributes::Attributes;
use crate::convert;
use crate::db::{DbError, SandboxRow};
use crate::limits;
use crate::time::now_unix_ms;
use crate::world::Event;

/// Most changes of one transaction.
const BATCH: usize = 256;

/// Writes for as long as the server runs. Never ends by itself.
pub async fn write(mut events: mpsc::UnboundedReceiver<Event>, app: Arc<App>) {
    let mut batch = Vec::new();
    while events.recv_many(&mut batch, BATCH).await > 0 {
        for event in &batch {
            if let Event::Gone(_, view) = event {
                app.execs.forget(&view.id);
                app.samples.forget(&view.id);
            }
        }
        while let Err(error) = write_once(&app, &batch).await {
            tracing::warn!(%error, "cannot keep what happened to sandboxes; trying again");
            sleep(limits::AGENT_RETRY * 5).await;
        }
        batch.clear();
    }
}

async fn write_once(app: &App, events: &[Event]) -> Result<(), DbError> {
    let host = app.world.host();
    // The last state of each is enough.
    let rows: BTreeMap<&str, SandboxRow> = events
        .iter()
        .map(|event| match event {
            Event::Is(view) | Event::Gone(_, view) => (view.id.as_str(), row(&host, view)),
        })
        .collect();
    app.db.put_sandboxes(&rows.into_values().collect::<Vec<_>>()).await?;
    for event in events {
        if let Event::Gone(departure, _) = event {
            app.db.end_sandbox(&host, &departure.id, departure.why, departure.ended_unix_ms).await?;
        }
    }
    Ok(())
}

fn row(host: &str, view: &View) -> SandboxRow {
    let attributes = Attributes::read(&view.attributes);
    SandboxRow {
        id: view.id.to_string(),
        host: host.to_owned(),
        tenant: attributes.owner().to_owned(),
        key_id: attributes.key,
        state: convert::state(view.phase),
        revision: view.revision,
        created_unix_ms: view.created_unix_ms,
        ended: None,
    }
}

/// Ends in the database what ended while there was no server, and forgets what ended long ago.
pub async fn settle(app: Arc<App>) {
    app.world.synced().await;
    while let Err(error) = settle_once(&app).await {
        tracing::warn!(%error, "cannot look for sandboxes that ended meanwhile; trying again");
        sleep(limits::AGENT_RETRY * 5).await;
    }
}

async fn settle_once(app: &App) -> Result<(), DbError> {
    let host = app.world.host();
    for id in app.db.live_sandboxes(&host).await? {
        if is_gone(app, &id).await {
            app.db.end_sandbox(&host, &id, Why::Unknown, now_unix_ms()).await?;
        }
    }
    let kept = u64::try_from(limits::ENDS_KEPT.as_millis()).unwrap_or(u64::MAX);
    app.db.forget_sandboxes(now_unix_ms().saturating_sub(kept)).await.map(drop)
}

/// Whether a sandbox went before this server knew of it. Nothing is concluded from an absence: the agent itself says so.
async fn is_gone(app: &App, id: &str) -> bool {
    let Ok(id) = id.parse::<SandboxId>() else { return true };
    // What this server has seen go, it writes down itself.
    let is_known = !matches!(app.world.get(&id), Ok(None)) || app.world.departure(&id).is_some();
    if is_known {
        return false;
    }
    let asked = app.agent.get(&id).await;
    asked.is_err_and(|error| error.says_gone())
}

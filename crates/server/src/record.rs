//! Keeps in the database what happens to sandboxes, and forgets here what is gone.
//!
//! It lags behind and catches up: nothing waits for it, and what it writes can be made anew from the agent's own list, all but
//! why a sandbox ended. While the database is not there it tries again; what ended meanwhile is kept until it is written.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::sleep;
use wrenn_agent::host_agent::View;

use crate::app::App;
use crate::attributes::Attributes;
use crate::convert;
use crate::db::{DbError, SandboxRow};
use crate::limits;
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

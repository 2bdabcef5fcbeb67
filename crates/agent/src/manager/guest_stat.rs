//! What a guest that runs says of itself, for who asks what its sandbox takes.
//!
//! It is asked beside the sandbox's actor, which others wait for, and has little time: what it does not say in that is absent.

use std::sync::Arc;
use std::time::Duration;

use super::Handle;
use crate::envd_client::{EnvdClient, Nonces};
use crate::guest_dial::GuestDial;
use crate::host_agent::GuestStat;
use crate::policy::{self, Verb};

/// How long a guest has to answer. One that is idle takes milliseconds.
const LIMIT: Duration = Duration::from_millis(500);

/// It, if the guest runs, and answers.
pub(super) async fn ask(handle: &Handle) -> Option<GuestStat> {
    let view = handle.view.borrow().clone();
    policy::check(view.phase, Verb::Use).ok()?;
    let mut live = handle.live.borrow().clone()?;
    // Nothing of it is signed.
    let envd = EnvdClient::new(Arc::new(GuestDial::new(live.connector)), view.access_token, Nonces::default());
    tokio::select! {
        said = envd.metrics(LIMIT) => match said {
            Ok(said) => Some(said),
            Err(error) => {
                tracing::debug!(sandbox = %view.id, %error, "a guest does not say what it takes");
                None
            }
        },
        // The VM is no more: nobody would answer.
        _cut = live.cut.changed() => None,
    }
}

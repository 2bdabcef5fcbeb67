//! /init: what a guest is told before anything runs in it, and whenever that changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::{CallError, clock};
use crate::envd::state::State;

/// The body of /init. Fields that E2B's host sends and we have no use for are ignored, and so are unknown ones.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Init {
    access_token: Option<String>,
    env_vars: Option<BTreeMap<String, String>>,
    timestamp: Option<String>,
    default_user: Option<String>,
    default_workdir: Option<String>,
}

/// Sets what the body names and leaves the rest. Environment variables are added to those of earlier calls.
pub fn apply(state: &State, init: Init) -> Result<(), CallError> {
    if let Some(text) = init.timestamp {
        clock::set(text)?;
    }
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (token, user, workdir) = (filled(init.access_token), filled(init.default_user), filled(init.default_workdir));
    state.change_settings(|settings| {
        settings.token = token.map(Arc::from).or(settings.token.take());
        settings.env.extend(init.env_vars.unwrap_or_default());
        settings.default_workdir = workdir.map(Into::into).or(settings.default_workdir.take());
        if let Some(user) = user {
            settings.default_user = user;
        }
    });
    Ok(())
}

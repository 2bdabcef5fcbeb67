//! Templates that are made: minutes of the agent's work, seen through by whichever server is there.
//!
//! What is asked for is kept with the operation. A server that takes one up asks for the very same again: the agent goes on with a
//! build that is under way, finds what is built already, and refuses a name that it has given. So an operation's outcome is what the
//! agent did, whoever was killed meanwhile, and nothing is made twice.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use wrenn_agent::host_agent::{AgentError, Code, Progress, TemplateView};
use wrenn_client::types::{NewTemplate, Operation, OperationKind};

use crate::app::App;
use crate::operations::{Made, Outcome};

/// What is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Making {
    /// One that there is a recipe for.
    Build(String),
    /// One from a snapshot.
    FromSnapshot {
        /// The snapshot's id.
        snapshot: String,
        /// The template's name.
        name: String,
    },
}

impl Making {
    /// What somebody asks for, if it is one of the two.
    pub fn of(wanted: &NewTemplate) -> Option<Self> {
        match (&wanted.build, &wanted.snapshot, &wanted.name) {
            (Some(build), None, None) => Some(Self::Build(build.clone())),
            (None, Some(snapshot), Some(name)) => {
                Some(Self::FromSnapshot { snapshot: snapshot.clone(), name: name.clone() })
            }
            _otherwise => None,
        }
    }

    /// As it is asked for.
    pub fn wanted(&self) -> NewTemplate {
        match self.clone() {
            Self::Build(build) => NewTemplate { build: Some(build), ..NewTemplate::default() },
            Self::FromSnapshot { snapshot, name } => {
                NewTemplate { snapshot: Some(snapshot), name: Some(name), ..NewTemplate::default() }
            }
        }
    }

    /// The kind of its operation.
    pub fn kind(&self) -> OperationKind {
        match self {
            Self::Build(_) => OperationKind::TemplateBuild,
            Self::FromSnapshot { .. } => OperationKind::TemplateFromSnapshot,
        }
    }
}

/// Makes it.
pub async fn make(app: Arc<App>, operation: String, making: Making) -> Outcome {
    Ok(Made::Template(Arc::new(ask(&app, &operation, &making).await?)))
}

/// Goes on with what a server before this one began.
pub async fn go_on(app: Arc<App>, operation: Operation, making: Making) -> Outcome {
    loop {
        app.world.synced().await;
        let view = match go_on_once(&app, &operation, &making).await {
            // An agent that is lost just now is waited for.
            Err(error) if error.code == Code::Unavailable => {
                tokio::time::sleep(crate::limits::AGENT_RETRY).await;
                continue;
            }
            answered => answered?,
        };
        return Ok(Made::Template(Arc::new(view)));
    }
}

async fn go_on_once(app: &Arc<App>, operation: &Operation, making: &Making) -> Result<TemplateView, AgentError> {
    match (ask(app, &operation.id, making).await, making) {
        // The name may be taken because it was given to this very one.
        (Err(error), Making::FromSnapshot { name, .. }) => {
            let all = app.agent.templates().await?;
            let is_it = |view: &TemplateView| view.name == *name && is_since(&view.created, operation.created_unix_ms);
            all.into_iter().find(is_it).ok_or(error)
        }
        (answered, Making::Build(_) | Making::FromSnapshot { .. }) => answered,
    }
}

async fn ask(app: &Arc<App>, operation: &str, making: &Making) -> Result<TemplateView, AgentError> {
    match making {
        Making::Build(recipe) => app.agent.build_template(recipe, progress(app, operation.to_owned())).await,
        Making::FromSnapshot { snapshot, name } => app.agent.template_from_snapshot(snapshot, name).await,
    }
}

/// Whether a time in RFC 3339, which knows no less than seconds, is not before this one.
fn is_since(created: &str, unix_ms: u64) -> bool {
    let created = humantime::parse_rfc3339(created).ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    created.is_some_and(|created| created.as_secs() >= Duration::from_millis(unix_ms).as_secs())
}

/// Writes each step down, in a task of its own that keeps their order.
fn progress(app: &Arc<App>, operation: String) -> Progress {
    let (lines, mut told) = tokio::sync::mpsc::unbounded_channel::<String>();
    let db = app.db.clone();
    tokio::spawn(async move {
        while let Some(line) = told.recv().await {
            if let Err(error) = db.progress_operation(&operation, &line).await {
                tracing::warn!(operation, %error, "a step of an operation is not noted");
            }
        }
    });
    Arc::new(move |line: &str| {
        // The task ends when nobody tells anything any more.
        drop(lines.send(line.to_owned()));
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_kept_as_it_was() {
        for making in [
            Making::Build("minimal".to_owned()),
            Making::FromSnapshot { snapshot: "sn1".to_owned(), name: "mine".to_owned() },
        ] {
            assert_eq!(Making::of(&making.wanted()), Some(making));
        }
        assert_eq!(Making::of(&NewTemplate::default()), None);
    }

    #[test]
    fn times_are_compared_by_their_seconds() {
        assert!(is_since("1970-01-01T00:00:01Z", 1999) && is_since("1970-01-01T00:00:02Z", 1999));
        assert!(!is_since("1970-01-01T00:00:01Z", 2000) && !is_since("nonsense", 0));
    }
}

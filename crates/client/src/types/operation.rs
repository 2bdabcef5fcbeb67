//! Long work that somebody does not wait for.

use serde::{Deserialize, Serialize};

use super::ErrorBody;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// A new sandbox.
    Create,
    /// A template is built.
    TemplateBuild,
    /// A template is made of a snapshot.
    TemplateFromSnapshot,
}

impl OperationKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Create, Self::TemplateBuild, Self::TemplateFromSnapshot];

    /// Its name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::TemplateBuild => "template_build",
            Self::TemplateFromSnapshot => "template_from_snapshot",
        }
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Under way.
    Running,
    /// Done.
    Succeeded,
    /// It did not work; `error` says why.
    Failed,
}

impl OperationState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Running, Self::Succeeded, Self::Failed];

    /// Its name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// Work that goes on whether or not somebody waits, and whose outcome can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Operation {
    /// `op` and 18 characters of `[a-z0-9]`.
    pub id: String,
    /// What is done.
    pub kind: OperationKind,
    /// How far it is.
    pub state: OperationState,
    /// When it began.
    pub created_unix_ms: u64,
    /// When it ended; null while it runs.
    pub ended_unix_ms: Option<u64>,
    /// What it has done so far, for people.
    pub progress: Vec<String>,
    /// The sandbox that it made.
    pub sandbox: Option<String>,
    /// Id of the template that it made.
    pub template: Option<String>,
    /// Why it failed.
    pub error: Option<ErrorBody>,
}

//! Templates as the agent sees them: with their warm images, in use or not, and new ones from snapshots.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use wrenn_engine::image::{ImageError, Recipe, Reporter, Template, TemplateError, UnknownRecipe};
use wrenn_engine::storage::allocated_bytes;

use super::{Manager, create_error};
use crate::flatten::{self, FlattenError};
use crate::host::Host;
use crate::host_agent::{
    AgentError, Code, CreateRequest, Fresh, HostAgent as _, Progress, Source, TemplateView, WarmView, Warmed, Wishes,
};
use crate::sandbox::{Checked, CreateError, Timing, blocking};
use crate::snapshot::Key;

impl Manager {
    pub(super) async fn list_templates(&self) -> Result<Vec<TemplateView>, AgentError> {
        let host = Arc::clone(&self.shared.host);
        blocking(move || {
            let templates = host.images.templates().map_err(|error| image_error(&error))?;
            Ok(templates.into_iter().map(|template| view(&host, template)).collect())
        })
        .await
    }

    /// The kernel if there is none yet, then the template.
    pub(super) async fn build(&self, recipe: &str, progress: Progress) -> Result<TemplateView, AgentError> {
        let recipe: Recipe =
            recipe.parse().map_err(|unknown: UnknownRecipe| AgentError::of(Code::Invalid, &unknown))?;
        let host = Arc::clone(&self.shared.host);
        let build = |reporter| async move {
            let template = build(&host, recipe, reporter).await.map_err(|error| image_error(&error))?;
            Ok(blocking(move || view(&host, template)).await)
        };
        self.shared.builds.join(recipe, progress, build).await
    }

    /// A sandbox of that kind is created, which makes its warm image on the way, and is destroyed again.
    pub(super) async fn make_warm(&self, fresh: Fresh, ready_limit: Duration) -> Result<Warmed, AgentError> {
        if fresh.cold {
            let message = "a warm image of a cold start makes no sense".to_owned();
            return Err(AgentError { code: Code::Invalid, message });
        }
        let host = Arc::clone(&self.shared.host);
        let (key, found) = {
            let (host, fresh) = (Arc::clone(&host), fresh.clone());
            let found = blocking(move || find(&host, &fresh)).await;
            found.map_err(|error| create_error(&error))?
        };
        if let Some(view) = found {
            return Ok(Warmed { view, made: false, timings: Vec::new() });
        }
        let timings = self.boot_once(fresh, ready_limit).await?;
        let found = blocking(move || warm_view(&host, &key)).await;
        let view = found.ok_or_else(|| AgentError {
            code: Code::Failed,
            message: "the VM was booted, but could not be kept; the agent's log says why".to_owned(),
        })?;
        Ok(Warmed { view, made: true, timings })
    }

    async fn boot_once(&self, fresh: Fresh, ready_limit: Duration) -> Result<Vec<Timing>, AgentError> {
        let request = CreateRequest { source: Source::Template(fresh), wishes: Wishes::bound(ready_limit) };
        let created = self.create(request).await?;
        self.destroy(&created.changed.view.id).await?;
        Ok(created.changed.timings)
    }

    pub(super) async fn forget_template(&self, name: &str) -> Result<TemplateView, AgentError> {
        let users = self.users_of(name)?;
        if !users.is_empty() {
            let message = format!(
                "the template `{name}` is in use by {}; remove these first",
                users.iter().take(8).cloned().collect::<Vec<_>>().join(", ")
            );
            return Err(AgentError { code: Code::Denied, message });
        }
        let (host, name) = (Arc::clone(&self.shared.host), name.to_owned());
        if let Some(reserve) = &self.shared.reserve {
            let id = host.images.template(&name).map_err(|error| image_error(&error))?.id;
            reserve.give_up(|key| key.template == id).await;
        }
        blocking(move || {
            let template = host.images.template(&name).map_err(|error| image_error(&error))?;
            let view = view(&host, template.clone());
            host.warm.remove_of(&template.id).map_err(|error| super::captures::snapshot_error(&error))?;
            host.images.remove_template(&template.id).map_err(|error| image_error(&error))?;
            Ok(view)
        })
        .await
    }

    /// The sandboxes and snapshots whose disks stand on a template.
    fn users_of(&self, name: &str) -> Result<Vec<String>, AgentError> {
        let host = &self.shared.host;
        let id = host.images.template(name).map_err(|error| image_error(&error))?.id;
        let views = self.shared.views();
        let sandboxes = views.iter().filter(|view| view.template == id).map(|view| format!("the sandbox {}", view.id));
        let snapshots = host.snapshots.records().into_iter().filter(|(_, record)| record.template == id);
        let snapshots =
            snapshots.map(|(_, record)| format!("the snapshot {}", record.name.unwrap_or(record.id.to_string())));
        Ok(sandboxes.chain(snapshots).collect())
    }

    pub(super) async fn flatten(&self, snapshot: &str, name: &str) -> Result<TemplateView, AgentError> {
        let host = Arc::clone(&self.shared.host);
        let stored = host.snapshots.find(snapshot).map_err(|error| super::captures::snapshot_error(&error))?;
        let name = name.to_owned();
        blocking(move || {
            let template = flatten::template(&host, &stored, &name).map_err(|error| flatten_error(&error))?;
            Ok(view(&host, template))
        })
        .await
    }
}

async fn build(host: &Host, recipe: Recipe, reporter: Reporter) -> Result<Template, ImageError> {
    host.images.prepare_kernel(false, Arc::clone(&reporter)).await?;
    host.images.build_template(recipe, false, reporter).await
}

/// What the warm image of such a sandbox fits to, and that image if it is there.
fn find(host: &Host, fresh: &Fresh) -> Result<(Key, Option<WarmView>), CreateError> {
    let key = Checked::of(host, fresh)?.warm_key(host)?;
    let found = warm_view(host, &key);
    Ok((key, found))
}

fn warm_view(host: &Host, key: &Key) -> Option<WarmView> {
    host.warm.of_template(&key.template).into_iter().find(|view| view.key == key.name())
}

fn view(host: &Host, template: Template) -> TemplateView {
    let image: PathBuf = template.rootfs;
    TemplateView {
        warm: host.warm.of_template(&template.id),
        id: template.id,
        name: template.name,
        created: template.created,
        size_bytes: template.size_bytes,
        // An image that is gone takes nothing.
        own_bytes: allocated_bytes(&image).unwrap_or(0),
    }
}

/// The kind of what is wrong with a template or its kernel.
pub(super) fn image_error(error: &ImageError) -> AgentError {
    let code = match error {
        ImageError::Template(TemplateError::Unknown { .. }) => Code::NotFound,
        ImageError::Template(TemplateError::BadName(_) | TemplateError::NameTaken(_)) => Code::Invalid,
        ImageError::Template(_) | ImageError::Kernel(_) | ImageError::Apt(_) | ImageError::File(_) => Code::Failed,
    };
    AgentError::of(code, error)
}

fn flatten_error(error: &FlattenError) -> AgentError {
    match error {
        FlattenError::Image(error) => image_error(error),
        FlattenError::Snapshot(error) => super::captures::snapshot_error(error),
        FlattenError::Generation(_)
        | FlattenError::Layer(_)
        | FlattenError::Storage(_)
        | FlattenError::Vmm(_)
        | FlattenError::Seal(_)
        | FlattenError::Injected(_) => AgentError::of(Code::Failed, error),
    }
}

//! Templates that are being built: each recipe once at a time, for all who ask for it meanwhile.
//!
//! ```text
//!   who asks ─► join ─┬─ none runs ─► begun in a task of its own ─┐
//!                     └─ one runs ──────────────────────────────┴─► heard step by step ─► the same result for all
//! ```
//!
//! A build goes on when nobody waits for it any more. When the agent ends it is given up: what is half made belongs to nobody, and
//! goes with the next build.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::AbortHandle;
use wrenn_engine::image::{self, Recipe, Reporter};

use crate::host_agent::{AgentError, Code, Progress, TemplateView};

type Outcome = Result<TemplateView, AgentError>;

/// The builds of one agent.
#[derive(Default)]
pub(super) struct Builds(Mutex<State>);

#[derive(Default)]
struct State {
    /// The last of each recipe.
    builds: HashMap<Recipe, Build>,
    /// Whether the agent has ended.
    ended: bool,
}

struct Build {
    audience: Arc<Audience>,
    /// `None` until it is known.
    outcome: watch::Receiver<Option<Outcome>>,
    task: AbortHandle,
}

impl Builds {
    /// The outcome of the build of `recipe` that is under way, or else of `build`.
    pub(super) async fn join<F>(&self, recipe: Recipe, progress: Progress, build: impl FnOnce(Reporter) -> F) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut outcome = self.enter(recipe, progress, build)?;
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().expect("that is what was waited for"),
            Err(_its_task_is_gone) => Err(self.lost(recipe)),
        }
    }

    fn enter<F>(
        &self,
        recipe: Recipe,
        progress: Progress,
        build: impl FnOnce(Reporter) -> F,
    ) -> Result<watch::Receiver<Option<Outcome>>, AgentError>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut state = self.state();
        if state.ended {
            return Err(AgentError::ending());
        }
        if let Some(under_way) = state.builds.get(&recipe).filter(|build| build.is_under_way()) {
            under_way.audience.join(progress);
            return Ok(under_way.outcome.clone());
        }
        let build = Build::begin(progress, build);
        let outcome = build.outcome.clone();
        state.builds.insert(recipe, build);
        Ok(outcome)
    }

    /// Gives up what is under way, and begins nothing any more.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.ended = true;
        state.builds.values().for_each(|build| build.task.abort());
    }

    fn lost(&self, recipe: Recipe) -> AgentError {
        if self.state().ended {
            return AgentError::ending();
        }
        let message = format!("the agent made a mistake while it built `{}`; its log tells more", recipe.name());
        AgentError { code: Code::Failed, message }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Build {
    fn begin<F>(progress: Progress, build: impl FnOnce(Reporter) -> F) -> Self
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let audience = Arc::<Audience>::default();
        audience.join(progress);
        let reporter = image::lines({
            let audience = Arc::clone(&audience);
            move |line| audience.tell(line)
        });
        let (told, outcome) = watch::channel(None);
        let building = build(reporter);
        let task = tokio::spawn(async move {
            let outcome = building.await;
            told.send_replace(Some(outcome));
        });
        Self { audience, outcome, task: task.abort_handle() }
    }

    fn is_under_way(&self) -> bool {
        !self.task.is_finished() && self.outcome.borrow().is_none()
    }
}

/// All who hear how a build goes on.
#[derive(Default)]
struct Audience(Mutex<Hearing>);

#[derive(Default)]
struct Hearing {
    all: Vec<Progress>,
    /// The step that it is at.
    last: Option<String>,
}

impl Audience {
    /// From now on this one hears too; first of all where the build is.
    fn join(&self, progress: Progress) {
        let mut hearing = self.hearing();
        if let Some(last) = &hearing.last {
            progress(last);
        }
        hearing.all.push(progress);
    }

    fn tell(&self, line: &str) {
        let mut hearing = self.hearing();
        hearing.last = Some(line.to_owned());
        hearing.all.iter().for_each(|progress| progress(line));
    }

    fn hearing(&self) -> MutexGuard<'_, Hearing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn view(name: &str) -> TemplateView {
        TemplateView {
            id: format!("id of {name}"),
            name: name.to_owned(),
            created: String::new(),
            size_bytes: 1,
            own_bytes: 1,
            warm: Vec::new(),
        }
    }

    fn listener() -> (Progress, Arc<Mutex<Vec<String>>>) {
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let into = Arc::clone(&heard);
        (Arc::new(move |line| into.lock().unwrap().push(line.to_owned())), heard)
    }

    fn never(_: Reporter) -> std::future::Ready<Outcome> {
        unreachable!("another one is under way")
    }

    #[tokio::test]
    async fn who_asks_for_what_is_being_built_gets_that() {
        let builds = Arc::new(Builds::default());
        let ((first, heard), (second, heard_later)) = (listener(), listener());
        let (go, gone) = oneshot::channel::<()>();
        let building = tokio::spawn({
            let builds = Arc::clone(&builds);
            async move {
                let build = |reporter: Reporter| async move {
                    reporter.report("fetch", 0, 1);
                    reporter.report("unpack", 0, 1);
                    gone.await.unwrap();
                    reporter.report("pack", 0, 1);
                    Ok(view("minimal"))
                };
                builds.join(Recipe::Minimal, first, build).await
            }
        });
        while heard.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
        building.abort();
        let another = builds.join(Recipe::Base, listener().0, |_| async { Ok(view("base")) });
        assert_eq!(another.await, Ok(view("base")), "another recipe does not wait");
        let joined = builds.join(Recipe::Minimal, second, never);
        let (joined, ()) = tokio::join!(joined, async { go.send(()).unwrap() });
        assert_eq!(joined, Ok(view("minimal")));
        assert_eq!(*heard.lock().unwrap(), ["fetch ...", "unpack ...", "pack ..."]);
        assert_eq!(*heard_later.lock().unwrap(), ["unpack ...", "pack ..."]);
        let again = builds.join(Recipe::Minimal, listener().0, |_| async { Ok(view("again")) });
        assert_eq!(again.await, Ok(view("again")), "what was built before is not told of again");
    }

    #[tokio::test]
    async fn builds_end_with_the_agent_and_a_mistake_is_told() {
        let builds = Arc::new(Builds::default());
        let fails = builds.join(Recipe::Base, listener().0, |_| async { panic!("on purpose") });
        let error = fails.await.unwrap_err();
        assert!(error.code == Code::Failed && error.message.contains("`base`"), "{error}");
        let building = {
            let builds = Arc::clone(&builds);
            tokio::spawn(async move { builds.join(Recipe::Base, listener().0, |_| std::future::pending()).await })
        };
        while builds.state().builds.get(&Recipe::Base).is_none_or(|build| !build.is_under_way()) {
            tokio::task::yield_now().await;
        }
        builds.close();
        assert_eq!(building.await.unwrap(), Err(AgentError::ending()));
        assert_eq!(builds.join(Recipe::Minimal, listener().0, never).await, Err(AgentError::ending()));
    }
}

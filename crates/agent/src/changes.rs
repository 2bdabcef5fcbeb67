//! What happens to sandboxes, told to everybody who watches.
//!
//! ```text
//!   who changes something ─► tell ──┐ one at a time, so that        ┌─► watcher: what is there, Complete, what happens, …
//!   who watches ──────────► watch ──┘ nothing is missed or doubled  └─► watcher: …
//! ```
//!
//! All watchers read from one queue of bounded length. One that is slower than what happens for longer than the queue holds is told
//! so, and its stream ends: nothing is left out without a word. Nobody who changes something ever waits for who watches.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{Stream, StreamExt as _, stream};
use tokio::sync::broadcast::{self, error::RecvError};
use wrenn_engine::limits::CHANGES_WAITING_MAX;

use crate::host_agent::{AgentError, Change, Changes, Code, View};

/// Tells who watches.
#[derive(Debug)]
pub(crate) struct Announcer {
    /// `None` once the agent has ended.
    queue: Mutex<Option<broadcast::Sender<Arc<Change>>>>,
}

impl Default for Announcer {
    fn default() -> Self {
        Self::new(CHANGES_WAITING_MAX)
    }
}

impl Announcer {
    /// For watchers who may be so many changes behind.
    fn new(waiting_max: usize) -> Self {
        Self { queue: Mutex::new(Some(broadcast::Sender::new(waiting_max))) }
    }

    /// Lets `change` happen, and tells what it says. Whoever begins to watch does so before or after it. It must neither take long
    /// nor tell anything itself.
    pub fn tell(&self, change: impl FnOnce() -> Option<Change>) {
        let queue = self.queue();
        if let (Some(change), Some(queue)) = (change(), &*queue) {
            // It fails where nobody watches.
            drop(queue.send(Arc::new(change)));
        }
    }

    /// Watches from now on; `there` lists what there is by now.
    pub fn watch(&self, there: impl FnOnce() -> Vec<View>) -> Result<Changes, AgentError> {
        let queue = self.queue();
        let later = queue.as_ref().ok_or_else(AgentError::ending)?.subscribe();
        let there = there();
        drop(queue);
        let first = there.into_iter().map(Change::Is).chain([Change::Complete]);
        Ok(stream::iter(first.map(Ok)).chain(told(later)).boxed())
    }

    /// Nothing happens any more; who watches is told so.
    pub fn close(&self) {
        *self.queue() = None;
    }

    fn queue(&self) -> MutexGuard<'_, Option<broadcast::Sender<Arc<Change>>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is told from now on, and why there is no more of it.
fn told(queue: broadcast::Receiver<Arc<Change>>) -> impl Stream<Item = Result<Change, AgentError>> + Send {
    stream::unfold(Some(queue), |queue| async move {
        let mut queue = queue?;
        match queue.recv().await {
            Ok(change) => Some((Ok(Arc::unwrap_or_clone(change)), Some(queue))),
            Err(RecvError::Lagged(missed)) => Some((Err(too_slow(missed)), None)),
            Err(RecvError::Closed) => Some((Err(AgentError::ending()), None)),
        }
    })
}

fn too_slow(missed: u64) -> AgentError {
    let message = format!(
        "who watches the sandboxes is too slow: {missed} changes were lost, of which {CHANGES_WAITING_MAX} may wait; watch them \
         again, which begins with all that are there"
    );
    AgentError { code: Code::Unavailable, message }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wrenn_engine::names::SandboxId;

    use super::*;
    use crate::host_agent::{Departure, Ended};
    use crate::manifest::tests::manifest;

    fn view(revision: u64) -> View {
        View { revision, ..crate::manager::view_of(&manifest(), None) }
    }

    fn gone() -> Change {
        Change::Gone(Departure { id: view(0).id, why: Ended::Requested, at_unix_ms: 5 })
    }

    async fn take(changes: &mut Changes, count: usize) -> Vec<Change> {
        changes.take(count).map(Result::unwrap).collect().await
    }

    #[tokio::test]
    async fn first_what_is_there_then_what_happens() {
        let announcer = Announcer::default();
        announcer.tell(|| Some(Change::Is(view(1))));
        let mut changes = announcer.watch(|| vec![view(2)]).unwrap();
        announcer.tell(|| Some(Change::Is(view(3))));
        announcer.tell(|| None);
        announcer.tell(|| Some(gone()));
        assert_eq!(take(&mut changes, 4).await, [Change::Is(view(2)), Change::Complete, Change::Is(view(3)), gone()]);
        let mut another = announcer.watch(Vec::new).unwrap();
        assert_eq!(take(&mut another, 1).await, [Change::Complete]);
    }

    #[tokio::test]
    async fn who_is_too_slow_is_told_so_and_others_are_not_kept() {
        let announcer = Announcer::new(4);
        let mut slow = announcer.watch(Vec::new).unwrap();
        let mut swift = announcer.watch(Vec::new).unwrap();
        assert_eq!(take(&mut swift, 1).await, [Change::Complete]);
        for revision in 0..5 {
            announcer.tell(|| Some(Change::Is(view(revision))));
            assert_eq!(take(&mut swift, 1).await, [Change::Is(view(revision))]);
        }
        assert_eq!(take(&mut slow, 1).await, [Change::Complete]);
        let error = slow.next().await.unwrap().unwrap_err();
        assert!(error.code == Code::Unavailable && error.message.contains("too slow: 1 changes"), "{error}");
        assert!(slow.next().await.is_none());
    }

    #[tokio::test]
    async fn when_the_agent_ends_so_do_those_who_watch() {
        let announcer = Announcer::default();
        let changes = announcer.watch(Vec::new).unwrap();
        announcer.tell(|| Some(gone()));
        announcer.close();
        announcer.tell(|| Some(gone()));
        let told: Vec<_> = changes.collect().await;
        assert_eq!(told, [Ok(Change::Complete), Ok(gone()), Err(AgentError::ending())]);
        assert_eq!(announcer.watch(Vec::new).err(), Some(AgentError::ending()));
    }

    /// Whenever somebody begins to watch while much happens, what they are told ends in what there is.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nothing_is_missed_and_nothing_goes_back() {
        let announcer = Arc::new(Announcer::default());
        let there = Arc::new(Mutex::new(BTreeMap::<SandboxId, View>::new()));
        let changing: Vec<_> = (0..4_u8)
            .map(|number| {
                let (announcer, there) = (Arc::clone(&announcer), Arc::clone(&there));
                tokio::spawn(async move {
                    for revision in 1..=200 {
                        let view = View { id: SandboxId::from_random([number; 18]), ..view(revision) };
                        announcer.tell(|| {
                            there.lock().unwrap().insert(view.id.clone(), view.clone());
                            Some(Change::Is(view))
                        });
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        let watching: Vec<_> = (0..8)
            .map(|_| {
                let (announcer, there) = (Arc::clone(&announcer), Arc::clone(&there));
                tokio::spawn(async move {
                    let mut changes = announcer.watch(|| there.lock().unwrap().values().cloned().collect()).unwrap();
                    let mut known = BTreeMap::new();
                    while known.len() < 4 || known.values().any(|revision| *revision < 200) {
                        if let Change::Is(view) = changes.next().await.unwrap().unwrap() {
                            let before = known.insert(view.id, view.revision);
                            assert!(
                                before.is_none_or(|before| before + 1 == view.revision),
                                "{before:?} {}",
                                view.revision
                            );
                        }
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for task in changing.into_iter().chain(watching) {
            task.await.unwrap();
        }
    }
}

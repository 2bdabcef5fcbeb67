//! Work that may hang in the kernel's hands: one piece at a time, each on a thread of its own, each with a limit.
//!
//! The runtime's own threads for blocking work are not used: while a filesystem is frozen users' requests may hold all of
//! them, and the host's call that thaws it must not wait behind those.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, oneshot};
use tokio::time::{Instant, timeout_at};

/// Why a piece of work has no answer.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// It, or the piece before it, took too long. It goes on: a thread cannot be taken out of the kernel.
    #[error("not done within {} s; does the disk still answer?", .0.as_secs())]
    Late(Duration),
    /// There is no thread to be had.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// It panicked, and said so on stderr.
    #[error("it was aborted inside of envd")]
    Aborted,
}

/// A queue of pieces of work.
#[derive(Debug, Default)]
pub struct Lane {
    turn: Arc<Mutex<()>>,
}

impl Lane {
    /// Does `work` in its turn and gives its answer. When that comes too late, it is given to `unwanted` instead.
    pub async fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
        unwanted: impl FnOnce(T) + Send + 'static,
    ) -> Result<T, LaneError> {
        let deadline = Instant::now() + limit;
        let late = |_| LaneError::Late(limit);
        let turn = timeout_at(deadline, Arc::clone(&self.turn).lock_owned()).await.map_err(late)?;
        let (sender, mut receiver) = oneshot::channel();
        let thread = move || {
            // The turn is over when the work is, not when its caller has gone.
            let _turn = turn;
            if let Err(answer) = sender.send(work()) {
                unwanted(answer);
            }
        };
        std::thread::Builder::new().name("lane".to_owned()).spawn(thread).map_err(LaneError::Thread)?;
        if let Ok(answer) = timeout_at(deadline, &mut receiver).await {
            return answer.map_err(|_| LaneError::Aborted);
        }
        // Either the answer has come at the last moment, or from now on it is unwanted.
        receiver.close();
        receiver.try_recv().map_err(|_| LaneError::Late(limit))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);
    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn an_answer_in_time_is_the_caller_s() {
        let lane = Lane::default();
        let answer = lane.run(LONG, || 5, |_| panic!("it was wanted")).await.unwrap();
        assert_eq!(answer, 5);
    }

    #[tokio::test]
    async fn a_late_answer_is_undone_and_the_next_piece_waits_for_that() {
        let lane = Lane::default();
        let (go, wait) = mpsc::channel::<()>();
        let (undo, undone) = mpsc::channel();
        let late = lane.run(SHORT, move || wait.recv().map(|()| 7), move |answer| undo.send(answer).unwrap()).await;
        assert!(matches!(late, Err(LaneError::Late(_))), "{late:?}");
        let blocked = lane.run(SHORT, || 8, drop).await;
        assert!(matches!(blocked, Err(LaneError::Late(_))), "{blocked:?}");
        go.send(()).unwrap();
        let next = lane.run(LONG, move || undone.try_recv(), drop).await.unwrap();
        assert_eq!(next, Ok(Ok(7)), "undone before the next one begins");
    }

    #[tokio::test]
    async fn a_panic_is_no_answer_and_frees_the_lane() {
        let lane = Lane::default();
        let aborted = lane.run(LONG, || panic!("on purpose"), |(): ()| {}).await;
        assert!(matches!(aborted, Err(LaneError::Aborted)), "{aborted:?}");
        assert_eq!(lane.run(LONG, || 9, drop).await.unwrap(), 9);
    }
}

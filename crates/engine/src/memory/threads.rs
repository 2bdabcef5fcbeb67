//! Work for two threads. More would take the host's CPUs from the VMs that run.

use std::sync::{Mutex, PoisonError};

use super::MemoryError;

/// Does two things at once; a host without room for one more thread does one after the other.
pub(super) fn both<A, B: Send>(first: impl FnOnce() -> A, second: impl Fn() -> B + Sync) -> (A, B) {
    std::thread::scope(|scope| {
        let helper = std::thread::Builder::new().name("memory".to_owned()).spawn_scoped(scope, &second);
        let first = first();
        let second = match helper {
            Ok(helper) => helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(_) => second(),
        };
        (first, second)
    })
}

/// Works on the two halves of `items` at once, and gives the results in order.
pub(super) fn in_two<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&[T]) -> Result<R, MemoryError> + Sync,
) -> Result<[R; 2], MemoryError> {
    let (first, second) = items.split_at(items.len() / 2);
    let (first, second) = both(|| work(first), || work(second));
    Ok([first?, second?])
}

/// Works on each of `items`, two at once.
pub(super) fn each_by_two<T: Send, E: Send>(
    items: &mut [T],
    work: impl Fn(&mut T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    if let [alone] = items {
        return work(alone);
    }
    let left = Mutex::new(items.iter_mut());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let take_turns = || {
        while let Some(item) = next() {
            work(item)?;
        }
        Ok(())
    };
    let (first, second) = both(take_turns, take_turns);
    first.and(second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_item_is_worked_on_once() {
        for count in 0..5 {
            let mut items = vec![1; count];
            each_by_two(&mut items, |item| {
                *item += 1;
                Ok::<_, MemoryError>(())
            })
            .unwrap();
            assert_eq!(items, vec![2; count]);
        }
        let mut items = [0, 1, 2];
        assert_eq!(each_by_two(&mut items, |item| if *item == 1 { Err("no") } else { Ok(()) }), Err("no"));
    }
}

//! Networks made ahead, so that none of it is on the way of a create.
//!
//! ```text
//!   filler task: ready < size ──acquire──► ready      take(): ready? pop it : make one now      close(): destroy all
//! ```
//!
//! An acquire that fails in the filler is logged and tried again after the next `take`: whoever takes meanwhile makes its
//! own and gets the error itself.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::{Lease, Network, NetworkError};

/// A supply of networks of one instance. Dropping it takes the unused ones down.
#[derive(Debug)]
pub struct Pool {
    network: Network,
    supply: Arc<Supply>,
    filler: JoinHandle<()>,
}

#[derive(Debug)]
struct Supply {
    ready: Mutex<VecDeque<Lease>>,
    size: usize,
    taken: Notify,
}

impl Supply {
    fn push(&self, lease: Lease) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(lease);
    }

    fn pop(&self) -> Option<Lease> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn is_full(&self) -> bool {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).len() >= self.size
    }
}

impl Pool {
    /// A pool that keeps `size` networks ready. Starts to make them at once.
    pub fn new(network: Network, size: usize) -> Self {
        let supply = Arc::new(Supply { ready: Mutex::default(), size, taken: Notify::new() });
        let filler = tokio::spawn(fill(network.clone(), Arc::clone(&supply)));
        Self { network, supply, filler }
    }

    /// A network: a ready one, or one made now.
    pub async fn take(&self) -> Result<Lease, NetworkError> {
        let ready = self.supply.pop();
        self.supply.taken.notify_one();
        match ready {
            Some(lease) => Ok(lease),
            None => self.network.acquire().await,
        }
    }

    /// How many are ready.
    pub fn ready(&self) -> usize {
        self.supply.ready.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Takes the unused networks down, and waits for it: none is made ahead from then on. The first failure is returned, after
    /// all were tried.
    pub async fn close(&self) -> Result<(), NetworkError> {
        self.filler.abort();
        let mut result = Ok(());
        while let Some(lease) = self.supply.pop() {
            result = result.and(lease.destroy().await);
        }
        // One that was being made when the filler was stopped is dropped as soon as it is there.
        result.and(self.network.settle().await)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.filler.abort();
    }
}

async fn fill(network: Network, supply: Arc<Supply>) {
    loop {
        while !supply.is_full() {
            match network.acquire().await {
                Ok(lease) => supply.push(lease),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot make a network ahead");
                    break;
                }
            }
        }
        supply.taken.notified().await;
    }
}

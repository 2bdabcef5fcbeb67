//! The only crate with `unsafe` code: system calls that no safe crate offers, each behind a safe signature.
//!
//! Descriptors are `OwnedFd` or `BorrowedFd`, never plain numbers. Every `unsafe` block says which invariant makes it
//! sound and who upholds it. Nothing here knows what a sandbox is.

pub mod blockdev;
pub mod clock;
pub mod confine;
pub mod dm;
pub mod ext4;
pub mod fds;
pub mod fsfreeze;
pub mod kvm;
pub mod loopback;
pub mod loopdev;
pub mod malloc;
pub mod mapping;
pub mod netns;
pub mod populated;
pub mod process;
pub mod process_memory;
pub mod random;
pub mod signals;
pub mod spawn;
pub mod tap;
pub mod tsc;
pub mod userfaultfd;
pub mod writeback;

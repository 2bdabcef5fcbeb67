//! End to end: the real `wrenn` binary boots real microVMs, as a person would have it do.
//!
//! Each test has a `WRENN_DIR` of its own (the images are hard-linked into it, they are immutable, and so are the warm ones
//! that the tests of a stack share: [`warmth`]) inside of a network namespace without a way out, and ends with a sweep for
//! leaks: [`world::World::finish`]. A host prepares the images once with `cargo xtask test`, which sets `WRENN_TEST_IMAGES`.

#![allow(
    clippy::disallowed_methods,
    reason = "these tests start `wrenn` and look at the host as a person would, with programs"
)]

mod bad_input;
mod branch;
mod chance;
mod confinement;
mod faults;
mod guest_faults;
mod instances;
mod internet;
mod life;
mod run;
mod service;
mod small_disk;
mod warmth;
mod world;

//! The VMM drivers against the real VMMs.
//!
//! Needs root, the images that `cargo xtask test` builds (`WRENN_TEST_IMAGES`) and QEMU in PATH. What is named `testbed_*`
//! also needs `/dev/kvm` and loop devices, and for Firecracker's tests a release of it (`WRENN_FIRECRACKER`, else
//! `firecracker` in PATH).

mod capture;
mod come_back;
mod drivers;
mod world;

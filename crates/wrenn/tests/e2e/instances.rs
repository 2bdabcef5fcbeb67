//! Two instances on one host: neither ever notices the other.

use crate::world::{World, assert_run, signal};

#[test]
fn root_a_killed_instance_leaves_the_other_alone() {
    let (one, other) = (World::new(), World::new());
    let mut lasting = one.start("read line; for i in 1 2 3 4 5 6; do echo tick $i; sleep 1; done");
    let killed = other.start("sleep 1000");
    assert_ne!(one.tag(), other.tag());
    signal(killed.pid(), "KILL");
    killed.finish();
    assert!(!other.left_behind().is_empty());

    // The sweep of one instance is not the other's.
    let vmm = other.vmm_pid();
    assert_run(&one.run(&["true"]), 0, "");
    assert!(std::path::Path::new(&format!("/proc/{vmm}")).exists());

    assert_run(&other.run(&["true"]), 0, "");
    assert!(!std::path::Path::new(&format!("/proc/{vmm}")).exists());
    assert_eq!(lasting.line(), "tick 1\n");
    let (output, _) = lasting.finish();
    assert_run(&output, 0, "tick 2\ntick 3\ntick 4\ntick 5\ntick 6\n");
    one.finish();
    other.finish();
}

//! Many pauses under a load: what a guest computes is what it would have computed without them.

use super::agent::AgentWorld;

/// How often one of the two is paused; in an emulated host, where each takes many times as long, less often but in a soak.
fn cycles() -> u64 {
    let (emulated, soak) = (std::env::var_os("WRENN_TEST_STACK"), std::env::var_os("WRENN_TEST_ROUNDS"));
    if emulated.is_some() && soak.is_none() { 5 } else { 20 }
}

/// Step after step, alike in every guest: writes, zeroes, truncates and frees memory (files of a tmpfs are pages of the
/// guest's memory) and a file on the disk, and notes a hash of all of it every few steps. No step asks for a number of reads: one
/// of /dev/zero is short when its reader is frozen in the midst of it, as it is at a signal.
const LOAD: &str = r#"
cd /dev/shm; : > /root/log; dd if=/dev/zero of=region bs=64k count=96 2>/dev/null; : > /root/data
k=0
while [ ! -e /root/stop ]; do
  k=$((k+1)); at=$((k * 37 % 96)); zero=$((k * 53 % 96))
  echo $k | sha256sum | awk '{ for (i = 0; i < 1024; i++) print $1 }' | head -c 65536 | dd of=region bs=64k seek=$at conv=notrunc 2>/dev/null
  head -c 65536 /dev/zero | dd of=region bs=64k seek=$zero conv=notrunc 2>/dev/null
  if [ $((k % 7)) = 0 ]; then truncate -s 2M region; truncate -s 6M region; fi
  echo step $k >> /root/data
  if [ $((k % 50)) = 0 ]; then : > /root/data; sync; fi
  if [ $((k % 5)) = 0 ]; then echo $k $(cat region /root/data | sha256sum) >> /root/log; fi
done
"#;

#[test]
fn root_pauses_at_any_moment_change_nothing_of_what_a_guest_computes() {
    let world = AgentWorld::begin(&[]);
    let (paused, twin) = (world.create(&["--memory", "128"]), world.create(&["--memory", "128"]));
    for id in [&paused, &twin] {
        world.detach(id, LOAD);
    }
    let lines = |id: &str| world.sh(id, "cat /root/log 2>/dev/null | wc -l").trim().parse::<usize>().unwrap();
    crate::world::eventually("both work", || lines(&paused) > 1 && lines(&twin) > 1);
    let mut before = lines(&paused);
    for cycle in 0..cycles() {
        world.sandbox(&["pause", &paused]);
        world.sandbox(&["resume", &paused]);
        crate::world::eventually(&format!("it goes on after pause {cycle}"), || lines(&paused) > before);
        before = lines(&paused);
    }
    for id in [&paused, &twin] {
        world.sh(id, "touch /root/stop");
    }
    let log = |id: &str| world.sh(id, "cat /root/log").lines().map(str::to_owned).collect::<Vec<_>>();
    let (a, b) = (log(&paused), log(&twin));
    let common = a.len().min(b.len());
    assert!(common > 5, "{} and {} lines", a.len(), b.len());
    assert_eq!(a[..common], b[..common]);
    world.sandbox(&["rm", &paused, &twin]);
    world.end();
}

//! What a guest reaches and what it does not, in an outer namespace in which the "internet" and the private ranges live.

use wrenn_testworld as outer;

use crate::world::{World, assert_run, text};

#[test]
fn root_a_guest_resolves_a_name_and_fetches_a_page_as_the_host() {
    let internet = outer::World::enter();
    let world = World::new();
    let script = format!("cat /etc/resolv.conf; timeout 20 wget -q -O - http://{}/", outer::WEB_NAME);
    let output = world.run(&["sh", "-c", &script]);
    assert_run(&output, 0, &format!("nameserver 169.254.0.22\n{}", outer::PAGE));
    internet.flush();
    let seen = internet.connections();
    assert!(!seen.is_empty(), "the web server saw somebody");
    for (from, _) in seen {
        assert_eq!(from.ip(), outer::HOST, "only the host's own address is seen outside");
    }
    assert_host_as_before(&world);
    world.finish();
}

#[test]
fn root_a_guest_reaches_nothing_private() {
    let internet = outer::World::enter();
    let world = World::new();
    let neighbour = world.start("sleep 600");
    internet.forget();
    let host_side = "10.12.0.0 10.12.0.1 10.12.0.2 10.12.0.3 10.11.0.0 10.11.0.1 169.254.0.22 192.0.2.2";
    let targets: Vec<String> = outer::PRIVATE_TARGETS.iter().map(ToString::to_string).collect();
    let script = format!(
        "for address in {host_side} {}; do for port in 22 80 49983; do \
           timeout 1 nc -w 1 $address $port </dev/null >/dev/null 2>&1 && echo reached $address $port; \
         done; done; \
         timeout 2 ping -c 1 -W 1 {} >/dev/null 2>&1 && echo pinged; \
         ip -6 addr show dev eth0 2>/dev/null | grep -v fe80 | grep inet6; \
         timeout 2 wget -q -O - http://[2001:db8::80]/ >/dev/null 2>&1 && echo reached by IPv6; echo end",
        targets.join(" "),
        outer::HOST,
    );
    let output = world.output(&["run", "--timeout", "120s", "--", "sh", "-c", &script]);
    assert_run(&output, 0, "end\n");
    internet.flush();
    assert!(internet.connections().is_empty(), "{:?}", internet.connections());
    // To the router itself goes only the marker of `flush`.
    let packets = internet.packets().into_iter();
    let strays: Vec<_> = packets.filter(|packet| packet.destination != outer::ROUTER).collect();
    assert!(strays.is_empty(), "nothing private left the host: {strays:?}");
    neighbour.signal("TERM");
    let (output, _) = neighbour.finish();
    assert_eq!(output.status.code(), Some(143), "{}", text(&output.stderr));
    assert_host_as_before(&world);
    world.finish();
}

/// The uplink is the test's own, and gets its link-local IPv6 address at any time; handles of other tests' namespaces come
/// and go beside.
#[track_caller]
fn assert_host_as_before(world: &World) {
    let changes: Vec<String> =
        world.host_changes().into_iter().filter(|line| !line.contains("uplink") && !line.contains("nsfs")).collect();
    assert!(changes.is_empty(), "the host is not as before: {changes:#?}");
}

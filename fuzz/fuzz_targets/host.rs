//! Which port of which sandbox a `Host` header or a path names: any text is read or refused, and what is read is written the
//! same way again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wrenn_server::proxy::target::{HostMatch, PathMatch, parse_host, parse_path};

fuzz_target!(|text: &str| {
    let domains = ["example.org".to_owned(), "localhost".to_owned()];
    match parse_host(text, &domains) {
        HostMatch::Ours(target) => {
            assert_ne!(target.port, 0);
            let written = format!("{target}.example.org");
            assert_eq!(parse_host(&written, &domains), HostMatch::Ours(target));
        }
        HostMatch::NotOurs | HostMatch::Malformed(_) => {}
    }
    match parse_path(text) {
        PathMatch::Ours(target, rest) => {
            assert!(rest.starts_with('/'));
            let written = format!("/proxy/{target}{rest}");
            assert_eq!(parse_path(&written), PathMatch::Ours(target, rest));
        }
        PathMatch::NotOurs | PathMatch::Malformed(_) => {}
    }
});

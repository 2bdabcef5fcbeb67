//! Which port of which sandbox is meant: in the host name, or in the path.
//!
//! ```text
//!   8080-sb0123456789abcdefgh.example.org[:8443]     the host form: the path is the guest's own
//!   /proxy/8080-sb0123456789abcdefgh/a?b             the path form: the guest is asked for /a?b
//! ```
//!
//! Pure, and total: any text is read or refused.

use std::fmt;

use wrenn_engine::names::SandboxId;

/// What the path form begins with.
const PATH_PREFIX: &str = "/proxy/";

/// A TCP port of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Whose.
    pub id: SandboxId,
    /// Which; never 0.
    pub port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.port, self.id)
    }
}

/// Why a name that lies with the proxy names no port of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It has no dash, or more than one label.
    #[error("it is not of the form PORT-SANDBOX")]
    Form,
    /// The port is none.
    #[error("its port is not a number from 1 to 65535 without leading zeros")]
    Port,
    /// The sandbox is none.
    #[error("its sandbox is not an id (`sb` and 18 characters of [a-z0-9])")]
    Sandbox,
}

/// What a host name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMatch {
    /// It is no name under a domain of the proxy.
    NotOurs,
    /// It names a port of a sandbox.
    Ours(Target),
    /// It lies under a domain of the proxy, and names nothing.
    Malformed(Malformed),
}

/// What a path says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// It does not begin as the proxy's paths do.
    NotOurs,
    /// It names a port of a sandbox, and what the guest is asked for: path and query as they came, never without a `/` first.
    Ours(Target, String),
    /// It begins as the proxy's paths do, and names nothing.
    Malformed(Malformed),
}

/// Reads a `Host` header (or an authority) against the proxy's domains. A domain itself is not the proxy's.
pub fn parse_host(host: &str, domains: &[String]) -> HostMatch {
    let name = without_port(host).to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    match domains.iter().find_map(|domain| below(name, domain)) {
        None => HostMatch::NotOurs,
        Some(label) => parse_label(label).map_or_else(HostMatch::Malformed, HostMatch::Ours),
    }
}

/// Reads a path with its query.
pub fn parse_path(path_and_query: &str) -> PathMatch {
    let Some(named) = path_and_query.strip_prefix(PATH_PREFIX) else { return PathMatch::NotOurs };
    let (label, rest) = named.split_at(named.find(['/', '?']).unwrap_or(named.len()));
    match parse_label(label) {
        Err(malformed) => PathMatch::Malformed(malformed),
        Ok(target) if rest.starts_with('/') => PathMatch::Ours(target, rest.to_owned()),
        Ok(target) => PathMatch::Ours(target, format!("/{rest}")),
    }
}

/// `PORT-SANDBOX`, in lower case.
fn parse_label(label: &str) -> Result<Target, Malformed> {
    let (port, id) = label.split_once('-').ok_or(Malformed::Form)?;
    let port = parse_port(port).ok_or(Malformed::Port)?;
    Ok(Target { id: id.parse().map_err(|_none| Malformed::Sandbox)?, port })
}

/// A port in the one form in which it is written.
fn parse_port(text: &str) -> Option<u16> {
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| canonical)
}

/// A host without the port of the server. What is no port stays, and makes the name another one.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => host,
    }
}

/// What stands before `.domain`.
fn below<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let at = name.len().checked_sub(domain.len())?;
    let (label, end) = (name.get(..at)?, name.get(at..)?);
    label.strip_suffix('.').filter(|_| end.eq_ignore_ascii_case(domain))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "sb0123456789abcdefgh";

    fn target(port: u16) -> Target {
        Target { id: ID.parse().unwrap(), port }
    }

    fn host(text: &str) -> HostMatch {
        parse_host(text, &["example.org".to_owned(), "Sandboxes.Local".to_owned()])
    }

    #[test]
    fn a_host_names_a_port_of_a_sandbox() {
        for (text, port) in [
            (format!("8080-{ID}.example.org"), 8080),
            (format!("1-{ID}.example.org:443"), 1),
            (format!("65535-{ID}.sandboxes.local"), 65535),
            (format!("80-{ID}.example.org."), 80),
            (format!("80-{ID}.example.org.:8443"), 80),
            (format!("80-{ID}.EXAMPLE.org").to_uppercase(), 80),
        ] {
            assert_eq!(host(&text), HostMatch::Ours(target(port)), "{text}");
        }
    }

    #[test]
    fn a_name_under_the_domain_that_names_nothing_is_malformed() {
        for (text, why) in [
            (".example.org".to_owned(), Malformed::Form),
            ("www.example.org".to_owned(), Malformed::Form),
            (format!("0-{ID}.example.org"), Malformed::Port),
            (format!("080-{ID}.example.org"), Malformed::Port),
            (format!("+80-{ID}.example.org"), Malformed::Port),
            (format!("65536-{ID}.example.org"), Malformed::Port),
            (format!("-{ID}.example.org"), Malformed::Port),
            (format!("80-{ID}x.example.org"), Malformed::Sandbox),
            (format!("80-{ID}.a.example.org"), Malformed::Sandbox),
            (format!("80-a-{ID}.example.org"), Malformed::Sandbox),
            ("80-.example.org".to_owned(), Malformed::Sandbox),
        ] {
            assert_eq!(host(&text), HostMatch::Malformed(why), "{text}");
        }
    }

    #[test]
    fn other_hosts_are_not_ours() {
        for text in [
            "",
            ":",
            ".",
            "example.org",
            "example.org:80",
            "badexample.org",
            "80-sb0123456789abcdefgh.example.com",
            "[::1]:80",
            "80-sb0123456789abcdefgh.example.org:x",
            "80-sb0123456789abcdefgh.example.org..",
            "ö.example.örg",
        ] {
            assert_eq!(host(text), HostMatch::NotOurs, "{text}");
        }
    }

    #[test]
    fn a_path_names_a_port_and_what_the_guest_is_asked_for() {
        for (tail, rest) in [
            ("", "/"),
            ("/", "/"),
            ("?a=b", "/?a=b"),
            ("/a/%2e%2E/b?c=%2F&d", "/a/%2e%2E/b?c=%2F&d"),
            ("//evil.example/", "//evil.example/"),
        ] {
            let path = format!("/proxy/3000-{ID}{tail}");
            assert_eq!(parse_path(&path), PathMatch::Ours(target(3000), rest.to_owned()), "{path}");
        }
        assert_eq!(parse_path("/proxy"), PathMatch::NotOurs);
        assert_eq!(parse_path("/proxyx/"), PathMatch::NotOurs);
        assert_eq!(parse_path("/proxy/"), PathMatch::Malformed(Malformed::Form));
        assert_eq!(parse_path("/proxy/?x-y"), PathMatch::Malformed(Malformed::Form));
        assert_eq!(parse_path(&format!("/proxy/00-{ID}/")), PathMatch::Malformed(Malformed::Port));
        assert_eq!(parse_path("/proxy/80-x/"), PathMatch::Malformed(Malformed::Sandbox));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let text = String::from_utf8_lossy(&bytes);
            host(&text);
            host(&format!("{text}.example.org"));
            parse_path(&text);
            parse_path(&format!("/proxy/{text}"));
        }

        #[test]
        fn what_is_written_is_read(port in 1..=u16::MAX, random in any::<[u8; 18]>(), rest in "(/[ -~]*)?") {
            let target = Target { id: SandboxId::from_random(random), port };
            prop_assert_eq!(host(&format!("{target}.example.org")), HostMatch::Ours(target.clone()));
            let rest_or_root = if rest.is_empty() { "/".to_owned() } else { rest.clone() };
            prop_assert_eq!(parse_path(&format!("/proxy/{target}{rest}")), PathMatch::Ours(target, rest_or_root));
        }
    }
}

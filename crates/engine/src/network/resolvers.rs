//! Which of the host's resolvers a sandbox's DNS is sent to.
//!
//! A sandbox asks 169.254.0.22; its namespace sends that on to *one* resolver, the first usable one of the host. Not to
//! all in turn: hosts list them in order of preference, and often only the first knows the names of the site. IPv6
//! resolvers cannot be used (sandboxes speak IPv4 alone), nor can those on a loopback address, for no packet from outside
//! is let in there; systemd-resolved is such a one, and says in a file of its own whom it asks.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

/// Where systemd-resolved lists the resolvers it asks.
pub const SYSTEMD_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// systemd-resolved's own address, and that of its stub without local names.
const SYSTEMD_STUBS: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 0, 0, 54)];
/// Longest resolv.conf that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// What sandboxes get for DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dns {
    /// Their queries go to this resolver.
    Resolver(Ipv4Addr),
    /// There is none they could use: their queries are refused. Says why, with the remedy.
    Unavailable(String),
}

impl Dns {
    /// The resolver, if there is one.
    pub fn resolver(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Resolver(address) => Some(*address),
            Self::Unavailable(_) => None,
        }
    }
}

/// Reads the host's resolvers and chooses. A host without any is a fact, not an error.
pub fn choose(resolv_conf: &Path) -> Dns {
    let read = |path: &Path| read_bounded(path).map(|text| name_servers(&text));
    let listed = match read(resolv_conf) {
        Ok(listed) => listed,
        Err(error) => return unavailable(format!("cannot read {} ({error})", resolv_conf.display())),
    };
    let stub = listed.iter().any(|address| SYSTEMD_STUBS.iter().any(|stub| *address == IpAddr::V4(*stub)));
    // An absent file means that systemd-resolved does not run here; what is left then are the listed ones.
    let behind = if stub { read(Path::new(SYSTEMD_RESOLVED)).unwrap_or_default() } else { Vec::new() };
    match behind.iter().chain(&listed).find_map(usable) {
        Some(address) => Dns::Resolver(address),
        None => unavailable(format!("{} names no resolver that a sandbox could reach", resolv_conf.display())),
    }
}

fn unavailable(cause: String) -> Dns {
    Dns::Unavailable(format!("{cause}; sandboxes will have no DNS. List one with an IPv4 address that is not loopback"))
}

fn usable(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) if !v4.is_loopback() && !v4.is_unspecified() && !v4.is_multicast() && !v4.is_broadcast() => {
            Some(*v4)
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// The addresses of resolv.conf's `nameserver` lines, in order; lines that are none are passed over, as libc does.
fn name_servers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then(|| words.next())?
        })
        .filter_map(|address| address.split('%').next()?.parse().ok())
        .collect()
}

fn read_bounded(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(text: &str) -> Dns {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        choose(file.path())
    }

    #[test]
    fn the_first_usable_one_is_taken() {
        for (text, wanted) in [
            ("nameserver 192.0.2.53\n", "192.0.2.53"),
            ("# comment\nsearch example.test\nnameserver\t10.99.53.53 # site\nnameserver 192.0.2.1", "10.99.53.53"),
            ("nameserver 2001:db8::53\nnameserver fe80::1%eth0\nnameserver 192.0.2.9\n", "192.0.2.9"),
            ("nameserver 127.0.0.1\nnameserver 0.0.0.0\nnameserver 198.51.100.1\n", "198.51.100.1"),
            ("nameserverx 192.0.2.1\nnameserver\nnameserver nonsense\nnameserver 192.0.2.2", "192.0.2.2"),
        ] {
            assert_eq!(chosen(text), Dns::Resolver(wanted.parse().unwrap()), "{text:?}");
        }
    }

    #[test]
    fn without_one_the_cause_and_the_remedy_are_told() {
        for text in ["", "nameserver 127.0.0.1\n", "nameserver ::1\nnameserver 2001:db8::53\n"] {
            let Dns::Unavailable(why) = chosen(text) else { panic!("{text:?} has no usable resolver") };
            assert!(why.contains("IPv4 address that is not loopback"), "{why}");
        }
        assert!(matches!(choose(Path::new("/nonexistent/resolv.conf")), Dns::Unavailable(_)));
    }
}

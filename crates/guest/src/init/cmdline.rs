//! The kernel command line as init's only configuration: `wrenn.KEY=VALUE`, written by the host.
//!
//! Other words belong to the kernel and are skipped; a `wrenn.` word we do not know is skipped too, so that a newer host
//! can boot an older guest. As everywhere in the kernel, the last of two equal keys wins.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::identity;

/// What the host asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootConfig {
    /// The sandbox's id; becomes the host name.
    pub id: String,
    /// The public half of the agent's Ed25519 key, 64 hex digits in lower case; handed to envd as it is.
    pub key: String,
    /// Address and network of eth0.
    pub address: Ipv4Network,
    /// The default gateway.
    pub gateway: Ipv4Addr,
    /// The resolver in /etc/resolv.conf.
    pub dns: Ipv4Addr,
    /// The device of the root filesystem.
    pub root: PathBuf,
}

/// An address and the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Network {
    /// The host's address.
    pub address: Ipv4Addr,
    /// Bits of the prefix, 0 to 32.
    pub prefix: u8,
}

/// What is wrong with the command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    #[error("`wrenn.{0}=` is missing")]
    Missing(&'static str),
    #[error("`wrenn.{key}={value}` is not {wanted}")]
    Invalid { key: &'static str, value: String, wanted: &'static str },
}

/// Reads the command line.
pub fn parse(text: &str) -> Result<BootConfig, CmdlineError> {
    Ok(BootConfig {
        id: checked(text, "id", "1 to 64 characters of [a-z0-9-]", |id| identity::is_name(id).then(|| id.to_owned()))?,
        key: checked(text, "key", "an Ed25519 public key of 64 hex digits", parse_key)?,
        address: checked(text, "ip", "an address and prefix such as 192.0.2.1/30", parse_network)?,
        gateway: checked(text, "gw", "an IPv4 address", parsed)?,
        dns: checked(text, "dns", "an IPv4 address", parsed)?,
        root: checked(text, "root", "a device such as /dev/vda", |path| {
            path.strip_prefix("/dev/").filter(|name| !name.is_empty()).map(|_| PathBuf::from(path))
        })?,
    })
}

fn checked<T>(
    text: &str,
    key: &'static str,
    wanted: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<T, CmdlineError> {
    let value = lookup(text, key).ok_or(CmdlineError::Missing(key))?;
    read(value).ok_or_else(|| CmdlineError::Invalid { key, value: value.chars().take(100).collect(), wanted })
}

fn lookup<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let value = |word: &'a str| word.strip_prefix("wrenn.")?.strip_prefix(key)?.strip_prefix('=');
    text.split_ascii_whitespace().filter_map(value).next_back()
}

fn parsed<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn parse_key(text: &str) -> Option<String> {
    let valid = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    valid.then(|| text.to_ascii_lowercase())
}

fn parse_network(text: &str) -> Option<Ipv4Network> {
    let (address, prefix) = text.split_once('/')?;
    let prefix = parsed(prefix).filter(|bits| *bits <= 32)?;
    Some(Ipv4Network { address: parsed(address)?, prefix })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";

    fn line() -> String {
        format!(
            "console=ttyS0 reboot=t panic=-1 quiet wrenn.id=sb0123456789abcdefgh wrenn.key={KEY} wrenn.ip=169.254.0.21/30 \
             wrenn.gw=169.254.0.22 wrenn.dns=169.254.0.22 wrenn.root=/dev/vda\n"
        )
    }

    #[test]
    fn reads_what_the_host_writes() {
        let config = parse(&line()).unwrap();
        assert_eq!(config.id, "sb0123456789abcdefgh");
        assert_eq!(config.key, KEY.to_ascii_lowercase());
        assert_eq!(config.address, Ipv4Network { address: Ipv4Addr::new(169, 254, 0, 21), prefix: 30 });
        assert_eq!((config.gateway, config.dns), (Ipv4Addr::new(169, 254, 0, 22), Ipv4Addr::new(169, 254, 0, 22)));
        assert_eq!(config.root, PathBuf::from("/dev/vda"));
    }

    #[test]
    fn the_last_of_two_wins_and_strangers_are_skipped() {
        let config = parse(&format!("{} wrenn.id=other wrenn.new=1 wrenn.idx=2", line().trim())).unwrap();
        assert_eq!(config.id, "other");
    }

    #[test]
    fn names_what_is_missing_or_wrong() {
        assert_eq!(parse(""), Err(CmdlineError::Missing("id")));
        for (from, to, key) in [
            ("wrenn.id=sb", "wrenn.id=../", "id"),
            ("wrenn.key=00", "wrenn.key=0", "key"),
            ("wrenn.key=00", "wrenn.key=zz", "key"),
            ("21/30", "21/33", "ip"),
            ("21/30", "21", "ip"),
            ("gw=169", "gw=1.169", "gw"),
            ("dns=169.254.0.22", "dns=", "dns"),
            ("root=/dev/vda", "root=/dev/", "root"),
            ("root=/dev/vda", "root=LABEL=x", "root"),
        ] {
            match parse(&line().replacen(from, to, 1)) {
                Err(CmdlineError::Invalid { key: found, .. }) => assert_eq!(found, key),
                other => panic!("{to}: {other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,300}") {
            if let Ok(config) = parse(&text) {
                prop_assert!(identity::is_name(&config.id));
            }
        }
    }
}

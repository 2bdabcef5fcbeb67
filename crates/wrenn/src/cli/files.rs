//! The command line of `wrenn cp` and `wrenn port-forward`, as data.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use wrenn_engine::names::SandboxId;

/// What is copied, and where to. One of the two is in a sandbox.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// What: a file of this host, `-` for standard input, or ID:PATH for one of a sandbox.
    #[arg(value_name = "SRC")]
    pub source: Operand,
    /// Where to: a name, or a directory that is there; `-` for standard output.
    #[arg(value_name = "DST")]
    pub destination: Operand,
    /// Copy directories with all that is in them. Links are left out, and told of.
    #[arg(short, long)]
    pub recursive: bool,
    /// User of the sandbox who reads, or whose the files are to be.
    #[arg(short, long, default_value = "root")]
    pub user: String,
}

/// One side of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operand {
    /// A file of this host.
    Here(PathBuf),
    /// Our standard input or output.
    Standard,
    /// A file of a sandbox.
    There(GuestPath),
}

/// A file of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestPath {
    /// Which sandbox.
    pub id: SandboxId,
    /// Absolute, `~`, or relative to the user's home.
    pub path: String,
}

impl FromStr for Operand {
    type Err = std::convert::Infallible;

    /// What does not begin with the id of a sandbox and a colon is a file of this host; one that does can be given as `./…`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "-" {
            return Ok(Self::Standard);
        }
        let there = text.split_once(':').and_then(|(id, path)| Some((id.parse().ok()?, path)));
        Ok(match there {
            Some((id, path)) => {
                let path = if path.is_empty() { "." } else { path };
                Self::There(GuestPath { id, path: path.to_owned() })
            }
            None => Self::Here(text.into()),
        })
    }
}

/// Which ports are passed on.
#[derive(Debug, Args)]
pub struct ForwardArgs {
    /// Which sandbox.
    pub id: SandboxId,
    /// A port of the sandbox, behind the same port of 127.0.0.1 here, or behind another; 0 is any that is free.
    #[arg(required = true, value_name = "[LOCAL:]REMOTE")]
    pub ports: Vec<PortPair>,
}

/// A port here, and one of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortPair {
    /// Here; 0 is any that is free.
    pub local: u16,
    /// In the sandbox.
    pub remote: u16,
}

impl FromStr for PortPair {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (local, remote) = text.split_once(':').unwrap_or((text, text));
        let remote = remote.parse().ok().filter(|port| *port != 0).ok_or("a port of a sandbox is 1 to 65535")?;
        let local = local.parse().map_err(|_no_number| "a port of this host is 0 to 65535")?;
        Ok(Self { local, remote })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use clap::error::ErrorKind;

    use super::*;
    use crate::cli::{Cli, Verb};

    const ID: &str = "sbabcdefghijklmnopqr";

    fn parse(line: &str) -> Result<Verb, clap::Error> {
        Cli::try_parse_from(line.replace("ID", ID).split_whitespace()).map(|cli| cli.verb)
    }

    #[test]
    fn a_side_is_here_or_there() {
        let there = |path: &str| Operand::There(GuestPath { id: ID.parse().unwrap(), path: path.to_owned() });
        for (text, operand) in [
            ("-", Operand::Standard),
            ("ID:/tmp/a:b", there("/tmp/a:b")),
            ("ID:", there(".")),
            ("ID", Operand::Here(ID.into())),
            ("./ID:x", Operand::Here(format!("./{ID}:x").into())),
            ("sb1:/tmp", Operand::Here("sb1:/tmp".into())),
            ("c:\\x", Operand::Here("c:\\x".into())),
        ] {
            assert_eq!(text.replace("ID", ID).parse(), Ok(operand), "{text}");
        }
        let Ok(Verb::Cp(copy)) = parse("wrenn cp -r --user me ID:/a -") else { panic!("not cp") };
        assert_eq!((copy.source, copy.destination), (there("/a"), Operand::Standard));
        assert_eq!((copy.recursive, copy.user.as_str()), (true, "me"));
    }

    #[test]
    fn ports_are_pairs() {
        let Ok(Verb::PortForward(forward)) = parse("wrenn port-forward ID 80 8080:81 0:82") else { panic!("not it") };
        let pair = |local, remote| PortPair { local, remote };
        assert_eq!(forward.ports, [pair(80, 80), pair(8080, 81), pair(0, 82)]);
        for wrong in ["0", "65536", "x", "1:2:3", "1:", ":1", "-1"] {
            assert!(wrong.parse::<PortPair>().is_err(), "{wrong}");
        }
        assert_eq!(parse("wrenn port-forward ID").unwrap_err().kind(), ErrorKind::MissingRequiredArgument);
        assert_eq!(parse("wrenn cp ID:/a").unwrap_err().kind(), ErrorKind::MissingRequiredArgument);
    }
}

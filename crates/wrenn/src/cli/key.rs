//! The command line of `wrenn key …`, as data.

use clap::{Args, Subcommand, ValueEnum};
use wrenn_client::types::Scope;

/// What can be done with keys.
#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// Make a key. Its secret is printed this once, and kept nowhere.
    Create(NewKeyArgs),
    /// List the keys.
    Ls {
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Revoke keys: whoever has one is refused from now on.
    Rm {
        /// Which keys, by their id.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
}

/// A key as it is wanted.
#[derive(Debug, Args)]
pub struct NewKeyArgs {
    /// What it is to be called.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub name: String,
    /// What it is to allow.
    #[arg(long, value_name = "SCOPE", default_value = "write")]
    pub scope: KeyScope,
    /// Whose it is to be: what is made with it belongs to this tenant; `default` by default.
    #[arg(long)]
    pub tenant: Option<String>,
    /// Sandboxes that it may have at once; any number by default.
    #[arg(long, value_name = "N")]
    pub sandboxes: Option<u32>,
    /// Virtual CPUs of those of them that are not at rest.
    #[arg(long, value_name = "N")]
    pub vcpus: Option<u32>,
    /// Memory of those of them that are not at rest, in MiB.
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u32>,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What a key allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeyScope {
    /// To look at what its tenant has.
    Read,
    /// To make, use and destroy what its tenant has, too.
    Write,
    /// Everything, of every tenant.
    Admin,
}

impl From<KeyScope> for Scope {
    fn from(scope: KeyScope) -> Self {
        match scope {
            KeyScope::Read => Self::Read,
            KeyScope::Write => Self::Write,
            KeyScope::Admin => Self::Admin,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use clap::error::ErrorKind;

    use super::*;
    use crate::cli::{Cli, Verb};

    fn parse(line: &str) -> Result<KeyVerb, clap::Error> {
        Cli::try_parse_from(line.split_whitespace()).map(|cli| match cli.verb {
            Verb::Key(verb) => verb,
            other => panic!("{line}: {other:?}"),
        })
    }

    #[test]
    fn a_key_as_it_is_wanted() {
        let line = "wrenn key create --name ci --scope admin --tenant me --sandboxes 5 --vcpus 8 --memory 4096 --json";
        let Ok(KeyVerb::Create(new)) = parse(line) else { panic!("not create") };
        assert_eq!((new.name.as_str(), new.scope, new.tenant.as_deref()), ("ci", KeyScope::Admin, Some("me")));
        assert_eq!((new.sandboxes, new.vcpus, new.memory, new.json), (Some(5), Some(8), Some(4096), true));
        let Ok(KeyVerb::Create(new)) = parse("wrenn key create") else { panic!("not create") };
        assert_eq!((new.name.as_str(), new.scope, new.tenant, new.sandboxes), ("", KeyScope::Write, None, None));
        for (line, kind) in [
            ("wrenn key create --scope all", ErrorKind::InvalidValue),
            ("wrenn key create --sandboxes -1", ErrorKind::UnknownArgument),
            ("wrenn key rm", ErrorKind::MissingRequiredArgument),
        ] {
            assert_eq!(parse(line).unwrap_err().kind(), kind, "{line}");
        }
    }
}

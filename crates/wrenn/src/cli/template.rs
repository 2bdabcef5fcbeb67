//! The command line of `wrenn template …`, as data.

use clap::{Args, Subcommand};

use super::shared::SizeArgs;

/// What can be done with templates.
#[derive(Debug, Subcommand)]
pub enum TemplateVerb {
    /// Build a template, and the kernel if there is none yet; nothing to do when its inputs are unchanged.
    Build {
        /// `minimal` (busybox, seconds) or `base` (Debian with Python, a minute).
        name: String,
        /// Build again from the newest packages, and take the newest kernel.
        #[arg(long)]
        refresh: bool,
        /// Print the manifest as JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the templates; with an agent their warm images too.
    Ls {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Boot a template once, and keep what is ready then, so that later sandboxes of this size start from it.
    Warm(WarmArgs),
    /// Remove templates with their warm images; not while sandboxes or snapshots stand on them.
    Rm {
        /// Which templates, by name or id.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Make a template of a snapshot: its disk as one image, its memory as a warm image.
    FromSnapshot {
        /// Which snapshot, by name or id.
        snapshot: String,
        /// The template's name.
        name: String,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// What is to be warm.
#[derive(Debug, Args)]
pub struct WarmArgs {
    /// Which template, by name or id.
    pub name: String,
    /// For sandboxes of this size.
    #[command(flatten)]
    pub size: SizeArgs,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use clap::error::ErrorKind;

    use std::time::Duration;

    use super::*;
    use crate::cli::{Cli, Verb};

    fn parse(line: &str) -> Result<TemplateVerb, clap::Error> {
        let words = ["wrenn", "template"].into_iter().chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| match cli.verb {
            Verb::Template(verb) => verb,
            other => panic!("{line}: {other:?}"),
        })
    }

    #[test]
    fn what_is_to_be_warm_has_the_size_of_a_sandbox() {
        let Ok(TemplateVerb::Warm(warm)) = parse("warm base --vcpus 2 --memory 512 --disk 4096 --boot-timeout 2m")
        else {
            panic!("not warm")
        };
        assert_eq!(
            (warm.name.as_str(), warm.size.vcpus, warm.size.memory, warm.size.disk),
            ("base", 2, 512, Some(4096))
        );
        assert_eq!(warm.size.boot_timeout, Duration::from_secs(120));
        let Ok(TemplateVerb::Warm(warm)) = parse("warm minimal") else { panic!("not warm") };
        let SizeArgs { vcpus, memory, disk, kernel, .. } = warm.size;
        assert_eq!((vcpus, memory, disk, kernel), (1, 256, None, None));
    }

    #[test]
    fn templates_are_named() {
        let Ok(TemplateVerb::FromSnapshot { snapshot, name, json: true }) = parse("from-snapshot before own --json")
        else {
            panic!("not from-snapshot")
        };
        assert_eq!((snapshot.as_str(), name.as_str()), ("before", "own"));
        let Ok(TemplateVerb::Rm { names, json: false }) = parse("rm own other") else { panic!("not rm") };
        assert_eq!(names, ["own", "other"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, kind) in [
            ("warm", ErrorKind::MissingRequiredArgument),
            ("warm a b", ErrorKind::UnknownArgument),
            ("warm a --memory lots", ErrorKind::ValueValidation),
            ("warm a --cold", ErrorKind::UnknownArgument),
            ("rm", ErrorKind::MissingRequiredArgument),
            ("from-snapshot before", ErrorKind::MissingRequiredArgument),
            ("ls minimal", ErrorKind::UnknownArgument),
        ] {
            assert_eq!(parse(line).unwrap_err().kind(), kind, "{line}");
        }
    }
}

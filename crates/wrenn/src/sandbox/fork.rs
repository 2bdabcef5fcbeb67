//! `wrenn sandbox fork`: new sandboxes that go on from where one is.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use wrenn_agent::host_agent::ForkRequest;

use super::{Link, show};
use crate::EXIT_FAILED;
use crate::cli::ForkArgs;

/// Forks a sandbox. What could be made of the forks is told of, also when some could not.
pub async fn fork(link: &Link, args: ForkArgs) -> Result<ExitCode> {
    let request = ForkRequest {
        count: args.count,
        ready_limit: args.boot_timeout,
        timeout: args.timeout,
        metadata: args.metadata.into_iter().collect(),
        attributes: BTreeMap::new(),
    };
    let forked = link.agent().fork(&args.id, request).await?;
    let all_made = forked.children.iter().all(Result::is_ok);
    if args.json {
        println!("{}", show::forked_json(&args.id, &forked));
    } else {
        for child in &forked.children {
            match child {
                Ok(changed) => println!("{}", changed.view.id),
                Err(error) => eprintln!("wrenn: a fork of {} was not made: {error}", args.id),
            }
        }
    }
    Ok(if all_made { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) })
}

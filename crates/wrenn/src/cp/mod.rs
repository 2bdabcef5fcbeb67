//! `wrenn cp`: files into a sandbox, or out of it, through the guest's own agent: the same with an agent of this host and with
//! a server.
//!
//! ```text
//!   SRC, DST ─► which way? ─┬─ up    a file, a tree, standard input ─► guest
//!                           └─ down  guest ─► a file, a tree, standard output
//! ```
//!
//! The destination is what `cp` would take it for: a directory that is there gets the source into it, anything else becomes the
//! source's copy. Of modes only what makes a file executable goes along. Nothing that a guest names leaves the destination:
//! a name of a guest is one name here, or an error.

mod down;
mod guest;
mod progress;
mod up;

use std::process::ExitCode;

use anyhow::{Result, bail};
use wrenn_agent::guest_link;

use crate::cli::{CopyArgs, GuestPath, Operand};
use crate::execution::{Outcome, Signals};
use crate::place::Place;
use crate::sandbox::{Link, block_on, usable};

use guest::Guest;
use progress::Progress;

/// A copy into a sandbox, or out of one.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    Up(Operand, GuestPath),
    Down(GuestPath, Operand),
}

/// Copies.
pub fn run(place: &Place, args: CopyArgs) -> Result<ExitCode> {
    let CopyArgs { source, destination, recursive, user } = args;
    let way = way(source, destination)?;
    block_on(async {
        let mut signals = Signals::new()?;
        let link = Link::require(place).await?;
        let view = usable(&link, way.id()).await?;
        let guest = Guest::new(guest_link::guest(link.agent_arc(), &view), user);
        let copying = async {
            match way {
                Way::Up(source, there) => {
                    let progress = Progress::new(false);
                    up::copy(&guest, &progress, source, &there.path, recursive).await
                }
                Way::Down(there, destination) => {
                    let progress = Progress::new(destination == Operand::Standard);
                    down::copy(&guest, &progress, &there.path, destination, recursive).await
                }
            }
        };
        tokio::select! {
            copied = copying => copied.map(|()| ExitCode::SUCCESS),
            // What was begun here is removed; in the guest it is what had come.
            signal = signals.next() => Ok(ExitCode::from(Outcome::Interrupted(signal).exit_code())),
        }
    })
}

impl Way {
    fn id(&self) -> &wrenn_engine::names::SandboxId {
        match self {
            Self::Up(_, there) | Self::Down(there, _) => &there.id,
        }
    }
}

fn way(source: Operand, destination: Operand) -> Result<Way> {
    match (source, destination) {
        (Operand::There(_), Operand::There(_)) => {
            bail!("one of the two sides must be on this host; copy to a file here first")
        }
        (Operand::There(there), here) => Ok(Way::Down(there, here)),
        (here, Operand::There(there)) => Ok(Way::Up(here, there)),
        (_here, _too) => bail!("one of the two sides must be in a sandbox: ID:PATH"),
    }
}

/// What is left out is told of, and is no failure.
fn left_out(what: &str, why: &str) {
    eprintln!("wrenn: {} is left out: {why}", crate::words::printable_line(what));
}

/// What `cp` says as well.
fn demand_recursive(recursive: bool, what: &str) -> Result<()> {
    if !recursive {
        bail!("{} is a directory; give -r to copy it with all that is in it", crate::words::printable_line(what));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_side_is_in_a_sandbox() {
        let parse = |text: &str| text.replace("ID", "sbabcdefghijklmnopqr").parse::<Operand>().unwrap();
        assert!(matches!(way(parse("a"), parse("ID:b")), Ok(Way::Up(Operand::Here(_), _))));
        assert!(matches!(way(parse("-"), parse("ID:b")), Ok(Way::Up(Operand::Standard, _))));
        assert!(matches!(way(parse("ID:b"), parse("-")), Ok(Way::Down(_, Operand::Standard))));
        assert!(way(parse("a"), parse("b")).is_err());
        assert!(way(parse("ID:a"), parse("ID:b")).is_err());
    }
}

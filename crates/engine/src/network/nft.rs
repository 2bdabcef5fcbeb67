//! The thin shell that hands rules to `nft`: each text is one transaction, all of it or nothing.
//!
//! These calls block, and the program runs in the *calling thread's* network namespace: that is how rules get into a
//! sandbox's. They are never made on a runtime's own thread.

use std::time::Duration;

use crate::command::{Command, CommandError};

/// Time for one transaction. It takes about 2 ms, but waits for others in the kernel, and hosts can be very busy.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a transaction.
pub fn apply(script: String) -> Result<(), CommandError> {
    run(Command::new("nft").args(["-f", "-"]).stdin(script)).map(drop)
}

/// Runs a transaction on a table; `false` if the table is not there.
pub fn apply_if_table(script: String) -> Result<bool, CommandError> {
    match apply(script) {
        Ok(()) => Ok(true),
        Err(error) if error.stderr().contains("No such file or directory") => Ok(false),
        Err(error) => Err(error),
    }
}

/// The text of an `inet` table; `None` if there is none of this name.
pub fn table(name: &str) -> Result<Option<String>, CommandError> {
    match run(Command::new("nft").args(["list", "table", "inet", name])) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.stderr().contains("No such file or directory") => Ok(None),
        Err(error) => Err(error),
    }
}

/// The whole ruleset as `nft` prints it in JSON.
pub fn ruleset_json() -> Result<String, CommandError> {
    run(Command::new("nft").args(["-j", "list", "chains"]))
}

/// The version of `nft`.
pub fn version() -> Result<String, CommandError> {
    run(Command::new("nft").arg("--version")).map(|text| text.trim().to_owned())
}

/// Runs a program that reads or changes rules to its end, and returns what it printed.
pub(super) fn run(command: Command) -> Result<String, CommandError> {
    let failed = |source| CommandError::Start { command: "nft".to_owned(), source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let output = runtime.block_on(command.timeout(TIMEOUT).run())?;
    Ok(output.text())
}

//! The whole REST API, by its own document: schemathesis asks a real `wrenn serve` for everything that the document allows, and
//! for much that it does not. No answer may be a 500, and each must be as the document says.
//!
//! Sandboxes of this run are real: a key with a quota keeps them few, and all are destroyed in the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::folder;
use crate::build::{self, Profile};
use crate::process::{Beside, Job};
use crate::ui::Step;
use crate::{demo, test};

/// Fetching a tool of Python.
const INSTALL_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// How long a service may take to say that it serves.
const START_LIMIT: Duration = Duration::from_secs(60);
/// All requests.
const RUN_DEADLINE: Duration = Duration::from_secs(60 * 60);
/// How long one request may take: a cold boot on an emulated CPU.
const REQUEST_LIMIT_S: &str = "60";
/// What the service says, in this order.
const FIRST_KEY: &str = "wrenn: the first key, told this once: ";
const SERVING: &str = "wrenn: serving on ";
/// What is wrong if it happens. Not among them: that input which the document forbids is refused, since a JSON schema cannot say
/// of every text what is wrong with it; `crates/server/tests/api` has that field by field.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
/// Streams without an end, which a tool that reads whole answers waits for in vain.
const ENDLESS: &str = "/events$";

/// A key that may do everything, but not with many sandboxes.
const BOUNDED_KEY: [&str; 11] =
    ["key", "create", "--name", "fuzz", "--scope", "admin", "--sandboxes", "3", "--memory", "2048", "--json"];

/// Asks for everything.
pub fn run(examples: u32, seed: Option<u64>) -> Result<()> {
    let tool = schemathesis()?;
    let wrenn = build::run(Profile::Dev)?;
    let data = tempfile::Builder::new().prefix("wf").tempdir().context("cannot make a data folder")?;
    demo::template_job(&wrenn, "minimal")?.env("WRENN_DIR", data.path()).show()?;
    test::enter_isolation()?;
    let service = Service::start(&wrenn, data.path())?;
    let asked = ask_all(&tool, &service, examples, seed);
    let ended = service.job.end().context("the service does not end in order");
    asked.and(ended)
}

/// The whole API with made-up ids, and then what can be done with a sandbox, with the id of one that is there.
fn ask_all(tool: &Path, service: &Service, examples: u32, seed: Option<u64>) -> Result<()> {
    let ask = |title: &str, config: &str, more: &[&str]| ask(tool, service, (examples, seed), title, config, more);
    ask("the API by its document", "", &["--exclude-path-regex", ENDLESS])?;
    let id = service.create()?;
    let config = format!("[parameters]\n\"path.id\" = \"{id}\"\n");
    let only = ["--include-path-regex", "^/v1/sandboxes/", "--exclude-path-regex", "/events$|/timeout$"];
    ask("a sandbox by its document", &config, &[&only[..], &["--exclude-method", "DELETE"]].concat())
}

fn ask(
    tool: &Path,
    service: &Service,
    (examples, seed): (u32, Option<u64>),
    title: &str,
    config: &str,
    more: &[&str],
) -> Result<()> {
    let step = Step::start_loud(format!("fuzz: {title}"));
    let dir = folder("fuzz/findings/api")?;
    let file = dir.join("schemathesis.toml");
    fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
    let job = Job::new(tool.to_str().context("the path of schemathesis is not UTF-8")?);
    let job = job.args(["--config-file".as_ref(), file.as_os_str()]);
    let job = job.args(["run", &format!("{}/openapi.json", service.url), "--checks", CHECKS, "--workers", "1"]);
    // Not its stateful phase: it makes up links between calls that do not go together, and stops there.
    let job = job.args(["--phases", "examples,coverage,fuzzing", "--request-timeout", REQUEST_LIMIT_S]).args(more);
    let job = job.args(["--max-examples", &examples.to_string(), "--header", &format!("X-API-Key: {}", service.key)]);
    let job = match seed {
        Some(seed) => job.args(["--seed", &seed.to_string()]),
        None => job,
    };
    job.dir(dir).within(RUN_DEADLINE).show()?;
    step.done("nothing found");
    Ok(())
}

/// A service on a data folder of its own, with a key that is bounded.
struct Service {
    job: Beside,
    wrenn: Wrenn,
    url: String,
    key: String,
}

impl Service {
    fn start(wrenn: &Path, data: &Path) -> Result<Self> {
        let log = folder("fuzz/findings/api")?.join("service.log");
        fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
        let (sender, said) = mpsc::channel();
        let program = wrenn.to_str().context("the path of wrenn is not UTF-8")?;
        let job =
            Job::new(program).args(["-v", "serve", "--listen", "127.0.0.1:0", "--rate", "1000000", "--destroy-all"]);
        let mut all = fs::File::options().append(true).open(&log)?;
        let job = job.env("WRENN_DIR", data).start(move |line| {
            // Who is not there any more, or a log that cannot be written, does not end the service.
            drop(sender.send(line.to_owned()));
            drop(std::io::Write::write_all(&mut all, format!("{line}\n").as_bytes()));
        })?;
        eprintln!("    what the service says: {}", log.display());
        let first = word(&said, FIRST_KEY)?;
        let url = word(&said, SERVING)?;
        let wrenn = Wrenn { program: program.to_owned(), url: url.clone(), key: first };
        let Made { secret, .. } = wrenn.make(&BOUNDED_KEY)?;
        Ok(Self { job, wrenn, url, key: secret.context("a new key without its secret")? })
    }

    /// Makes a sandbox, whatever the key may; its id.
    fn create(&self) -> Result<String> {
        Ok(self.wrenn.make(&["sandbox", "create", "-t", "minimal", "--json"])?.id)
    }
}

/// The command line, as whoever has the first key.
struct Wrenn {
    program: String,
    url: String,
    key: String,
}

/// What the command line says of something new.
#[derive(Deserialize)]
struct Made {
    id: String,
    secret: Option<String>,
}

impl Wrenn {
    fn make(&self, words: &[&str]) -> Result<Made> {
        let job = Job::new(&self.program).args(words).env("WRENN_URL", &self.url).env("WRENN_API_KEY", &self.key);
        serde_json::from_str(&job.capture()?).context("`wrenn` says something unexpected")
    }
}

/// What comes after these words, as soon as they are said.
fn word(said: &Receiver<String>, words: &str) -> Result<String> {
    loop {
        match said.recv_timeout(START_LIMIT) {
            Ok(line) => {
                if let Some((_, rest)) = line.split_once(words) {
                    return Ok(rest.split_whitespace().next().unwrap_or_default().to_owned());
                }
            }
            Err(RecvTimeoutError::Timeout) => bail!("the service does not say `{words}`"),
            Err(RecvTimeoutError::Disconnected) => bail!("the service has ended before it said `{words}`"),
        }
    }
}

/// The tool, which is installed if it is not there.
fn schemathesis() -> Result<PathBuf> {
    let home = folder("tools")?.join("schemathesis");
    let program = home.join("bin/schemathesis");
    if !program.exists() {
        let step = Step::start("installing schemathesis");
        Job::new("python3").args(["-m", "venv"]).args([&home]).within(INSTALL_DEADLINE).quiet(str::to_owned)?;
        let pip = home.join("bin/pip");
        let pip = Job::new(pip.to_str().context("the path of pip is not UTF-8")?);
        pip.args(["install", "--quiet", "schemathesis>=4"]).within(INSTALL_DEADLINE).quiet(str::to_owned)?;
        step.done("installed");
    }
    Ok(program)
}

//! The host's `ip_forward`: turned on for the first sandbox of any instance, put back after the last one.
//!
//! ```text
//!   first slot taken:   record what is set ──► /run/wrenn/forwarding-NETNS.json ──► ip_forward = 1
//!   last slot released: ip_forward as recorded ──► the settings that moved with it ──► remove the record
//! ```
//!
//! Writing `ip_forward` makes the kernel overwrite the `forwarding` of every interface, of the default for new ones,
//! and `accept_redirects`; so these are recorded too. The record is written before the change and lives in /run, like the
//! settings themselves: both are gone after a reboot. A host that forwards already is left alone and has no record.
//!
//! "The host" is the network namespace we run in; /run may be shared with processes in another one (a container, a test),
//! whose settings are other settings. So the record has the namespace's inode in its name.
//!
//! The caller holds the host's lock, in both directions.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The host's switch.
pub const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const CONF: &str = "/proc/sys/net/ipv4/conf";

/// Why the host's forwarding cannot be changed or put back.
#[derive(Debug, thiserror::Error)]
pub enum ForwardingError {
    /// A setting or the record cannot be read or written.
    #[error("cannot {step} {path}; forwarding needs root and a writable /proc/sys/net (containers often have neither)")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The record is not ours.
    #[error("{path} is damaged; set net.ipv4.ip_forward as it should be and remove the file")]
    Damaged {
        /// The record.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// What was set before: values by the path below /proc/sys/net/ipv4/conf, and `ip_forward` itself.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    ip_forward: String,
    conf: BTreeMap<String, String>,
}

/// Makes the host forward, recording what was set unless it forwards already. `true` if that changed anything.
pub fn ensure(run_dir: &Path) -> Result<bool, ForwardingError> {
    let before = read(Path::new(IP_FORWARD))?;
    if before == "1" {
        return Ok(false);
    }
    let record = record_path(run_dir)?;
    // A record that is there is older: somebody turned forwarding off while sandboxes ran. The older one is the truth.
    if !record.exists() {
        save(&record, &Record { ip_forward: before, conf: moving_settings()? })?;
    }
    write(Path::new(IP_FORWARD), "1")?;
    Ok(true)
}

/// Puts back what [`ensure`] recorded, if it did. `true` if there was something to put back.
pub fn restore(run_dir: &Path) -> Result<bool, ForwardingError> {
    let path = record_path(run_dir)?;
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("read", &path)(error)),
    };
    let record: Record =
        serde_json::from_str(&text).map_err(|source| ForwardingError::Damaged { path: path.clone(), source })?;
    write(Path::new(IP_FORWARD), &record.ip_forward)?;
    put_back(&record.conf)?;
    fs::remove_file(&path).map_err(failed("remove", &path))?;
    Ok(true)
}

/// Inode of the network namespace that this thread is in, and that is the host's for it.
pub fn host_netns() -> Result<u64, ForwardingError> {
    let path = Path::new("/proc/thread-self/ns/net");
    fs::metadata(path).map(|metadata| metadata.ino()).map_err(failed("identify", path))
}

fn record_path(run_dir: &Path) -> Result<PathBuf, ForwardingError> {
    Ok(run_dir.join(format!("forwarding-{}.json", host_netns()?)))
}

fn put_back(conf: &BTreeMap<String, String>) -> Result<(), ForwardingError> {
    for (setting, wanted) in conf {
        let path = Path::new(CONF).join(setting);
        // An interface that is gone has nothing to be put back.
        if path.exists() && read(&path)? != *wanted {
            write(&path, wanted)?;
        }
    }
    Ok(())
}

/// The settings that the kernel overwrites together with `ip_forward`.
fn moving_settings() -> Result<BTreeMap<String, String>, ForwardingError> {
    let mut settings = BTreeMap::from([setting("all/accept_redirects")?]);
    let interfaces = fs::read_dir(CONF).map_err(failed("list", Path::new(CONF)))?;
    for interface in interfaces {
        let name = interface.map_err(failed("list", Path::new(CONF)))?.file_name();
        // `all` is ip_forward under another name.
        if let Some(name) = name.to_str().filter(|name| *name != "all") {
            settings.extend([setting(&format!("{name}/forwarding"))?]);
        }
    }
    Ok(settings)
}

fn setting(name: &str) -> Result<(String, String), ForwardingError> {
    Ok((name.to_owned(), read(&Path::new(CONF).join(name))?))
}

fn save(path: &Path, record: &Record) -> Result<(), ForwardingError> {
    let temporary = path.with_extension("tmp");
    let text = serde_json::to_vec(record).expect("strings are JSON");
    let saved = fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    saved.map_err(failed("write", path))
}

fn read(path: &Path) -> Result<String, ForwardingError> {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(failed("read", path))
}

fn write(path: &Path, value: &str) -> Result<(), ForwardingError> {
    fs::write(path, value).map_err(failed("write", path))
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ForwardingError {
    let path = path.to_owned();
    move |source| ForwardingError::Io { step, path, source }
}

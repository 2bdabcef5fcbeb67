//! An instance: one `WRENN_DIR`, with its tag, its key and its places on the host.
//!
//! ```text
//!   WRENN_DIR/                     mode 0700            /run/wrenn/TAG/
//!     instance.json  tag             the one truth        owner -> DIR     which WRENN_DIR this tag belongs to
//!     agent.key      Ed25519         mode 0600            agent.sock       where its agent listens, if one runs
//!                                                         <sandbox id>/    sockets of its shim and its VMM
//!     lock           held by who sweeps
//!     sandboxes/<id>/ manifest, lock, disk, console
//! ```
//!
//! Two instances on one host never harm each other: every host object's name carries the tag, and a tag belongs to one
//! `WRENN_DIR` (the `owner` file). Several processes may use one instance at once: each sandbox has a lock that its owner
//! holds for as long as it lives, and a sweep, under the instance's lock, touches only what nobody holds.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};
use wrenn_engine::limits;
use wrenn_engine::names::{InstanceTag, SandboxId};

use crate::durable;
use crate::lock::Lock;

/// Version of instance.json that is written and read here.
const FORMAT: u32 = 1;
/// Longest instance.json or key file taken, in bytes.
const FILE_BYTES_MAX: u64 = 4096;
/// How long another process may hold the instance's lock: a sweep ends VMs and removes networks.
const LOCK_LIMIT: Duration = Duration::from_secs(30);
/// Tags tried before giving up; there are 1.7 million of them.
const TAG_TRIES: u32 = 100;

/// Where the sockets and leases of all instances are.
pub const RUN_DIR: &str = "/run/wrenn";

/// Why an instance cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// Only root may make networks and jails.
    #[error(
        "sandboxes need root (for network namespaces, TAPs and users of their own); run this as root, or with sudo"
    )]
    NotRoot,
    /// A file operation failed.
    #[error("cannot {step} {path}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A file of ours is not readable as such.
    #[error("{path} is damaged ({detail}); restore it from a backup, or use another WRENN_DIR")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The tag belongs to another folder: this one was copied.
    #[error(
        "{dir} has the tag {tag}, which belongs to {owner}: it is a copy. Use the original, or remove instance.json in \
         the copy to make it an instance of its own"
    )]
    Copied {
        /// The folder that was opened.
        dir: PathBuf,
        /// Its tag.
        tag: InstanceTag,
        /// The folder that has it already.
        owner: PathBuf,
    },
    /// No tag was free.
    #[error("no free instance tag found in {TAG_TRIES} tries; is /run/wrenn full of old folders?")]
    NoTag,
    /// Somebody sweeps for too long.
    #[error("another wrenn has held {path} for {} s; is it stuck?", LOCK_LIMIT.as_secs())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// Socket paths must fit into sockaddr_un.
    #[error("the socket path {path} is longer than {max} bytes", max = limits::SOCKET_PATH_MAX)]
    SocketPath {
        /// The path.
        path: PathBuf,
    },
}

/// A step on a path, as an error constructor.
pub(crate) fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstanceError {
    let path = path.to_owned();
    move |source| InstanceError::Io { step, path, source }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InstanceFile {
    version: u32,
    tag: InstanceTag,
}

/// One `WRENN_DIR`, opened.
#[derive(Debug)]
pub struct Instance {
    dir: PathBuf,
    run_dir: PathBuf,
    tag: InstanceTag,
    key: SigningKey,
}

impl Instance {
    /// Opens the instance in `dir`, making folder, tag and key the first time.
    pub fn open(dir: &Path) -> Result<Self, InstanceError> {
        if !rustix::process::geteuid().is_root() {
            return Err(InstanceError::NotRoot);
        }
        make_private_dir(dir)?;
        let dir = dir.canonicalize().map_err(io_error("resolve", dir))?;
        make_private_dir(&dir.join("sandboxes"))?;
        make_dir(Path::new(RUN_DIR), 0o755)?;
        let _one_opens = lock(&dir.join("open.lock"))?;
        let tag = claim_tag(&dir)?;
        let key = load_key(&dir.join("agent.key"))?;
        Ok(Self { run_dir: Path::new(RUN_DIR).join(tag.as_str()), dir, tag, key })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The tag in the names of this instance's host objects.
    pub fn tag(&self) -> InstanceTag {
        self.tag
    }

    /// The key that signs what the host tells its guests.
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// Its public half, which every guest is given: 64 hex digits.
    pub fn public_key(&self) -> String {
        hex::encode(self.key.verifying_key().to_bytes())
    }

    /// Where the instance's agent listens.
    pub fn agent_socket(&self) -> PathBuf {
        agent_socket(&self.run_dir)
    }

    /// Where the agent of the instance in `dir` listens if there is one, without opening the instance: nothing is made and
    /// nothing is locked. `None` when there is no instance in `dir`, or `dir` is a copy of one.
    pub fn find_agent_socket(dir: &Path) -> Result<Option<PathBuf>, InstanceError> {
        if !rustix::process::geteuid().is_root() {
            return Err(InstanceError::NotRoot);
        }
        let Some(dir) = canonical(dir)? else { return Ok(None) };
        let file = dir.join("instance.json");
        let Some(text) = durable::read(&file, FILE_BYTES_MAX).map_err(io_error("read", &file))? else {
            return Ok(None);
        };
        let run_dir = Path::new(RUN_DIR).join(parse_instance(&file, &text)?.as_str());
        let link = run_dir.join("owner");
        match read_owner(&link).map_err(io_error("read", &link))? {
            Owner::Folder(owner) if owner == dir => Ok(Some(agent_socket(&run_dir))),
            Owner::Folder(_) | Owner::NotALink | Owner::Nobody => Ok(None),
        }
    }

    /// Where the sandboxes' files are.
    pub fn sandboxes_dir(&self) -> PathBuf {
        self.dir.join("sandboxes")
    }

    /// The places of one sandbox.
    pub fn places(&self, id: &SandboxId) -> Places {
        Places { dir: self.sandboxes_dir().join(id.as_str()), run_dir: self.run_dir.join(id.as_str()) }
    }

    /// The lock of the one agent that serves this instance.
    pub fn agent_lock(&self) -> PathBuf {
        self.dir.join("agent.lock")
    }

    /// The instance's lock: held while what nobody owns is swept away.
    pub fn lock(&self) -> Result<Lock, InstanceError> {
        lock(&self.dir.join("lock"))
    }
}

/// Where the files and sockets of one sandbox are.
#[derive(Clone, Debug)]
pub struct Places {
    /// Its durable files.
    pub dir: PathBuf,
    /// Its sockets.
    pub run_dir: PathBuf,
}

impl Places {
    /// What the agent knows about it.
    pub fn manifest(&self) -> PathBuf {
        self.dir.join("manifest.json")
    }

    /// Held by the process that owns the sandbox.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// What its VM writes on its disk.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// Where its VMM writes captures of it.
    pub fn capture(&self) -> PathBuf {
        self.dir.join("capture")
    }

    /// What the shim was told to start.
    pub fn shim_spec(&self) -> PathBuf {
        self.dir.join("shim.json")
    }

    /// The serial console's ring.
    pub fn console(&self) -> PathBuf {
        self.dir.join("console.ring")
    }

    /// There when the sandbox is the instance's own: the next agent takes it over. Others go with the process that made them.
    pub fn kept(&self) -> PathBuf {
        self.dir.join("kept")
    }

    /// How the VM ended.
    pub fn exit_record(&self) -> PathBuf {
        self.dir.join("exit.json")
    }

    /// What the shim itself complains about.
    pub fn shim_log(&self) -> PathBuf {
        self.dir.join("shim.log")
    }

    /// Where the shim listens.
    pub fn shim_socket(&self) -> PathBuf {
        self.run_dir.join("shim.sock")
    }

    /// Where the VMM listens.
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }

    /// Makes both folders, and marks the sandbox as the instance's own if it is to be `kept`.
    pub fn make(&self, kept: bool) -> Result<(), InstanceError> {
        make_private_dir(&self.dir)?;
        if kept {
            let mark = self.kept();
            std::fs::write(&mark, "").map_err(io_error("write", &mark))?;
        }
        self.make_run_dir()
    }

    /// Makes the folder of sockets, which is gone while the sandbox rests and after the host was started again.
    pub fn make_run_dir(&self) -> Result<(), InstanceError> {
        make_private_dir(&self.run_dir)?;
        for path in [self.shim_socket(), self.control_socket()] {
            if path.as_os_str().len() > limits::SOCKET_PATH_MAX {
                return Err(InstanceError::SocketPath { path });
            }
        }
        Ok(())
    }
}

fn agent_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

/// `None` when it is not there.
fn canonical(dir: &Path) -> Result<Option<PathBuf>, InstanceError> {
    match dir.canonicalize() {
        Ok(dir) => Ok(Some(dir)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("resolve", dir)(error)),
    }
}

fn lock(path: &Path) -> Result<Lock, InstanceError> {
    Lock::acquire(path, LOCK_LIMIT)
        .map_err(io_error("lock", path))?
        .ok_or_else(|| InstanceError::Locked { path: path.to_owned() })
}

fn make_private_dir(path: &Path) -> Result<(), InstanceError> {
    make_dir(path, 0o700)
}

fn make_dir(path: &Path, mode: u32) -> Result<(), InstanceError> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(io_error("make the folder", path))
}

/// The tag of `dir`: the one it has, or a new one that no other folder has.
fn claim_tag(dir: &Path) -> Result<InstanceTag, InstanceError> {
    let file = dir.join("instance.json");
    match durable::read(&file, FILE_BYTES_MAX).map_err(io_error("read", &file))? {
        Some(text) => {
            let tag = parse_instance(&file, &text)?;
            match claim(dir, tag)? {
                None => Ok(tag),
                Some(owner) => Err(InstanceError::Copied { dir: dir.to_owned(), tag, owner }),
            }
        }
        None => new_tag(dir, &file),
    }
}

fn parse_instance(file: &Path, text: &[u8]) -> Result<InstanceTag, InstanceError> {
    let damaged = |detail| InstanceError::Damaged { path: file.to_owned(), detail };
    let instance: InstanceFile = serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
    if instance.version != FORMAT {
        return Err(damaged(format!("version {}, and this wrenn reads version {FORMAT}", instance.version)));
    }
    Ok(instance.tag)
}

fn new_tag(dir: &Path, file: &Path) -> Result<InstanceTag, InstanceError> {
    for _ in 0..TAG_TRIES {
        let tag = random_tag();
        if claim(dir, tag)?.is_none() {
            let text = serde_json::to_vec(&InstanceFile { version: FORMAT, tag }).expect("a tag is JSON");
            durable::replace(file, &text).map_err(io_error("write", file))?;
            return Ok(tag);
        }
    }
    Err(InstanceError::NoTag)
}

/// Makes /run/wrenn/TAG ours; answers the other owner when it is not. A folder that no longer holds the tag lost it.
///
/// The claim is a symbolic link: it is there whole or not at all, and needs no temporary file that a killed process could
/// leave behind.
fn claim(dir: &Path, tag: InstanceTag) -> Result<Option<PathBuf>, InstanceError> {
    let run_dir = Path::new(RUN_DIR).join(tag.as_str());
    make_private_dir(&run_dir)?;
    let link = run_dir.join("owner");
    let _one_claims = lock(&run_dir.join("owner.lock"))?;
    match read_owner(&link).map_err(io_error("read", &link))? {
        Owner::Folder(owner) if owner == dir => return Ok(None),
        Owner::Folder(owner) if tag_of(&owner) == Some(tag) => return Ok(Some(owner)),
        Owner::Folder(_) | Owner::NotALink => std::fs::remove_file(&link).map_err(io_error("remove", &link))?,
        Owner::Nobody => {}
    }
    std::os::unix::fs::symlink(dir, &link).map_err(io_error("make the link", &link))?;
    Ok(None)
}

/// Whose claim a tag's folder shows.
enum Owner {
    Nobody,
    Folder(PathBuf),
    /// Something that names nobody.
    NotALink,
}

fn read_owner(link: &Path) -> io::Result<Owner> {
    match std::fs::read_link(link) {
        Ok(folder) => Ok(Owner::Folder(folder)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Owner::Nobody),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(Owner::NotALink),
        Err(error) => Err(error),
    }
}

fn tag_of(dir: &Path) -> Option<InstanceTag> {
    let file = dir.join("instance.json");
    // An owner whose file cannot be read has lost its claim; its own next start says what is wrong with it.
    let text = durable::read(&file, FILE_BYTES_MAX).ok()??;
    parse_instance(&file, &text).ok()
}

fn random_tag() -> InstanceTag {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let text: String = random_bytes::<{ InstanceTag::LENGTH }>()
        .iter()
        .map(|byte| ALPHABET[usize::from(*byte) % ALPHABET.len()] as char)
        .collect();
    text.parse().expect("the alphabet is a tag's")
}

/// Bytes from the kernel's generator.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("getrandom does not fail on Linux once the kernel is up");
    bytes
}

fn load_key(path: &Path) -> Result<SigningKey, InstanceError> {
    let damaged = |detail: &str| InstanceError::Damaged { path: path.to_owned(), detail: detail.to_owned() };
    if let Some(text) = durable::read(path, FILE_BYTES_MAX).map_err(io_error("read", path))? {
        let mut secret = [0; 32];
        hex::decode_to_slice(text.trim_ascii(), &mut secret).map_err(|_| damaged("not 64 hex digits"))?;
        return Ok(SigningKey::from_bytes(&secret));
    }
    let key = SigningKey::from_bytes(&random_bytes());
    durable::replace(path, hex::encode(key.to_bytes()).as_bytes()).map_err(io_error("write", path))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_an_agent_is_looked_for_without_opening_anything() {
        let dir = tempfile::tempdir().unwrap();
        let find = |dir: &Path| Instance::find_agent_socket(dir).unwrap();
        assert_eq!(find(&dir.path().join("nothing")), None);
        assert_eq!(find(dir.path()), None, "no instance yet");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "and none is made");

        let instance = Instance::open(&dir.path().join("one")).unwrap();
        let socket = instance.agent_socket();
        assert!(socket.as_os_str().len() <= limits::SOCKET_PATH_MAX);
        assert_eq!(find(instance.dir()), Some(socket));
        let copy = dir.path().join("copy");
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(instance.dir().join("instance.json"), copy.join("instance.json")).unwrap();
        assert_eq!(find(&copy), None, "a copy has no business with the original's agent");
        std::fs::remove_dir_all(&instance.run_dir).unwrap();
    }
}

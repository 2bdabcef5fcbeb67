//! `POST /files`: bytes of one or several files, written in place as they arrive; or, for who asks for it, beside their place,
//! to which they are renamed when they are whole.
//!
//! A client that watches the directory counts events, so a file is made by exactly three steps: create, change of owner,
//! write. Up to [`limits::UPLOAD_BUFFER_BYTES`] are kept back, which makes the write of a small file a single one, and
//! means that a client which hangs up before has changed nothing.
//!
//! ```text
//!  chunks of the body ──► gunzip? ──► multipart? ──► one file after the other
//!  └─ async: receive() ┘  └──────────── blocking: Upload ───────────────────┘
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::mem;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::BodyDataStream;
use flate2::write::MultiGzDecoder;
use futures::StreamExt as _;
use rustix::fs::{OFlags, XattrFlags};
use rustix::io::Errno;

use super::headers;
use super::multipart::{Event, MultipartError, Parser};
use crate::envd::entry::{self, METADATA_PREFIX};
use crate::envd::files_limits as limits;
use crate::envd::filesystem::operations::{self, FsError};
use crate::envd::paths::{self, PathError};
use crate::envd::users::User;

/// What `stat` counts a file's space in.
const BLOCK_BYTES: u64 = 512;

/// Why an upload failed. Files that were complete before stay.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The target is a directory.
    #[error("path is a directory: {}", .0.display())]
    Directory(PathBuf),
    /// The target is a FIFO, a socket or a device.
    #[error("path is not a regular file: {}", .0.display())]
    NotRegular(PathBuf),
    /// Two parts for the same file.
    #[error("two parts of the upload are for the same file: {}", .0.display())]
    Duplicate(PathBuf),
    /// A part says neither by itself nor by the query where it belongs.
    #[error("a file has no name: give the query parameter `path`, or a filename in its part")]
    NoName,
    /// Nothing was sent.
    #[error("the upload holds no file: it needs a part named `file`")]
    NoFile,
    /// Too many parts.
    #[error("the upload holds more than {} files", limits::UPLOAD_FILES_MAX)]
    TooManyFiles,
    /// A name that means no path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The body is no multipart form.
    #[error(transparent)]
    Multipart(#[from] MultipartError),
    /// The body is not gzip.
    #[error("the body is not valid gzip")]
    Gzip(#[source] io::Error),
    /// The file system keeps no metadata.
    #[error("the file system of '{}' keeps no extended attributes, which metadata needs", .0.display())]
    NoMetadata(PathBuf),
    /// The disk is full.
    #[error("not enough disk space to write '{}'", .0.display())]
    NoSpace(PathBuf),
    /// Its directory could not be made.
    #[error(transparent)]
    Parents(#[from] FsError),
    /// The kernel refused.
    #[error("cannot {step} '{}'", .path.display())]
    Write {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The client is gone, or broke the protocol.
    #[error("the body of the upload broke off")]
    Body(#[source] axum::Error),
    /// The client sends nothing.
    #[error("the upload stalled for {} s", limits::UPLOAD_IDLE_SECONDS_MAX)]
    Stalled,
    /// A bug of ours.
    #[error("the upload ended by a panic")]
    Panic(#[source] tokio::task::JoinError),
}

impl UploadError {
    /// The error of a step on a file, for `map_err`; a full disk is an error of its own.
    fn write<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |error| {
            let source = error.into();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace(path.to_owned()),
                _ => Self::Write { step, path: path.to_owned(), source },
            }
        }
    }

    /// A failed writer of a decoder: our own error if it was one, else what is wrong with the gzip.
    fn of_decoder(error: io::Error) -> Self {
        error.downcast::<Self>().unwrap_or_else(Self::Gzip)
    }
}

/// What is to be done with the files of one upload.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Who gets the files, and where relative names start.
    pub owner: User,
    /// The one target, when the query named it.
    pub target: Option<PathBuf>,
    /// Keys and values for each file; they replace all that a file has.
    pub metadata: Vec<(String, String)>,
    /// Bytes the target will take, where that is known.
    pub size: Option<u64>,
    /// Whether a file appears under its name when it is whole, and not before.
    pub whole: bool,
}

/// How the files are in the body.
pub enum Form {
    /// The body is the file.
    Whole,
    /// The body is a multipart form.
    Multipart(Parser),
}

/// An upload that is being received. Its calls block.
pub struct Upload {
    decoder: Decoder,
}

enum Decoder {
    Identity(Box<Files>),
    Gzip(Box<MultiGzDecoder<Files>>),
}

impl Upload {
    /// An upload that has received nothing yet; refuses what can be refused before the first byte.
    pub fn begin(plan: Plan, form: Form, gzip: bool) -> Result<Self, UploadError> {
        let mut files = Files { plan, form, current: None, done: Vec::new() };
        if let Some(target) = files.plan.target.clone() {
            check_target(&target)?;
            // What is there stays until the new file is whole.
            let reusable = if files.plan.whole { 0 } else { blocks_bytes(&target) };
            check_space(&target, files.plan.size.unwrap_or(0), reusable)?;
        }
        if matches!(files.form, Form::Whole) {
            files.open(None)?;
        }
        let decoder =
            if gzip { Decoder::Gzip(Box::new(MultiGzDecoder::new(files))) } else { Decoder::Identity(Box::new(files)) };
        Ok(Self { decoder })
    }

    /// Takes the next bytes of the body.
    pub fn push(&mut self, data: &[u8]) -> Result<(), UploadError> {
        match &mut self.decoder {
            Decoder::Identity(files) => files.push(data),
            Decoder::Gzip(decoder) => decoder.write_all(data).map_err(UploadError::of_decoder),
        }
    }

    /// Ends the upload after the last byte: the paths of all files, in the order they were sent.
    pub fn finish(self) -> Result<Vec<PathBuf>, UploadError> {
        match self.decoder {
            Decoder::Identity(files) => files.finish(),
            Decoder::Gzip(decoder) => decoder.finish().map_err(UploadError::of_decoder)?.finish(),
        }
    }
}

/// Receives a whole body. On an error the rest of the body is still in the stream.
pub async fn receive(mut upload: Upload, body: &mut BodyDataStream) -> Result<Vec<PathBuf>, UploadError> {
    let idle = Duration::from_secs(limits::UPLOAD_IDLE_SECONDS_MAX);
    while let Some(chunk) = tokio::time::timeout(idle, body.next()).await.map_err(|_elapsed| UploadError::Stalled)? {
        let chunk = chunk.map_err(UploadError::Body)?;
        upload = blocking(move || upload.push(&chunk).map(|()| upload)).await?;
    }
    blocking(|| upload.finish()).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, UploadError> + Send + 'static,
) -> Result<T, UploadError> {
    tokio::task::spawn_blocking(work).await.map_err(UploadError::Panic)?
}

/// Refuses a target that cannot be written to as a file.
fn check_target(path: &Path) -> Result<(), UploadError> {
    match std::fs::metadata(path) {
        Ok(there) if there.is_dir() => Err(UploadError::Directory(path.to_owned())),
        Ok(there) if !there.is_file() => Err(UploadError::NotRegular(path.to_owned())),
        // What else may be wrong shows when it is opened.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// What a file takes now.
fn blocks_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |there| there.blocks() * BLOCK_BYTES)
}

/// Refuses what cannot fit, before an existing file is emptied for nothing. `reusable` bytes count as free.
fn check_space(path: &Path, size: u64, reusable: u64) -> Result<(), UploadError> {
    let Some(about) = path.ancestors().find_map(|ancestor| rustix::fs::statvfs(ancestor).ok()) else { return Ok(()) };
    let free = about.f_bfree.saturating_mul(about.f_frsize).saturating_add(reusable);
    // A file system without a size, as some in user space, cannot tell.
    if about.f_blocks > 0 && size > free { Err(UploadError::NoSpace(path.to_owned())) } else { Ok(()) }
}

/// The files of a body, one after the other.
struct Files {
    plan: Plan,
    form: Form,
    current: Option<Target>,
    done: Vec<PathBuf>,
}

/// What a decoder writes to.
impl Write for Files {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.push(data).map_err(io::Error::other)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Files {
    fn push(&mut self, data: &[u8]) -> Result<(), UploadError> {
        let Form::Multipart(parser) = &mut self.form else { return self.write_current(data) };
        parser.push(data);
        while let Some(event) = self.next_event()? {
            match event {
                Event::Begin(part) if part.name == b"file" => self.open(part.filename)?,
                Event::Begin(_other_field) => {}
                Event::Data(data) => self.write_current(&data)?,
                Event::End => self.close()?,
            }
        }
        Ok(())
    }

    fn next_event(&mut self) -> Result<Option<Event>, UploadError> {
        match &mut self.form {
            Form::Whole => Ok(None),
            Form::Multipart(parser) => Ok(parser.next_event()?),
        }
    }

    /// Starts the file of this name; the query's target comes first.
    fn open(&mut self, filename: Option<Vec<u8>>) -> Result<(), UploadError> {
        let path = match (&self.plan.target, filename) {
            (Some(target), _) => target.clone(),
            (None, Some(name)) if !name.is_empty() => {
                paths::resolve(std::ffi::OsStr::from_bytes(&name), &self.plan.owner.home, None)?
            }
            (None, Some(_) | None) => return Err(UploadError::NoName),
        };
        if self.done.iter().any(|done| done.as_os_str() == path.as_os_str()) {
            return Err(UploadError::Duplicate(path));
        }
        if self.done.len() >= limits::UPLOAD_FILES_MAX {
            return Err(UploadError::TooManyFiles);
        }
        check_target(&path)?;
        let part = self.plan.whole.then(|| Part::beside(&path));
        self.current = Some(Target { path, part, buffer: Vec::new(), file: None });
        Ok(())
    }

    fn write_current(&mut self, data: &[u8]) -> Result<(), UploadError> {
        // Without a current file these are the bytes of some other field of the form.
        self.current.as_mut().map_or(Ok(()), |target| target.push(data, &self.plan))
    }

    fn close(&mut self) -> Result<(), UploadError> {
        if let Some(target) = self.current.take() {
            self.done.push(target.finish(&self.plan)?);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<PathBuf>, UploadError> {
        match &self.form {
            Form::Whole => self.close()?,
            Form::Multipart(parser) => parser.finish()?,
        }
        if self.done.is_empty() { Err(UploadError::NoFile) } else { Ok(self.done) }
    }
}

/// A file that is being written; it is opened with its first write.
struct Target {
    path: PathBuf,
    /// Where it is until it is whole, if not at its place.
    part: Option<Part>,
    buffer: Vec<u8>,
    file: Option<File>,
}

impl Target {
    fn push(&mut self, data: &[u8], plan: &Plan) -> Result<(), UploadError> {
        if self.buffer.len() + data.len() > limits::UPLOAD_BUFFER_BYTES {
            self.flush(plan)?;
        }
        if data.len() >= limits::UPLOAD_BUFFER_BYTES {
            return self.write(data, plan);
        }
        self.buffer.extend_from_slice(data);
        Ok(())
    }

    fn finish(mut self, plan: &Plan) -> Result<PathBuf, UploadError> {
        self.flush(plan)?;
        if self.file.is_none() {
            self.write(&[], plan)?;
        }
        if let Some(part) = self.part {
            part.take_place(&self.path)?;
        }
        Ok(self.path)
    }

    fn flush(&mut self, plan: &Plan) -> Result<(), UploadError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut kept = mem::take(&mut self.buffer);
        self.write(&kept, plan)?;
        kept.clear();
        self.buffer = kept;
        Ok(())
    }

    fn write(&mut self, data: &[u8], plan: &Plan) -> Result<(), UploadError> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => open_target(self.part.as_ref().map_or(&self.path, |part| &part.0), plan)?,
        };
        file.write_all(data).map_err(UploadError::write("write", &self.path))?;
        self.file = Some(file);
        Ok(())
    }
}

/// A file that is not whole yet, beside its place; removed unless it takes that.
struct Part(PathBuf);

impl Part {
    /// A hidden name in the same directory; the process and a counter make it one of its own.
    fn beside(path: &Path) -> Self {
        static UPLOADS: AtomicU64 = AtomicU64::new(0);
        let serial = UPLOADS.fetch_add(1, Ordering::Relaxed);
        Self(path.with_file_name(format!(".wrenn-{}-{serial}.part", std::process::id())))
    }

    /// The file is whole.
    fn take_place(mut self, path: &Path) -> Result<(), UploadError> {
        std::fs::rename(&self.0, path).map_err(UploadError::write("rename the upload to", path))?;
        self.0 = PathBuf::new();
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.0.as_os_str().is_empty() {
            return;
        }
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                eprintln!("envd: a part of an upload stays at {}: {error}", self.0.display());
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// Opens a file to be written anew: makes it, 0666 less the umask, or empties it; gives it to the user; sets its metadata.
fn open_target(path: &Path, plan: &Plan) -> Result<File, UploadError> {
    let (file, created) = open_or_create(path, plan)?;
    let about = file.metadata().map_err(UploadError::write("look at", path))?;
    if !about.is_file() {
        return Err(UploadError::NotRegular(path.to_owned()));
    }
    // For a new file it is one of the three events. For an old one a change of owner that changes nothing would only take
    // set-user-id bits away.
    if created || (about.uid(), about.gid()) != (plan.owner.uid, plan.owner.gid) {
        operations::give(&file, &plan.owner).map_err(UploadError::write("give the user", path))?;
    }
    replace_metadata(&file, path, &plan.metadata)?;
    if about.len() > 0 {
        file.set_len(0).map_err(UploadError::write("empty", path))?;
    }
    Ok(file)
}

/// Opens a file; whether it was made for it.
///
/// An existing file is opened without O_CREAT: with it, the kernel's fs.protected_regular keeps even root from other
/// users' files in /tmp.
fn open_or_create(path: &Path, plan: &Plan) -> Result<(File, bool), UploadError> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(flags).mode(0o666);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            operations::make_dirs(parent, &plan.owner)?;
            options.create(true).open(path).map(|file| (file, true))
        }
        other => other.map(|file| (file, false)),
    }
    .map_err(UploadError::write("open", path))
}

/// Makes a file's metadata exactly these.
fn replace_metadata(file: &File, path: &Path, metadata: &[(String, String)]) -> Result<(), UploadError> {
    let failed = |error| match error {
        Errno::OPNOTSUPP => UploadError::NoMetadata(path.to_owned()),
        other => UploadError::write("set the metadata of", path)(other),
    };
    let wanted: Vec<_> = metadata.iter().map(|(key, value)| (headers::attribute_name(key), value)).collect();
    for old in entry::attributes(METADATA_PREFIX.as_bytes(), |list| rustix::fs::flistxattr(file, list)) {
        if !wanted.iter().any(|(name, _)| name.as_bytes() == old) {
            rustix::fs::fremovexattr(file, old.as_slice()).map_err(failed)?;
        }
    }
    for (name, value) in &wanted {
        rustix::fs::fsetxattr(file, name.as_str(), value.as_bytes(), XattrFlags::empty()).map_err(failed)?;
    }
    Ok(())
}

//! Images: kernels, initramfs and root filesystems, from Debian's packages to files a VMM can boot.
//!
//! ```text
//! apt (this machine's own sources) ─► downloads/*.deb ─┬─► kernels/     (kernel, modules) + guest binary ─► initrd
//!                                                      └─► templates/   busybox ─► tree ─► mke2fs ─► rootfs.ext4
//! mmdebstrap (the same sources) ────────────────────────►               Debian  ─► tree ─► mke2fs ─► rootfs.ext4
//! ```
//!
//! What is made is immutable and named after its content or its inputs, so that a second build is a no-op and needs no
//! network. Everything is built in a folder of its own under one lock and appears by a rename; what an interrupted build
//! leaves is removed by the next. Nothing is mounted, nothing that a sandbox wrote is ever read here.
//!
//! It does not know what a sandbox is, nor which VMM will run one.

mod apt;
mod base;
mod cpio;
mod deb;
mod ext4;
mod files;
pub mod initramfs;
mod kernel;
mod minimal;
pub mod modules;
mod template;
mod tree;
pub mod vmlinux;

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use sha2::{Digest, Sha256};

pub use apt::AptError;
pub use base::{Sources, sources};
pub use deb::DebError;
pub use ext4::Ext4Error;
pub use files::FileError;
pub use kernel::{KernelError, KernelFiles};
pub use modules::ModuleError;
pub use template::{Recipe, Template, TemplateError, UnknownRecipe};
pub use vmlinux::KernelImageError;

/// Why an image cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A package.
    #[error(transparent)]
    Apt(#[from] AptError),
    /// Files of ours.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Hears how a long build goes on.
pub trait Progress: Send + Sync {
    /// `done` of `total` of `step`; a `total` of 0 means that it is not known. Bytes where bytes are moved.
    fn report(&self, step: &str, done: u64, total: u64);
}

impl<F: Fn(&str, u64, u64) + Send + Sync> Progress for F {
    fn report(&self, step: &str, done: u64, total: u64) {
        self(step, done, total);
    }
}

/// A shared [`Progress`].
pub type Reporter = Arc<dyn Progress>;

/// Tells of each step once, when it begins, in a line.
pub fn lines(tell: impl Fn(&str) + Send + Sync + 'static) -> Reporter {
    let last = Mutex::new(String::new());
    Arc::new(move |step: &str, _done: u64, _total: u64| {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != step {
            step.clone_into(&mut last);
            tell(&format!("{step} ..."));
        }
    })
}

/// The kernels and templates of one instance. Cheap to clone.
#[derive(Clone)]
pub struct ImageStore {
    places: Places,
    guest: Arc<GuestBinary>,
}

struct GuestBinary {
    bytes: Cow<'static, [u8]>,
    sha256: OnceLock<String>,
}

impl fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageStore").field("places", &self.places).finish_non_exhaustive()
    }
}

impl ImageStore {
    /// The images in the instance folder `dir`, which is made if it is not there. `guest` is the static binary that every
    /// initramfs has as its init.
    pub fn open(dir: &Path, guest: impl Into<Cow<'static, [u8]>>) -> Result<Self, ImageError> {
        let places = Places::new(dir);
        files::make_folder(&places.kernels())?;
        files::make_folder(&places.templates())?;
        Ok(Self { places, guest: Arc::new(GuestBinary { bytes: guest.into(), sha256: OnceLock::new() }) })
    }

    /// The kernel to boot with our guest: the file a user named (a vmlinuz, a vmlinux or a Debian package), or else the
    /// prepared one. Needs no network. Blocks: milliseconds, or for a file seen for the first time up to a second.
    pub fn kernel(&self, given: Option<&Path>) -> Result<KernelFiles, ImageError> {
        Ok(match given {
            Some(path) => kernel::set_of_file(&self.places, path, self.guest())?,
            None => kernel::default_set(&self.places, self.guest())?,
        })
    }

    /// The kernel set of this id, which a sandbox remembers.
    pub fn kernel_set(&self, id: &str) -> Result<KernelFiles, ImageError> {
        Ok(kernel::set_of_id(&self.places, id)?)
    }

    /// Prepares the default kernel: Debian's cloud kernel, fetched if it was not yet, or if `refresh` asks for the newest.
    pub async fn prepare_kernel(&self, refresh: bool, progress: Reporter) -> Result<KernelFiles, ImageError> {
        if refresh || kernel::prepared(&self.places)?.is_none() {
            let package = self.kernel_package(refresh, &progress).await?;
            progress.report("unpack the kernel", 0, 0);
            let places = self.places.clone();
            let unpack = move || {
                let path = package.path(&places.downloads());
                kernel::prepare_package(&places, &path, &package.name, &package.sha256)
            };
            tokio::task::spawn_blocking(unpack).await.expect("unpacking a kernel does not panic")?;
        }
        let store = self.clone();
        tokio::task::spawn_blocking(move || store.kernel(None)).await.expect("pairing a kernel does not panic")
    }

    async fn kernel_package(&self, refresh: bool, progress: &Reporter) -> Result<apt::Package, ImageError> {
        /// Under which the kernel package is recorded, whatever its version.
        const ALIAS: &str = "kernel";
        let downloads = self.places.downloads();
        if !refresh && let Some(package) = apt::cached(&downloads, ALIAS)? {
            return Ok(package);
        }
        let path = self.places.lock();
        let lock = tokio::task::spawn_blocking(move || files::BuildLock::acquire(&path));
        let lock = lock.await.expect("locking does not panic")?;
        let work = files::WorkFolder::new(&self.places.work(), &lock)?;
        let name = apt::kernel_package().await?;
        Ok(apt::fetch(&downloads, work.path(), &name, ALIAS, progress).await?)
    }

    /// The template of this name or id, after its length (always) and its hash (once for each file) were compared.
    pub fn template(&self, name: &str) -> Result<Template, ImageError> {
        Ok(template::find(&self.places, name)?)
    }

    /// All templates, by name.
    pub fn templates(&self) -> Result<Vec<Template>, ImageError> {
        Ok(template::list(&self.places)?)
    }

    /// Builds a template, or finds it built from the same inputs. `refresh` builds in any case, from the newest packages.
    pub async fn build_template(
        &self,
        recipe: Recipe,
        refresh: bool,
        progress: Reporter,
    ) -> Result<Template, ImageError> {
        Ok(template::build(&self.places, recipe, refresh, &progress).await?)
    }

    /// Refuses a name for a new template that is none, or that is taken.
    pub fn check_free(&self, name: &str) -> Result<(), ImageError> {
        Ok(template::check_free(&self.places, name)?)
    }

    /// A new template under a name that is free; `write` makes its image, an ext4 file system, at the path it is given. Blocks.
    pub fn adopt<E: From<ImageError>>(
        &self,
        name: &str,
        write: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Template, E> {
        template::adopt(&self.places, name, write)
    }

    /// Removes the template of this id. Whoever has its image open keeps it. Blocks.
    pub fn remove_template(&self, id: &str) -> Result<(), ImageError> {
        Ok(template::remove(&self.places, id)?)
    }

    fn guest(&self) -> kernel::Guest<'_> {
        let sha256 = self.guest.sha256.get_or_init(|| hex::encode(Sha256::digest(&self.guest.bytes)));
        kernel::Guest { binary: &self.guest.bytes, sha256 }
    }
}

/// Where things are in an instance.
#[derive(Debug, Clone)]
struct Places {
    dir: PathBuf,
}

impl Places {
    fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn kernels(&self) -> PathBuf {
        self.dir.join("kernels")
    }

    fn prepared_kernel(&self) -> PathBuf {
        self.kernels().join("prepared.json")
    }

    fn kernel_set(&self, id: &str) -> PathBuf {
        self.kernels().join(id)
    }

    fn unpacked_kernels(&self) -> PathBuf {
        self.kernels().join("unpacked")
    }

    fn unpacked_kernel(&self, id: &str) -> PathBuf {
        self.unpacked_kernels().join(id)
    }

    fn templates(&self) -> PathBuf {
        self.dir.join("templates")
    }

    fn template(&self, id: &str) -> PathBuf {
        self.templates().join(id)
    }

    fn names(&self) -> PathBuf {
        self.templates().join("names.json")
    }

    fn downloads(&self) -> PathBuf {
        self.dir.join("downloads")
    }

    /// Where images are built; on the same filesystem as where they go.
    fn work(&self) -> PathBuf {
        self.dir.join("image-work")
    }

    fn lock(&self) -> PathBuf {
        self.dir.join("image.lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_one_line() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let reporter = lines({
            let told = Arc::clone(&told);
            move |line| told.lock().unwrap().push(line.to_owned())
        });
        for (step, done) in [("fetch", 0), ("fetch", 5), ("unpack", 0), ("fetch", 0)] {
            reporter.report(step, done, 9);
        }
        assert_eq!(*told.lock().unwrap(), ["fetch ...", "unpack ...", "fetch ..."]);
    }
}

//! Templates: immutable root filesystems, named after what is in them, found by a name that can move.
//!
//! ```text
//! templates/names.json            {"minimal": ID, ...}      the only thing that changes, replaced as a whole
//! templates/ID/rootfs.ext4        mode 0444, sparse
//! templates/ID/manifest.json      what it is
//! templates/ID/verified.json      inode, length and time of the file whose hash was right
//! ```
//!
//! Before a sandbox starts from a template its length is compared, always; its whole hash only when the file is not the
//! one that was hashed last. A sandbox reads its template for as long as it lives, so an id is never changed nor reused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ext4::{self, Ext4Error, Room};
use super::files::{self, BuildLock, FileError, Identity, WorkFolder};
use super::{ImageError, Places, Reporter, apt, base, deb, minimal, tree};
use crate::command::CommandError;
use crate::units::Mib;

/// Changes whenever a manifest is read differently.
const FORMAT: u32 = 1;
const ROOTFS: &str = "rootfs.ext4";
const MANIFEST: &str = "manifest.json";
const VERIFIED: &str = "verified.json";
/// In a folder to build in: the template's folder, before it has its name.
const MADE: &str = "template";
/// Hex digits of a hash in an id.
const ID_DIGITS: usize = 16;
/// Longest name of a template.
const NAME_MAX: usize = 64;

/// A template we know how to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Recipe {
    /// busybox; built in seconds.
    Minimal,
    /// Debian with python3, curl, git and sudo.
    Base,
}

impl Recipe {
    /// All recipes.
    pub const ALL: [Self; 2] = [Self::Minimal, Self::Base];

    /// The template's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Minimal => "minimal",
            Self::Base => "base",
        }
    }

    /// Disk space that building it takes at most, downloads included.
    const fn space(self) -> Mib {
        match self {
            Self::Minimal => Mib(128),
            Self::Base => Mib(2048),
        }
    }

    const fn room(self) -> Room {
        match self {
            Self::Minimal => minimal::ROOM,
            Self::Base => base::ROOM,
        }
    }

    /// What was decided here about the template; a build whose inputs are these again does nothing.
    fn inputs(self) -> String {
        let text = match self {
            Self::Minimal => format!("minimal {} {}", minimal::FORMAT, minimal::PACKAGE),
            Self::Base => format!("base {} {}", base::FORMAT, base::PACKAGES.join(" ")),
        };
        let text = format!("{text} ext4 {} {:?} profile {}", ext4::FORMAT, self.room(), tree::PROFILE);
        files::hash_parts([text.as_bytes(), apt::ARCHITECTURE.as_bytes()])
    }
}

/// A name of no recipe.
#[derive(Debug, thiserror::Error)]
#[error("there is no recipe for a template `{0}`; there are `minimal` and `base`")]
pub struct UnknownRecipe(String);

impl FromStr for Recipe {
    type Err = UnknownRecipe;

    fn from_str(name: &str) -> Result<Self, UnknownRecipe> {
        Self::ALL.into_iter().find(|recipe| recipe.name() == name).ok_or_else(|| UnknownRecipe(name.to_owned()))
    }
}

/// A template that is there and as it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Hash of what is in it.
    pub id: String,
    /// The name it was built under.
    pub name: String,
    /// The image of the root filesystem: ext4, raw, never written to.
    pub rootfs: PathBuf,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// SHA-256 of it.
    pub sha256: String,
    /// When it was built, RFC 3339.
    pub created: String,
}

/// A template's manifest file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    id: String,
    name: String,
    size: u64,
    sha256: String,
    /// The unpacked kernel that was prepared when it was built; it runs with others too.
    kernel: Option<String>,
    created: String,
    architecture: String,
    /// Hash of the recipe.
    inputs: String,
}

/// The names and what they mean.
type Names = BTreeMap<String, String>;

/// Why there is no template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// Nothing has that name.
    #[error("there is no template `{name}`{}", known_templates(name, known))]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A name that can be none.
    #[error("`{0}` cannot be a template's name: 1 to 64 characters of [a-z0-9._-], beginning with a letter or digit")]
    BadName(String),
    /// Another template has the name.
    #[error("there is a template `{0}` already; remove it, or choose another name")]
    NameTaken(String),
    /// Its image is shorter or longer than it was.
    #[error(
        "the image of the template `{name}` has {found} bytes instead of {wanted} ({}); build it again: `wrenn template \
         build --refresh {name}`", path.display()
    )]
    WrongSize {
        /// The template.
        name: String,
        /// Its image.
        path: PathBuf,
        /// Bytes it was made with.
        wanted: u64,
        /// Bytes it has.
        found: u64,
    },
    /// Its image is not what it was.
    #[error(
        "the image of the template `{name}` has the hash {found} instead of {wanted} ({}); build it again: `wrenn template \
         build --refresh {name}`", path.display()
    )]
    HashMismatch {
        /// The template.
        name: String,
        /// Its image.
        path: PathBuf,
        /// SHA-256 it was made with.
        wanted: String,
        /// SHA-256 it has.
        found: String,
    },
    /// It was made by another version.
    #[error("the template `{name}` has the format {found}, this wrenn reads {FORMAT}; build it again")]
    WrongFormat {
        /// The template.
        name: String,
        /// Its format.
        found: u32,
    },
    /// There is not enough space to build.
    #[error("building `{name}` needs {needed} of free disk space in {}, there are {free}", folder.display())]
    NoSpace {
        /// The template.
        name: String,
        /// Where.
        folder: PathBuf,
        /// Space it takes.
        needed: Mib,
        /// Space there is.
        free: Mib,
    },
    /// The disk became full.
    #[error("the disk became full while building `{name}`: it needs {needed} in {}; nothing of it was kept", folder.display())]
    DiskFull {
        /// The template.
        name: String,
        /// Where.
        folder: PathBuf,
        /// Space it takes.
        needed: Mib,
        /// The step that failed.
        #[source]
        source: Box<TemplateError>,
    },
    /// The busybox package has no busybox.
    #[error("the package {} holds no busybox", package.display())]
    NoBusybox {
        /// The package.
        package: PathBuf,
    },
    /// busybox does not run.
    #[error("cannot ask busybox for its names")]
    Busybox(#[source] CommandError),
    /// The host is no Debian.
    #[error("the template `base` is this host's Debian release, but /etc/os-release names no Debian release")]
    NotDebian,
    /// apt cannot say where packages come from.
    #[error("cannot ask apt for this machine's sources")]
    AptSources(#[source] CommandError),
    /// None of the sources is Debian's.
    #[error("apt's sources on this machine have no Debian `{suite}`; add it and run `apt-get update`")]
    NoDebianSources {
        /// The release.
        suite: String,
    },
    /// mmdebstrap failed.
    #[error("cannot install Debian into a folder")]
    Bootstrap(#[source] CommandError),
    /// A package cannot be had.
    #[error(transparent)]
    Apt(#[from] apt::AptError),
    /// A package cannot be read.
    #[error(transparent)]
    Package(#[from] deb::DebError),
    /// The filesystem cannot be made.
    #[error(transparent)]
    Ext4(#[from] Ext4Error),
    /// Files of ours.
    #[error(transparent)]
    File(#[from] FileError),
}

fn known_templates(name: &str, known: &[String]) -> String {
    let known = match known {
        [] => String::new(),
        known => format!("; there are: {}", known.join(", ")),
    };
    match Recipe::from_str(name) {
        Ok(_) => format!("{known}; build it: `wrenn template build {name}`"),
        Err(_) => known,
    }
}

/// The template of this name, or of this id, checked.
pub fn find(places: &Places, name: &str) -> Result<Template, TemplateError> {
    if !is_name(name) {
        return Err(TemplateError::BadName(name.chars().take(100).collect()));
    }
    let names = read_names(places)?;
    let id = names.get(name).map_or(name, String::as_str);
    let Some(manifest) = read_manifest(places, id)? else {
        return Err(TemplateError::Unknown { name: name.to_owned(), known: names.into_keys().collect() });
    };
    verify(places, manifest)
}

/// All templates that have a name, by name. Their images are not looked at.
pub fn list(places: &Places) -> Result<Vec<Template>, TemplateError> {
    let mut found = Vec::new();
    for (name, id) in read_names(places)? {
        if let Some(manifest) = read_manifest(places, &id)? {
            found.push(Template { name, ..template(places, manifest) });
        }
    }
    Ok(found)
}

/// Builds a template, or finds that it was built from the same inputs. With `refresh` it is built in any case, from the
/// newest packages.
pub async fn build(
    places: &Places,
    recipe: Recipe,
    refresh: bool,
    progress: &Reporter,
) -> Result<Template, TemplateError> {
    files::make_folder(&places.templates())?;
    if !refresh && let Some(template) = built(places, recipe)? {
        return Ok(template);
    }
    progress.report("wait for other builds", 0, 0);
    let lock = lock(places).await?;
    if !refresh && let Some(template) = built(places, recipe)? {
        return Ok(template);
    }
    let folder = places.templates();
    let free = files::free_bytes(&folder)?;
    if free < recipe.space().bytes() {
        let (name, needed) = (recipe.name().to_owned(), recipe.space());
        return Err(TemplateError::NoSpace { name, folder, needed, free: Mib::holding(free) });
    }
    let work = WorkFolder::new(&places.work(), &lock)?;
    let made = make(places, work.path(), recipe, refresh, progress).await;
    // The work folder goes on every way out; a full disk is free again before anybody reads why.
    drop(work);
    made.map_err(|source| explain(places, recipe, source))
}

/// Refuses a name that is none, that another template has, or that a recipe would build.
pub fn check_free(places: &Places, name: &str) -> Result<(), TemplateError> {
    if !is_name(name) {
        return Err(TemplateError::BadName(name.chars().take(100).collect()));
    }
    let is_taken = read_names(places)?.contains_key(name) || Recipe::from_str(name).is_ok();
    if is_taken || read_manifest(places, name)?.is_some() {
        Err(TemplateError::NameTaken(name.to_owned()))
    } else {
        Ok(())
    }
}

/// A template whose image `write` makes, under a name that is free. Its id follows from the image's content.
pub fn adopt<E: From<ImageError>>(
    places: &Places,
    name: &str,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<Template, E> {
    let begin = || -> Result<(BuildLock, WorkFolder), ImageError> {
        let lock = BuildLock::acquire(&places.lock())?;
        check_free(places, name)?;
        let work = WorkFolder::new(&places.work(), &lock)?;
        files::make_folder(&work.path().join(MADE))?;
        Ok((lock, work))
    };
    let (_lock, work) = begin()?;
    let made = work.path().join(MADE);
    write(&made.join(ROOTFS))?;
    Ok(publish_adopted(places, &made, name).map_err(ImageError::from)?)
}

fn publish_adopted(places: &Places, made: &Path, name: &str) -> Result<Template, TemplateError> {
    let rootfs = made.join(ROOTFS);
    files::set_mode(&rootfs, 0o444)?;
    let sha256 = files::hash_file(&rootfs, |_| ())?;
    let id = files::hash_parts([&FORMAT.to_le_bytes()[..], sha256.as_bytes()])[..ID_DIGITS].to_owned();
    let image = Image { name: name.to_owned(), size: Identity::of(&rootfs)?.size(), sha256, inputs: String::new() };
    name_image(places, made, id, image)
}

/// Removes a template: its names, then its image. Whoever has the image open keeps it.
pub fn remove(places: &Places, id: &str) -> Result<(), TemplateError> {
    let _lock = BuildLock::acquire(&places.lock())?;
    let mut names = read_names(places)?;
    names.retain(|_, named| named != id);
    files::write_json(&places.names(), &names)?;
    Ok(files::remove_tree(&places.template(id))?)
}

async fn lock(places: &Places) -> Result<BuildLock, FileError> {
    let path = places.lock();
    tokio::task::spawn_blocking(move || BuildLock::acquire(&path)).await.expect("locking does not panic")
}

/// The template of this recipe, if it is there, whole, and of the same inputs.
fn built(places: &Places, recipe: Recipe) -> Result<Option<Template>, TemplateError> {
    let Some(id) = read_names(places)?.remove(recipe.name()) else { return Ok(None) };
    let Some(manifest) = read_manifest(places, &id)? else { return Ok(None) };
    if manifest.inputs != recipe.inputs() {
        return Ok(None);
    }
    match verify(places, manifest) {
        Err(TemplateError::WrongSize { .. } | TemplateError::HashMismatch { .. }) => {
            tracing::warn!(template = recipe.name(), "the template is damaged; building it again");
            Ok(None)
        }
        checked => checked.map(Some),
    }
}

async fn make(
    places: &Places,
    work: &Path,
    recipe: Recipe,
    refresh: bool,
    progress: &Reporter,
) -> Result<Template, TemplateError> {
    let root = work.join("root");
    files::make_folder(&root)?;
    fill(places, work, &root, recipe, refresh, progress).await?;
    progress.report("make the filesystem", 0, 0);
    let summary = blocking({
        let root = root.clone();
        move || tree::finish(&root)
    })
    .await?;
    let made = work.join(MADE);
    files::make_folder(&made)?;
    ext4::make(&made.join(ROOTFS), &root, &summary, recipe.room()).await?;
    let id = files::hash_parts([
        &FORMAT.to_le_bytes()[..],
        summary.digest.as_bytes(),
        format!("{:?} {}", recipe.room(), ext4::FORMAT).as_bytes(),
    ]);
    let (places, progress) = (places.clone(), progress.clone());
    blocking(move || publish(&places, &made, id[..ID_DIGITS].to_owned(), recipe, &progress)).await
}

/// Fills the root folder from the recipe's packages.
async fn fill(
    places: &Places,
    work: &Path,
    root: &Path,
    recipe: Recipe,
    refresh: bool,
    progress: &Reporter,
) -> Result<(), TemplateError> {
    match recipe {
        Recipe::Minimal => {
            let downloads = places.downloads();
            let package = match apt::cached(&downloads, minimal::PACKAGE)? {
                Some(package) if !refresh => package,
                Some(_) | None => apt::fetch(&downloads, work, minimal::PACKAGE, minimal::PACKAGE, progress).await?,
            };
            minimal::fill(root, &package.path(&downloads)).await
        }
        Recipe::Base => base::fill(root, work, &base::sources().await?, progress).await,
    }
}

/// Hashes the image, writes its manifest, gives the folder its name, and the name its folder.
fn publish(
    places: &Places,
    made: &Path,
    id: String,
    recipe: Recipe,
    progress: &Reporter,
) -> Result<Template, TemplateError> {
    let rootfs = made.join(ROOTFS);
    files::set_mode(&rootfs, 0o444)?;
    let size = Identity::of(&rootfs)?.size();
    let sha256 = files::hash_file(&rootfs, |done| progress.report("hash the image", done, size))?;
    name_image(places, made, id, Image { name: recipe.name().to_owned(), size, sha256, inputs: recipe.inputs() })
}

/// An image that was just made.
struct Image {
    name: String,
    size: u64,
    sha256: String,
    inputs: String,
}

/// Writes the manifest of an image, gives its folder its name, and the name its folder.
fn name_image(places: &Places, made: &Path, id: String, image: Image) -> Result<Template, TemplateError> {
    let Image { name, size, sha256, inputs } = image;
    let manifest = Manifest {
        format: FORMAT,
        id: id.clone(),
        name: name.clone(),
        size,
        sha256,
        kernel: super::kernel::prepared(places)?,
        created: files::now(),
        architecture: apt::ARCHITECTURE.to_owned(),
        inputs,
    };
    files::write_json(&made.join(MANIFEST), &manifest)?;
    let target = places.template(&id);
    remove_if_damaged(places, &id)?;
    files::publish(made, &target)?;
    // Another build of the same content may have been first: what is there counts.
    let manifest = read_manifest(places, &id)?.unwrap_or(manifest);
    let template = verify(places, manifest)?;
    let mut names = read_names(places)?;
    names.insert(name, id);
    files::write_json(&places.names(), &names)?;
    Ok(template)
}

/// Makes way for a whole image where a damaged one of the same id lies; sandboxes that run on it keep the old file.
fn remove_if_damaged(places: &Places, id: &str) -> Result<(), TemplateError> {
    let Some(manifest) = read_manifest(places, id)? else { return Ok(()) };
    match verify(places, manifest) {
        Ok(_) => Ok(()),
        Err(_damaged) => Ok(files::remove_tree(&places.template(id))?),
    }
}

fn verify(places: &Places, manifest: Manifest) -> Result<Template, TemplateError> {
    if manifest.format != FORMAT {
        return Err(TemplateError::WrongFormat { name: manifest.name, found: manifest.format });
    }
    let folder = places.template(&manifest.id);
    let path = folder.join(ROOTFS);
    let identity = Identity::of(&path)?;
    if identity.size() != manifest.size {
        let (wanted, found) = (manifest.size, identity.size());
        return Err(TemplateError::WrongSize { name: manifest.name, path, wanted, found });
    }
    let stamp = folder.join(VERIFIED);
    if files::read_json::<Identity>(&stamp)?.as_ref() != Some(&identity) {
        let found = files::hash_file(&path, |_| ())?;
        if found != manifest.sha256 {
            let wanted = manifest.sha256;
            return Err(TemplateError::HashMismatch { name: manifest.name, path, wanted, found });
        }
        files::write_json(&stamp, &identity)?;
    }
    Ok(template(places, manifest))
}

fn template(places: &Places, manifest: Manifest) -> Template {
    Template {
        rootfs: places.template(&manifest.id).join(ROOTFS),
        id: manifest.id,
        name: manifest.name,
        size_bytes: manifest.size,
        sha256: manifest.sha256,
        created: manifest.created,
    }
}

fn read_names(places: &Places) -> Result<Names, FileError> {
    Ok(files::read_json(&places.names())?.unwrap_or_default())
}

fn read_manifest(places: &Places, id: &str) -> Result<Option<Manifest>, FileError> {
    files::read_json(&places.template(id).join(MANIFEST))
}

/// Keeps names away from the filesystem: no slash, no leading dot.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    first && name.len() <= NAME_MAX && name.bytes().all(allowed)
}

/// A full disk looks different in every step; to the user it is one thing.
fn explain(places: &Places, recipe: Recipe, source: TemplateError) -> TemplateError {
    if !is_disk_full(&source) {
        return source;
    }
    let (name, needed) = (recipe.name().to_owned(), recipe.space());
    TemplateError::DiskFull { name, folder: places.templates(), needed, source: Box::new(source) }
}

fn is_disk_full(error: &TemplateError) -> bool {
    let mut causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.any(|cause| {
        cause.downcast_ref::<FileError>().is_some_and(FileError::is_disk_full)
            || cause.downcast_ref::<CommandError>().is_some_and(|it| it.stderr().contains("No space left on device"))
    }) || matches!(error, TemplateError::File(file) if file.is_disk_full())
}

async fn blocking<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    tokio::task::spawn_blocking(work).await.expect("image work does not panic")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Progress;
    use crate::image::deb::tests::package;
    use std::os::unix::fs::FileExt;

    struct Instance {
        _folder: tempfile::TempDir,
        places: Places,
    }

    /// An instance whose downloads hold a package with a stand-in for busybox: what is asked of it is its list of names.
    fn instance(names: &str) -> Instance {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::new(folder.path());
        let busybox = format!("#!/bin/sh\nprintf '{names}'\n");
        let downloads = places.downloads();
        files::make_folder(&downloads).unwrap();
        let deb = downloads.join("new");
        std::fs::write(&deb, package(".xz", &[("bin/busybox", busybox.as_bytes())])).unwrap();
        let sha256 = files::hash_file(&deb, |_| ()).unwrap();
        let package = apt::Package { name: minimal::PACKAGE.into(), version: "1".into(), sha256 };
        std::fs::rename(&deb, package.path(&downloads)).unwrap();
        files::write_json(&downloads.join("busybox-static.json"), &package).unwrap();
        Instance { _folder: folder, places }
    }

    fn silent() -> Reporter {
        fn nothing(_step: &str, _done: u64, _total: u64) {}
        std::sync::Arc::new(nothing as fn(&str, u64, u64)) as std::sync::Arc<dyn Progress>
    }

    async fn minimal_of(host: &Instance) -> Template {
        build(&host.places, Recipe::Minimal, false, &silent()).await.unwrap()
    }

    fn overwrite(path: &Path, byte: u8) {
        files::set_mode(path, 0o600).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_at(&[byte], 40 << 20).unwrap();
    }

    #[tokio::test]
    async fn root_a_template_is_built_once_and_found_by_name_and_id() {
        assert!(rustix::process::geteuid().is_root(), "this test sets owners and needs root");
        let host = instance("bin/sh\\nusr/bin/env\\n");
        let made = minimal_of(&host).await;
        let before = Identity::of(&made.rootfs).unwrap();
        assert_eq!(minimal_of(&host).await, made);
        assert_eq!(Identity::of(&made.rootfs).unwrap(), before, "built twice");
        assert_eq!(find(&host.places, "minimal").unwrap(), made);
        assert_eq!(find(&host.places, &made.id).unwrap(), made);
        assert_eq!(list(&host.places).unwrap(), std::slice::from_ref(&made));
        assert_eq!(made.size_bytes, 64 << 20);
        assert_eq!(files::hash_file(&made.rootfs, |_| ()).unwrap(), made.sha256);
        assert_eq!(std::fs::read_dir(host.places.work()).unwrap().count(), 0, "the work folder was left behind");
        let other = minimal_of(&instance("bin/sh\\nusr/bin/env\\n")).await;
        assert_eq!((other.id, other.sha256), (made.id.clone(), made.sha256), "the same inputs, another image");
        let other = minimal_of(&instance("bin/sh\\n")).await;
        assert_ne!(other.id, made.id, "other inputs, the same id");
    }

    #[tokio::test]
    async fn root_the_tree_has_a_user_applets_and_a_lean_profile() {
        assert!(rustix::process::geteuid().is_root(), "this test sets owners and needs root");
        let host = instance("bin/sh\\nusr/bin/env\\n");
        let made = minimal_of(&host).await;
        let look = async |request: &str| {
            let run = crate::command::Command::new("debugfs").args(["-R", request]).arg(&made.rootfs).run();
            run.await.unwrap().text()
        };
        assert!(look("cat /etc/passwd").await.contains("user:x:1000:1000:user:/home/user:/bin/sh\n"));
        assert_eq!(look("cat /etc/profile").await, tree::PROFILE);
        assert!(look("stat /home/user").await.contains("User:  1000   Group:  1000"));
        assert!(look("stat /usr/bin/env").await.contains("Fast link dest: \"/bin/busybox\""));
        assert!(look("stat /tmp").await.contains("Mode:  01777"));
        assert!(look("stat /bin/busybox").await.contains("Mode:  0755"));
    }

    #[tokio::test]
    async fn root_a_damaged_image_is_named_and_built_again() {
        assert!(rustix::process::geteuid().is_root(), "this test sets owners and needs root");
        let host = instance("bin/sh\\n");
        let made = minimal_of(&host).await;
        overwrite(&made.rootfs, 1);
        let error = find(&host.places, "minimal").unwrap_err();
        assert!(matches!(&error, TemplateError::HashMismatch { .. }), "{error}");
        assert!(error.to_string().contains("wrenn template build --refresh minimal"), "{error}");
        let whole = minimal_of(&host).await;
        assert_eq!((&whole.id, &whole.sha256), (&made.id, &made.sha256));
        find(&host.places, "minimal").unwrap();
        let cut = std::fs::OpenOptions::new().write(true).open(&made.rootfs);
        cut.unwrap().set_len((64 << 20) - 4096).unwrap();
        let error = find(&host.places, "minimal").unwrap_err();
        assert!(matches!(&error, TemplateError::WrongSize { wanted, found, .. } if wanted - found == 4096), "{error}");
        minimal_of(&host).await;
        find(&host.places, "minimal").unwrap();
    }

    #[tokio::test]
    async fn root_what_an_interrupted_build_left_goes_with_the_next() {
        assert!(rustix::process::geteuid().is_root(), "this test sets owners and needs root");
        let host = instance("bin/sh\\n");
        let left = host.places.work().join("build-1/root/etc");
        std::fs::create_dir_all(&left).unwrap();
        minimal_of(&host).await;
        assert_eq!(std::fs::read_dir(host.places.work()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn root_builders_wait_for_each_other_and_build_once() {
        assert!(rustix::process::geteuid().is_root(), "this test sets owners and needs root");
        let host = instance("bin/sh\\n");
        let (first, second) = tokio::join!(minimal_of(&host), minimal_of(&host));
        assert_eq!(first, second);
        assert_eq!(std::fs::read_dir(host.places.templates()).unwrap().count(), 2, "names.json and one folder");
    }

    #[test]
    fn an_unknown_template_is_named_with_what_there_is_and_how_to_get_it() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::new(folder.path());
        let error = find(&places, "base").unwrap_err().to_string();
        assert_eq!(error, "there is no template `base`; build it: `wrenn template build base`");
        files::make_folder(&places.templates()).unwrap();
        files::write_json(&places.names(), &Names::from([("mine".to_owned(), "0".to_owned())])).unwrap();
        let error = find(&places, "nope").unwrap_err().to_string();
        assert_eq!(error, "there is no template `nope`; there are: mine");
        for name in ["", "../x", ".hidden", "A", "a/b", &"a".repeat(65)] {
            assert!(matches!(find(&places, name), Err(TemplateError::BadName(_))), "{name}");
        }
    }

    #[test]
    fn a_full_disk_is_one_error_with_the_space_it_takes() {
        let places = Places::new(Path::new("/nowhere"));
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let file = TemplateError::File(files::at("write", Path::new("/nowhere/x"))(full()));
        let explained = explain(&places, Recipe::Minimal, file);
        assert!(matches!(&explained, TemplateError::DiskFull { needed: Mib(128), .. }), "{explained}");
        let other = TemplateError::NotDebian;
        assert!(matches!(explain(&places, Recipe::Base, other), TemplateError::NotDebian));
    }
}

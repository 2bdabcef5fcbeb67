//! Loading the kernel modules of the initramfs: in the order of their names, which the image builder computed.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::InitError;

/// Where the image builder puts them, as `NN-name.ko`.
const FOLDER: &str = "/lib/modules/wrenn";

/// Loads them all. No folder means a kernel that has everything built in.
pub fn load_all() -> Result<(), InitError> {
    for path in list(Path::new(FOLDER)).map_err(InitError::ListModules)? {
        load(&path).map_err(|source| InitError::LoadModule { name: path.display().to_string(), source })?;
    }
    Ok(())
}

fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "ko"));
    paths.sort();
    Ok(paths)
}

fn load(path: &Path) -> io::Result<()> {
    match rustix::system::finit_module(File::open(path)?, c"", 0) {
        // Built in, or loaded already.
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_modules_in_load_order_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["02-virtio_blk.ko", "00-virtio_ring.ko", "10-virtio_net.ko", "README", "01-virtio.ko.xz"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let names: Vec<_> = list(folder.path()).unwrap().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["00-virtio_ring.ko", "02-virtio_blk.ko", "10-virtio_net.ko"]);
        assert_eq!(list(Path::new("/nowhere/at/all")).unwrap(), Vec::<PathBuf>::new());
    }
}

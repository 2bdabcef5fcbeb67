//! Sparse files: where the data is.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// A stretch of a file that holds data, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// The stretches of `file` that are not holes, in order. A file system that knows no holes answers one extent.
pub fn data_extents(file: &File) -> io::Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut position = 0;
    loop {
        let start = match seek(file, SeekFrom::Data(position)) {
            Ok(start) => start,
            // No data from here to the end of the file.
            Err(Errno::NXIO) => return Ok(extents),
            Err(error) => return Err(error.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?;
        extents.push(Extent { start, length: end - start });
        position = end;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn data_is_found_between_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 30).unwrap();
        assert_eq!(data_extents(&file).unwrap(), []);
        file.write_all_at(&[1; 4096], 8 << 20).unwrap();
        assert_eq!(data_extents(&file).unwrap(), [Extent { start: 8 << 20, length: 4096 }]);
    }
}

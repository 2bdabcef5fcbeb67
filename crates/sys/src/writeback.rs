//! Starts writing to the disk what was written to a file, while there is more to come.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Has the host begin to write these bytes of `file` to its disk, without waiting for it. Nothing is durable by that: the
/// file is synced afterwards, which then has less to do.
pub fn begin(file: &File, bytes: Range<u64>) -> io::Result<()> {
    let signed = |number: u64| i64::try_from(number).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (start, length) = (signed(bytes.start)?, signed(bytes.end.saturating_sub(bytes.start))?);
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the call touches no memory of ours.
    let begun = unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, libc::SYNC_FILE_RANGE_WRITE) };
    if begun == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_file_can_be_written_back_and_a_pipe_cannot() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 8192], 4096).unwrap();
        begin(&file, 0..1 << 20).unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(reader));
        assert_eq!(begin(&pipe, 0..4096).unwrap_err().raw_os_error(), Some(libc::ESPIPE));
        assert_eq!(begin(&file, 0..u64::MAX).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}

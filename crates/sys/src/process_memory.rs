//! Reads another process's memory: many places of it with one system call.

use std::io;

use rustix::process::Pid;

/// Most places that one call reads (the kernel's IOV_MAX).
pub const SPANS_MAX: usize = 1024;

/// A stretch of a process's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first address.
    pub address: u64,
    /// Bytes.
    pub bytes: usize,
}

/// Fills `buffer` with what process `pid` has at `spans`, one after the other; together they are as long as the buffer.
///
/// A pid names a process only for as long as that lives: who reads makes sure, afterwards, that it still did. Needs the
/// right to trace the process.
///
/// # Panics
/// With more than [`SPANS_MAX`] spans, or spans that are not as long as the buffer.
pub fn read(pid: Pid, spans: &[Span], buffer: &mut [u8]) -> io::Result<()> {
    let wanted: usize = spans.iter().map(|span| span.bytes).sum();
    assert!(spans.len() <= SPANS_MAX && wanted == buffer.len(), "spans and buffer do not fit");
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = spans.iter().map(|span| libc::iovec { iov_base: span.address as *mut _, iov_len: span.bytes });
    let remote: Vec<libc::iovec> = remote.collect();
    // SAFETY: the kernel writes to the local vector alone, which is `buffer`, borrowed by us alone and plain bytes; the
    // addresses of the remote one are looked up in the other process and never touched here. The numbers of vectors are
    // those of the arrays.
    let read = unsafe {
        libc::process_vm_readv(pid.as_raw_nonzero().get(), &raw const local, 1, remote.as_ptr(), remote.len() as u64, 0)
    };
    match usize::try_from(read) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(read) if read < wanted => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Pid {
        rustix::process::getpid()
    }

    #[test]
    fn reads_what_lies_apart() {
        let memory: Vec<u8> = (0..=255).collect();
        let start = memory.as_ptr() as u64;
        let mut buffer = [0; 5];
        let spans = [Span { address: start + 250, bytes: 3 }, Span { address: start, bytes: 2 }];
        read(own(), &spans, &mut buffer).unwrap();
        assert_eq!(buffer, [250, 251, 252, 0, 1]);
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let mut buffer = [0; 8];
        let error = read(own(), &[Span { address: 64, bytes: 8 }], &mut buffer).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
        let nobody = Pid::from_raw(i32::MAX).unwrap();
        let error = read(nobody, &[Span { address: buffer.as_ptr() as u64, bytes: 8 }], &mut buffer).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    }
}

//! The system call filter that a VMM really runs under, read back from the kernel.
//!
//! A filter that was asked for is not a filter in force: Firecracker built for the gnu target carries an empty one, which
//! it takes without a word. So each of its threads is looked at after it started its VM.

use std::fs::File;
use std::io::{self, Read};

/// Longest `/proc/PID/task/TID/status` looked at, in bytes. The kernel's own is about 1.5 KiB.
const STATUS_MAX: u64 = 16 * 1024;
/// Most threads looked at; a VMM's `RLIMIT_NPROC` is below.
const THREADS_MAX: usize = 1024;

/// One thread's filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadFilter {
    /// The thread's name, escaped.
    pub name: String,
    /// Whether a filter decides about its system calls (`Seccomp: 2`).
    pub filtered: bool,
    /// How many filters do (`Seccomp_filters`); 0 on a kernel before 5.9, which does not say.
    pub filters: u32,
}

/// What a process runs under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confinement {
    /// Every thread has a filter.
    Filtered {
        /// How many threads there are.
        threads: usize,
    },
    /// These threads have none; never empty.
    Open {
        /// Their names.
        threads: Vec<String>,
    },
}

/// The filters of all threads of the process `pid`, which must be known to live.
///
/// Errors: `NotFound` if there is no such process.
pub fn filters(pid: u32) -> io::Result<Vec<ThreadFilter>> {
    let mut threads = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))?.take(THREADS_MAX) {
        let mut text = String::new();
        match File::open(entry?.path().join("status")).and_then(|file| file.take(STATUS_MAX).read_to_string(&mut text))
        {
            Ok(_) => threads.push(parse(&text).ok_or_else(|| io::Error::other("a thread's status without Seccomp"))?),
            // It ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
    }
    if threads.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(threads) }
}

/// What they come to.
pub fn confinement(threads: &[ThreadFilter]) -> Confinement {
    let open: Vec<String> = threads.iter().filter(|thread| !thread.filtered).map(|open| open.name.clone()).collect();
    if open.is_empty() { Confinement::Filtered { threads: threads.len() } } else { Confinement::Open { threads: open } }
}

fn parse(status: &str) -> Option<ThreadFilter> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some(ThreadFilter {
        name: field("Name:")?.escape_debug().to_string(),
        filtered: field("Seccomp:")? == "2",
        filters: field("Seccomp_filters:").and_then(|count| count.parse().ok()).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_without_a_filter_opens_the_whole_process() {
        let filtered = parse("Name:\tfc_vcpu 0\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n").unwrap();
        assert_eq!(filtered, ThreadFilter { name: "fc_vcpu 0".to_owned(), filtered: true, filters: 1 });
        let open = parse("Name:\tfc_api\nSeccomp:\t0\n").unwrap();
        assert_eq!(confinement(std::slice::from_ref(&filtered)), Confinement::Filtered { threads: 1 });
        assert_eq!(confinement(&[filtered, open]), Confinement::Open { threads: vec!["fc_api".to_owned()] });
        assert_eq!(parse("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_can_be_read() {
        assert!(!filters(std::process::id()).unwrap().is_empty());
        assert_eq!(filters(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

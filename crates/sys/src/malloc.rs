//! glibc's allocator, told to stay small.

/// Lets all threads share one heap.
///
/// By default glibc makes up to eight heaps per CPU, and each keeps what it once held: a program of few threads that
/// counts its memory in megabytes is better off with one. Has no effect on other C libraries.
pub fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers and touches only the allocator's own state, under the allocator's lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

//! glibc's allocator, told to stay small. Both functions do nothing with other C libraries.

/// Lets all threads share one heap.
///
/// By default glibc makes up to eight heaps per CPU, and each keeps what it once held: a program of few threads that
/// counts its memory in megabytes is better off with one.
pub fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers and touches only the allocator's own state, under the allocator's lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory that is not in use back to the kernel. Takes up to some milliseconds: for quiet moments.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes an integer and releases only pages that hold no allocation, under the allocator's lock.
    unsafe {
        libc::malloc_trim(0);
    }
}

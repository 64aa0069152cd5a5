//! The one memory policy: what a step frees, the next step uses again.

/// Tells the C library's allocator to keep what is freed instead of giving it back to the system, which would clear every page
/// once more before the next step has it. Call it once, before the first large allocation; a process then keeps its peak until
/// it ends. Where the C library is not GNU's, its own policy stays.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // Large blocks would each be mapped for themselves and unmapped when freed.
        const NO_MAPPED_BLOCKS: i32 = 0;
        // Bytes taken from the system at once.
        const AT_ONCE: i32 = 64 << 20;
        // SAFETY: these calls only set numbers of the allocator.
        #[allow(unsafe_code, reason = "a call into the C library")]
        unsafe {
            libc::mallopt(libc::M_MMAP_MAX, NO_MAPPED_BLOCKS);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TOP_PAD, AT_ONCE);
            // One heap for all threads: what one frees, any other may use.
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
    }
}

//! Limits of what envd does with files, each with its unit and its reason.

/// Largest `/etc/passwd` or `/etc/group` that is read, in bytes: room for 10,000 accounts.
pub const ACCOUNTS_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Groups of one user: the kernel's own NGROUPS_MAX is 65,536, which nobody needs.
pub const GROUPS_PER_USER_MAX: usize = 1024;

/// Characters of an unknown user's name that an error repeats.
pub const USER_NAME_SHOWN_MAX: usize = 64;

/// Longest path, in bytes: the kernel's PATH_MAX less the NUL.
pub const PATH_BYTES_MAX: usize = 4095;

/// Entries of one listing. 50,000 take about 40 MB until the answer is sent; a guest may have no more than 128 MiB.
pub const LIST_ENTRIES_MAX: usize = 50_000;

/// Names, paths, link targets and metadata of one listing together, in bytes: they count when the paths are long.
pub const LIST_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Listings at work at the same time; more wait.
pub const LISTINGS_AT_ONCE_MAX: usize = 2;

/// Directories that a removal holds open at the same time; deeper ones are moved up first.
pub const REMOVE_OPEN_DIRS_MAX: usize = 64;

/// Times a removal starts a directory over because somebody filled it meanwhile, or deep ones were moved up.
pub const REMOVE_PASSES_MAX: usize = 1000;

/// Levels of a directory that is moved to another file system: copying holds a stack frame and two files for each.
pub const COPY_DEPTH_MAX: usize = 128;

/// Bytes of a file's metadata (extended attributes `user.e2b.*`), keys and values together: what ext4 keeps in one block.
pub const METADATA_BYTES_MAX: usize = 4096;

/// Longest key of a metadata entry, in bytes: an attribute's name holds 255, and `user.e2b.` takes nine.
pub const METADATA_KEY_BYTES_MAX: usize = 246;

/// The list of a file's extended attributes, in bytes: the kernel's XATTR_LIST_MAX.
pub const XATTR_LIST_BYTES_MAX: usize = 65_536;

/// Bytes read from a file for one frame of a download.
pub const DOWNLOAD_CHUNK_BYTES: usize = 256 * 1024;

/// Bytes of an upload kept back before they are written: a file up to this size is written at once, which is what makes
/// it a single write event.
pub const UPLOAD_BUFFER_BYTES: usize = 256 * 1024;

/// How long an upload may send nothing. A client that is gone without a word would hold its buffers for ever.
pub const UPLOAD_IDLE_SECONDS_MAX: u64 = 300;

/// Files in one multipart upload: each has a place in the answer.
pub const UPLOAD_FILES_MAX: usize = 10_000;

/// Header lines of one part of a multipart upload, in bytes: a path of the longest kind, percent-encoded.
pub const PART_HEADER_BYTES_MAX: usize = 16 * 1024;

/// Longest boundary of a multipart body, in bytes (RFC 2046).
pub const BOUNDARY_BYTES_MAX: usize = 70;

/// What is still read of a refused upload, so that the client gets to read the answer instead of a reset.
pub const REFUSED_BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How long a refused upload is read.
pub const REFUSED_BODY_SECONDS_MAX: u64 = 5;

/// Longest query of a `/files` request, in bytes: a path and a user with every byte percent-encoded.
pub const QUERY_BYTES_MAX: usize = 16 * 1024;

const _: () = assert!("user.e2b.".len() + METADATA_KEY_BYTES_MAX == 255);
const _: () = assert!(PART_HEADER_BYTES_MAX > 3 * PATH_BYTES_MAX);
const _: () = assert!(QUERY_BYTES_MAX > 3 * PATH_BYTES_MAX);

/// Links that are followed one after the other: as many as the kernel follows.
pub const LINKS_MAX: usize = 40;

/// What of a file's mode is kept when another takes its place: permissions, but no bits by which it would act as its owner.
pub const KEPT_MODE: u32 = 0o777;

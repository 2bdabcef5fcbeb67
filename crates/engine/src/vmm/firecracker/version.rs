//! Which versions of Firecracker are used. Pure; the probe and the driver ask the same question.

use crate::probe::Version;

/// The oldest version without a known escape, CVE-2026-5747.
pub const OLDEST: Version = Version::new(1, 14, 4);
/// A newer version that still has it.
pub const HOLED: Version = Version::new(1, 15, 0);

/// A version that is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Firecracker {0} lets a guest out of its VM (CVE-2026-5747); install {OLDEST} or newer, but not {HOLED}, and name it in \
     WRENN_FIRECRACKER or put it into PATH"
)]
pub struct RefusedVersion(pub Version);

/// Refuses a version with a known escape.
pub fn check(version: Version) -> Result<Version, RefusedVersion> {
    if version < OLDEST || version == HOLED { Err(RefusedVersion(version)) } else { Ok(version) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_the_hole_are_refused_and_the_remedy_is_named() {
        for (text, used) in [
            ("0.25.2", false),
            ("1.12.0", false),
            ("1.14.3", false),
            ("1.14.4", true),
            ("1.14.9", true),
            ("1.15.0", false),
            ("1.15.1", true),
            ("1.16.1", true),
            ("2.0.0", true),
        ] {
            let version = Version::in_text(text).unwrap();
            assert_eq!(check(version).is_ok(), used, "{text}");
        }
        let refused = check(Version::new(1, 15, 0)).unwrap_err().to_string();
        assert!(refused.contains("1.15.0") && refused.contains("install 1.14.4 or newer"), "{refused}");
    }
}

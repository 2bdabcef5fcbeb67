//! A writer of `newc` cpio archives, the format of an initramfs (the kernel's `buffer-format.rst`).
//!
//! The same entries give the same bytes: owner 0, times 0, inode numbers counted, no holes. Entries go in as they are
//! given; the kernel needs a folder before what is in it.

/// Kind and content of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A folder.
    Folder,
    /// A regular file.
    File(&'a [u8]),
    /// A character device, by major and minor number.
    CharacterDevice(u32, u32),
}

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const TRAILER: &str = "TRAILER!!!";
/// Headers, names and contents are padded to this.
const ALIGNMENT: usize = 4;

impl Archive {
    /// Adds an entry. `path` is without a leading slash; `permissions` are the lower 12 bits of the mode.
    pub fn add(&mut self, path: &str, permissions: u32, entry: Entry<'_>) {
        let (kind, content, device) = match entry {
            Entry::Folder => (FOLDER, &[][..], (0, 0)),
            Entry::File(content) => (FILE, content, (0, 0)),
            Entry::CharacterDevice(major, minor) => (CHARACTER_DEVICE, &[][..], (major, minor)),
        };
        self.entries += 1;
        self.write(path, self.entries, kind | permissions, content, device);
    }

    /// Ends the archive and gives its bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.write(TRAILER, 0, 0, &[], (0, 0));
        self.bytes
    }

    fn write(&mut self, path: &str, inode: u32, mode: u32, content: &[u8], device: (u32, u32)) {
        let length = u32::try_from(content.len()).expect("initramfs files are megabytes");
        let name = u32::try_from(path.len() + 1).expect("paths are short");
        let links = if mode & FOLDER == FOLDER { 2 } else { 1 };
        let fields = [inode, mode, 0, 0, links, 0, length, 0, 0, device.0, device.1, name, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_formats_bytes() {
        let mut archive = Archive::default();
        archive.add("dev", 0o755, Entry::Folder);
        archive.add("dev/console", 0o600, Entry::CharacterDevice(5, 1));
        archive.add("init", 0o755, Entry::File(b"hello"));
        let text = String::from_utf8(archive.finish()).unwrap();
        let zero = "00000000";
        let wanted = [
            &format!(
                "07070100000001000041ED{zero}{zero}00000002{zero}{zero}{zero}{zero}{zero}{zero}00000004{zero}dev\0\0\0"
            ),
            &format!(
                "0707010000000200002180{zero}{zero}00000001{zero}{zero}{zero}{zero}00000005000000010000000C{zero}\
                 dev/console\0\0\0"
            ),
            &format!(
                "07070100000003000081ED{zero}{zero}00000001{zero}00000005{zero}{zero}{zero}{zero}00000005{zero}init\0\0hello\0\0\0"
            ),
            &format!(
                "07070100000000{zero}{zero}{zero}00000001{zero}{zero}{zero}{zero}{zero}{zero}0000000B{zero}TRAILER!!!\0\0\0\0"
            ),
        ];
        assert_eq!(text, wanted.map(String::as_str).concat());
    }
}

//! What a kernel image is, and the uncompressed kernel inside a packed one.
//!
//! An x86 `bzImage` is a real-mode part (whose header says `HdrS` and where the payload lies) and the payload: an ELF
//! kernel, packed, followed by its unpacked length as 4 bytes (gzip carries those itself). VMMs that enter a kernel
//! directly (Firecracker; QEMU through PVH) want that ELF. Which packer was used is told by the payload's first bytes.
//!
//! Everything read here may be any file a user named: lengths are checked before they are believed, and nothing is
//! unpacked beyond [`UNPACKED_MAX`].

use std::io::{self, Read};

use object::LittleEndian;
use object::elf::{FileHeader64, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};

/// Largest unpacked kernel: Debian's are 55 MiB, ones with everything built in below 200 MiB.
const UNPACKED_MAX: usize = 512 << 20;

/// Where the boot protocol's fields are (Linux, Documentation/arch/x86/boot.rst).
mod header {
    pub const SETUP_SECTORS: usize = 0x1f1;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const KERNEL_VERSION: usize = 0x20e;
    pub const PAYLOAD_OFFSET: usize = 0x248;
    pub const PAYLOAD_LENGTH: usize = 0x24c;
}

/// First boot protocol that says where the payload lies (2.08, Linux 2.6.26).
const VERSION_WITH_PAYLOAD: u16 = 0x208;
/// The note by which a kernel offers the PVH entry point (xen/interface/elfnote.h).
const XEN_ELFNOTE_PHYS32_ENTRY: object::elf::NoteType = object::elf::NoteType(18);

/// What a file turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// An x86 `bzImage`, such as Debian's vmlinuz.
    BzImage,
    /// An uncompressed ELF kernel.
    Elf,
    /// A Debian package, hopefully of a kernel.
    DebianPackage,
}

/// The packers Linux can use for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// `CONFIG_KERNEL_GZIP`.
    Gzip,
    /// `CONFIG_KERNEL_BZIP2`.
    Bzip2,
    /// `CONFIG_KERNEL_LZMA`.
    Lzma,
    /// `CONFIG_KERNEL_XZ`.
    Xz,
    /// `CONFIG_KERNEL_LZ4`, the legacy frame.
    Lz4,
    /// `CONFIG_KERNEL_ZSTD`.
    Zstd,
    /// Not packed at all (`CONFIG_KERNEL_UNCOMPRESSED`).
    None,
}

/// Why a file gives no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelImageError {
    /// Neither a bzImage nor an ELF file.
    #[error(
        "it is no kernel image: neither a bzImage (`HdrS` at byte 514) nor an ELF file; give a vmlinuz, a vmlinux or a \
         Debian kernel package"
    )]
    NotAKernel,
    /// A bzImage that ends too early.
    #[error("it is cut short: its header promises {wanted} bytes, it has {found}; copy it again")]
    Truncated {
        /// Bytes the header promises.
        wanted: u64,
        /// Bytes there are.
        found: u64,
    },
    /// Older than Linux 2.6.26.
    #[error("its boot protocol {0:#x} is older than Linux 2.6.26; give a newer kernel")]
    TooOld(u16),
    /// Packed with LZO or something new.
    #[error("its payload is packed with something unknown (it begins with {0:02x?}); give the vmlinux itself")]
    UnknownPacking([u8; 4]),
    /// The packed data is broken.
    #[error("its {packing:?} payload cannot be unpacked; the file is damaged")]
    Unpack {
        /// The packer.
        packing: Packing,
        /// What the unpacker said.
        source: io::Error,
    },
    /// Unpacked, it is not as long as it says.
    #[error("its payload unpacks to {found} bytes instead of {wanted}; the file is damaged")]
    Length {
        /// Bytes it says.
        wanted: u64,
        /// Bytes there were.
        found: u64,
    },
    /// What came out is no ELF kernel for this architecture.
    #[error("what it unpacks to is no {wanted} ELF kernel: {reason}")]
    NotAnElfKernel {
        /// The architecture wanted.
        wanted: &'static str,
        /// What is missing.
        reason: &'static str,
    },
}

/// What kind of file this is, from its first bytes.
pub fn kind(file: &[u8]) -> Result<ImageKind, KernelImageError> {
    if file.starts_with(b"!<arch>\n") {
        Ok(ImageKind::DebianPackage)
    } else if file.starts_with(b"\x7fELF") {
        Ok(ImageKind::Elf)
    } else if file.get(header::MAGIC..header::MAGIC + 4) == Some(b"HdrS") {
        Ok(ImageKind::BzImage)
    } else {
        Err(KernelImageError::NotAKernel)
    }
}

/// The release a bzImage calls itself, such as `6.1.0-56-cloud-amd64`.
pub fn release(bzimage: &[u8]) -> Option<String> {
    let offset = usize::from(u16_at(bzimage, header::KERNEL_VERSION)?);
    let text = bzimage.get(offset.checked_add(0x200)?..)?;
    let text = &text[..text.iter().take(256).position(|byte| *byte == 0)?];
    std::str::from_utf8(text).ok()?.split(' ').next().filter(|word| !word.is_empty()).map(str::to_owned)
}

/// The ELF kernel inside a bzImage.
pub fn extract(bzimage: &[u8]) -> Result<Vec<u8>, KernelImageError> {
    let payload = payload(bzimage)?;
    let packing = packing(payload)?;
    if packing == Packing::None {
        check_elf(payload)?;
        return Ok(payload.to_vec());
    }
    let (packed, length) = payload.split_at(payload.len() - 4);
    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
    // gzip's own trailer is the length, so it needs the whole payload.
    let packed = if packing == Packing::Gzip { payload } else { packed };
    let unpacked = unpack(packing, packed, length.min(UNPACKED_MAX))
        .map_err(|source| KernelImageError::Unpack { packing, source })?;
    if unpacked.len() != length {
        return Err(KernelImageError::Length { wanted: length as u64, found: unpacked.len() as u64 });
    }
    check_elf(&unpacked)?;
    Ok(unpacked)
}

/// The packed kernel within a bzImage, with its trailing length.
fn payload(bzimage: &[u8]) -> Result<&[u8], KernelImageError> {
    if kind(bzimage)? != ImageKind::BzImage {
        return Err(KernelImageError::NotAKernel);
    }
    let version = u16_at(bzimage, header::VERSION).ok_or(KernelImageError::NotAKernel)?;
    if version < VERSION_WITH_PAYLOAD {
        return Err(KernelImageError::TooOld(version));
    }
    let setup_sectors = match bzimage[header::SETUP_SECTORS] {
        // "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
        0 => 4,
        sectors => usize::from(sectors),
    };
    let field = |at| u32_at(bzimage, at).ok_or(KernelImageError::NotAKernel).map(|value| value as usize);
    let start = (setup_sectors + 1) * 512 + field(header::PAYLOAD_OFFSET)?;
    let end = start + field(header::PAYLOAD_LENGTH)?;
    let truncated = KernelImageError::Truncated { wanted: end as u64, found: bzimage.len() as u64 };
    let payload = bzimage.get(start..end).ok_or(truncated)?;
    if payload.len() < 8 { Err(KernelImageError::NotAKernel) } else { Ok(payload) }
}

fn packing(payload: &[u8]) -> Result<Packing, KernelImageError> {
    const MAGICS: [(&[u8], Packing); 7] = [
        (b"\x1f\x8b", Packing::Gzip),
        (b"BZh", Packing::Bzip2),
        (b"\x5d\0\0", Packing::Lzma),
        (b"\xfd7zXZ\0", Packing::Xz),
        (b"\x02\x21\x4c\x18", Packing::Lz4),
        (b"\x28\xb5\x2f\xfd", Packing::Zstd),
        (b"\x7fELF", Packing::None),
    ];
    let found = MAGICS.iter().find(|(magic, _)| payload.starts_with(magic));
    found
        .map(|(_, packing)| *packing)
        .ok_or_else(|| KernelImageError::UnknownPacking([payload[0], payload[1], payload[2], payload[3]]))
}

/// Unpacks at most one byte more than `length`, so that a wrong length is seen and a bomb does nothing.
fn unpack(packing: Packing, packed: &[u8], length: usize) -> io::Result<Vec<u8>> {
    match packing {
        Packing::Gzip => read_bounded(flate2::bufread::GzDecoder::new(packed), length),
        Packing::Bzip2 => read_bounded(bzip2::bufread::BzDecoder::new(packed), length),
        Packing::Lzma => {
            let stream = liblzma::stream::Stream::new_lzma_decoder(u64::MAX)?;
            read_bounded(liblzma::bufread::XzDecoder::new_stream(packed, stream), length)
        }
        Packing::Xz => read_bounded(liblzma::bufread::XzDecoder::new(packed), length),
        Packing::Lz4 => unpack_lz4_legacy(packed, length),
        Packing::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
            // Linux packs with a window as large as the kernel.
            decoder.window_log_max(31)?;
            read_bounded(decoder.single_frame(), length)
        }
        Packing::None => Ok(packed.to_vec()),
    }
}

fn read_bounded(reader: impl Read, length: usize) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::with_capacity(length);
    reader.take(length as u64 + 1).read_to_end(&mut unpacked)?;
    Ok(unpacked)
}

/// The legacy frame of `lz4 -l`: magic, then blocks of at most 8 MiB unpacked, each after its packed length.
fn unpack_lz4_legacy(packed: &[u8], length: usize) -> io::Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    let mut unpacked = Vec::with_capacity(length);
    let mut rest = &packed[4..];
    let mut block = vec![0; BLOCK];
    while let Some((size, tail)) = rest.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size) as usize;
        let data = tail.get(..size).ok_or_else(|| invalid("a block is cut short"))?;
        let count = lz4_flex::block::decompress_into(data, &mut block).map_err(|error| invalid(&error.to_string()))?;
        unpacked.extend_from_slice(&block[..count]);
        if unpacked.len() > length {
            return Err(invalid("it is longer than it says"));
        }
        rest = &tail[size..];
    }
    Ok(unpacked)
}

/// Checks that these bytes are a kernel a VMM can load; says whether it has the PVH entry point.
pub fn check_elf(bytes: &[u8]) -> Result<bool, KernelImageError> {
    let refused = |reason| KernelImageError::NotAnElfKernel { wanted: machine().1, reason };
    let elf = FileHeader64::<LittleEndian>::parse(bytes).map_err(|_| refused("no 64-bit ELF header"))?;
    let endian = elf.endian().map_err(|_| refused("wrong byte order"))?;
    if elf.e_machine(endian) != machine().0 {
        return Err(refused("it was built for another architecture"));
    }
    let segments = elf.program_headers(endian, bytes).map_err(|_| refused("its segments are damaged"))?;
    let loadable = |segment: &&_| ProgramHeader::p_type(*segment, endian) == PT_LOAD;
    let mut loaded = segments.iter().filter(loadable).peekable();
    if loaded.peek().is_none() {
        return Err(refused("it has nothing to load"));
    }
    for segment in loaded {
        segment.data(endian, bytes).map_err(|()| refused("it is cut short"))?;
    }
    Ok(has_pvh_note(segments, endian, bytes))
}

fn has_pvh_note(segments: &[object::elf::ProgramHeader64<LittleEndian>], endian: LittleEndian, bytes: &[u8]) -> bool {
    let notes = segments.iter().filter(|segment| segment.p_type(endian) == PT_NOTE);
    let mut notes = notes.filter_map(|segment| segment.notes(endian, bytes).ok().flatten());
    notes.any(|mut notes| {
        std::iter::from_fn(|| notes.next().ok().flatten())
            .any(|note| note.name() == b"Xen" && note.n_type(endian) == XEN_ELFNOTE_PHYS32_ENTRY)
    })
}

/// The ELF machine number and the name of this host's architecture.
const fn machine() -> (object::elf::Machine, &'static str) {
    if cfg!(target_arch = "aarch64") {
        (object::elf::EM_AARCH64, "aarch64")
    } else {
        (object::elf::EM_X86_64, "x86_64")
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// A small ELF file with one loadable segment of `content` and the PVH note.
    pub fn tiny_kernel(content: &[u8]) -> Vec<u8> {
        let note = [&4_u32.to_le_bytes()[..], &4_u32.to_le_bytes(), &18_u32.to_le_bytes(), b"Xen\0", &[0; 4]].concat();
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(16, 0);
        elf.extend(2_u16.to_le_bytes());
        elf.extend(machine().0.0.to_le_bytes());
        elf.extend(1_u32.to_le_bytes());
        for value in [0x100_0000_u64, 64, 0] {
            elf.extend(value.to_le_bytes());
        }
        elf.extend(0_u32.to_le_bytes());
        for value in [64_u16, 56, 2, 64, 0, 0] {
            elf.extend(value.to_le_bytes());
        }
        let start = 64 + 2 * 56_u64;
        for (kind, offset, size) in
            [(PT_LOAD, start + note.len() as u64, content.len() as u64), (PT_NOTE, start, note.len() as u64)]
        {
            elf.extend(kind.0.to_le_bytes());
            elf.extend(5_u32.to_le_bytes());
            for value in [offset, 0x100_0000, 0x100_0000, size, size, 4] {
                elf.extend(value.to_le_bytes());
            }
        }
        elf.extend(note);
        elf.extend(content);
        elf
    }

    /// A bzImage around a packed payload.
    pub fn bzimage(payload: &[u8]) -> Vec<u8> {
        const SETUP_SECTORS: usize = 3;
        const OFFSET: usize = 0x2cc;
        let mut image = vec![0; (SETUP_SECTORS + 1) * 512 + OFFSET];
        image[header::SETUP_SECTORS] = SETUP_SECTORS as u8;
        image[header::MAGIC..header::MAGIC + 4].copy_from_slice(b"HdrS");
        image[header::VERSION..header::VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[header::KERNEL_VERSION..header::KERNEL_VERSION + 2].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x314].copy_from_slice(b"6.1.0-9-cloud-amd64 ");
        image[header::PAYLOAD_OFFSET..][..4].copy_from_slice(&(OFFSET as u32).to_le_bytes());
        image[header::PAYLOAD_LENGTH..][..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        image.extend([0; 100]);
        image
    }

    /// `kernel` packed as Linux' own build does.
    pub fn packed(packing: Packing, kernel: &[u8]) -> Vec<u8> {
        let mut bytes = match packing {
            Packing::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
                encoder.write_all(kernel).unwrap();
                return encoder.finish().unwrap();
            }
            Packing::None => return kernel.to_vec(),
            Packing::Bzip2 => {
                let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
                encoder.write_all(kernel).unwrap();
                encoder.finish().unwrap()
            }
            Packing::Lzma => {
                let options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
                lzma_encoded(kernel, liblzma::stream::Stream::new_lzma_encoder(&options).unwrap())
            }
            Packing::Xz => {
                // As scripts/xz_wrap.sh: the x86 filter, CRC32, a large dictionary.
                let mut filters = liblzma::stream::Filters::new();
                filters.x86();
                filters.lzma2(liblzma::stream::LzmaOptions::new_preset(6).unwrap().dict_size(32 << 20));
                lzma_encoded(
                    kernel,
                    liblzma::stream::Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc32).unwrap(),
                )
            }
            Packing::Lz4 => {
                let mut bytes = b"\x02\x21\x4c\x18".to_vec();
                for block in kernel.chunks(8 << 20) {
                    let block = lz4_flex::block::compress(block);
                    bytes.extend((block.len() as u32).to_le_bytes());
                    bytes.extend(block);
                }
                bytes
            }
            Packing::Zstd => {
                let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
                encoder.window_log(27).unwrap();
                encoder.write_all(kernel).unwrap();
                encoder.finish().unwrap()
            }
        };
        bytes.extend((kernel.len() as u32).to_le_bytes());
        bytes
    }

    fn lzma_encoded(kernel: &[u8], stream: liblzma::stream::Stream) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        encoder.write_all(kernel).unwrap();
        encoder.finish().unwrap()
    }

    const ALL: [Packing; 7] =
        [Packing::Gzip, Packing::Bzip2, Packing::Lzma, Packing::Xz, Packing::Lz4, Packing::Zstd, Packing::None];

    fn sample() -> Vec<u8> {
        let content: Vec<u8> = (0..300_000_u32).flat_map(|n| (n.wrapping_mul(n) / 7).to_le_bytes()).collect();
        tiny_kernel(&content)
    }

    #[test]
    fn every_packing_of_linux_unpacks() {
        let kernel = sample();
        for packing in ALL {
            let image = bzimage(&packed(packing, &kernel));
            assert_eq!(extract(&image).unwrap_or_else(|error| panic!("{packing:?}: {error}")), kernel, "{packing:?}");
        }
    }

    #[test]
    fn a_damaged_payload_is_an_error_and_never_a_kernel() {
        let kernel = sample();
        for packing in ALL {
            let mut payload = packed(packing, &kernel);
            let middle = payload.len() / 2;
            payload.truncate(middle);
            assert!(extract(&bzimage(&payload)).is_err(), "{packing:?} cut in half");
            let mut image = bzimage(&packed(packing, &kernel));
            image.truncate(image.len() - 200);
            assert!(matches!(extract(&image), Err(KernelImageError::Truncated { .. })), "{packing:?}");
        }
    }

    #[test]
    fn a_payload_that_lies_about_its_length_is_refused() {
        for packing in [Packing::Bzip2, Packing::Lzma, Packing::Xz, Packing::Lz4, Packing::Zstd] {
            for lie in [4_u32, u32::MAX] {
                let mut payload = packed(packing, &sample());
                let at = payload.len() - 4;
                payload[at..].copy_from_slice(&lie.to_le_bytes());
                let refused = extract(&bzimage(&payload)).unwrap_err();
                assert!(
                    matches!(refused, KernelImageError::Length { .. } | KernelImageError::Unpack { .. }),
                    "{packing:?} {lie}: {refused}"
                );
            }
        }
    }

    #[test]
    fn what_is_no_kernel_is_named_so() {
        let text = b"#!/bin/sh\necho this is not a kernel\n".repeat(100);
        assert!(matches!(extract(&text), Err(KernelImageError::NotAKernel)));
        assert!(matches!(kind(b""), Err(KernelImageError::NotAKernel)));
        let packed_text = bzimage(&packed(Packing::Zstd, &text));
        assert!(matches!(extract(&packed_text), Err(KernelImageError::NotAnElfKernel { .. })));
        let unknown = bzimage(b"\x89LZO\0\r\n\x1a\n and so on");
        assert!(matches!(extract(&unknown), Err(KernelImageError::UnknownPacking(_))));
        let mut old = bzimage(&packed(Packing::None, &sample()));
        old[header::VERSION] = 7;
        assert!(matches!(extract(&old), Err(KernelImageError::TooOld(0x207))));
    }

    #[test]
    fn elf_kernels_are_checked() {
        let kernel = sample();
        assert!(check_elf(&kernel).unwrap(), "has the PVH note");
        assert!(check_elf(&kernel[..kernel.len() - 1]).is_err(), "cut short");
        let mut foreign = kernel.clone();
        foreign[18] = 0x28;
        assert!(check_elf(&foreign).is_err(), "another architecture");
        let mut plain = kernel;
        let note = plain.windows(4).position(|bytes| bytes == b"Xen\0").unwrap();
        plain[note] = b'Y';
        assert!(!check_elf(&plain).unwrap(), "no PVH note");
    }

    #[test]
    fn the_release_is_read_from_the_header() {
        assert_eq!(release(&bzimage(b"")).as_deref(), Some("6.1.0-9-cloud-amd64"));
        assert_eq!(release(&[0; 1000]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(head in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut image = head;
            if image.len() > 0x250 {
                image[header::MAGIC..header::MAGIC + 4].copy_from_slice(b"HdrS");
            }
            prop_assert!(extract(&image).is_err());
            prop_assert!(check_elf(&image).is_err());
        }
    }
}

//! The kernel's random generator: what it is fed from outside, and that it uses it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::ioctl::{NoArg, Opcode, ioctl, opcode};

const RNDADDENTROPY: Opcode = opcode::write::<[libc::c_int; 2]>(b'R', 0x03);
const RNDRESEEDCRNG: Opcode = opcode::none(b'R', 0x07);

/// Most bytes that one call takes.
pub const ENTROPY_BYTES_MAX: usize = 4096;

/// Mixes bytes that nobody else knows into the kernel's pool, and counts each of them as eight bits of entropy. Needs
/// CAP_SYS_ADMIN. What the generator gives changes with its next reseed: see [`reseed`].
pub fn add_entropy(bytes: &[u8]) -> io::Result<()> {
    let pool = pool_info(bytes)?;
    let device = File::options().write(true).open("/dev/random")?;
    // SAFETY: RNDADDENTROPY reads two integers and then as many bytes as the second says. `pool_info` has laid them out so,
    // in a buffer that is aligned for integers and outlives the call.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY.into(), pool.as_ptr()) };
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A `rand_pool_info`: bits of entropy, bytes, and the bytes themselves, filled up to whole words.
fn pool_info(bytes: &[u8]) -> io::Result<Vec<u32>> {
    if bytes.is_empty() || bytes.len() > ENTROPY_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "entropy of no byte, or of too many"));
    }
    let length = bytes.len() as u32;
    let words = bytes.chunks(4).map(|chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        u32::from_ne_bytes(word)
    });
    Ok([length * 8, length].into_iter().chain(words).collect())
}

/// Makes the generator take a new key from its pool at once, for all CPUs. Needs CAP_SYS_ADMIN.
pub fn reseed() -> io::Result<()> {
    let device = File::options().write(true).open("/dev/random")?;
    // SAFETY: RNDRESEEDCRNG has no argument.
    unsafe { ioctl(device, NoArg::<RNDRESEEDCRNG>::new()) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_numbers_of_the_kernel_header() {
        assert_eq!(RNDADDENTROPY, 0x4008_5203);
        assert_eq!(RNDRESEEDCRNG, 0x5207);
    }

    #[test]
    fn the_bytes_follow_their_counts() {
        let pool = pool_info(&[1, 2, 3, 4, 5]).unwrap();
        assert_eq!(pool, [40, 5, u32::from_ne_bytes([1, 2, 3, 4]), u32::from_ne_bytes([5, 0, 0, 0])]);
        for bytes in [&[][..], &[0; ENTROPY_BYTES_MAX + 1]] {
            assert_eq!(pool_info(bytes).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{}", bytes.len());
        }
    }
}

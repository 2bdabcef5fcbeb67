//! The CPU as guests see it, so that a captured VM goes on only on one that is alike.
//!
//! Under KVM guests see the host's CPU; under translation they see QEMU's, which is the same on every host of one version
//! of QEMU, and the host's time stamp counter.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Accel, VmmError};

const CPUINFO: &str = "/proc/cpuinfo";
/// What is read of it, in bytes: the first CPU, whose flags are the longest line of under 3 KiB.
const CPUINFO_MAX: u64 = 16 * 1024;
/// The vendor of what QEMU translates for.
const TRANSLATED: &str = "tcg";

/// A CPU in so far as a guest depends on it. Two that are equal run each other's guests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GuestCpu {
    /// Who made it, such as `AuthenticAMD`; `tcg` for QEMU's own.
    pub vendor: String,
    /// Its family.
    pub family: u32,
    /// Its model.
    pub model: u32,
    /// A hash of everything it can do, in hexadecimal; empty for QEMU's own.
    pub features: String,
    /// The rate of its time stamp counter in MHz, where guests rely on it.
    pub tsc_mhz: Option<u64>,
}

impl GuestCpu {
    /// The one that guests of this host see; `tsc_khz` is the rate of the host's time stamp counter.
    pub(super) fn of_this_host(accel: Accel, tsc_khz: Option<u64>) -> Result<Self, VmmError> {
        match accel {
            Accel::Kvm => {
                let failed = |source| VmmError::File { path: PathBuf::from(CPUINFO), source };
                Self::in_cpuinfo(&read().map_err(failed)?)
                    .ok_or_else(|| failed(io::Error::new(io::ErrorKind::InvalidData, "it describes no CPU")))
            }
            Accel::Tcg => Ok(Self {
                vendor: TRANSLATED.to_owned(),
                family: 0,
                model: 0,
                features: String::new(),
                // It is measured: a few kHz are noise.
                tsc_mhz: tsc_khz.map(|khz| (khz + 500) / 1000),
            }),
        }
    }

    /// The first CPU there. The flags' order is the kernel's business, so they are sorted.
    fn in_cpuinfo(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let value = |line: &str| {
                line.split_once(':').filter(|(key, _)| key.trim() == name).map(|(_, v)| v.trim().to_owned())
            };
            text.lines().find_map(value)
        };
        let flags = field("flags")?;
        let mut flags: Vec<&str> = flags.split_ascii_whitespace().collect();
        flags.sort_unstable();
        Some(Self {
            vendor: field("vendor_id")?,
            family: field("cpu family")?.parse().ok()?,
            model: field("model")?.parse().ok()?,
            features: hex::encode(&Sha256::digest(flags.join(" "))[..16]),
            tsc_mhz: None,
        })
    }
}

fn read() -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(CPUINFO)?.take(CPUINFO_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD \
                           EPYC\nflags\t\t: fpu vme sse4_2\n\nprocessor\t: 1\nvendor_id\t: other\n";

    #[test]
    fn a_cpu_is_known_by_what_a_guest_depends_on() {
        let cpu = GuestCpu::in_cpuinfo(CPUINFO).unwrap();
        assert_eq!((cpu.vendor.as_str(), cpu.family, cpu.model, cpu.tsc_mhz), ("AuthenticAMD", 25, 1, None));
        assert_eq!(cpu.features.len(), 32);
        let same = CPUINFO.replace("fpu vme", "vme fpu").replace("EPYC", "EPYC 2");
        assert_eq!(GuestCpu::in_cpuinfo(&same).unwrap(), cpu);
        for (from, to) in [("vme", "vmx"), (": 25", ": 26"), ("\t: 1", "\t: 2"), ("AuthenticAMD", "GenuineIntel")] {
            assert_ne!(GuestCpu::in_cpuinfo(&CPUINFO.replace(from, to)).unwrap(), cpu, "{from}");
        }
        assert_eq!(GuestCpu::in_cpuinfo("vendor_id : x\n"), None);
    }

    #[test]
    fn this_host_has_one_of_each() {
        let [translated, noise] =
            [2_399_998, 2_400_003].map(|khz| GuestCpu::of_this_host(Accel::Tcg, Some(khz)).unwrap());
        assert_eq!(translated, noise);
        assert_eq!(translated.tsc_mhz, Some(2400));
        let kvm = GuestCpu::of_this_host(Accel::Kvm, None).unwrap();
        assert_ne!(kvm, translated);
        let text = serde_json::to_string(&kvm).unwrap();
        assert_eq!(serde_json::from_str::<GuestCpu>(&text).unwrap(), kvm);
    }
}

//! The QEMU driver: the `microvm` machine, TCG where there is no KVM.
//!
//! QEMU runs as an unprivileged user under `-sandbox on` and opens nothing by name: disks, kernel, initramfs, memory
//! base, TAP and the listening control socket are inherited descriptors ([`command_line`] is the pure plan of it).
//! Guest memory is always a *private* mapping over an immutable base file, so that a capture is "the pages that are no
//! longer the file's" and a fork can stand on what a capture wrote.

mod command_line;
mod control;

use std::fs::OpenOptions;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use rustix::fs::{Mode, chmod};

use self::command_line::Executor;
use super::{Accel, Boot, Description, DriverKind, Launch, Machine, Plan, VmSpec, Vmm, VmmError};
use crate::units::Mib;

/// Where QEMU listens, in the sandbox's run folder.
const SOCKET: &str = "control.sock";

/// QEMU on this host.
#[derive(Clone, Debug)]
pub struct Qemu {
    program: PathBuf,
    description: Description,
    tsc_khz: Option<u64>,
}

impl Qemu {
    /// The driver for the QEMU at `program`, whose `version` and usable `accel` the probe found; `tsc_khz` is the rate of
    /// the host's time stamp counter (`wrenn_sys::tsc`).
    pub fn new(program: PathBuf, version: String, accel: Accel, tsc_khz: Option<u64>) -> Self {
        Self { program, description: Description { driver: DriverKind::Qemu, version, accel }, tsc_khz }
    }
}

#[async_trait]
impl Vmm for Qemu {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn memory(&self, asked: Mib) -> Mib {
        command_line::usable_memory(asked)
    }

    fn kernel_arguments(&self) -> String {
        command_line::kernel_arguments(self.description.accel, self.tsc_khz)
    }

    fn enters_any_elf(&self) -> bool {
        false
    }

    fn plan(&self, vm: VmSpec) -> Result<Plan, VmmError> {
        let socket = vm.run_dir.join(SOCKET);
        let control = listen(&socket)?;
        let (args, descriptors) = command_line::plan(vm, control.into(), self.executor()?);
        Ok(Plan {
            launch: Launch { program: self.program.clone(), args, descriptors, jail: None },
            boot: Box::new(Connect { socket }),
        })
    }

    async fn attach(&self, run_dir: &Path) -> Result<Box<dyn Machine>, VmmError> {
        Ok(Box::new(control::Qmp::connect(&run_dir.join(SOCKET)).await?))
    }
}

/// The boot of a QEMU: its arguments say it all, and the guest runs at once.
#[derive(Debug)]
struct Connect {
    socket: PathBuf,
}

#[async_trait]
impl Boot for Connect {
    async fn boot(self: Box<Self>) -> Result<Box<dyn Machine>, VmmError> {
        Ok(Box::new(control::Qmp::connect(&self.socket).await?))
    }
}

impl Qemu {
    fn executor(&self) -> Result<Executor, VmmError> {
        match self.description.accel {
            Accel::Tcg => Ok(Executor::Tcg),
            Accel::Kvm => {
                let device = OpenOptions::new().read(true).write(true).open("/dev/kvm").map_err(VmmError::Kvm)?;
                Ok(Executor::Kvm(device.into()))
            }
        }
    }
}

/// The socket is bound here, not by QEMU: QEMU's user cannot write where it lies, and who connects before QEMU is up waits
/// in the backlog instead of polling for the file.
fn listen(path: &Path) -> Result<UnixListener, VmmError> {
    let failed = |step, source| VmmError::Socket { step, path: path.to_owned(), source };
    let listener = UnixListener::bind(path).map_err(|error| failed("make", error))?;
    chmod(path, Mode::RUSR | Mode::WUSR).map_err(|error| failed("protect", error.into()))?;
    Ok(listener)
}

#[cfg(test)]
mod tests;

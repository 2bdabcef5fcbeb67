//! The QEMU driver: the `microvm` machine, TCG where there is no KVM.
//!
//! QEMU runs as an unprivileged user under `-sandbox on` and opens nothing by name: disks, kernel, initramfs, memory
//! base, TAP and the listening control socket are inherited descriptors ([`command_line`] is the pure plan of it).
//! Guest memory is always a *private* mapping over an immutable base file, so that a capture is "the pages that are no
//! longer the file's" and a fork can stand on what a capture wrote.
//!
//! A capture writes the state of the devices into a descriptor that is sent over the control socket; a QEMU that is to go
//! on from there has the same command line, waits for its state, and finds it in an inherited descriptor.

mod command_line;
mod control;

use std::fs::OpenOptions;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use rustix::fs::{Mode, chmod};

use self::command_line::Executor;
use super::{
    Accel, Boot, Description, DriverKind, Folders, GuestCpu, Launch, Machine, MemoryBacking, Plan, Start, VmSpec, Vmm,
    VmmError,
};
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
        if let Start::Restore { memory: MemoryBacking::Uffd(_), .. } = vm.start {
            return Err(VmmError::NoUffd { driver: DriverKind::Qemu });
        }
        let socket = vm.run_dir.join(SOCKET);
        let control = listen(&socket)?;
        let restores = matches!(vm.start, Start::Restore { .. });
        let (args, descriptors) = command_line::plan(vm, control.into(), self.executor()?);
        Ok(Plan {
            launch: Launch { program: self.program.clone(), args, descriptors, jail: None, pager: None },
            boot: Box::new(Connect { socket, restores }),
        })
    }

    fn cpu(&self) -> Result<GuestCpu, VmmError> {
        GuestCpu::of_this_host(self.description.accel, self.tsc_khz)
    }

    async fn attach(&self, folders: Folders<'_>) -> Result<Box<dyn Machine>, VmmError> {
        Ok(Box::new(control::Qmp::connect(&folders.run.join(SOCKET)).await?))
    }
}

/// The boot of a QEMU: its arguments say it all, and the guest runs at once, or waits for its state.
#[derive(Debug)]
struct Connect {
    socket: PathBuf,
    restores: bool,
}

#[async_trait]
impl Boot for Connect {
    async fn boot(self: Box<Self>) -> Result<Box<dyn Machine>, VmmError> {
        let mut qmp = control::Qmp::connect(&self.socket).await?;
        if self.restores {
            qmp.restore(&command_line::incoming_file()).await?;
        }
        Ok(Box::new(qmp))
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

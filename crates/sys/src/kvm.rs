//! Whether `/dev/kvm` can run a guest: proved by running the smallest one.
//!
//! A device that opens, and even one that makes VMs, may not be able to run them. So a guest of one page runs in real
//! mode, computes something and halts. Nothing of it is left afterwards. The proof is necessary, not sufficient: a
//! paravirtual KVM passes it and still cannot run an ordinary kernel; the caller looks for vmx or svm as well.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::mpsc;
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// The version of KVM's interface; it has been this one since 2007.
const API_VERSION: i32 = 12;

/// One page of guest memory is all that the guest has.
const PAGE: usize = 4096;

/// `mov ax, 0x1234; inc ax; hlt`, in real mode.
const PROGRAM: [u8; 5] = [0xb8, 0x34, 0x12, 0x40, 0xf4];
const RESULT: u64 = 0x1235;

/// Exit reasons of KVM_RUN, from linux/kvm.h.
const EXIT_HLT: u32 = 5;

/// Why KVM cannot run a guest.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device cannot be opened: it is not there, or not for us.
    #[error("cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// A request was refused.
    #[error("KVM refuses {0}")]
    Refused(&'static str, #[source] io::Error),
    /// It speaks another interface.
    #[error("KVM has the interface version {0}, not 12")]
    Version(i32),
    /// The guest ended in another way than by halting.
    #[error("a guest of three instructions did not run to its end (exit reason {0})")]
    Exit(u32),
    /// The guest halted, but with another result.
    #[error("a guest of three instructions computed {0:#x}")]
    Result(u64),
    /// The guest did not end in time.
    #[error("a guest of three instructions did not end within {} s", .0.as_secs_f32())]
    Hung(Duration),
}

/// Runs the smallest guest, for at most `limit`.
///
/// A guest that hangs in the kernel cannot be taken back: its thread then stays until the process ends.
pub fn prove(limit: Duration) -> Result<(), KvmError> {
    let (sender, outcome) = mpsc::sync_channel(1);
    let run = move || {
        // Nobody listens any more only when the limit has passed, which has been reported then.
        drop(sender.send(run_smallest_guest()));
    };
    let thread = std::thread::Builder::new().name("kvm-proof".to_owned());
    thread.spawn(run).map_err(|error| KvmError::Refused("a thread", error))?;
    outcome.recv_timeout(limit).unwrap_or(Err(KvmError::Hung(limit)))
}

fn run_smallest_guest() -> Result<(), KvmError> {
    let kvm: File = OpenOptions::new().read(true).write(true).open("/dev/kvm").map_err(KvmError::Open)?;
    let version = request(kvm.as_fd(), GET_API_VERSION, 0)?;
    if version != API_VERSION {
        return Err(KvmError::Version(version));
    }
    let run_bytes = request(kvm.as_fd(), GET_VCPU_MMAP_SIZE, 0)?.unsigned_abs() as usize;
    // Declared before the VM, and so unmapped after it is gone.
    let memory = Mapping::anonymous().map_err(|error| KvmError::Refused("memory", error))?;
    memory.write(&PROGRAM);
    let vm = descriptor(request(kvm.as_fd(), CREATE_VM, 0)?);
    // Where Intel's CPUs of before 2010 keep three pages to emulate real mode; below 4 GiB, away from our page.
    request(vm.as_fd(), SET_TSS_ADDR, 0xfffb_d000)?;
    let region = MemoryRegion { slot: 0, flags: 0, guest: 0, bytes: PAGE as u64, host: memory.start.as_ptr() as u64 };
    request_with(vm.as_fd(), SET_USER_MEMORY_REGION, &mut { region })?;
    let vcpu = descriptor(request(vm.as_fd(), CREATE_VCPU, 0)?);
    let shared = Mapping::of(&vcpu, run_bytes).map_err(|error| KvmError::Refused("a vCPU's page", error))?;
    start_at_zero(vcpu.as_fd())?;
    run_until_exit(vcpu.as_fd())?;
    let reason = shared.read_u32(EXIT_REASON_OFFSET);
    if reason != EXIT_HLT {
        return Err(KvmError::Exit(reason));
    }
    let mut registers = Registers::default();
    request_with(vcpu.as_fd(), GET_REGS, &mut registers)?;
    if registers.rax != RESULT { Err(KvmError::Result(registers.rax)) } else { Ok(()) }
}

/// Points the vCPU at address 0; it wakes up in real mode.
fn start_at_zero(vcpu: BorrowedFd<'_>) -> Result<(), KvmError> {
    let mut special = SpecialRegisters::default();
    request_with(vcpu, GET_SREGS, &mut special)?;
    special.cs.base = 0;
    special.cs.selector = 0;
    request_with(vcpu, SET_SREGS, &mut special)?;
    // Bit 1 of the flags is always set.
    request_with(vcpu, SET_REGS, &mut Registers { rip: 0, rflags: 2, ..Registers::default() })
}

fn run_until_exit(vcpu: BorrowedFd<'_>) -> Result<(), KvmError> {
    loop {
        match request(vcpu, RUN, 0) {
            Ok(_) => return Ok(()),
            Err(KvmError::Refused(_, error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A request of KVM: its ioctl number and its name for people. The numbers are those of linux/kvm.h, for x86_64.
#[derive(Clone, Copy)]
struct Request(u32, &'static str);

// With a number as argument.
const GET_API_VERSION: Request = Request(0xae00, "its version");
const CREATE_VM: Request = Request(0xae01, "a VM");
const GET_VCPU_MMAP_SIZE: Request = Request(0xae04, "the size of a vCPU's page");
const CREATE_VCPU: Request = Request(0xae41, "a vCPU");
const SET_TSS_ADDR: Request = Request(0xae47, "a place for its task state");
const RUN: Request = Request(0xae80, "to run a guest");
// With a structure as argument.
const SET_USER_MEMORY_REGION: Structured<MemoryRegion> = Structured::new(0x4020_ae46, "guest memory");
const GET_REGS: Structured<Registers> = Structured::new(0x8090_ae81, "to read registers");
const SET_REGS: Structured<Registers> = Structured::new(0x4090_ae82, "to set registers");
const GET_SREGS: Structured<SpecialRegisters> = Structured::new(0x8138_ae83, "to read special registers");
const SET_SREGS: Structured<SpecialRegisters> = Structured::new(0x4138_ae84, "to set special registers");

/// A request whose argument is a `T`.
struct Structured<T>(Request, std::marker::PhantomData<T>);

impl<T> Structured<T> {
    const fn new(number: u32, name: &'static str) -> Self {
        // An ioctl number carries the size of its argument.
        assert!((number >> 16 & 0x3fff) as usize == size_of::<T>());
        Self(Request(number, name), std::marker::PhantomData)
    }
}

/// struct kvm_userspace_memory_region.
#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest: u64,
    bytes: u64,
    host: u64,
}

/// struct kvm_regs.
#[repr(C)]
#[derive(Default)]
struct Registers {
    rax: u64,
    others: [u64; 15],
    rip: u64,
    rflags: u64,
}

/// struct kvm_segment.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Segment {
    base: u64,
    limit: u32,
    selector: u16,
    attributes: [u8; 10],
}

/// struct kvm_sregs.
#[repr(C)]
#[derive(Default)]
struct SpecialRegisters {
    cs: Segment,
    other_segments: [Segment; 7],
    tables: [u64; 4],
    control: [u64; 7],
    interrupts: [u64; 4],
}

/// Where struct kvm_run has its exit_reason.
const EXIT_REASON_OFFSET: usize = 8;

/// A request whose argument is a number.
fn request(fd: BorrowedFd<'_>, request: Request, argument: u64) -> Result<i32, KvmError> {
    // SAFETY: these requests take a number and touch no memory of ours, but for RUN: that one runs the guest in the one
    // page it was given, which `run_smallest_guest` keeps mapped, and writes to the vCPU's own shared page.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request.0.into(), argument) };
    if result < 0 { Err(KvmError::Refused(request.1, io::Error::last_os_error())) } else { Ok(result) }
}

/// A request whose argument is a structure, read or written by the kernel.
fn request_with<T>(fd: BorrowedFd<'_>, request: Structured<T>, argument: &mut T) -> Result<(), KvmError> {
    let Structured(Request(number, name), _) = request;
    // SAFETY: the kernel reads or writes one T, whose size the number carries (asserted in `Structured::new`); the
    // pointer is to a T that we alone borrow, and every T here is plain integers, valid with any bits.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), number.into(), ptr::from_mut(argument)) };
    if result < 0 { Err(KvmError::Refused(name, io::Error::last_os_error())) } else { Ok(()) }
}

/// The descriptor that CREATE_VM or CREATE_VCPU answered with.
fn descriptor(number: i32) -> OwnedFd {
    // SAFETY: called only with a number that the kernel has just returned as a new descriptor, which nobody else has.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Mapped memory, unmapped on drop. Only accessed with volatile reads and writes: a guest or the kernel may write too.
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn anonymous() -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses replaces no other.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), PAGE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)? };
        Self::new(start.cast(), PAGE)
    }

    fn of(fd: &OwnedFd, bytes: usize) -> io::Result<Self> {
        if bytes < EXIT_REASON_OFFSET + size_of::<u32>() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: as above; the memory belongs to the descriptor's vCPU and stays while it is mapped.
        let start = unsafe { mmap(ptr::null_mut(), bytes, protection, MapFlags::SHARED, fd, 0)? };
        Self::new(start.cast(), bytes)
    }

    fn new(start: *mut u8, bytes: usize) -> io::Result<Self> {
        let start = NonNull::new(start).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, bytes })
    }

    fn write(&self, program: &[u8]) {
        assert!(program.len() <= self.bytes);
        for (offset, byte) in program.iter().enumerate() {
            // SAFETY: the offset is inside of the mapping (asserted), which is writable and lives as long as self.
            unsafe { self.start.add(offset).write_volatile(*byte) };
        }
    }

    fn read_u32(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(align_of::<u32>()) && offset + size_of::<u32>() <= self.bytes);
        // SAFETY: inside of the mapping and aligned (asserted; a mapping starts on a page), readable, any bits are a u32.
        unsafe { self.start.add(offset).cast::<u32>().read_volatile() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly this range was mapped by us, and no reference into it exists: reads and writes are volatile.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours cannot be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a host with virtualization the guest runs; elsewhere there is a reason. Either way it ends in time.
    #[test]
    fn root_the_proof_ends_with_a_verdict_that_fits_the_cpu() {
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let virtualizes = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
        let verdict = prove(Duration::from_secs(10));
        match verdict {
            Ok(()) => {}
            Err(error) => assert!(!virtualizes, "the CPU has vmx or svm, but: {error}"),
        }
    }
}

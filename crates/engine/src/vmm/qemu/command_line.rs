//! QEMU's command line as a pure plan. Each descriptor gets a fixed number, which the arguments name.
//!
//! Where a line has a reason that cannot be seen from it, the reason stands beside it; the figures were measured with
//! QEMU 10.0 and Debian's 6.1 cloud kernel.

use std::os::fd::OwnedFd;

use crate::units::Mib;
use crate::vmm::{Accel, DiskFile, DiskForm, Start, VmSpec};

/// The numbers under which QEMU finds what it inherits. Disk files follow from `FIRST_DISK` on.
const CONTROL: i32 = 10;
const MEMORY: i32 = 11;
const KERNEL: i32 = 12;
const INITRAMFS: i32 = 13;
const TAP: i32 = 14;
const KVM: i32 = 15;
/// The captured state, of a VM that is restored.
const DEVICES: i32 = 16;
const FIRST_DISK: i32 = 20;

/// A microvm of exactly 2048 MiB never gets to a packed kernel (QEMU 10.0 with SeaBIOS): two more boot.
const UNBOOTABLE: Mib = Mib(2048);
const INSTEAD: Mib = Mib(2050);

/// What the guest's kernel is told: the serial console is the only one, and a guest that ends must not start again.
///
/// Under translation the guest sees the host's time stamp counter. Left alone its kernel measures the counter against an
/// emulated timer; on a busy host that fails, and the kernel hangs before its first process. So it is told the rate. And
/// with several CPUs it takes the counter for one that is not in step between them, and falls back to a clock of 4 ms; so
/// it is told that it can be relied on: all of them are the host's one.
pub(super) fn kernel_arguments(accel: Accel, tsc_khz: Option<u64>) -> String {
    // The kernel's tests of its own ciphers are 0.4 s of an emulated boot, and tell nothing about this host.
    let common = "console=ttyS0 reboot=t panic=-1 quiet cryptomgr.notests";
    match (accel, tsc_khz) {
        (Accel::Tcg, Some(khz)) => format!("{common} tsc=reliable tsc_early_khz={khz}"),
        (Accel::Tcg, None) | (Accel::Kvm, _) => common.to_owned(),
    }
}

/// The memory a VM gets when `asked` is asked for.
pub(super) fn usable_memory(asked: Mib) -> Mib {
    if asked == UNBOOTABLE { INSTEAD } else { asked }
}

/// What executes the guest's instructions, ready to be handed over.
#[derive(Debug)]
pub(super) enum Executor {
    /// `/dev/kvm`, opened by us: QEMU's user may not.
    Kvm(OwnedFd),
    /// Translation.
    Tcg,
}

/// The arguments for `vm`, and the descriptors under the numbers they name.
pub(super) fn plan(vm: VmSpec, control: OwnedFd, executor: Executor) -> (Vec<String>, Vec<(OwnedFd, i32)>) {
    let mut line = Line::default();
    machine(&mut line, &vm, &executor);
    kernel(&mut line, &vm.command_line);
    consoles(&mut line);
    disk(&mut line, &vm.disk);
    network(&mut line, &vm.guest_mac);
    line.option("-device", "virtio-rng-device");
    if matches!(vm.start, Start::Restore { .. }) {
        incoming(&mut line);
    }
    // Everything that QEMU's filter can deny: obsolete calls, gaining privileges, starting programs, scheduling.
    line.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");

    let mut descriptors = vec![
        (control, CONTROL),
        (vm.memory_base.file, MEMORY),
        (vm.kernel.file, KERNEL),
        (vm.initramfs.file, INITRAMFS),
        (vm.tap.queue, TAP),
    ];
    if let Executor::Kvm(device) = executor {
        descriptors.push((device, KVM));
    }
    if let Start::Restore { devices, .. } = vm.start {
        descriptors.push((devices.file, DEVICES));
    }
    descriptors.extend(vm.disk.into_iter().zip(FIRST_DISK..).map(|(disk, number)| (disk.file.file, number)));
    (line.0, descriptors)
}

#[derive(Default)]
struct Line(Vec<String>);

impl Line {
    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.0.extend([name.to_owned(), value.into()]);
    }
}

fn machine(line: &mut Line, vm: &VmSpec, executor: &Executor) {
    let memory = usable_memory(vm.memory);
    // ACPI stays on: Debian's kernel finds its virtio-mmio devices in no other way. Under KVM the machine has no clock
    // unless told so, and that kernel looks for one for 5.5 s.
    // What a capture holds has no description of itself, and none is expected.
    line.option("-M", "microvm,rtc=on,memory-backend=m0,suppress-vmdesc=on");
    // `readonly=on,rom=off`: the file is opened for reading only, while the private mapping is writable (QEMU 8.2).
    let backend = format!(
        "memory-backend-file,id=m0,size={}M,mem-path=/proc/self/fd/{MEMORY},share=off,readonly=on,rom=off",
        memory.0
    );
    line.option("-object", backend);
    line.option("-m", memory.0.to_string());
    line.option("-smp", vm.vcpus.to_string());
    match executor {
        Executor::Kvm(_) => {
            line.option("-add-fd", format!("fd={KVM},set={KVM}"));
            line.option("-accel", format!("kvm,device=/dev/fdset/{KVM}"));
            line.option("-cpu", "host");
        }
        Executor::Tcg => {
            line.option("-accel", "tcg,thread=multi");
            // String instructions are translated byte by byte: a kernel that takes them for the fast ones (as `max` says)
            // spends an eighth of its boot on clearing pages.
            line.option("-cpu", "max,erms=off,fsrm=off");
        }
    }
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    // Not the default SeaBIOS: handing over to an unpacked kernel it runs, on a busy host, into a triple fault (one boot in
    // three at worst, QEMU 10.0), and takes a tenth of a second longer.
    line.option("-bios", "qboot.rom");
    line.flag("-no-reboot");
    line.option("-display", "none");
}

fn kernel(line: &mut Line, command_line: &str) {
    line.option("-kernel", format!("/proc/self/fd/{KERNEL}"));
    line.option("-initrd", format!("/proc/self/fd/{INITRAMFS}"));
    line.option("-append", command_line);
}

fn consoles(line: &mut Line) {
    // Standard output is the shim's pipe; without `signal=off` a ^C byte from the guest would be QEMU's own.
    line.option("-chardev", "stdio,id=console,signal=off");
    line.option("-serial", "chardev:console");
    line.option("-chardev", format!("socket,id=control,fd={CONTROL},server=on,wait=off"));
    line.option("-mon", "chardev=control,mode=control");
}

/// The chain is spelled out node by node: a name inside of an overlay, which the VMM writes, is never followed.
fn disk(line: &mut Line, files: &[DiskFile]) {
    let mut chain = None;
    for (disk, number) in files.iter().zip(FIRST_DISK..).collect::<Vec<_>>().into_iter().rev() {
        line.option("-add-fd", format!("fd={number},set={number}"));
        chain = Some(block_node(number, disk.form, number != FIRST_DISK, chain));
    }
    if let Some(mut top) = chain {
        top["node-name"] = "disk".into();
        line.option("-blockdev", top.to_string());
        line.option("-device", "virtio-blk-device,drive=disk");
    }
}

fn block_node(number: i32, form: DiskForm, read_only: bool, beneath: Option<serde_json::Value>) -> serde_json::Value {
    let (format, driver) = match form {
        DiskForm::Overlay => ("qcow2", "file"),
        DiskForm::Raw => ("raw", "file"),
        DiskForm::BlockDevice => ("raw", "host_device"),
    };
    let mut node = serde_json::json!({
        "driver": format,
        "read-only": read_only,
        "discard": "unmap",
        // The host's page cache is the guest's disk cache; nothing of a sandbox must survive a crash of the host but
        // what was captured and synced.
        "cache": { "no-flush": false },
        "file": { "driver": driver, "filename": format!("/dev/fdset/{number}"), "read-only": read_only },
    });
    if let (DiskForm::Overlay, Some(beneath)) = (form, beneath) {
        node["backing"] = beneath;
    }
    node
}

fn network(line: &mut Line, guest_mac: &str) {
    line.option("-netdev", format!("tap,id=net,fd={TAP}"));
    line.option("-device", format!("virtio-net-device,netdev=net,mac={guest_mac}"));
}

/// The captured state, as QEMU is told to find it.
pub(super) fn incoming_file() -> String {
    format!("/dev/fdset/{DEVICES}")
}

/// The state is taken up when it is named over the control socket: then there is somebody to tell of a failure.
fn incoming(line: &mut Line) {
    line.option("-add-fd", format!("fd={DEVICES},set={DEVICES}"));
    line.option("-incoming", "defer");
    // The state is that of the devices alone (`xen-save-devices-state`), without the preamble of a migration.
    line.option("-global", "migration.send-configuration=off");
    // The caller lets the CPUs go on.
    line.flag("-S");
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::names::SandboxId;
    use crate::vmm::{HostFile, MemoryBacking, Tap};

    fn null() -> OwnedFd {
        host_file().file
    }

    fn host_file() -> HostFile {
        HostFile::open(Path::new("/dev/null")).unwrap()
    }

    fn vm(memory: Mib) -> VmSpec {
        let layer = |form| DiskFile { file: host_file(), form };
        VmSpec {
            id: SandboxId::from_random([0; 18]),
            uid: 12345,
            run_dir: PathBuf::from("/run/wrenn/x"),
            capture_dir: PathBuf::from("/var/lib/wrenn/x/capture"),
            start: Start::Boot,
            vcpus: 2,
            memory,
            memory_base: host_file(),
            kernel: host_file(),
            initramfs: host_file(),
            command_line: "console=ttyS0 quiet".to_owned(),
            disk: vec![layer(DiskForm::Overlay), layer(DiskForm::Overlay), layer(DiskForm::Raw)],
            tap: Tap { name: "tap0", queue: null() },
            guest_mac: "02:fc:00:00:00:05".to_owned(),
        }
    }

    fn value<'a>(args: &'a [String], option: &str) -> &'a str {
        let at = args.iter().position(|arg| arg == option).unwrap_or_else(|| panic!("no {option}"));
        &args[at + 1]
    }

    #[test]
    fn the_disk_chain_is_spelled_out_with_only_the_top_writable() {
        let (args, descriptors) = plan(vm(Mib(256)), null(), Executor::Tcg);
        let node: serde_json::Value = serde_json::from_str(value(&args, "-blockdev")).unwrap();
        assert_eq!(node["file"]["filename"], "/dev/fdset/20");
        assert_eq!(node["read-only"], false);
        assert_eq!(node["backing"]["file"]["filename"], "/dev/fdset/21");
        assert_eq!(node["backing"]["read-only"], true);
        assert_eq!(node["backing"]["backing"]["file"]["filename"], "/dev/fdset/22");
        assert_eq!(node["backing"]["backing"]["driver"], "raw");
        let numbers: Vec<i32> = descriptors.iter().map(|(_, number)| *number).collect();
        assert_eq!(numbers, [10, 11, 12, 13, 14, 20, 21, 22]);
    }

    #[test]
    fn a_block_device_is_the_whole_disk() {
        let mut vm = vm(Mib(256));
        vm.disk = vec![DiskFile { file: host_file(), form: DiskForm::BlockDevice }];
        let (args, _) = plan(vm, null(), Executor::Tcg);
        let node: serde_json::Value = serde_json::from_str(value(&args, "-blockdev")).unwrap();
        assert_eq!((&node["driver"], &node["file"]["driver"]), (&"raw".into(), &"host_device".into()));
        assert_eq!(node.get("backing"), None);
    }

    #[test]
    fn memory_is_private_over_a_read_only_base() {
        let (args, _) = plan(vm(Mib(256)), null(), Executor::Tcg);
        let object = value(&args, "-object");
        assert!(object.contains("size=256M") && object.contains("share=off,readonly=on,rom=off"), "{object}");
    }

    #[test]
    fn a_restored_vm_has_the_line_of_the_booted_one_and_waits() {
        let (booted, _) = plan(vm(Mib(256)), null(), Executor::Tcg);
        let restored =
            VmSpec { start: Start::Restore { devices: host_file(), memory: MemoryBacking::File }, ..vm(Mib(256)) };
        let (restored, descriptors) = plan(restored, null(), Executor::Tcg);
        let added: Vec<_> = restored.iter().filter(|arg| !booted.contains(arg)).map(String::as_str).collect();
        assert_eq!(added, ["fd=16,set=16", "-incoming", "defer", "-global", "migration.send-configuration=off", "-S"]);
        assert_eq!(restored.len(), booted.len() + added.len() + 1, "`-add-fd` is there already");
        assert!(descriptors.iter().any(|(_, number)| *number == DEVICES));
    }

    #[test]
    fn the_size_that_never_boots_is_stepped_over() {
        let (args, _) = plan(vm(Mib(2048)), null(), Executor::Tcg);
        assert_eq!(value(&args, "-m"), "2050");
        assert!(value(&args, "-object").contains("size=2050M"));
        assert_eq!(usable_memory(Mib(2046)), Mib(2046));
    }

    #[test]
    fn every_privilege_is_denied_and_nothing_is_opened_by_name() {
        let (args, _) = plan(vm(Mib(256)), null(), Executor::Kvm(null()));
        assert_eq!(value(&args, "-sandbox"), "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        assert_eq!(value(&args, "-cpu"), "host");
        assert!(value(&args, "-M").contains("rtc=on"));
        assert_eq!(value(&args, "-accel"), "kvm,device=/dev/fdset/15");
        let by_name = args.iter().any(|arg| arg.contains("/run/") || arg.contains("/var/") || arg.contains("ifname"));
        assert!(!by_name, "{args:?}");
    }
}

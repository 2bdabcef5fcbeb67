//! Memory that the shim serves. The test says what a VMM would say, of memory of its own; the shim's VMM stands by.

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use wrenn_proto::shim::pages::{FileRun, PAGE_BYTES, PageTable, Span, read_working_set};
use wrenn_proto::shim::{End, Pager, Ready, Reason};
use wrenn_sys::mapping::PrivateMapping;
use wrenn_sys::userfaultfd::Userfaultfd;

use crate::harness::{Plan, Shim};

const PAGES: u32 = 16 * 1024;
const MEMORY: u64 = PAGES as u64 * PAGE_BYTES;
/// The shim's own memory beyond what one without a pager has, in KiB: a buffer, a bit for each page, the table.
const PAGER_KIB_MAX: u64 = 1024;

/// A shim with a pager over one file, whose VMM sleeps.
fn start(file: &File, working_set: &File) -> (Shim, PathBuf) {
    let mut plan = Plan::program("/bin/sleep", &["1000"]);
    let table = tempfile::tempfile().unwrap();
    let run = FileRun { span: Span { first: 0, count: PAGES }, file: 0 };
    table.write_all_at(&PageTable::new(MEMORY, 1, vec![run]).unwrap().encode(), 0).unwrap();
    let socket = plan.spec.socket.with_file_name("pager.sock");
    plan.spec.pager =
        Some(Pager { socket: socket.clone(), table_fd: 20, file_fds: vec![21], working_set_fd: Some(22) });
    let fds: [(BorrowedFd<'_>, i32); 3] = [(table.as_fd(), 20), (file.as_fd(), 21), (working_set.as_fd(), 22)];
    let shim = plan.launch(&fds);
    assert!(matches!(shim.ready, Some(Ready::Started { .. })), "{:?}", shim.ready);
    (shim, socket)
}

fn full_file() -> File {
    let file = tempfile::tempfile().unwrap();
    for page in 0..PAGES {
        file.write_all_at(&(page + 1).to_le_bytes(), u64::from(page) * PAGE_BYTES).unwrap();
    }
    file.set_len(MEMORY).unwrap();
    file
}

/// Memory that is served at `socket` from now on.
fn memory(socket: &PathBuf) -> PrivateMapping {
    let memory = PrivateMapping::anonymous(MEMORY as usize).unwrap();
    let faults = Userfaultfd::create().expect("this test needs root and /dev/userfaultfd");
    faults.register(&memory).unwrap();
    let json = format!(
        r#"[{{"base_host_virt_addr":{},"size":{MEMORY},"offset":0,"page_size":4096,"page_size_kib":4096}}]"#,
        memory.address()
    );
    let stream = UnixStream::connect(socket).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [faults.as_fd()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    sendmsg(&stream, &[IoSlice::new(json.as_bytes())], &mut ancillary, SendFlags::empty()).unwrap();
    memory
}

fn number_in(memory: &PrivateMapping, page: u32) -> u32 {
    let mut bytes = [0; 4];
    memory.read(page as usize * PAGE_BYTES as usize, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn resident_kib(shim: &Shim) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", shim.child.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim_end_matches("kB").trim().parse().unwrap()
}

#[test]
fn root_a_shim_serves_all_of_a_memory_and_stays_small() {
    let plain = Plan::program("/bin/sleep", &["1000"]).start();
    let working_set = tempfile::tempfile().unwrap();
    let (shim, socket) = start(&full_file(), &working_set);
    let memory = memory(&socket);
    assert!((0..PAGES).all(|page| number_in(&memory, page) == page + 1));
    assert!(!socket.exists(), "nobody else is served");
    let (plain, pager) = (resident_kib(&plain), resident_kib(&shim));
    println!("a shim has {plain} KiB, one that has served {} MiB has {pager} KiB", MEMORY >> 20);
    assert!(pager < plain + PAGER_KIB_MAX, "{plain} KiB and {pager} KiB");
    // Other requests are answered meanwhile, and the end is as ever.
    let mut client = shim.client();
    client.stop(std::time::Duration::ZERO).unwrap();
    let record = shim.wait();
    assert_eq!((record.reason, record.detail), (Some(Reason::StopRequested), None));
    let mut working_set = working_set;
    std::io::Seek::rewind(&mut working_set).unwrap();
    assert_eq!(
        read_working_set(&working_set, MEMORY).unwrap(),
        [Span { first: 0, count: (PAGES / 5).next_multiple_of(16) }]
    );
}

#[test]
fn root_a_memory_that_was_cut_short_is_the_end_with_a_reason() {
    let file = full_file();
    let (shim, socket) = start(&file, &tempfile::tempfile().unwrap());
    let memory = memory(&socket);
    assert_eq!(number_in(&memory, 7), 8);
    file.set_len(1000 * PAGE_BYTES).unwrap();
    // The shim ends its VMM and lets go of this memory: a page that nobody serves is zero then.
    let reader = std::thread::spawn(move || number_in(&memory, 2000));
    let record = shim.wait();
    assert_eq!((&record.end, record.reason), (&End::Signalled { signal: 9 }, Some(Reason::MemoryLost)));
    let said = record.to_string();
    assert!(said.contains("its memory could not be served") && said.contains("was cut short"), "{said}");
    assert_eq!(shim.record(), Some(record));
    assert_eq!(reader.join().unwrap(), 0);
}

#[test]
fn a_table_that_is_none_is_told_before_anything_starts() {
    let mut plan = Plan::program("/bin/sleep", &["1000"]);
    let table = tempfile::tempfile().unwrap();
    let socket = plan.spec.socket.with_file_name("pager.sock");
    plan.spec.pager = Some(Pager { socket, table_fd: 20, file_fds: vec![], working_set_fd: None });
    let shim = plan.launch(&[(table.as_fd(), 20)]);
    let Some(Ready::Failed { message }) = &shim.ready else { panic!("{:?}", shim.ready) };
    assert!(message.contains("the memory's pages cannot be used"), "{message}");
    assert_eq!(shim.record(), None);
}

//! The pager against the kernel: the test is the VMM, its memory is served from files.

use std::fs::File;
use std::io::{IoSlice, PipeReader};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use wrenn_proto::shim::pages::{FileRun, PAGE_BYTES, PageTable, Span, encode_working_set, read_working_set};
use wrenn_sys::mapping::PrivateMapping;
use wrenn_sys::userfaultfd::Userfaultfd;

use super::*;

const PAGE: usize = PAGE_BYTES as usize;
/// Pages of the memory: 8 MiB.
const PAGES: u32 = 2048;
const MEMORY: u64 = PAGES as u64 * PAGE_BYTES;
/// Longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A sparse file of the memory's size, in which each page of these runs begins with `layer` and its number.
fn layer(layer: u8, runs: &[(u32, u32)]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(MEMORY).unwrap();
    for page in runs.iter().flat_map(|(first, count)| *first..*first + *count) {
        file.write_all_at(&[[layer].as_slice(), &page.to_le_bytes()].concat(), u64::from(page) * PAGE_BYTES).unwrap();
    }
    file
}

fn run(first: u32, count: u32, file: u32) -> FileRun {
    FileRun { span: Span { first, count }, file }
}

fn span(first: u32, count: u32) -> Span {
    Span { first, count }
}

/// What a page should begin with.
fn wanted(runs: &[FileRun], page: u32) -> [u8; 5] {
    let run = runs.iter().find(|run| (run.span.first..run.span.end()).contains(&page));
    let [a, b, c, d] = page.to_le_bytes();
    run.map_or([0; 5], |run| [run.file as u8 + 1, a, b, c, d])
}

fn begins_with(memory: &PrivateMapping, page: u32) -> [u8; 5] {
    let mut bytes = [0; 5];
    memory.read(page as usize * PAGE, &mut bytes);
    bytes
}

/// A pager that listens, and its folder.
fn pager(runs: &[FileRun], files: Vec<File>, working_set: Option<&File>) -> (Pager, tempfile::TempDir) {
    let table = tempfile::tempfile().unwrap();
    let encoded = PageTable::new(MEMORY, files.len(), runs.to_vec()).unwrap().encode();
    table.write_all_at(&encoded, 0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let spec = shim::Pager {
        socket: folder.path().join("pager.sock"),
        table_fd: 10,
        file_fds: (20..).take(files.len()).collect(),
        working_set_fd: working_set.map(|_| 11),
    };
    let numbered = spec.file_fds.iter().copied().zip(files.into_iter().map(OwnedFd::from));
    let working_set = working_set.map(|file| (11, file.try_clone().unwrap().into()));
    let mut inherited = numbered.chain([(10, table.into())]).chain(working_set).collect();
    (Pager::set_up(&spec, None, &mut inherited).unwrap(), folder)
}

/// Says to the pager in `folder` what a VMM says.
fn greet_with(folder: &tempfile::TempDir, json: &str, descriptor: Option<OwnedFd>) -> UnixStream {
    let stream = UnixStream::connect(folder.path().join("pager.sock")).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
    if !descriptors.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    }
    sendmsg(&stream, &[IoSlice::new(json.as_bytes())], &mut ancillary, SendFlags::empty()).unwrap();
    stream
}

/// A guest's memory, in two regions that are one mapping, served by `pager` from now on.
fn guest(pager: &mut Pager, folder: &tempfile::TempDir) -> PrivateMapping {
    let memory = PrivateMapping::anonymous(MEMORY as usize).unwrap();
    let faults = Userfaultfd::create().expect("this test needs root and /dev/userfaultfd");
    faults.register(&memory).unwrap();
    let low = 100 * PAGE_BYTES;
    let json = format!(
        r#"[{{"base_host_virt_addr":{},"size":{low},"offset":0,"page_size":4096,"page_size_kib":4096}},
            {{"base_host_virt_addr":{},"size":{},"offset":{low},"page_size":4096,"page_size_kib":4096}}]"#,
        memory.address(),
        memory.address() + low,
        MEMORY - low
    );
    let stream = greet_with(folder, &json, Some(faults.into()));
    let now = Instant::now();
    pager.serve(now).unwrap();
    assert!(matches!(pager.0, State::Serving(_)), "it was greeted");
    drop(stream);
    memory
}

/// Something that a guest does on a thread, and the pipe that closes when it is done.
fn does<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> (JoinHandle<T>, PipeReader) {
    let (done, writer) = std::io::pipe().unwrap();
    let thread = std::thread::spawn(move || {
        let result = work();
        drop(writer);
        result
    });
    (thread, done)
}

/// Serves, as the shim's loop does, until the guest has done its work.
fn serve<T>(pager: &mut Pager, (thread, done): (JoinHandle<T>, PipeReader)) -> Result<T, PagerError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = Instant::now();
        assert!(now < deadline, "the guest waits for ever");
        let until = pager.wanted_at(now).unwrap_or(deadline).min(deadline);
        let timeout = Timespec::try_from(until.saturating_duration_since(now)).unwrap();
        let handle = pager.handle().expect("it serves");
        let mut fds = [PollFd::from_borrowed_fd(handle, PollFlags::IN), PollFd::new(&done, PollFlags::IN)];
        poll(&mut fds, Some(&timeout)).unwrap();
        let [wanted, done] = fds.map(|fd| !fd.revents().is_empty());
        if done {
            return Ok(thread.join().unwrap());
        }
        if wanted || pager.wanted_at(now).is_some_and(|at| at <= Instant::now()) {
            pager.serve(Instant::now())?;
        }
    }
}

fn server(pager: &Pager) -> &Server {
    match &pager.0 {
        State::Serving(server) => server,
        other => panic!("it does not serve: {other:?}"),
    }
}

/// Every page of a base, two patches over it and what is zero, forwards and in an order of chance, is what it should be.
#[test]
fn root_every_page_comes_from_where_it_lies() {
    let runs = [run(3, 40, 0), run(43, 1, 1), run(44, 56, 0), run(100, 1, 2), run(103, 1, 0), run(900, 300, 1)];
    let files = || {
        let pages = |file| runs.iter().filter(move |run| run.file == file).map(|run| (run.span.first, run.span.count));
        (0..3).map(|file| layer(file as u8 + 1, &pages(file).collect::<Vec<_>>())).collect::<Vec<_>>()
    };
    for step in [1, 1021] {
        let (mut pager, folder) = pager(&runs, files(), None);
        let mut memory = guest(&mut pager, &folder);
        let work = does(move || {
            memory.write(7 * PAGE, &[77]);
            memory.write(1500 * PAGE, &[88]);
            let pages = (0..PAGES).map(|number| number * step % PAGES);
            pages.map(|page| (page, begins_with(&memory, page))).collect::<Vec<_>>()
        });
        for (page, found) in serve(&mut pager, work).unwrap() {
            let mut wanted = wanted(&runs, page);
            match page {
                7 => wanted[0] = 77,
                1500 => wanted[0] = 88,
                _others => {}
            }
            assert_eq!(found, wanted, "page {page}");
        }
    }
}

/// Threads that want the same pages at the same time all go on.
#[test]
fn root_many_threads_that_want_the_same_are_served() {
    let runs = [run(0, PAGES, 0)];
    let (mut pager, folder) = pager(&runs, vec![layer(1, &[(0, PAGES)])], None);
    let memory = guest(&mut pager, &folder);
    let work = does(move || {
        let memory = std::sync::Mutex::new(memory);
        let address = |page: u32| memory.lock().unwrap().address() + u64::from(page) * PAGE_BYTES;
        let own = rustix::process::getpid();
        let touch = |page| {
            let mut byte = [0];
            let span = wrenn_sys::process_memory::Span { address: address(page), bytes: 1 };
            wrenn_sys::process_memory::read(own, &[span], &mut byte).map(|()| byte[0])
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| (0..PAGES).map(touch).collect::<Vec<_>>())).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).all(|byte| byte.is_ok_and(|byte| byte == 1))
        })
    });
    assert!(serve(&mut pager, work).unwrap());
}

#[test]
fn root_what_was_given_back_is_zero_and_its_neighbours_are_not() {
    let runs = [run(0, PAGES, 0)];
    let (mut pager, folder) = pager(&runs, vec![layer(1, &[(0, PAGES)])], None);
    let mut memory = guest(&mut pager, &folder);
    let work = does(move || {
        // Page 20 was there before, 21 was written, 22 is there because the block was served, 700 never was.
        let before = begins_with(&memory, 20);
        memory.write(21 * PAGE, &[5; 5]);
        memory.discard(20 * PAGE, 3 * PAGE).unwrap();
        memory.discard(700 * PAGE, PAGE).unwrap();
        // Across the border of two regions.
        memory.discard(99 * PAGE, 2 * PAGE).unwrap();
        let gone = [20, 21, 22, 700, 99, 100].map(|page| begins_with(&memory, page));
        let kept = [19, 23, 699, 701, 98, 101].map(|page| (page, begins_with(&memory, page)));
        memory.write(20 * PAGE, &[9; 5]);
        (before, gone, kept, begins_with(&memory, 20))
    });
    let (before, gone, kept, written) = serve(&mut pager, work).unwrap();
    assert_eq!(before, wanted(&runs, 20));
    assert_eq!(gone, [[0; 5]; 6]);
    kept.into_iter().for_each(|(page, found)| assert_eq!(found, wanted(&runs, page), "{page}"));
    assert_eq!(written, [9; 5]);
}

/// One thread gives memory back all the time, while others want pages: nobody waits for ever, and nothing old comes back.
#[test]
fn root_removals_and_faults_at_the_same_time() {
    let runs = [run(0, PAGES, 0)];
    let (mut pager, folder) = pager(&runs, vec![layer(1, &[(0, PAGES)])], None);
    let mut memory = guest(&mut pager, &folder);
    let work = does(move || {
        let (address, own) = (memory.address(), rustix::process::getpid());
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut byte = [0];
                let page = |page: u32| address + u64::from(page) * PAGE_BYTES;
                (1024..PAGES).all(|number| {
                    let span = wrenn_sys::process_memory::Span { address: page(number), bytes: 1 };
                    wrenn_sys::process_memory::read(own, &[span], &mut byte).is_ok() && byte == [1]
                })
            });
            let mut zero = true;
            for page in 0..1024 {
                memory.discard(page * PAGE, PAGE).unwrap();
                zero &= begins_with(&memory, page as u32) == [0; 5];
            }
            (zero, reader.join().unwrap())
        })
    });
    assert_eq!(serve(&mut pager, work).unwrap(), (true, true));
}

#[test]
fn root_a_file_that_was_cut_short_is_told() {
    let file = layer(1, &[(0, PAGES)]);
    file.set_len(1000 * PAGE_BYTES).unwrap();
    let (mut pager, folder) = pager(&[run(0, PAGES, 0)], vec![file], None);
    let memory = guest(&mut pager, &folder);
    let work = does(move || [999, 1008].map(|page| begins_with(&memory, page)));
    let error = serve(&mut pager, work).unwrap_err();
    let (found, wanted) = (1000 * PAGE_BYTES, 1008 * PAGE_BYTES);
    assert!(matches!(error, PagerError::Short { found: f, wanted: w, .. } if (f, w) == (found, wanted)), "{error}");
}

#[test]
fn root_what_cannot_be_read_is_told() {
    // A folder can be opened, and not read.
    let folder_as_file = File::open("/").unwrap();
    let (mut pager, folder) = pager(&[run(0, 1, 0)], vec![folder_as_file], None);
    let memory = guest(&mut pager, &folder);
    let error = serve(&mut pager, does(move || begins_with(&memory, 0))).unwrap_err();
    assert!(matches!(&error, PagerError::Read { offset: 0, .. }), "{error}");
    assert_eq!(crate::with_causes(&error), "cannot read / at byte 0: Is a directory (os error 21)");
}

/// First use: faults are noted. Second use: the same pages are there, in that order, before anybody asks.
#[test]
fn root_a_working_set_is_recorded_once_and_served_ahead_in_its_order() {
    let runs = [run(0, 1024, 0)];
    let hint = tempfile::tempfile().unwrap();
    let (mut first, folder) = pager(&runs, vec![layer(1, &[(0, 1024)])], Some(&hint));
    let memory = guest(&mut first, &folder);
    let work = does(move || [500, 40, 1030, 50, 511].map(|page| begins_with(&memory, page)));
    serve(&mut first, work).unwrap();
    first.finish();
    let recorded = read_working_set(&hint_from_start(&hint), MEMORY).unwrap();
    // Blocks of 16 pages; where all is zero, of 512; those that go on are one.
    assert_eq!(recorded, [span(496, 16), span(32, 16), span(1024, 512), span(48, 16)]);

    let (mut second, folder) = pager(&runs, vec![layer(1, &[(0, 1024)])], Some(&hint));
    let memory = guest(&mut second, &folder);
    let served = |pager: &Pager| [496, 511, 32, 1024, 1535, 63, 0].map(|page| server(pager).is_settled(page));
    assert_eq!(served(&second), [false; 7]);
    let mut order = Vec::new();
    while second.wanted_at(Instant::now()).is_some() {
        second.serve(Instant::now()).unwrap();
        order.push(served(&second));
    }
    let [t, f] = [true, false];
    let wanted = [[t, t, f, f, f, f, f], [t, t, t, f, f, f, f], [t, t, t, t, f, f, f], [t, t, t, t, t, f, f]];
    assert_eq!(order[..4], wanted);
    assert_eq!(order.last(), Some(&[t, t, t, t, t, t, f]));
    // Nobody serves any more, and nobody has to.
    let (thread, done) = does(move || [500, 40, 1030, 50, 511].map(|page| begins_with(&memory, page)));
    let timeout = Timespec::try_from(PATIENCE).unwrap();
    assert_eq!(poll(&mut [PollFd::new(&done, PollFlags::IN)], Some(&timeout)).unwrap(), 1, "a page was not there");
    assert_eq!(thread.join().unwrap()[0], self::wanted(&runs, 500));
}

fn hint_from_start(hint: &File) -> File {
    let mut hint = hint.try_clone().unwrap();
    std::io::Seek::rewind(&mut hint).unwrap();
    hint
}

#[test]
fn root_a_working_set_that_does_not_fit_is_recorded_anew_by_one_alone() {
    let runs = [run(0, PAGES, 0)];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("working-set");
    for useless in [Vec::new(), b"nonsense".to_vec(), encode_working_set(2 * MEMORY, &[span(0, 4000)])] {
        std::fs::write(&path, useless).unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let start = || pager(&runs, vec![layer(1, &[(0, PAGES)])], Some(&open()));
        let (mut one, one_folder) = start();
        let (mut other, other_folder) = start();
        let memories = [guest(&mut one, &one_folder), guest(&mut other, &other_folder)];
        for (pager, (memory, page)) in [&mut other, &mut one].into_iter().zip(memories.into_iter().rev().zip([7, 99])) {
            serve(pager, does(move || begins_with(&memory, page))).unwrap();
        }
        other.finish();
        one.finish();
        assert_eq!(read_working_set(open(), MEMORY).unwrap(), [span(96, 4)], "up to the region's end");
    }
}

#[test]
fn root_what_is_recorded_is_bounded() {
    let hint = tempfile::tempfile().unwrap();
    let (mut pager, folder) = pager(&[run(0, PAGES, 0)], vec![layer(1, &[(0, PAGES)])], Some(&hint));
    let memory = guest(&mut pager, &folder);
    let work = does(move || (0..PAGES).map(|page| begins_with(&memory, page)[0]).all(|byte| byte == 1));
    assert!(serve(&mut pager, work).unwrap());
    let recorded: u32 = read_working_set(&hint_from_start(&hint), MEMORY).unwrap().iter().map(|span| span.count).sum();
    assert!((PAGES / 5..PAGES / 4).contains(&recorded), "{recorded} pages");
}

#[test]
fn a_vmm_that_says_something_else_is_not_served() {
    for (json, descriptor) in [
        ("nonsense", None),
        (r#"[{"base_host_virt_addr":4096,"size":4096,"offset":0}]"#, None),
        (r#"[{"base_host_virt_addr":4096,"size":8388608,"offset":0}]"#, None),
        (r#"[{"base_host_virt_addr":4096,"size":8388608,"offset":0}]"#, Some(tempfile::tempfile().unwrap().into())),
    ] {
        let (mut pager, folder) = pager(&[], vec![], None);
        let stream = greet_with(&folder, json, descriptor);
        let error = pager.serve(Instant::now()).unwrap_err();
        let expected = matches!(error, PagerError::Json(_) | PagerError::Mappings(_) | PagerError::Events(_));
        assert!(expected, "{json}: {error:?}");
        assert!(pager.handle().is_none() && !folder.path().join("pager.sock").exists());
        drop(stream);
    }
    let (mut pager, folder) = pager(&[], vec![], None);
    drop(UnixStream::connect(folder.path().join("pager.sock")).unwrap());
    let error = pager.serve(Instant::now()).unwrap_err();
    assert!(matches!(error, PagerError::Greeting(_)), "{error:?}");
}

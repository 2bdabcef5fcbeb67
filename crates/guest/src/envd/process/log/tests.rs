use super::*;
use proptest::prelude::*;
use std::time::Duration;

fn log() -> Arc<Log> {
    Pool::new(limits::RINGS_BYTES_MAX).log()
}

/// What a reader gets without waiting.
async fn available(reader: &mut Reader) -> Vec<Item> {
    let mut items = Vec::new();
    while let Ok(item) = tokio::time::timeout(Duration::ZERO, reader.next()).await {
        let is_last = matches!(item, Item::End(_) | Item::Detached(_));
        items.push(item);
        if is_last {
            break;
        }
    }
    items
}

fn bytes(items: &[Item]) -> Vec<u8> {
    items
        .iter()
        .filter_map(|item| if let Item::Output(piece) = item { Some(&piece.bytes[..]) } else { None })
        .collect::<Vec<_>>()
        .concat()
}

fn output(offset: u64, stream: Stream, bytes: &'static [u8]) -> Item {
    Item::Output(Piece { offset, stream, bytes: Bytes::from_static(bytes) })
}

async fn has_room(log: &Log) -> bool {
    tokio::time::timeout(Duration::ZERO, log.room()).await.is_ok()
}

#[tokio::test]
async fn a_reader_gets_bytes_in_order_then_the_end() {
    let log = log();
    let mut reader = log.attach(Some(0)).unwrap();
    log.push(Stream::Stdout, b"one ");
    log.push(Stream::Stdout, b"two ");
    log.push(Stream::Stderr, b"oh ");
    log.push(Stream::Stdout, b"three");
    log.finish(End::Exited(3));
    let expected = [
        output(0, Stream::Stdout, b"one two "),
        output(8, Stream::Stderr, b"oh "),
        output(11, Stream::Stdout, b"three"),
        Item::End(End::Exited(3)),
    ];
    assert_eq!(available(&mut reader).await, expected);
    assert_eq!(available(&mut reader).await, [Item::End(End::Exited(3))], "the end stays the end");
}

#[tokio::test]
async fn a_late_reader_gets_what_it_asks_for() {
    let log = log();
    log.push(Stream::Pty, b"0123456789");
    let mut live = log.attach(None).unwrap();
    let mut from_four = log.attach(Some(4)).unwrap();
    let mut beyond = log.attach(Some(99)).unwrap();
    log.push(Stream::Pty, b"ab");
    log.finish(End::Signalled(9));
    let end = Item::End(End::Signalled(9));
    assert_eq!(available(&mut live).await, [output(10, Stream::Pty, b"ab"), end.clone()]);
    assert_eq!(available(&mut from_four).await, [output(4, Stream::Pty, b"456789ab"), end.clone()]);
    assert_eq!(available(&mut beyond).await, [output(10, Stream::Pty, b"ab"), end]);
}

#[tokio::test]
async fn with_nobody_attached_the_tail_is_kept_and_the_gap_is_told() {
    let log = log();
    let chunk = vec![7_u8; limits::PIPE_EVENT_BYTES_MAX];
    let chunks = 3 * limits::RING_BYTES_MAX / chunk.len();
    for _ in 0..chunks {
        log.push_shared(Stream::Stdout, Bytes::from(chunk.clone()));
        assert!(has_room(&log).await, "nobody is waited for");
    }
    log.finish(End::Exited(0));
    let total = (chunks * chunk.len()) as u64;
    let mut reader = log.attach(Some(1000)).unwrap();
    let items = available(&mut reader).await;
    let Some(Item::Gap(gap)) = items.first() else { panic!("no gap first: {:?}", items.first()) };
    let got = bytes(&items).len();
    assert_eq!(1000 + gap + got as u64, total, "every byte is either told or gone");
    assert!(got > limits::RING_BYTES_MAX * 9 / 10 && got <= limits::RING_BYTES_MAX, "{got}");
}

#[tokio::test(start_paused = true)]
async fn an_attached_reader_makes_the_writer_wait() {
    let log = log();
    let mut reader = log.attach(Some(0)).unwrap();
    let chunk = Bytes::from(vec![1; limits::PIPE_EVENT_BYTES_MAX]);
    let mut pushed = 0;
    while has_room(&log).await {
        log.push_shared(Stream::Stdout, chunk.clone());
        pushed += chunk.len();
    }
    assert_eq!(pushed, limits::UNREAD_BYTES_MAX);
    reader.next().await;
    assert!(has_room(&log).await, "the reader took something");
    log.push_shared(Stream::Stdout, chunk);
    drop(reader);
    assert!(has_room(&log).await, "nobody is left to wait for");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stalls_is_detached_and_may_come_back() {
    let log = log();
    let mut stalled = log.attach(Some(0)).unwrap();
    let mut content = log.attach(Some(0)).unwrap();
    // Idle for long before anything is written: that is no stall.
    tokio::time::advance(limits::STALL_TIME_MAX * 10).await;
    let data: Vec<u8> = (0..limits::UNREAD_BYTES_MAX).map(|index| index as u8).collect();
    for chunk in data.chunks(limits::PIPE_EVENT_BYTES_MAX) {
        log.push(Stream::Stdout, chunk);
    }
    available(&mut content).await;
    let before = Instant::now();
    log.room().await;
    assert_eq!(before.elapsed(), limits::STALL_TIME_MAX);
    assert_eq!(available(&mut stalled).await, [Item::Detached(0)]);
    log.push(Stream::Stdout, b"more");
    assert_eq!(bytes(&available(&mut content).await), b"more", "who reads stays");
    let mut back = log.attach(Some(0)).unwrap();
    let got = bytes(&available(&mut back).await);
    assert_eq!(got, [&data[..], b"more"].concat());
}

#[tokio::test]
async fn all_logs_together_keep_no_more_than_the_pool() {
    const LIMIT: usize = 4 * 1024 * 1024;
    let pool = Pool::new(LIMIT);
    let small = pool.log();
    small.push(Stream::Stdout, b"a few bytes that matter");
    let logs: Vec<_> = (0..12).map(|_| pool.log()).collect();
    for _ in 0..64 {
        for log in &logs {
            log.push_shared(Stream::Stdout, Bytes::from(vec![0; 16 * 1024]));
            assert!(pool.used() <= LIMIT + 16 * 1024 + limits::CHUNK_OVERHEAD_BYTES);
        }
    }
    let mut reader = small.attach(Some(0)).unwrap();
    assert_eq!(bytes(&available(&mut reader).await), b"a few bytes that matter", "the flood pays, not the others");
    drop((reader, small, logs));
    assert_eq!(pool.used(), 0);
}

#[tokio::test]
async fn a_full_pool_never_takes_what_a_reader_needs() {
    let pool = Pool::new(64 * 1024);
    let log = pool.log();
    let mut reader = log.attach(Some(0)).unwrap();
    for _ in 0..4 {
        log.push_shared(Stream::Stderr, Bytes::from(vec![9; 32 * 1024]));
    }
    assert!(!has_room(&log).await, "a full pool leaves little ahead");
    assert_eq!(bytes(&available(&mut reader).await).len(), 128 * 1024);
    log.push(Stream::Stderr, b"x");
    assert!(pool.used() <= 64 * 1024, "what was read may go: {}", pool.used());
}

#[tokio::test]
async fn readers_are_limited() {
    let log = log();
    let readers: Vec<_> = (0..limits::READERS_MAX).map(|_| log.attach(None).unwrap()).collect();
    assert_eq!(log.attach(None).unwrap_err(), TooManyReaders);
    drop(readers);
    log.attach(None).unwrap();
}

#[tokio::test]
async fn a_waiting_reader_is_woken() {
    let log = log();
    let mut reader = log.attach(Some(0)).unwrap();
    let waiting = tokio::spawn(async move { reader.next().await });
    tokio::task::yield_now().await;
    log.push(Stream::Stdout, b"hello");
    assert_eq!(waiting.await.unwrap(), output(0, Stream::Stdout, b"hello"));
}

#[derive(Debug, Clone)]
enum Act {
    Push(Stream, usize),
    PushShared(Stream, usize),
    Read(usize),
    Return,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let stream = prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)];
    let act = prop_oneof![
        4 => (stream.clone(), 1..5000_usize).prop_map(|(stream, size)| Act::Push(stream, size)),
        4 => (stream, 16_384..=32_768_usize).prop_map(|(stream, size)| Act::PushShared(stream, size)),
        3 => (1..20_usize).prop_map(Act::Read),
        1 => Just(Act::Return),
    ];
    proptest::collection::vec(act, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A reader that comes and goes sees each byte once, at its place, or is told that it is gone.
    #[test]
    fn every_byte_is_given_or_missed_by_number(acts in acts()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let log = log();
            let mut written: Vec<(u8, Stream)> = Vec::new();
            let mut reader = log.attach(Some(0)).unwrap();
            let mut position = 0_u64;
            for act in acts {
                match act {
                    Act::Push(stream, size) | Act::PushShared(stream, size) => {
                        let data: Vec<u8> = (0..size).map(|index| (written.len() + index) as u8).collect();
                        written.extend(data.iter().map(|byte| (*byte, stream)));
                        if matches!(act, Act::Push(..)) { log.push(stream, &data) } else { log.push_shared(stream, data.into()) }
                    }
                    Act::Read(times) => {
                        for _ in 0..times {
                            let Ok(item) = tokio::time::timeout(Duration::ZERO, reader.next()).await else { break };
                            match item {
                                Item::Gap(bytes) => position += bytes,
                                Item::Output(piece) => {
                                    prop_assert_eq!(piece.offset, position);
                                    prop_assert!(piece.bytes.len() <= piece.stream.event_bytes_max());
                                    for byte in &piece.bytes {
                                        prop_assert_eq!((*byte, piece.stream), written[position as usize]);
                                        position += 1;
                                    }
                                }
                                other => prop_assert!(false, "{:?}", other),
                            }
                        }
                    }
                    Act::Return => {
                        drop(reader);
                        // Long enough away to lose something, sometimes.
                        let filler = vec![0_u8; 20_000];
                        for _ in 0..30 {
                            written.extend(filler.iter().map(|byte| (*byte, Stream::Pty)));
                            log.push(Stream::Pty, &filler[..10_000]);
                            log.push(Stream::Pty, &filler[10_000..]);
                        }
                        reader = log.attach(Some(position)).unwrap();
                    }
                }
            }
            Ok(())
        })?;
    }
}

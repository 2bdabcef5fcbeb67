//! The internet's servers and its recorder, on one thread in the internet's namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, eth, recv, socket_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use wrenn_sys::netns::NetNs;

use crate::{DNS, PAGE, PRIVATE_DNS, PRIVATE_TARGETS, Packet, Record, WEB, WEB_NAME};

/// Longest request of a client, in bytes.
const REQUEST_BYTES_MAX: usize = 4096;
/// What `/bytes/N` serves at most: enough to measure a link with.
const BYTES_MAX: u64 = 1 << 30;
/// Longest frame that is looked at; only its head matters.
const FRAME_BYTES_MAX: usize = 2048;
/// Seconds that a DNS answer is good for.
const TTL: u32 = 60;

/// Starts the servers; they listen, and what passes is recorded, when this returns.
pub(crate) fn start(netns: NetNs, seen: Record, stopped: oneshot::Receiver<()>) -> io::Result<JoinHandle<()>> {
    let frames = netns.run(packet_socket)??;
    let (listening, ready) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("internet".to_owned()).spawn(move || {
        let stop_recording = eventfd(0, EventfdFlags::CLOEXEC).expect("a descriptor is free");
        std::thread::scope(|scope| {
            let recorder = scope.spawn(|| record_packets(&frames, &stop_recording, &seen));
            let served = netns.run(|| serve_until(&seen, listening, stopped));
            rustix::io::write(&stop_recording, &1_u64.to_ne_bytes()).expect("an eventfd takes a 1");
            recorder.join().expect("the recorder does not panic").expect("frames can be read");
            // What went wrong before they listened was told to the starter.
            served.map(drop).ok();
        });
    })?;
    ready.recv().map_err(io::Error::other)??;
    Ok(thread)
}

fn serve_until(seen: &Record, listening: SyncSender<io::Result<()>>, stopped: oneshot::Receiver<()>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let tasks = listen(seen).await;
        let listens = tasks.as_ref().map(drop).map_err(|error| io::Error::new(error.kind(), error.to_string()));
        listening.send(listens).map_err(io::Error::other)?;
        // A World that is gone without a word ends the internet, too.
        stopped.await.ok();
        tasks.map(drop)
    })
}

async fn listen(seen: &Record) -> io::Result<JoinSet<io::Result<()>>> {
    let mut tasks = JoinSet::new();
    for address in [DNS, PRIVATE_DNS] {
        tasks.spawn(dns_udp(UdpSocket::bind((address, 53)).await?));
        tasks.spawn(dns_tcp(TcpListener::bind((address, 53)).await?, Arc::clone(seen)));
    }
    for address in [WEB, PRIVATE_DNS].into_iter().chain(PRIVATE_TARGETS) {
        tasks.spawn(web(TcpListener::bind((address, 80)).await?, Arc::clone(seen)));
    }
    Ok(tasks)
}

fn packet_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(eth::ALL))?)
}

/// The socket sees frames in both directions: those that the router itself sends have a source of the internet's.
fn record_packets(frames: &OwnedFd, stop: &OwnedFd, seen: &Record) -> io::Result<()> {
    let mut frame = vec![0; FRAME_BYTES_MAX];
    loop {
        let mut ends = [PollFd::new(frames, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        poll(&mut ends, None)?;
        if !ends[1].revents().is_empty() {
            return Ok(());
        }
        let length = match recv(frames, &mut frame[..], RecvFlags::empty()) {
            Ok((length, _)) => length,
            Err(Errno::AGAIN | Errno::NETDOWN) => continue,
            Err(error) => return Err(error.into()),
        };
        if let Some(packet) = parse(&frame[..length]).filter(from_the_host) {
            seen.lock().unwrap_or_else(PoisonError::into_inner).packets.push(packet);
        }
    }
}

/// Not what the router itself says, nor what any link says to itself when it comes up.
fn from_the_host(packet: &Packet) -> bool {
    let link_local = matches!(packet.destination, IpAddr::V6(address) if address.segments()[0] == 0xff02);
    !link_local && !is_of_the_internet(packet.source)
}

fn is_of_the_internet(source: IpAddr) -> bool {
    let own = [DNS, PRIVATE_DNS, WEB, crate::ROUTER, Ipv4Addr::LOCALHOST];
    own.iter().chain(&PRIVATE_TARGETS).any(|address| source == IpAddr::V4(*address))
}

fn parse(frame: &[u8]) -> Option<Packet> {
    let payload = frame.get(14..)?;
    match u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]) {
        0x0800 => parse_v4(payload),
        0x86dd => parse_v6(payload),
        _ => None,
    }
}

fn parse_v4(packet: &[u8]) -> Option<Packet> {
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes).into())
    };
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let (source, destination, protocol) = (address(12)?, address(16)?, *packet.get(9)?);
    Some(Packet { source, destination, protocol, port: port(protocol, packet.get(header..)?) })
}

fn parse_v6(packet: &[u8]) -> Option<Packet> {
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(bytes).into())
    };
    let (source, destination, protocol) = (address(8)?, address(24)?, *packet.get(6)?);
    Some(Packet { source, destination, protocol, port: port(protocol, packet.get(40..)?) })
}

fn port(protocol: u8, segment: &[u8]) -> Option<u16> {
    matches!(protocol, 6 | 17).then(|| Some(u16::from_be_bytes([*segment.get(2)?, *segment.get(3)?])))?
}

async fn dns_udp(socket: UdpSocket) -> io::Result<()> {
    let mut query = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut query).await?;
        if let Some(answer) = answer(&query[..length]) {
            socket.send_to(&answer, from).await?;
        }
    }
}

async fn dns_tcp(listener: TcpListener, seen: Record) -> io::Result<()> {
    loop {
        let stream = accept(&listener, &seen).await?;
        tokio::spawn(answer_tcp(stream));
    }
}

async fn answer_tcp(mut stream: TcpStream) -> io::Result<()> {
    let length = stream.read_u16().await?;
    let mut query = vec![0; usize::from(length)];
    stream.read_exact(&mut query).await?;
    let answer = answer(&query).unwrap_or_default();
    stream.write_u16(answer.len() as u16).await?;
    stream.write_all(&answer).await
}

/// The answer to a query: the web server's address for its name, else "no such name". `None` for what is no query.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let question_end = 12 + query.get(12..)?.iter().position(|byte| *byte == 0)? + 5;
    let question = query.get(12..question_end)?;
    let asks_a = question[question.len() - 4..] == [0, 1, 0, 1];
    let known = name(question)?.eq_ignore_ascii_case(WEB_NAME);
    let answers = u8::from(known && asks_a);
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, if known { 0x80 } else { 0x83 }, 0, 1, 0, answers, 0, 0, 0, 0]);
    answer.extend(question);
    if answers == 1 {
        answer.extend([0xc0, 12, 0, 1, 0, 1]);
        answer.extend(TTL.to_be_bytes());
        answer.extend([0, 4]);
        answer.extend(WEB.octets());
    }
    Some(answer)
}

fn name(question: &[u8]) -> Option<String> {
    let (mut labels, mut rest) = (Vec::new(), question);
    loop {
        let (&length, tail) = rest.split_first()?;
        if length == 0 {
            return Some(labels.join("."));
        }
        let (label, tail) = tail.split_at_checked(usize::from(length))?;
        labels.push(String::from_utf8_lossy(label).into_owned());
        rest = tail;
    }
}

async fn web(listener: TcpListener, seen: Record) -> io::Result<()> {
    loop {
        let stream = accept(&listener, &seen).await?;
        tokio::spawn(serve(stream));
    }
}

async fn accept(listener: &TcpListener, seen: &Record) -> io::Result<TcpStream> {
    let (stream, peer): (TcpStream, SocketAddr) = listener.accept().await?;
    let local = stream.local_addr()?;
    seen.lock().unwrap_or_else(PoisonError::into_inner).connections.push((peer, local));
    Ok(stream)
}

/// `/` is a page, `/bytes/N` is that many bytes.
async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let path = request.split(' ').nth(1).unwrap_or("/");
    let bytes = path.strip_prefix("/bytes/").and_then(|count| count.parse::<u64>().ok());
    let length = bytes.map_or(PAGE.len() as u64, |bytes| bytes.min(BYTES_MAX));
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    match bytes {
        None => stream.write_all(PAGE.as_bytes()).await?,
        Some(_) => drop(tokio::io::copy(&mut tokio::io::repeat(b'w').take(length), &mut stream).await?),
    }
    stream.shutdown().await
}

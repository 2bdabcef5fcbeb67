//! What a test does from wherever its thread is: plain blocking clients with deadlines.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

use crate::{ROUTER, World};

/// Time for one answer. Long, because machines are shared; nothing waits for it to pass when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Fetches a page of the server at `address`, port 80: the body.
pub fn fetch(address: Ipv4Addr, path: &str) -> io::Result<Vec<u8>> {
    fetch_within(address, path, PATIENCE)
}

/// Fetches a page within `limit` per step.
pub fn fetch_within(address: Ipv4Addr, path: &str, limit: Duration) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, 80)), limit)?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response)?;
    let head = response.windows(4).position(|end| end == b"\r\n\r\n");
    let head = head.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no HTTP answer"))?;
    Ok(response.split_off(head + 4))
}

/// Asks a name server over UDP for a name's address; `None` if there is no such name.
pub fn resolve(server: Ipv4Addr, name: &str) -> io::Result<Option<Ipv4Addr>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((server, 53))?;
    socket.send(&query(name))?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    address_in(&answer[..length])
}

/// Asks a name server over TCP.
pub fn resolve_tcp(server: Ipv4Addr, name: &str) -> io::Result<Option<Ipv4Addr>> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((server, 53)), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let query = query(name);
    stream.write_all(&(query.len() as u16).to_be_bytes())?;
    stream.write_all(&query)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    address_in(&answer)
}

/// Tries to connect; the error's kind if it does not come about within `limit`. A connection is reset at once, so that
/// nothing of it is on the way any more when this returns.
pub fn connects(address: Ipv4Addr, port: u16, limit: Duration) -> Result<(), io::ErrorKind> {
    let connected = TcpStream::connect_timeout(&SocketAddr::from((address, port)), limit);
    let reset = connected.and_then(|stream| Ok(set_socket_linger(&stream, Some(Duration::ZERO))?));
    reset.map_err(|error| error.kind())
}

/// Sends a UDP packet and waits for nothing.
pub fn send_udp(address: Ipv4Addr, port: u16) -> io::Result<()> {
    UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", (address, port)).map(drop)
}

/// Sends a packet from the host to the router and waits until the router has seen it.
pub(crate) fn mark(world: &World) -> io::Result<()> {
    let is_mark = |port: u16| {
        move |packet: &&crate::Packet| packet.port == Some(port) && packet.destination == IpAddr::V4(ROUTER)
    };
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // The sender's port is unique, so it names the mark.
    let port = socket.local_addr()?.port();
    let before = world.packets().iter().filter(is_mark(port)).count();
    socket.send_to(b"mark", (ROUTER, port))?;
    let deadline = Instant::now() + PATIENCE;
    while world.packets().iter().filter(is_mark(port)).count() == before {
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn query(name: &str) -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

fn address_in(answer: &[u8]) -> io::Result<Option<Ipv4Addr>> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "no DNS answer");
    let header = answer.get(..12).ok_or_else(short)?;
    match (header[3] & 0x0f, header[7]) {
        (3, _) => Ok(None),
        (0, 1) => {
            let address: [u8; 4] = answer[answer.len() - 4..].try_into().expect("four bytes");
            Ok(Some(address.into()))
        }
        (code, answers) => Err(io::Error::other(format!("DNS code {code} with {answers} answers"))),
    }
}

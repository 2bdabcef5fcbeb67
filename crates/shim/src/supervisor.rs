//! The poll loop: waits for whatever comes first, does it, looks at the clock.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use wrenn_proto::shim::Reason;
use wrenn_sys::process::SignalFd;

use crate::clients::{Client, Wish};
use crate::complain;
use crate::limits::{CLIENTS_MAX, FAREWELL, TERMINATION_GRACE};
use crate::pager::Pager;
use crate::service::Service;
use crate::setup::Socket;

/// SIGTERM's number; the other signals we get are taken and ignored.
const SIGTERM: i32 = rustix::process::Signal::TERM.as_raw();

/// Why the shim could not go on.
#[derive(Debug, thiserror::Error)]
#[error("cannot wait for events; the VMM is ended")]
pub struct PollError {
    source: io::Error,
}

/// The running shim.
#[derive(Debug)]
pub struct Supervisor {
    service: Service,
    clients: Vec<Client>,
    // Declared before the socket's drop removes its file: no client is left that could ask about it.
    socket: Socket,
    signals: SignalFd,
    linger: Option<Duration>,
    /// Since when there is neither a VMM nor a client.
    alone_since: Option<Instant>,
    /// The shim leaves when all answers are sent, or at this time.
    leave_at: Option<Instant>,
    /// The shim leaves as soon as the VMM has ended.
    terminated: bool,
}

/// What `poll` said, detached from what was polled.
#[derive(Debug, Default)]
struct Events {
    signals: bool,
    vmm: bool,
    console: bool,
    log: bool,
    memory: bool,
    listener: bool,
    /// One per client, in their order.
    clients: Vec<PollFlags>,
}

impl Supervisor {
    /// The VMM runs, the socket listens. Without `linger` it stays until it is told to leave.
    pub fn new(service: Service, socket: Socket, signals: SignalFd, linger: Option<Duration>) -> Self {
        Self {
            service,
            clients: Vec::new(),
            socket,
            signals,
            linger,
            alone_since: None,
            leave_at: None,
            terminated: false,
        }
    }

    /// The VMM's pid.
    pub fn vmm_pid(&self) -> u32 {
        self.service.vmm.pid()
    }

    /// Runs until it is time to leave.
    pub fn run(mut self) -> Result<(), PollError> {
        while !self.may_leave(Instant::now()) {
            match self.wait() {
                Ok(events) => self.act(&events, Instant::now()),
                Err(source) => return Err(self.give_up(source)),
            }
        }
        Ok(())
    }

    fn may_leave(&self, now: Instant) -> bool {
        let told = self.leave_at.is_some_and(|at| now >= at || self.clients.iter().all(Client::is_flushed));
        told || self.linger_ends_at().is_some_and(|at| now >= at)
    }

    fn linger_ends_at(&self) -> Option<Instant> {
        let ended = self.service.vmm.record().is_some();
        self.alone_since.filter(|_| ended).zip(self.linger).map(|(since, linger)| since + linger)
    }

    /// Sleeps until something happens or the next deadline; answers what happened.
    fn wait(&mut self) -> io::Result<Events> {
        let timeout = self.next_deadline().map(|at| timespec(at.saturating_duration_since(Instant::now())));
        let now = Instant::now();
        let mut fds = Vec::with_capacity(6 + self.clients.len());
        fds.push(PollFd::new(&self.signals, PollFlags::IN));
        fds.push(PollFd::new(&self.socket.listener, PollFlags::IN));
        let service = &mut self.service;
        let memory = service.pager.as_ref().and_then(Pager::handle);
        let optional = [service.vmm.handle(), service.console.wanted(now), service.log.wanted(now), memory];
        let present = optional.each_ref().map(Option::is_some);
        fds.extend(optional.into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let clients_from = fds.len();
        fds.extend(self.clients.iter().map(|client| PollFd::from_borrowed_fd(client.socket(), client.interest())));

        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Events::default()),
            Err(errno) => return Err(errno.into()),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = |wanted: bool| wanted && ready.next().unwrap_or(false);
        Ok(Events {
            signals: next(true),
            listener: next(true),
            vmm: next(present[0]),
            console: next(present[1]),
            log: next(present[2]),
            memory: next(present[3]),
            clients: fds[clients_from..].iter().map(PollFd::revents).collect(),
        })
    }

    fn next_deadline(&self) -> Option<Instant> {
        let service = &self.service;
        let pipes = [service.console.wanted_at(), service.log.wanted_at()];
        // In the past: the pipe is polled now, no need to wake up for it.
        let now = Instant::now();
        let pipes = pipes.into_iter().flatten().filter(|at| *at > now);
        let memory = service.pager.as_ref().and_then(|pager| pager.wanted_at(now));
        let own = [service.vmm.kill_at(), memory, self.linger_ends_at(), self.leave_at].into_iter().flatten();
        pipes.chain(own).chain(self.clients.iter().filter_map(Client::stalls_at)).min()
    }

    fn act(&mut self, events: &Events, now: Instant) {
        // First of all: the guest stands still meanwhile.
        let pager = self.service.pager.as_ref();
        if events.memory || pager.and_then(|pager| pager.wanted_at(now)).is_some_and(|at| now >= at) {
            self.service.serve_memory(now);
        }
        if events.signals {
            self.take_signals(now);
        }
        if events.console {
            self.service.console.read(&mut self.service.buffer, now);
        }
        if events.log {
            self.service.log.read(&mut self.service.buffer, now);
        }
        self.serve_clients(&events.clients, now);
        if events.vmm && self.service.notice_end() {
            self.tell_end(now);
        }
        if events.listener {
            self.accept(now);
        }
        if let Err(error) = self.service.vmm.kill_if_due(now) {
            complain(&format!("cannot kill the VMM: {error}"));
        }
        self.clients.retain(|client| !client.is_over(now));
        self.note_solitude(now);
    }

    fn take_signals(&mut self, now: Instant) {
        while let Ok(Some(signal)) = self.signals.read() {
            if signal == SIGTERM {
                self.terminate(now);
            }
        }
    }

    /// Ends the VMM, then leaves.
    fn terminate(&mut self, now: Instant) {
        self.terminated = true;
        if self.service.vmm.record().is_some() {
            self.leave(now);
        } else if let Err(error) = self.service.vmm.stop(TERMINATION_GRACE, Reason::ShimTerminated, now) {
            complain(&format!("cannot end the VMM: {error}"));
        }
    }

    fn serve_clients(&mut self, ready: &[PollFlags], now: Instant) {
        let mut wish = Wish::Stay;
        for (client, ready) in self.clients.iter_mut().zip(ready).filter(|(_, ready)| !ready.is_empty()) {
            wish = wish.or(client.serve(*ready, &mut self.service, now));
        }
        if wish == Wish::Leave {
            self.leave(now);
        }
    }

    fn tell_end(&mut self, now: Instant) {
        let Some(record) = self.service.vmm.record() else { return };
        let mut wish = if self.terminated { Wish::Leave } else { Wish::Stay };
        for client in &mut self.clients {
            wish = wish.or(client.tell_end(record, now));
        }
        if wish == Wish::Leave {
            self.leave(now);
        }
    }

    fn leave(&mut self, now: Instant) {
        self.leave_at.get_or_insert(now + FAREWELL);
    }

    /// Takes every connection that waits; those beyond the limit are told so and closed.
    fn accept(&mut self, now: Instant) {
        while let Ok((stream, _)) = self.socket.listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            // Those who have hung up make room.
            self.clients.retain(|client| !client.is_over(now));
            if self.clients.len() < CLIENTS_MAX {
                self.clients.push(Client::new(stream, now));
            } else {
                Client::turn_away(stream);
            }
        }
    }

    fn note_solitude(&mut self, now: Instant) {
        if self.clients.is_empty() && self.service.vmm.record().is_some() {
            self.alone_since.get_or_insert(now);
        } else {
            self.alone_since = None;
        }
    }

    /// Without events there is no way to look after the VMM any more: it is ended, and its end recorded.
    fn give_up(&mut self, source: io::Error) -> PollError {
        let now = Instant::now();
        if let Err(error) = self.service.vmm.stop(Duration::ZERO, Reason::ShimFailed, now) {
            complain(&format!("cannot kill the VMM: {error}"));
        }
        self.service.vmm.wait_for_end();
        if self.service.notice_end() {
            self.tell_end(now);
        }
        PollError { source }
    }
}

fn timespec(duration: Duration) -> Timespec {
    // Seconds are far below the limit; a linger is at most 2^32.
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}

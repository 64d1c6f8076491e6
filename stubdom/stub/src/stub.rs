//! The stub: everything it owns, and what it does between two sleeps.

mod way_out;

use crate::exchange::{Reply, Service};
use crate::life;
use crate::link::{Link, LinkError};
use crate::net::Net;
use crate::patience::Patience;
use crate::receive::{ReceiveError, Reception};
use crate::ring::Ring;
use crate::send::{SendError, Sending};
use crate::status::Status;
use crate::survey;
use crate::target::TargetXen;
use alloc::string::ToString;
use control::{
    FromStub, MAX_TEXT_BYTES, Phase, Receive, Stage, ToStub, Transport, Untrusted, VCHAN_PATH, VERSION,
};
use core::fmt;
use stub_net::{Addressing, Service as StreamService, Stream};
use xen_abi::errno::Errno;
use xen_abi::types::{Domid, Port};
use xen_front::boot::Domain;
use xen_front::clock::Clock;
use xen_front::events::Events;
use xen_front::grants::{self, GrantTable};
use xen_front::memory::{self, Memory};
use xen_front::net::Netfront;
use xen_front::target::Target;
use xen_front::vchan::{self, Server};
use xen_front::xenstore::{self, Xenstore};

/// Frames of the grant table: 2,040 grants, for the network and the channels.
const NR_GRANT_FRAMES: usize = 4;

/// log2 of the bytes of each ring of the control channel.
const CONTROL_ORDER: u32 = 12;

/// Event channels to sleep on: xenstore, control, the two streams' rings, and up to two of the network.
const MAX_PORTS: usize = 6;

/// Bytes of a stream that are taken before the stub looks at everything else again.
const TURN_BYTES: usize = 1 << 20;

/// How long whoever connects may take to prove that it is stubctl, in nanoseconds: the next in line waits for it.
const PROOF_NS: u64 = 2_000_000_000;

/// Why the stub cannot start.
#[derive(Debug)]
pub(crate) enum StartError {
    /// The grant table.
    #[expect(dead_code, reason = "shown by the panic")]
    Grants(grants::Error),
    /// The control channel.
    #[expect(dead_code, reason = "shown by the panic")]
    Control(vchan::Error),
    /// Xenstore.
    #[expect(dead_code, reason = "shown by the panic")]
    Store(xenstore::Error),
    /// No memory for the network.
    Network,
}

/// Why a command of stubctl's failed.
enum CommandError {
    /// It needs a target, and none is paired.
    Unpaired,
    /// A second target.
    Paired(Domid),
    /// The target cannot be had.
    Target(Domid, Errno),
    /// No window onto the target.
    Window(memory::Error),
    /// No ring for the stream.
    Ring(vchan::Error),
    /// The reception.
    Receive(ReceiveError),
    /// The send.
    Send(SendError),
    /// A command that makes no sense now.
    Unexpected(ToStub),
    /// The other end speaks another version.
    Version(u16),
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unpaired => f.write_str("expected Pair before this command: the stub has no target"),
            Self::Paired(target) => write!(f, "the stub serves {target} and can serve no other"),
            Self::Target(target, errno) => write!(f, "no rights over {target}: {errno}"),
            Self::Window(error) => write!(f, "no window onto the target: {error:?}"),
            Self::Ring(error) => write!(f, "no ring for the stream: {error:?}"),
            Self::Receive(error) => error.fmt(f),
            Self::Send(error) => error.fmt(f),
            Self::Unexpected(command) => write!(f, "expected another command than {command:?} now"),
            Self::Version(got) => write!(f, "expected control protocol version {VERSION}, got {got}"),
        }
    }
}

/// The stub.
pub(crate) struct Stub {
    memory: Memory,
    events: Events,
    clock: Clock,
    patience: Patience,
    store: Xenstore,
    grants: GrantTable,
    net: Net,
    /// The stream's vchan, once a stream has come that way.
    ring: Option<Ring>,
    /// The vchan of the stream that leaves, once one has.
    way_out: Option<Ring>,
    /// What the current stream, or the last one, comes by.
    transport: Transport,
    link: Link,
    status: Status,
    /// When the stub ends if it has no target by then, in nanoseconds of system time.
    pair_by_ns: u64,
    /// When a client is turned away that has not proven itself by then, in nanoseconds of system time.
    prove_by_ns: Option<u64>,
    xen: Option<TargetXen>,
    reception: Option<Reception>,
    sending: Option<Sending>,
    exchange: Service,
    /// The target has been begun and not been completed.
    is_half_built: bool,
}

impl Stub {
    /// Makes the stub from what the domain has at start.
    ///
    /// # Errors
    /// Something that it cannot do without is missing.
    pub(crate) fn start(domain: Domain) -> Result<Self, StartError> {
        let Domain { start_info, mut memory, events, clock, store } = domain;
        let mut store = Xenstore::new(store, events);
        let mut grants = GrantTable::new(&mut memory, NR_GRANT_FRAMES).map_err(StartError::Grants)?;
        let server = Server::new(&memory, &mut grants, Domid::DOM0, VCHAN_PATH, CONTROL_ORDER, CONTROL_ORDER);
        let link = Link::new(server.map_err(StartError::Control)?, events);
        let front = Netfront::new(&memory, 0).ok_or(StartError::Network)?;
        front.watch(&mut store).map_err(StartError::Store)?;
        life::watch(&mut store).map_err(StartError::Store)?;
        let addressing = Addressing::parse(start_info.cmd_line()).unwrap_or_else(|text| {
            log::error!("expected ip=ADDRESS/PREFIX[,GATEWAY], got ip={text}: using DHCP");
            Addressing::Dhcp
        });
        let net = Net::new(front, addressing, clock.now_ns());
        let mut status = Status::new();
        status.phase(&mut store, Phase::Idle);
        let (used, free) = xen_front::heap::usage();
        log::info!("up, {} KiB of heap used, {} KiB free", used >> 10, free >> 10);
        let (ring, transport) = (None, Transport::Tcp);
        let patience = Patience::new(clock, start_info.cmd_line());
        let pair_by_ns = clock.now_ns() + life::UNPAIRED_NS;
        let (xen, reception, exchange, is_half_built) = (None, None, Service::default(), false);
        Ok(Self {
            memory,
            events,
            clock,
            patience,
            store,
            grants,
            net,
            ring,
            way_out: None,
            transport,
            link,
            status,
            pair_by_ns,
            prove_by_ns: None,
            xen,
            reception,
            sending: None,
            exchange,
            is_half_built,
        })
    }

    /// Follows what has changed in xenstore.
    pub(crate) fn follow_store(&mut self) {
        loop {
            let event = match self.store.event() {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(error) => panic!("{error}"),
            };
            if event.token == life::SHUTDOWN_TOKEN {
                life::follow_shutdown(&mut self.store);
            } else if event.token == life::SYSRQ_TOKEN {
                life::follow_sysrq(&mut self.store);
            } else if event.token == life::TARGET_TOKEN {
                self.follow_target();
            } else if event.token == self.net.front().token() {
                self.follow_vif();
            }
        }
    }

    /// Does what stubctl says.
    pub(crate) fn obey(&mut self) {
        loop {
            self.events.take(self.link.port());
            match self.link.follow(&mut self.store) {
                Ok(vchan::Status::Open) => {}
                Ok(vchan::Status::Ended) => return self.give_up("stubctl is gone"),
                Ok(vchan::Status::Awaited) => return,
                Err(error) => return log::warn!("control: {error}"),
            }
            match self.obey_all() {
                Ok(0) => return,
                // An answer may have taken the event that tells of stubctl's end: look again.
                Ok(_) => {}
                Err(error) => return self.give_up(&error.to_string()),
            }
        }
    }

    /// Does all that has come; gives how many commands that were.
    fn obey_all(&mut self) -> Result<usize, LinkError> {
        let mut nr_done = 0;
        while let Some(command) = self.link.command()? {
            self.command(command);
            nr_done += 1;
        }
        Ok(nr_done)
    }

    /// Moves the network and takes what has come of the stream; says whether there is more.
    pub(crate) fn receive(&mut self) -> bool {
        self.poll_net();
        if let Some(ring) = &mut self.ring {
            ring.follow(&mut self.store);
        }
        let mut ring = self.ring.as_mut().filter(|_| self.transport == Transport::Ring);
        let (Some(reception), Some(xen)) = (&mut self.reception, &mut self.xen) else { return false };
        let mut result = Ok(1);
        let mut nr_turn = 0;
        while nr_turn < TURN_BYTES && result.is_ok_and(|nr_taken| nr_taken > 0) {
            result = match &mut ring {
                Some(ring) => reception.take_ring(ring, xen, &mut self.link),
                None => reception.take_net(&mut self.net, xen, &mut self.link),
            };
            nr_turn += result.unwrap_or(0);
        }
        let more = result.is_ok_and(|nr_taken| nr_taken > 0);
        let stream = ring.map_or_else(|| self.net.stream(), |ring| ring.stream());
        if stream == Stream::Ended && result == Ok(0) {
            result = reception.close(xen).map(|()| 0);
        }
        let is_unproven = stream == Stream::Open && !reception.is_proven();
        let now_ns = self.clock.now_ns();
        self.prove_by_ns = is_unproven.then(|| self.prove_by_ns.unwrap_or(now_ns + PROOF_NS));
        let is_late = self.prove_by_ns.is_some_and(|by_ns| now_ns >= by_ns);
        if is_late {
            result = Err(ReceiveError::Intruder);
        }
        match result.and_then(|_| reception.restored(xen)) {
            Ok(None) => self.tell_progress(),
            Ok(Some(message)) => self.complete(&message),
            Err(ReceiveError::Intruder) if is_late => self.turn_away("it sent no token in time"),
            Err(ReceiveError::Intruder) => self.turn_away("it did not open with the token"),
            Err(error) => self.fail(&CommandError::Receive(error)),
        }
        more
    }

    /// Moves the network; a stream that comes this way spends its time here.
    fn poll_net(&mut self) {
        let (net, now_ns) = (&mut self.net, self.clock.now_ns());
        match &mut self.xen {
            Some(xen) if self.transport == Transport::Tcp => {
                xen.stages.time(Stage::Network, || net.poll(now_ns));
            }
            _ => net.poll(now_ns),
        }
    }

    /// Sleeps until something happens.
    pub(crate) fn sleep(&mut self) {
        let front = self.net.front();
        let mut ports = heapless::Vec::<Port, MAX_PORTS>::new();
        ports.extend([self.store.port(), self.link.port()].into_iter().chain(front.ports()));
        ports.extend([&self.ring, &self.way_out].into_iter().flatten().map(Ring::port));
        for port in front.ports() {
            self.events.take(port);
        }
        if front.has_failed() {
            return self.follow_vif();
        }
        if self.more_comes_soon() || self.store.is_stirring() {
            return;
        }
        let pair_by = self.follow_loneliness();
        let deadline = self.net.deadline(self.clock.now_ns());
        let wake = self.sending.as_ref().and_then(Sending::wake_ns);
        let deadline = [deadline, pair_by, self.prove_by_ns, wake].into_iter().flatten().min();
        if let Err(errno) = self.events.wait(&ports, deadline) {
            panic!("cannot wait for events: {errno}");
        }
        self.patience.begin();
    }

    /// Stays awake for a moment in the midst of a stream on the ring; tells whether more of it has come.
    fn more_comes_soon(&mut self) -> bool {
        let ring =
            self.ring.as_ref().filter(|ring| ring.stream() == Stream::Open && self.reception.is_some());
        // What has come already may be the end of a stream whose last event is spent: nothing would wake the stub for it.
        ring.is_some_and(|ring| ring.is_stirring() || self.patience.stay_awake(|| ring.is_stirring()))
    }

    /// Ends a stub that nobody pairs; returns until when somebody may, if nobody has.
    fn follow_loneliness(&self) -> Option<u64> {
        if self.xen.is_some() {
            return None;
        }
        if self.clock.now_ns() >= self.pair_by_ns {
            life::end("nobody has named a target");
        }
        Some(self.pair_by_ns)
    }

    fn follow_target(&mut self) {
        if let Some(xen) = &self.xen {
            life::follow_target(&mut self.store, xen.target().domid());
        }
    }

    fn follow_vif(&mut self) {
        self.net.follow(&mut self.store, &mut self.grants);
    }

    fn command(&mut self, command: ToStub) {
        let result = match command {
            ToStub::Hello { version } if version != VERSION => Err(CommandError::Version(version)),
            ToStub::Hello { .. } => {
                let target = self.xen.as_ref().map(|xen| xen.target().domid());
                self.say(&FromStub::Hello { version: VERSION, target });
                Ok(())
            }
            ToStub::Pair { target } => self.pair(target),
            ToStub::Receive(_)
            | ToStub::Send(_)
            | ToStub::Survey { .. }
            | ToStub::Locate { .. }
            | ToStub::Exchange(_)
            | ToStub::Repair(_)
                if self.is_window_taken() =>
            {
                Err(CommandError::Unexpected(command))
            }
            ToStub::Reserve(reserved) if self.exchange.reserve(&reserved) => Ok(()),
            ToStub::Exchange(_) | ToStub::Swap | ToStub::Finish | ToStub::CountHeld | ToStub::Repair(_) => {
                self.exchange_step(command)
            }
            ToStub::Receive(order) => self.begin(&order),
            ToStub::Send(order) => self.begin_send(&order),
            ToStub::Survey { end } => match &mut self.xen {
                Some(xen) => survey::run(end, xen, &mut self.link).or_else(|error| {
                    log::warn!("survey: {error}");
                    Ok(())
                }),
                None => Err(CommandError::Unpaired),
            },
            ToStub::Locate { gfn } => match &mut self.xen {
                Some(xen) => {
                    let mfn = survey::locate(gfn, xen);
                    self.say(&FromStub::Located { mfn });
                    Ok(())
                }
                None => Err(CommandError::Unpaired),
            },
            ToStub::Shutdown => life::end("stubctl asks for it"),
            ToStub::Panic => panic!("stubctl asked for a panic"),
            ToStub::Answer { .. }
            | ToStub::Bitmap(_)
            | ToStub::Blob { .. }
            | ToStub::Count { .. }
            | ToStub::TscInfo(_)
            | ToStub::Reserve(_) => Err(CommandError::Unexpected(command)),
        };
        if let Err(error) = result {
            self.fail(&error);
        }
    }

    fn pair(&mut self, domid: Domid) -> Result<(), CommandError> {
        match &self.xen {
            Some(xen) if xen.target().domid() == domid => {}
            Some(xen) => return Err(CommandError::Paired(xen.target().domid())),
            None => {
                let target = Target::new(domid).map_err(|errno| CommandError::Target(domid, errno))?;
                let xen = TargetXen::new(&mut self.memory, target, self.clock);
                let xen = xen.map_err(CommandError::Window)?;
                self.xen = Some(xen);
                log::info!("paired with {domid}");
                if let Err(error) = life::watch_target(&mut self.store, domid) {
                    log::warn!("cannot follow the life of {domid}: {error}");
                }
            }
        }
        self.say(&FromStub::Done);
        Ok(())
    }

    fn begin(&mut self, order: &Receive) -> Result<(), CommandError> {
        let xen = self.xen.as_mut().ok_or(CommandError::Unpaired)?;
        self.reception = Some(Reception::new(order, xen).map_err(CommandError::Receive)?);
        self.is_half_built = true;
        self.transport = order.transport;
        if self.transport == Transport::Ring && self.ring.is_none() {
            let ring = Ring::incoming(&self.memory, &mut self.grants, self.events);
            self.ring = Some(ring.map_err(CommandError::Ring)?);
        }
        let service = StreamService { greeting: order.greeting, seed: order.seed };
        self.net.serve(&service, self.clock.now_ns());
        self.listen();
        self.status.phase(&mut self.store, Phase::Listening);
        self.say(&FromStub::Listening);
        Ok(())
    }

    /// Tells whether a reception, a send or an exchange uses a window.
    fn is_window_taken(&self) -> bool {
        self.reception.is_some() || self.sending.is_some() || self.exchange.is_busy()
    }

    fn exchange_step(&mut self, command: ToStub) -> Result<(), CommandError> {
        let xen = self.xen.as_mut().ok_or(CommandError::Unpaired)?;
        let reply = match command {
            ToStub::Exchange(order) => {
                self.status.phase(&mut self.store, Phase::Exchanging);
                Some(self.exchange.begin(&order, xen, self.clock))
            }
            ToStub::Swap => self.exchange.swap(xen, self.clock),
            ToStub::CountHeld => self.exchange.count_held(xen),
            ToStub::Repair(order) => Some(Service::repair(&order, xen)),
            _ => self.exchange.finish(xen, self.clock),
        };
        match reply.ok_or(CommandError::Unexpected(command))? {
            Reply::Prepared(prepared) => self.say(&FromStub::Prepared(prepared)),
            Reply::Swapped(swapped) => self.say(&FromStub::Swapped(swapped)),
            Reply::Exchanged(exchanged) => self.say(&FromStub::Exchanged(exchanged)),
            Reply::NotExchanged(reason, text) => {
                let text = text.get(..text.floor_char_boundary(MAX_TEXT_BYTES)).unwrap_or_default();
                self.say(&FromStub::NotExchanged { reason, text: Untrusted::new(text) });
            }
            Reply::Held(nr_frames) => self.say(&FromStub::Held { nr_frames }),
            Reply::Over => self.say(&FromStub::Done),
        }
        if !self.exchange.is_busy() {
            self.status.phase(&mut self.store, Phase::Idle);
        }
        Ok(())
    }

    /// Lets the next one connect by the current transport.
    fn listen(&mut self) {
        match (&mut self.ring, self.transport) {
            (Some(ring), Transport::Ring) => ring.listen(&mut self.store),
            _ => self.net.listen(self.clock.now_ns()),
        }
    }

    /// Ends the stream's connection and accepts no other.
    fn hang_up(&mut self) {
        match (&mut self.ring, self.transport) {
            (Some(ring), Transport::Ring) => ring.close(),
            _ => self.net.abort(self.clock.now_ns()),
        }
    }

    fn tell_progress(&mut self) {
        let now_ns = self.clock.now_ns();
        let received = self.reception.as_mut().and_then(|reception| reception.progress(now_ns));
        let sent = || self.sending.as_mut().and_then(|sending| sending.progress(now_ns));
        let Some(progress) = received.or_else(sent) else { return };
        self.status.progress(&mut self.store, &progress, now_ns);
        self.say(&FromStub::Progress(progress));
    }

    fn complete(&mut self, message: &FromStub<'_>) {
        self.reception = None;
        self.is_half_built = false;
        if let FromStub::Restored { report, .. } = message {
            log::info!(
                "restored: {} pages in {} 1 GiB, {} 2 MiB and {} 4 KiB extents",
                report.nr_pages,
                report.nr_superpages_1g,
                report.nr_superpages_2m,
                report.nr_pages_4k
            );
            self.status.restored(&mut self.store, report);
        }
        self.say(message);
        self.hang_up();
    }

    /// Drops a connection that is not stubctl's, and waits for the next.
    fn turn_away(&mut self, why: &str) {
        self.prove_by_ns = None;
        if let Some(reception) = &mut self.reception {
            reception.forget_client();
        }
        match self.transport {
            Transport::Ring => log::warn!("dropped a client of the ring: {why}"),
            Transport::Tcp => match self.net.stack().peer() {
                Some(peer) => log::warn!("dropped a connection from {peer}: {why}"),
                None => log::warn!("dropped a connection: {why}"),
            },
        }
        self.listen();
    }

    /// Ends the current command without success and says why.
    fn fail(&mut self, error: &CommandError) {
        let text = error.to_string();
        let text = text.get(..text.floor_char_boundary(MAX_TEXT_BYTES)).unwrap_or_default();
        log::error!("{text}");
        self.stop();
        self.status.failed(&mut self.store, text);
        self.say(&FromStub::Failed { text: Untrusted::new(text) });
    }

    /// Ends what stubctl will not hear the end of. A target that is half received is of no use to anybody, and nobody
    /// else would end its stub.
    fn give_up(&mut self, why: &str) {
        if self.is_window_taken() {
            log::warn!("giving up: {why}");
            self.stop();
            self.status.failed(&mut self.store, why);
        }
        if self.is_half_built {
            life::end("nobody waits for the target");
        }
    }

    fn stop(&mut self) {
        self.prove_by_ns = None;
        if self.reception.take().is_some() {
            self.hang_up();
        }
        if self.sending.take().is_some()
            && let Some(ring) = &mut self.way_out
        {
            ring.close();
        }
        if let Some(xen) = &mut self.xen {
            xen.release();
            if let Some(Reply::NotExchanged(_, text)) = self.exchange.finish(xen, self.clock) {
                log::error!("ending the exchange: {text}");
            }
            migration::xen::Xen::unmap(xen);
        }
    }

    fn say(&mut self, message: &FromStub<'_>) {
        match self.link.send(message) {
            Ok(()) => {}
            Err(LinkError::Gone) => log::debug!("nobody to hear {message:?}"),
            Err(error) => log::warn!("control: {error}"),
        }
    }
}

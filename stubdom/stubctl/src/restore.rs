//! One restore through one stub: start it, hand it the stream, serve its requests, take its result.
//!
//! **Takes** a request of libxl's and the stream. **Gives** the gfns of the target's two rings. **Never** returns
//! with a half-used stub alive, and never waits for a stub that neither takes bytes nor speaks.
//!
//! One thread and one poll loop: the relay moves what is ready, the conversation takes what has come, and every
//! decision stands between two waits.

use crate::broker::Broker;
use crate::control_channel::{ControlChannel, ControlError, HEARTBEAT};
use crate::error::Error;
use crate::ffi::sys::Polled;
use crate::helper::Request;
use crate::host::Host;
use crate::net;
use crate::pair::{self, Stub};
use crate::relay::ring::Ring;
use crate::relay::tcp::Tcp;
use crate::relay::{Relay, RelayError, Way};
use crate::report::{Account, Outcome};
use control::{FromStub, Phase, Progress, Receive, TOKEN_BYTES, ToStub, Transport};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use xen_abi::types::{Domid, Gfn};

/// How long a stub may be silent, and take nothing, before it says what is wrong with a stream that broke off: it may
/// have as much before it as the way to it holds.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Restores the target; gives the gfns of its xenstore and console rings.
///
/// # Errors
/// It failed, and the stub is gone.
pub(crate) fn run(request: &Request, stream: OwnedFd) -> Result<(Gfn, Gfn), Error> {
    let mut account = Account::start(&request.guest);
    let result = serve(request, stream, &mut account);
    match &result {
        Ok(outcome) => account.restored(&outcome.report),
        Err(error) => account.failed(error),
    }
    result.map(|outcome| (outcome.store, outcome.console))
}

fn serve(request: &Request, stream: OwnedFd, account: &mut Account) -> Result<Outcome, Error> {
    let Request { host, conf, guest, .. } = request;
    let stub = Stub::start(host, conf, guest.raw(), request.arguments.target)?;
    log::info!("{guest}: stub {} started in {:.1} s", stub.domid, account.lap("create").as_secs_f64());
    let channel = stub.greet(conf)?;
    log::info!("{guest}: stub {} answers after {:.1} s", stub.domid, account.lap("greet").as_secs_f64());
    let cpu_ns = || stub_cpu_ns(host, stub.domid);
    account.note_stub(cpu_ns());
    let outcome = receive(request, &stub, channel, stream, account)?;
    account.note_stub(cpu_ns());
    stub.keep();
    Ok(outcome)
}

/// Processor time that the stub has had.
fn stub_cpu_ns(host: &Host, stub: Domid) -> Option<u64> {
    host.xen.domain_info(stub).ok().flatten().map(|info| info.cpu_ns)
}

/// From `Receive` to `Restored`.
fn receive(
    request: &Request,
    stub: &Stub<'_>,
    mut channel: ControlChannel,
    stream: OwnedFd,
    account: &mut Account,
) -> Result<Outcome, Error> {
    let Request { host, conf, arguments, .. } = request;
    let token: [u8; TOKEN_BYTES] = pair::random()?;
    let order = Receive {
        token,
        transport: conf.transport,
        max_pages: request.info.max_pages,
        store_port: arguments.store_port,
        store_domid: arguments.store_domid,
        console_port: arguments.console_port,
        console_domid: arguments.console_domid,
    };
    channel.send(host, &ToStub::Receive(order))?;
    channel.wait(host, conf.stall_timeout, "Listening", |message| {
        matches!(message, FromStub::Listening).then_some(())
    })?;
    let way = open_way(request, stub, &channel, &token)?;
    account.lap("connect");
    let relay = Relay::new(stream, way);
    let broker = Broker::new(&host.xen, arguments.target, request.libxl);
    let (now, delivered, progressed) = (Instant::now(), 0, 0);
    Receiving {
        request,
        stub: stub.domid,
        channel,
        relay,
        broker,
        account,
        broken: None,
        looked: now,
        moved: now,
        progressed,
        delivered,
        percent: 0,
    }
    .run()
}

/// Opens the way to the stub, which listens, and opens the stream on it.
fn open_way(
    request: &Request,
    stub: &Stub<'_>,
    channel: &ControlChannel,
    token: &[u8; TOKEN_BYTES],
) -> Result<Way, Error> {
    let Request { host, conf, .. } = request;
    match conf.transport {
        Transport::Ring => Ok(Way::Ring(Ring::connect(stub.domid, token)?)),
        Transport::Tcp => {
            let address = pair::stream_address(host, conf, stub.domid)?;
            let wait = |polled: &Polled<'_>, patience| {
                host.interrupt.wait(&[polled], patience)?;
                Ok::<_, Error>(channel.check_alive(host)?)
            };
            Ok(Way::Tcp(Tcp::connect(address, token, conf.stall_timeout, wait)?))
        }
    }
}

/// A receive under way.
struct Receiving<'a> {
    request: &'a Request,
    stub: Domid,
    channel: ControlChannel,
    relay: Relay,
    broker: Broker<'a>,
    account: &'a mut Account,
    /// What ended the relay, if anything has: the stub is about to say why.
    broken: Option<RelayError>,
    /// When the stub was last looked at.
    looked: Instant,
    /// When the stub last took bytes or said something new.
    moved: Instant,
    /// Bytes of the stream that the stub said it had then: it tells of its progress whenever it wakes, moved or not.
    progressed: u64,
    /// Bytes of the stream that the stub had taken then.
    delivered: u64,
    /// The last progress that libxl heard of.
    percent: u64,
}

/// What a message of the stub's leads to.
enum Step {
    Nothing,
    Answer(i32),
    Progress(Progress),
    Restored(Outcome),
    Broken(Error),
}

impl Receiving<'_> {
    fn run(mut self) -> Result<Outcome, Error> {
        loop {
            if let Some(outcome) = self.converse()? {
                return Ok(outcome);
            }
            let (fill, drain) = self.wait()?;
            let drained = if drain { self.relay.drain() } else { Ok(()) };
            let filled = if fill && drained.is_ok() { self.relay.fill() } else { Ok(()) };
            if let Err(error) = drained.and(filled) {
                self.break_off(error);
            }
            self.check_stall()?;
        }
    }

    /// The relay broke. The stub has a while to say why, since it often knows more: a fault may stand in what it has not
    /// read yet. It is served meanwhile as before.
    fn break_off(&mut self, error: RelayError) {
        log::debug!("waiting for the stub's last words: {error}");
        self.broken.get_or_insert(error);
        self.moved = Instant::now();
    }

    /// Waits for the stream, the stub or an interrupt; tells whether the relay can fill and drain.
    fn wait(&mut self) -> Result<(bool, bool), Error> {
        let host = &self.request.host;
        let readable = self.relay.source().map_or(Polled::never(), Polled::readable);
        let writable = self.relay.sink();
        let signalled = self.channel.readable();
        // Only a look, as long as the stub is to be told of bytes: there may be more to tell of at once.
        let patience = if self.relay.is_untold() { Duration::ZERO } else { HEARTBEAT };
        host.interrupt.wait(&[&signalled, &readable, &writable], patience)?;
        let (fill, drain) = (readable.is_ready(), writable.is_ready());
        if signalled.is_ready() {
            self.channel.acknowledge();
        }
        if !fill {
            self.relay.flush();
        }
        if self.looked.elapsed() >= HEARTBEAT {
            self.look_after_the_stub()?;
        }
        Ok((fill, drain))
    }

    fn look_after_the_stub(&mut self) -> Result<(), Error> {
        let Request { host, conf, .. } = self.request;
        self.looked = Instant::now();
        self.channel.check_alive(host)?;
        if conf.transport == Transport::Tcp {
            net::isolate_port(self.stub);
        }
        Ok(())
    }

    /// Takes every message that has come.
    fn converse(&mut self) -> Result<Option<Outcome>, Error> {
        loop {
            let broker = &mut self.broker;
            let next = self.channel.next(&mut |message| Some(step(broker, message)));
            let Some(step) = next.map_err(|error| self.with_refusal(error))? else { return Ok(None) };
            if !matches!(step, Some(Step::Progress(progress)) if progress.nr_bytes <= self.progressed) {
                self.moved = Instant::now();
            }
            match step.unwrap_or(Step::Nothing) {
                Step::Nothing => {}
                Step::Answer(result) => self.channel.send(&self.request.host, &ToStub::Answer { result })?,
                Step::Progress(progress) => self.show(progress),
                Step::Restored(outcome) => return self.complete(outcome).map(Some),
                Step::Broken(error) => return Err(error),
            }
        }
    }

    /// A stub that claims to be done before it had END is not believed: libxl would read on inside the stream.
    fn complete(&mut self, outcome: Outcome) -> Result<Outcome, Error> {
        match self.broken {
            None if self.relay.is_done() => Ok(outcome),
            broken => Err(broken.unwrap_or(RelayError::Early(self.relay.place())).into()),
        }
    }

    fn show(&mut self, progress: Progress) {
        self.progressed = progress.nr_bytes;
        let (host, stub) = (&self.request.host, self.stub);
        if let Some(lap) = self.account.enter(progress, || stub_cpu_ns(host, stub)) {
            log::info!("{}: {} ({lap})", self.request.guest, progress.phase.as_str());
        }
        let total = self.request.info.max_pages.max(1);
        let percent = progress.nr_pages.min(total) * 100 / total;
        // libxl prints a line for each: ten are enough.
        if progress.phase == Phase::Memory && percent >= self.percent + 10 {
            self.percent = percent;
            // A libxl that is gone shows as a hang-up.
            let _ = self.request.libxl.progress("Memory", progress.nr_pages.min(total), total);
        }
    }

    /// Adds dom0's own reason when the stub failed because dom0 refused it something.
    fn with_refusal(&self, error: ControlError) -> Error {
        match (error, self.broker.refusal()) {
            (ControlError::Failed(text), Some(refusal)) => {
                ControlError::Failed(format!("{text}: {refusal}")).into()
            }
            (error, _) => error.into(),
        }
    }

    /// The stub owes something while bytes wait for it or END has gone out; a slow source is not its fault.
    fn check_stall(&mut self) -> Result<(), Error> {
        let nr_waiting = self.relay.nr_waiting();
        // The token waits like a byte of the stream and is none.
        let delivered = self.relay.place().offset.saturating_sub(nr_waiting as u64);
        let owes = nr_waiting > 0 || self.relay.is_done() || self.broken.is_some();
        if !owes || delivered > self.delivered {
            self.moved = Instant::now();
            self.delivered = delivered;
        }
        let waited = self.broken.map_or(self.request.conf.stall_timeout, |_| LAST_WORDS);
        if self.moved.elapsed() < waited {
            return Ok(());
        }
        if let Some(error) = self.broken {
            return Err(error.into());
        }
        let expected =
            if self.relay.is_done() { "Restored after END" } else { "it to take more of the stream" };
        Err(ControlError::Silent { expected, waited }.into())
    }
}

fn step(broker: &mut Broker<'_>, message: FromStub<'_>) -> Step {
    match message {
        FromStub::Blob { kind, total, offset, bytes } => broker
            .blob(kind, total, offset, bytes)
            .map_or_else(|error| Step::Broken(error.into()), |()| Step::Nothing),
        FromStub::Apply(request) => Step::Answer(broker.apply(request)),
        FromStub::Progress(progress) => Step::Progress(progress),
        FromStub::Restored { store, console, report } => Step::Restored(Outcome { store, console, report }),
        _ => Step::Nothing,
    }
}

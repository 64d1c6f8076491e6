//! One restore through one stub: start it, hand it the stream, serve its requests, take its result.
//!
//! **Takes** a request of libxl's and the stream. **Gives** the gfns of the target's two rings. **Never** returns
//! with a half-used stub alive, and never waits for a stub that neither takes bytes nor speaks.
//!
mod receiving;

use crate::broker::Broker;
use crate::control_channel::ControlChannel;
use crate::error::Error;
use crate::ffi::sys::Polled;
use crate::helper::Request;
use crate::host::Host;
use crate::pair::{self, Stub};
use crate::relay::ring::Ring;
use crate::relay::tcp::{Door, Tcp};
use crate::relay::{Relay, Way};
use crate::report::{Account, Outcome};
use control::{FromStub, RELAY_ADDRESS, RELAY_PORTS, Receive, ToStub};
use migration::plan;
use receiving::{Guest, Receiving, Serve, Step};
use std::os::fd::OwnedFd;
use xen_abi::types::{Domid, Gfn};

/// A stub that listens for the stream.
pub(crate) struct Ready<'a> {
    stub: Stub<'a>,
    channel: ControlChannel<'a>,
    way: Way,
}

/// Starts a stub and has it listen. Nothing of the stream is read: after a failure another can restore the target.
///
/// # Errors
/// There is no stub to be had; nothing is left of it.
pub(crate) fn prepare<'a>(request: &'a Request, account: &mut Account) -> Result<Ready<'a>, Error> {
    let Request { host, conf, guest, info, .. } = request;
    let conf = &conf.with_memory(plan::stub_memory_mib(info.max_pages));
    pair::check_memory(host, conf.memory_mib.map_or(plan::LEAST_MIB, u64::from), info)?;
    let stub = Stub::start(host, conf, guest.raw(), request.arguments.target)?;
    log::info!("{guest}: stub {} started in {:.1} s", stub.domid, account.lap("create").as_secs_f64());
    let mut channel = stub.greet(conf)?;
    log::info!("{guest}: stub {} answers after {:.1} s", stub.domid, account.lap("greet").as_secs_f64());
    account.note_stub(stub_cpu_ns(host, stub.domid));
    let order = order(request)?;
    channel.send(&ToStub::Receive(order))?;
    channel.wait("Listening", |message| matches!(message, FromStub::Listening).then_some(()))?;
    let way = open_way(request, &stub, &channel, &order)?;
    account.lap("connect");
    Ok(Ready { stub, channel, way })
}

/// Restores the target; gives the gfns of its xenstore and console rings.
///
/// # Errors
/// It failed, and the stub is gone.
pub(crate) fn run(
    request: &Request,
    ready: Ready<'_>,
    stream: OwnedFd,
    account: &mut Account,
) -> Result<(Gfn, Gfn), Error> {
    let Ready { stub, channel, way } = ready;
    let result = receive(request, &stub, channel, Relay::new(stream, way), account);
    match &result {
        Ok(outcome) => {
            account.note_stub(stub_cpu_ns(&request.host, stub.domid));
            stub.keep();
            account.restored(&outcome.report);
        }
        Err(error) => account.failed(error),
    }
    result.map(|outcome| (outcome.store, outcome.console))
}

/// Processor time that the stub has had.
fn stub_cpu_ns(host: &Host, stub: Domid) -> Option<u64> {
    host.xen.domain_info(stub).ok().flatten().map(|info| info.cpu_ns)
}

/// What the stub needs to know.
fn order(request: &Request) -> Result<Receive, Error> {
    let Request { conf, arguments, .. } = request;
    Ok(Receive {
        token: pair::random()?,
        greeting: pair::random()?,
        seed: u64::from_ne_bytes(pair::random()?),
        transport: conf.transport,
        max_pages: request.info.max_pages,
        store_port: arguments.store_port,
        store_domid: arguments.store_domid,
        console_port: arguments.console_port,
        console_domid: arguments.console_domid,
    })
}

/// From the stream's first byte to `Restored`.
fn receive(
    request: &Request,
    stub: &Stub<'_>,
    channel: ControlChannel<'_>,
    relay: Relay,
    account: &mut Account,
) -> Result<Outcome, Error> {
    let Request { host, conf, arguments, .. } = request;
    let dom0 = Dom0 { host, stub, broker: Broker::new(&host.xen, arguments.target, request.libxl) };
    let guest = Guest { name: &request.guest, max_pages: request.info.max_pages, libxl: request.libxl };
    Receiving::new(&host.interrupt, guest, dom0, channel, relay, account).run(conf.stall_timeout)
}

/// Opens the way to the stub, which listens, and opens the stream on it.
fn open_way(
    request: &Request,
    stub: &Stub<'_>,
    channel: &ControlChannel<'_>,
    order: &Receive,
) -> Result<Way, Error> {
    let Request { host, conf, .. } = request;
    match stub.stream_address(conf)? {
        None => Ok(Way::Ring(Ring::connect(&host.store, stub.domid, &order.token)?)),
        Some(address) => {
            stub.keep_port()?;
            let door = Door {
                stub: address,
                relay: RELAY_ADDRESS,
                relay_ports: RELAY_PORTS,
                greeting: order.greeting,
                token: order.token,
            };
            let wait = |polled: &Polled<'_>, patience| {
                host.interrupt.wait(&[polled], patience)?;
                Ok::<_, Error>(channel.check_alive()?)
            };
            Ok(Way::Tcp(Tcp::connect(&door, conf.stall_timeout, wait)?))
        }
    }
}

/// Dom0's part in a receive.
struct Dom0<'a> {
    host: &'a Host,
    stub: &'a Stub<'a>,
    broker: Broker<'a>,
}

impl Serve for Dom0<'_> {
    fn step(&mut self, message: FromStub<'_>) -> Step {
        match message {
            FromStub::Blob { kind, total, offset, bytes } => self
                .broker
                .blob(kind, total, offset, bytes)
                .map_or_else(|error| Step::Broken(error.into()), |()| Step::Nothing),
            FromStub::Apply(request) => Step::Answer(self.broker.apply(request)),
            FromStub::Progress(progress) => Step::Progress(progress),
            FromStub::Restored { store, console, report } => {
                Step::Restored(Outcome { store, console, report })
            }
            _ => Step::Nothing,
        }
    }

    fn refusal(&self) -> Option<&str> {
        self.broker.refusal()
    }

    fn stub_cpu_ns(&self) -> Option<u64> {
        stub_cpu_ns(self.host, self.stub.domid)
    }

    fn look_after_the_stub(&self) -> Result<(), Error> {
        self.stub.keep_port()
    }
}

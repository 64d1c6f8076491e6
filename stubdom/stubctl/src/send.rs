//! One send through one stub: hand its stream to libxl, serve its questions, and leave the guest as libxl expects it.
//!
//! **Takes** a request of libxl's. **Gives** a stream that every receiver takes. **Never** leaves the log of the guest's
//! writes on, whatever ends the send, and resumes the guest only when libxl is gone, whose business that is.
//!
//! One thread and one poll loop: what is in the ring goes out, the conversation takes what has come, and every decision
//! stands between two waits.

mod dom0;
mod guard;
mod outlet;

pub(crate) use guard::{guard, resume};
pub(crate) use outlet::OutletError;

use crate::control_channel::{ControlChannel, ControlError, HEARTBEAT, MESSAGES_PER_TURN, Next};
use crate::error::Error;
use crate::ffi::sys::{self, Polled};
use crate::ffi::vchan::{Connection, OutRing, Vchan};
use crate::ffi::xenctrl::XenError;
use crate::helper::SaveRequest;
use crate::libxl::Callback;
use crate::pair::{self, Paired};
use crate::relay::RelayError;
use control::send::{Ask, Send, Sent};
use control::{FromStub, Phase, Progress, TOKEN_BYTES, ToStub};
use dom0::{Bytes, Dom0};
use guard::Guardian;
use outlet::Outlet;
use std::time::{Duration, Instant};
use xen_abi::types::Domid;

/// How many questions in a row count as the stub's moving on: at the end of a pass it asks three, at the start five.
const MOST_ASKED: u32 = 8;

/// Why a send did not come to its end.
pub(crate) enum Failure {
    /// Nothing has been done to the guest, and nothing written: the packaged helper can do it from the start.
    Untouched(Error),
    /// The stream is broken off, and the guest is the source's.
    Broken(Error),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Untouched(error.into())
    }
}

/// Sends the guest.
///
/// # Errors
/// It failed: the guest's writes are not logged any more, and the stub is gone if it was made for this.
pub(crate) fn run(request: &SaveRequest) -> Result<(), Failure> {
    let guest = &request.guest;
    let began = Instant::now();
    let (paired, stub, channel) = attend(request)?;
    log::info!("{guest}: stub {stub} answers after {:.1} s", began.elapsed().as_secs_f64());
    let mut sending = Sending::begin(request, stub, channel)?;
    let result = sending.run();
    let is_untouched = sending.outlet.nr_written() == 0 && sending.suspension == Suspension::None;
    let ended = sending.end_log();
    match result.and_then(|sent| ended.map(|()| sent)) {
        Ok(Sent { nr_pages, nr_kept, nr_passes, nr_last, .. }) => {
            let seconds = began.elapsed().as_secs_f64();
            log::info!(
                "{guest}: sent in {seconds:.1} s: {nr_pages} pages in {nr_passes} passes, {nr_last} while it was suspended, {nr_kept} \
                 mapped from a pass before"
            );
            sending.dismiss(paired);
            Ok(())
        }
        Err(error) if is_untouched && !error.is_stop() => Err(Failure::Untouched(error)),
        Err(error) => Err(Failure::Broken(error)),
    }
}

/// Finds or starts the guest's stub.
fn attend(request: &SaveRequest) -> Result<(Paired<'_>, Domid, ControlChannel<'_>), Error> {
    let SaveRequest { host, conf, guest, arguments, .. } = request;
    let paired = pair::find_or_start(host, conf, guest.raw(), arguments.guest)?;
    match paired {
        Paired::Found(stub) => {
            let patience = conf.stall_timeout;
            let channel = ControlChannel::open_paired(host, stub, arguments.guest, patience, patience)?;
            Ok((paired, stub, channel))
        }
        Paired::Made(stub) => {
            let (domid, channel) = (stub.domid, stub.greet(conf)?);
            Ok((Paired::Made(stub), domid, channel))
        }
    }
}

/// Whether the guest has stopped for its last pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suspension {
    None,
    /// Libxl was asked for it.
    Asked,
    Done,
}

/// A send under way.
struct Sending<'a> {
    request: &'a SaveRequest,
    channel: ControlChannel<'a>,
    /// The ring to the stub.
    inlet: OutRing,
    outlet: Outlet,
    /// What both rings belong to: dropped after them.
    connection: Connection,
    dom0: Dom0<'a>,
    /// What the stub has not been given yet.
    answers: Bytes,
    /// What libxl is asked for.
    awaited: Option<Callback>,
    suspension: Suspension,
    /// The device model reports what it writes to the guest.
    is_qemu_logging: bool,
    sent: Option<Sent>,
    /// When the stub was last looked at.
    looked: Instant,
    /// When the stub last moved on. Only what is done counts: bytes that it wrote, and some questions after them.
    moved: Instant,
    /// Questions since the last bytes.
    nr_asked: u32,
    /// The last progress that libxl heard of.
    percent: u64,
    /// Puts the guest right when this process dies.
    _guardian: Guardian,
}

/// What a message of the stub's leads to.
enum Step {
    Ask(Ask),
    Progress(Progress),
    Sent(Sent),
    Nothing,
}

fn step(message: FromStub<'_>) -> Step {
    match message {
        FromStub::Ask(ask) => Step::Ask(ask),
        FromStub::Progress(progress) => Step::Progress(progress),
        FromStub::Sent(sent) => Step::Sent(sent),
        _ => Step::Nothing,
    }
}

impl<'a> Sending<'a> {
    /// Has the stub begin, and opens the way out.
    fn begin(request: &'a SaveRequest, stub: Domid, mut channel: ControlChannel<'a>) -> Result<Self, Error> {
        let SaveRequest { host, conf, arguments, .. } = request;
        let (token, version): ([u8; TOKEN_BYTES], _) = (pair::random()?, host.xen.version()?);
        let order = Send {
            token,
            xen_version: (version.major.into(), version.minor.into()),
            live: arguments.is_live().then_some(conf.send.limits),
            verify: arguments.is_debug(),
        };
        channel.send(&ToStub::Send(order))?;
        channel.wait("Listening", |message| matches!(message, FromStub::Listening).then_some(()))?;
        let path = format!("/local/domain/{}/{}", stub.raw(), control::send::PATH);
        let vchan = Vchan::connect(&host.store, stub, &path).map_err(RelayError::Ring)?;
        let (inlet, ring, connection) = vchan.into_parts();
        let outlet = Outlet::new(ring, arguments.stream()?)?;
        let now = Instant::now();
        Ok(Self {
            request,
            channel,
            inlet,
            outlet,
            connection,
            dom0: Dom0::new(&host.xen, arguments.guest),
            answers: token.to_vec(),
            awaited: None,
            suspension: Suspension::None,
            is_qemu_logging: false,
            sent: None,
            looked: now,
            moved: now,
            nr_asked: 0,
            percent: 0,
            _guardian: Guardian::start(arguments.guest)?,
        })
    }

    fn run(&mut self) -> Result<Sent, Error> {
        loop {
            let has_more = self.converse()?;
            self.feed()?;
            let nr_moved = self.outlet.pump()?;
            if self.outlet.take_wish() {
                self.connection.notify();
            }
            if let Some(sent) = self.sent {
                if self.outlet.is_done() {
                    return Ok(sent);
                }
                if nr_moved == 0 && self.outlet.is_empty()? {
                    return Err(OutletError::Early(self.outlet.place()).into());
                }
            }
            self.wait(has_more || nr_moved > 0)?;
            self.check_stall(nr_moved)?;
        }
    }

    /// Waits for the stub, the descriptor, libxl or an interrupt.
    fn wait(&mut self, has_more: bool) -> Result<(), Error> {
        let (message, event) = (self.channel.readable(), Polled::readable(self.connection.fd()));
        let answer = Polled::readable(sys::standard_input()).only_if(self.awaited.is_some());
        let room = self.outlet.writable();
        // Only a look, as long as there is more to move at once.
        let is_idle = self.outlet.is_blocked() || self.outlet.is_empty()?;
        let patience = if has_more || !is_idle { Duration::ZERO } else { HEARTBEAT };
        self.request.host.interrupt.wait(&[&message, &event, &answer, &room], patience)?;
        if message.is_ready() {
            self.channel.acknowledge();
        }
        if event.is_ready() {
            self.connection.acknowledge();
        }
        if answer.is_ready() {
            self.hear_libxl()?;
        }
        if self.looked.elapsed() >= HEARTBEAT {
            self.looked = Instant::now();
            self.channel.check_alive()?;
        }
        Ok(())
    }

    /// Takes the messages that have come, as many as a turn takes; tells whether there may be more.
    fn converse(&mut self) -> Result<bool, Error> {
        for _ in 0..MESSAGES_PER_TURN {
            match self.channel.next(&mut step)? {
                Next::Nothing => return Ok(false),
                Next::Own | Next::Taken(Step::Nothing) => {}
                Next::Taken(Step::Ask(ask)) => self.answer(ask)?,
                Next::Taken(Step::Progress(progress)) => self.show(progress),
                Next::Taken(Step::Sent(sent)) => self.sent = Some(sent),
            }
        }
        Ok(true)
    }

    fn answer(&mut self, ask: Ask) -> Result<(), Error> {
        // What it has not taken would pile up here.
        if !self.answers.is_empty() || self.awaited.is_some() {
            return Err(OutletError::Hasty.into());
        }
        // A stub can ask without end: between two bytes of the stream it asks for little.
        if self.nr_asked < MOST_ASKED {
            (self.nr_asked, self.moved) = (self.nr_asked + 1, Instant::now());
        }
        let answer = match ask {
            Ask::Present => self.dom0.present().map(|(bitmap, bytes)| (ToStub::Bitmap(bitmap), bytes)),
            Ask::Dirty => {
                let dirty = self.dom0.dirty(self.suspension == Suspension::Done);
                dirty.map(|(bitmap, bytes)| (ToStub::Bitmap(bitmap), bytes))
            }
            Ask::CountDirty => {
                self.dom0.nr_logged().map(|nr_pages| (ToStub::Count { nr_pages }, Bytes::new()))
            }
            Ask::Fetch(kind) => self.dom0.fetch(kind).map(|bytes| {
                // A blob of Xen's is far shorter than 4 GiB.
                let nr_bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                (ToStub::Blob { nr_bytes }, bytes)
            }),
            Ask::TscInfo => {
                let info = self.request.host.xen.tsc_info(self.request.arguments.guest);
                info.map(|info| (ToStub::TscInfo(info), Bytes::new()))
            }
            Ask::StartLog => return self.call(Callback::StartQemuLog),
            Ask::Suspend => {
                self.suspension = Suspension::Asked;
                return self.call(Callback::Suspend);
            }
        };
        let (message, bytes) = answer.unwrap_or_else(|error| (refusal(&error), Bytes::new()));
        self.answers.extend(bytes);
        Ok(self.channel.send(&message)?)
    }

    fn call(&mut self, callback: Callback) -> Result<(), Error> {
        self.request.libxl.call(callback, self.request.arguments.guest)?;
        self.awaited = Some(callback);
        Ok(())
    }

    /// Takes libxl's answer to the last callback.
    fn hear_libxl(&mut self) -> Result<(), Error> {
        let Some(callback) = self.awaited.take() else { return Ok(()) };
        let is_done = callback.is_done(self.request.libxl.answer()?);
        self.moved = Instant::now();
        match callback {
            Callback::StartQemuLog if is_done => {
                self.is_qemu_logging = true;
                return self.start_log();
            }
            Callback::Suspend if is_done => self.suspension = Suspension::Done,
            _ => {}
        }
        let result = if is_done { 0 } else { -libc::EIO };
        Ok(self.channel.send(&ToStub::Answer { result })?)
    }

    fn start_log(&mut self) -> Result<(), Error> {
        let started = self.dom0.start_log();
        let message = started.map_or_else(|error| refusal(&error), |()| ToStub::Answer { result: 0 });
        Ok(self.channel.send(&message)?)
    }

    /// Gives the stub as much of the answers as there is room for.
    fn feed(&mut self) -> Result<(), Error> {
        if self.answers.is_empty() {
            return Ok(());
        }
        let nr = self.inlet.write(&self.answers).map_err(OutletError::from)?;
        self.answers.drain(..nr);
        if nr > 0 && self.inlet.take_wish() {
            self.connection.notify();
        }
        if !self.answers.is_empty() {
            self.inlet.request_event();
        }
        Ok(())
    }

    fn show(&mut self, progress: Progress) {
        let total = self.request.info.tot_pages.max(1);
        let percent = progress.nr_pages.min(total) * 100 / total;
        // libxl prints a line for each: ten are enough.
        if progress.phase == Phase::Memory && percent >= self.percent + 10 {
            self.percent = percent;
            // A libxl that is gone shows as a hang-up.
            let _ = self.request.libxl.progress("Memory", progress.nr_pages.min(total), total);
        }
    }

    /// The stub owes something while its ring is empty and nobody has to answer it; whoever reads slowly is not its fault.
    fn check_stall(&mut self, nr_moved: usize) -> Result<(), Error> {
        let owes = self.outlet.is_empty()? && self.awaited.is_none() && self.sent.is_none();
        if !owes || nr_moved > 0 {
            (self.nr_asked, self.moved) = (0, Instant::now());
        }
        let waited = self.request.conf.stall_timeout;
        if self.moved.elapsed() < waited {
            return Ok(());
        }
        Err(ControlError::Silent { expected: "it to write more of the stream", waited }.into())
    }

    /// Ends the log of the guest's writes, Xen's and the device model's, however the send went.
    fn end_log(&mut self) -> Result<(), Error> {
        let _undisturbed = self.request.host.interrupt.undisturbed();
        let ended = self.dom0.end_log();
        if std::mem::take(&mut self.is_qemu_logging)
            && let Err(error) = self.end_qemu_log()
        {
            log::warn!("the device model goes on reporting its writes: {error}");
        }
        Ok(ended?)
    }

    /// By way of libxl, which has a connection to the device model; without it when libxl still owes an answer to something
    /// else, or is gone.
    fn end_qemu_log(&self) -> Result<(), Error> {
        let SaveRequest { host, libxl, arguments, .. } = self.request;
        let asked = || libxl.call(Callback::EndQemuLog, arguments.guest).and_then(|()| libxl.answer());
        match self.awaited.is_none().then(asked) {
            Some(Ok(answer)) if Callback::EndQemuLog.is_done(answer) => Ok(()),
            _ => guard::end_qemu_log(host, arguments.guest),
        }
    }

    /// The stub is not needed any more; it holds no frame, and ends by itself. Nobody waits for it, since the guest's
    /// receiver does.
    fn dismiss(mut self, paired: Paired<'_>) {
        if let Err(error) = self.channel.send(&ToStub::Shutdown) {
            log::debug!("the stub does not hear that it may end: {error}");
        }
        if let Paired::Made(stub) = paired {
            stub.keep();
        }
        pair::unlink(&self.request.host, self.request.arguments.guest);
    }
}

fn refusal(error: &XenError) -> ToStub {
    log::error!("{error}");
    ToStub::Answer { result: -error.errno }
}

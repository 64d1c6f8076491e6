//! The whole way: the one place that sees every room.

use crate::engine::{self, Config, Engine, Tally, Target};
use crate::session::{self, Session, Step};
use crate::stream::{self, Parser, Place};
use crate::xen::{Broker, Xen};
use core::fmt;

/// The restore of one target from one stream.
///
/// ```
/// use migration::{engine::Config, restore::{Error, Report, Restore}, xen::{Broker, Xen}};
///
/// fn receive<'a, X: Xen, B: Broker>(
///     config: Config,
///     stream: impl Iterator<Item = &'a [u8]>,
///     xen: &mut X,
///     broker: &mut B,
/// ) -> Result<Report, Error> {
///     let mut restore = Restore::new(config, xen)?;
///     for bytes in stream {
///         restore.push(bytes, xen, broker)?;
///     }
///     restore.close(xen)
/// }
/// ```
#[derive(Debug)]
pub struct Restore {
    parser: Parser,
    session: Session,
    engine: Engine,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Receiving,
    Complete(Report),
    Failed(Error),
}

/// What a restore came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Length of the stream in bytes.
    pub nr_bytes: u64,
    /// What was done.
    pub tally: Tally,
    /// What the target is.
    pub target: Target,
}

/// Why a restore failed, and where in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// The field at fault; for faults that are not the stream's: how far it was read.
    pub place: Place,
    /// What happened.
    pub fault: Fault,
}

/// What can end a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Bytes that the format does not allow.
    Stream(stream::Fault),
    /// A record that may not come here.
    Session(session::Error),
    /// Something that cannot be done to the target.
    Engine(engine::Error),
    /// The stream stopped before its END record.
    Truncated,
    /// Bytes came after the END record.
    Trailing {
        /// How many, at least.
        nr_bytes: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        match self.fault {
            Fault::Stream(fault) => fault.fmt(f),
            Fault::Session(error) => error.fmt(f),
            Fault::Engine(error) => error.fmt(f),
            Fault::Truncated => f.write_str("expected more up to the END record, got the end of the stream"),
            Fault::Trailing { nr_bytes } => write!(f, "expected nothing after END, got {nr_bytes} bytes"),
        }
    }
}

impl core::error::Error for Error {}

impl Restore {
    /// Makes the restore of a target that has no memory yet. Allocates all that it will ever need: about 1/8 of a byte
    /// a page of the target, and 0.4 MiB.
    ///
    /// # Errors
    /// No memory for the bookkeeping, or Xen does not answer.
    pub fn new<X: Xen>(config: Config, xen: &mut X) -> Result<Self, Error> {
        let parser = Parser::new();
        let fail = |error| Error { place: parser.place(), fault: Fault::Engine(error) };
        let engine = Engine::new(config, xen).map_err(fail)?;
        Ok(Self { parser, session: Session::new(), engine, state: State::Receiving })
    }

    /// Takes what has arrived, in pieces of any length, and acts on it.
    ///
    /// Returns how many bytes it took: all of them, or those up to the end of the END record. Bytes in a later call
    /// are an error.
    ///
    /// # Errors
    /// What ended the restore; the window is empty then. Every later call returns the same.
    pub fn push<X: Xen, B: Broker>(
        &mut self,
        bytes: &[u8],
        xen: &mut X,
        broker: &mut B,
    ) -> Result<usize, Error> {
        match self.state {
            State::Receiving => {}
            State::Complete(_) if bytes.is_empty() => return Ok(0),
            State::Complete(_) => {
                let error = self.error(Fault::Trailing { nr_bytes: bytes.len() });
                self.state = State::Failed(error);
                return Err(error);
            }
            State::Failed(error) => return Err(error),
        }
        self.receive(bytes, xen, broker).inspect_err(|error| {
            xen.unmap();
            self.state = State::Failed(*error);
        })
    }

    /// Returns how many of the next bytes nothing needs to see: contents of pages that are mapped. They may go into the
    /// window by [`Restore::fill`], straight from wherever they are, instead of through [`Restore::push`].
    pub fn nr_unseen(&self) -> u32 {
        match self.state {
            State::Receiving if self.session.fills() => self.parser.contents_due(),
            _ => 0,
        }
    }

    /// Takes the next `nr_bytes` unseen, or as many as may pass so; returns how many. `fill` puts them into the window
    /// as [`Xen::fill`] would, from that byte of that slot on.
    pub fn fill(&mut self, nr_bytes: u32, fill: impl FnOnce(usize, usize)) -> u32 {
        let nr_bytes = nr_bytes.min(self.nr_unseen());
        if nr_bytes > 0 {
            let (slot, offset) = self.engine.advance(nr_bytes as usize);
            fill(slot, offset);
            self.parser.pass(nr_bytes);
        }
        nr_bytes
    }

    /// Takes the end of the stream's connection.
    ///
    /// # Errors
    /// The stream is not complete, or had failed before; the window is empty then.
    pub fn close<X: Xen>(&mut self, xen: &mut X) -> Result<Report, Error> {
        match self.state {
            State::Complete(report) => return Ok(report),
            State::Receiving => self.state = State::Failed(self.error(Fault::Truncated)),
            State::Failed(_) => {}
        }
        xen.unmap();
        let State::Failed(error) = self.state else { return Err(self.error(Fault::Truncated)) };
        Err(error)
    }

    /// Returns what the restore came to, once END has been acted on.
    pub fn report(&self) -> Option<Report> {
        match self.state {
            State::Complete(report) => Some(report),
            State::Receiving | State::Failed(_) => None,
        }
    }

    /// Returns what has been done so far.
    pub fn tally(&self) -> Tally {
        self.engine.tally()
    }

    /// Tells whether the guest's memory has come and its state is coming.
    pub fn is_finishing(&self) -> bool {
        self.session.is_finishing()
    }

    /// Returns where the next byte of the stream stands, and in which record.
    pub fn place(&self) -> Place {
        self.parser.place()
    }

    fn receive<X: Xen, B: Broker>(
        &mut self,
        bytes: &[u8],
        xen: &mut X,
        broker: &mut B,
    ) -> Result<usize, Error> {
        let mut rest = bytes;
        loop {
            let item = match self.parser.next(&mut rest) {
                Ok(Some(item)) => item,
                Ok(None) => return Ok(bytes.len() - rest.len()),
                Err(stream::Error { place, fault }) => {
                    return Err(Error { place, fault: Fault::Stream(fault) });
                }
            };
            let fault = match self.session.step(item) {
                Ok(None) => continue,
                Ok(Some(step)) => match act(&mut self.engine, step, xen, broker) {
                    Ok(None) => continue,
                    Ok(Some(target)) => {
                        self.complete(target);
                        continue;
                    }
                    Err(error) => Fault::Engine(error),
                },
                Err(error) => Fault::Session(error),
            };
            return Err(self.error(fault));
        }
    }

    fn complete(&mut self, target: Target) {
        let nr_bytes = self.parser.place().offset;
        self.state = State::Complete(Report { nr_bytes, tally: self.engine.tally(), target });
    }

    fn error(&self, fault: Fault) -> Error {
        Error { place: self.parser.place(), fault }
    }
}

/// Acts on one step; gives the target when it was the last.
fn act<X: Xen, B: Broker>(
    engine: &mut Engine,
    step: Step<'_>,
    xen: &mut X,
    broker: &mut B,
) -> Result<Option<Target>, engine::Error> {
    match step {
        Step::Run(run) => engine.run(run, xen)?,
        Step::Pages(purpose, pages) => engine.pages(purpose, pages, xen)?,
        Step::Contents(purpose, bytes) => engine.contents(purpose, bytes, xen),
        Step::Param(param) => engine.param(param),
        Step::Piece(piece) => {
            let kind = piece.kind;
            broker.blob(piece).map_err(|errno| engine::Error::Blob { kind, errno })?;
        }
        Step::StaticData(missing) => {
            broker.static_data_done(missing).map_err(engine::Error::StaticData)?;
        }
        Step::TscInfo(info) => broker.set_tsc_info(info).map_err(engine::Error::TscInfo)?,
        Step::Finish => return engine.finish(xen, broker).map(Some),
    }
    Ok(None)
}

#[cfg(test)]
mod tests;

//! SESSION: items to steps.
//!
//! **Takes** the items of one stream. **Gives** steps to act on, in an order that is sound. **Never** looks into
//! contents.
//!
//! The rules, from the specification where senders keep it and from libxc's receiver where they do not:
//! - version 3: policies, STATIC_DATA_END exactly once, then everything else; version 2 has no STATIC_DATA_END, it is
//!   inferred at the first record that is no policy;
//! - X86_TSC_INFO, HVM_CONTEXT and HVM_PARAMS come in any order (the specification wants parameters first, libxc writes
//!   them last; a receiver applies the context when all is there);
//! - after VERIFY pages are compared, no longer written;
//! - END needs an HVM_CONTEXT before it.

use crate::stream::{Item, Param, Piece, RecordType, Run, TscInfo, Version};
use core::fmt;
use xen_abi::types::Gfn;

/// Which policies the stream did not bring (`XGR_SDD_MISSING_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// No X86_CPUID_POLICY.
    pub cpuid: bool,
    /// No X86_MSR_POLICY.
    pub msr: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// The static data are complete: dom0 may apply the policies.
    StaticData(Missing),
    /// Pages that come without contents.
    Run(Run),
    /// Pages whose contents follow: have them populated and mapped.
    Pages(Use, &'a [Gfn]),
    /// The next bytes of these pages.
    Contents(Use, &'a [u8]),
    /// Bytes for dom0.
    Piece(Piece<'a>),
    /// TSC information for dom0.
    TscInfo(TscInfo),
    /// A parameter to set when all is there.
    Param(Param),
    /// All is there.
    Finish,
}

/// What page contents are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// They are the guest's memory.
    Fill,
    /// They should equal the guest's memory (after VERIFY).
    Compare,
}

/// A record that may not come here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A record that only STATIC_DATA_END may make way for.
    BeforeStaticDataEnd,
    /// A second STATIC_DATA_END.
    SecondStaticDataEnd,
    /// STATIC_DATA_END in a version 2 stream.
    StaticDataEndInV2,
    /// A policy after the static data were complete.
    LatePolicy,
    /// A second HVM_CONTEXT.
    SecondContext,
    /// END without an HVM_CONTEXT.
    NoContext,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BeforeStaticDataEnd => "expected STATIC_DATA_END before this record",
            Self::SecondStaticDataEnd => "expected STATIC_DATA_END once, got a second one",
            Self::StaticDataEndInV2 => "expected no STATIC_DATA_END in a version 2 stream",
            Self::LatePolicy => "expected no policy after the static data were complete",
            Self::SecondContext => "expected HVM_CONTEXT once, got a second one",
            Self::NoContext => "expected an HVM_CONTEXT record before END, got none",
        })
    }
}

impl core::error::Error for Error {}

/// Where the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the headers are complete.
    Opening,
    /// Policies may come.
    Static(Version, Missing),
    /// Memory and state may come.
    Live(Use, Context),
    /// Nothing may come.
    Ended,
}

/// Whether the HVM context has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Context {
    Awaited,
    Seen,
}

/// The rules of one stream.
#[derive(Debug)]
pub struct Session(State);

impl Session {
    /// Starts before the headers.
    pub const fn new() -> Self {
        Self(State::Opening)
    }

    /// Says what an item means at this point; `None` when it asks for nothing.
    ///
    /// # Errors
    /// A record that may not come here.
    pub fn step<'a>(&mut self, item: Item<'a>) -> Result<Option<Step<'a>>, Error> {
        Ok(Some(match item {
            Item::Headers(headers) => {
                self.0 = State::Static(headers.version, Missing { cpuid: true, msr: true });
                return Ok(None);
            }
            Item::Record(record) => return self.record(record),
            Item::Run(run) => Step::Run(run),
            Item::Pages(pages) => Step::Pages(self.purpose(), pages),
            Item::Contents(bytes) => Step::Contents(self.purpose(), bytes),
            Item::Piece(piece) => Step::Piece(piece),
            Item::TscInfo(info) => Step::TscInfo(info),
            Item::Param(param) => Step::Param(param),
        }))
    }

    /// Tells whether page contents go into frames as they are: nobody needs to see them.
    pub fn fills(&self) -> bool {
        self.purpose() == Use::Fill
    }

    /// Tells whether the guest's state has begun to come: its memory is complete but for what END does.
    pub fn is_finishing(&self) -> bool {
        matches!(self.0, State::Live(_, Context::Seen) | State::Ended)
    }

    fn record<'a>(&mut self, record: RecordType) -> Result<Option<Step<'a>>, Error> {
        if record.is_optional() {
            return Ok(None);
        }
        match self.0 {
            State::Static(version, missing) => self.static_record(record, version, missing),
            State::Live(purpose, context) => self.live_record(record, purpose, context),
            // The parser gives a record only after the headers and none after END.
            State::Opening | State::Ended => Ok(None),
        }
    }

    fn static_record<'a>(
        &mut self,
        record: RecordType,
        version: Version,
        mut missing: Missing,
    ) -> Result<Option<Step<'a>>, Error> {
        match (record, version) {
            (RecordType::X86_CPUID_POLICY, _) => missing.cpuid = false,
            (RecordType::X86_MSR_POLICY, _) => missing.msr = false,
            (RecordType::STATIC_DATA_END, Version::V2) => return Err(Error::StaticDataEndInV2),
            (RecordType::STATIC_DATA_END, Version::V3) => return Ok(Some(self.live(missing))),
            (_, Version::V3) => return Err(Error::BeforeStaticDataEnd),
            (_, Version::V2) => {
                let step = self.live(missing);
                self.record(record)?;
                return Ok(Some(step));
            }
        }
        self.0 = State::Static(version, missing);
        Ok(None)
    }

    fn live<'a>(&mut self, missing: Missing) -> Step<'a> {
        self.0 = State::Live(Use::Fill, Context::Awaited);
        Step::StaticData(missing)
    }

    fn live_record<'a>(
        &mut self,
        record: RecordType,
        purpose: Use,
        context: Context,
    ) -> Result<Option<Step<'a>>, Error> {
        match (record, context) {
            (RecordType::X86_CPUID_POLICY | RecordType::X86_MSR_POLICY, _) => return Err(Error::LatePolicy),
            (RecordType::STATIC_DATA_END, _) => return Err(Error::SecondStaticDataEnd),
            (RecordType::VERIFY, _) => self.0 = State::Live(Use::Compare, context),
            (RecordType::HVM_CONTEXT, Context::Awaited) => self.0 = State::Live(purpose, Context::Seen),
            (RecordType::HVM_CONTEXT, Context::Seen) => return Err(Error::SecondContext),
            (RecordType::END, Context::Awaited) => return Err(Error::NoContext),
            (RecordType::END, Context::Seen) => {
                self.0 = State::Ended;
                return Ok(Some(Step::Finish));
            }
            _ => {}
        }
        Ok(None)
    }

    fn purpose(&self) -> Use {
        match self.0 {
            State::Live(purpose, _) => purpose,
            State::Opening | State::Static(..) | State::Ended => Use::Fill,
        }
    }
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;

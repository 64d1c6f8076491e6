//! The messages between `stubctl` in dom0 and the stub domain, and their framing.
//!
//! **Takes** a message value or the bytes of a vchan. **Gives** bytes or a message value. **Never** allocates, never
//! trusts a length: a frame longer than [`MAX_MESSAGE_BYTES`] is an error of the peer.
//!
//! One vchan connection carries one conversation. It opens with [`ToStub::Hello`] answered by [`FromStub::Hello`];
//! everything else follows from the commands below. The stub asks dom0 for what only dom0 may do with
//! [`FromStub::Apply`] and waits for the one [`ToStub::Answer`]; all else that the stub sends needs no answer.
#![no_std]
#![forbid(unsafe_code)]

pub mod exchange;
mod frame;
mod hypercalls;
pub mod nodes;
mod pace;
mod proof;
pub mod send;
mod text;

use core::net::Ipv6Addr;
use core::ops::RangeInclusive;
pub use frame::{Deframer, FrameError, encode};
pub use hypercalls::Hypercalls;
pub use pace::Pace;
pub use proof::{Proof, WrongToken};
use serde::{Deserialize, Serialize};
pub use text::{Untrusted, is_harmless};
use xen_abi::types::{Domid, Gfn, Mfn};

/// Version of this protocol; both ends must be equal.
pub const VERSION: u16 = 5;

/// The xenstore directory of the rendezvous, below the stub's own `/local/domain/<stub>/`.
pub const VCHAN_PATH: &str = "data/control";

/// The xenstore directory of the stream's own vchan, [`Transport::Ring`], likewise below the stub's home.
pub const STREAM_VCHAN_PATH: &str = "data/stream";

/// The TCP port on which the stub receives a stream.
pub const STREAM_PORT: u16 = 8002;

/// The address from which dom0 connects to that port, on every relay's bridge ("stubctl" in ASCII): the stub knows it before
/// anybody can tell it another.
pub const RELAY_ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x7374, 0x7562, 0x6374, 0x6c00);

/// The ports from which dom0 connects: only root can have them.
pub const RELAY_PORTS: RangeInclusive<u16> = 512..=1023;

/// Length of the one-time token that opens a stream connection, and of the greeting that answers for the stub, in bytes.
pub const TOKEN_BYTES: usize = 32;

/// Longest encoded message, in bytes, without its two-byte length.
pub const MAX_MESSAGE_BYTES: usize = 2304;

/// Longest piece of a blob in one [`FromStub::Blob`], in bytes.
pub const BLOB_CHUNK_BYTES: usize = 2048;

/// Longest text in one message, in bytes; senders cut at a character boundary.
pub const MAX_TEXT_BYTES: usize = 512;

/// Most pages that [`Report::mismatches`] names.
pub const MAX_MISMATCHES: usize = 4;

/// What stubctl says to the stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToStub {
    /// Opens the conversation.
    Hello {
        /// [`VERSION`] of the sender.
        version: u16,
    },
    /// Names the domain that `XEN_DOMCTL_set_target` has tied to the stub. Sent once in a stub's life.
    Pair {
        /// The target.
        target: Domid,
    },
    /// Asks the stub to receive its target's stream; it answers [`FromStub::Listening`].
    Receive(Receive),
    /// Asks the stub to send its target; it answers [`FromStub::Listening`].
    Send(send::Send),
    /// Answers [`send::Ask`] with a bitmap, which follows on the ring.
    Bitmap(send::Bitmap),
    /// Answers [`send::Ask::Fetch`] with a blob, which follows on the ring.
    Blob {
        /// Its length in bytes; 0 when there is none.
        nr_bytes: u32,
    },
    /// Answers [`send::Ask::CountDirty`].
    Count {
        /// How many pages.
        nr_pages: u64,
    },
    /// Answers [`send::Ask::TscInfo`].
    TscInfo(TscInfo),
    /// Answers the last [`FromStub::Apply`] or [`FromStub::Ask`]: 0 or a negative Linux errno.
    Answer {
        /// 0 or `-errno`.
        result: i32,
    },
    /// Asks for the target's guest-physical map; answered by [`FromStub::Survey`] pieces and
    /// [`FromStub::SurveyDone`].
    Survey {
        /// One past the highest gfn to look at.
        end: Gfn,
    },
    /// Asks which machine frame stands behind a gfn now; answered by [`FromStub::Located`].
    Locate {
        /// The page.
        gfn: Gfn,
    },
    /// Names pages that the next [`ToStub::Exchange`] must leave where they are; at most [`exchange::MAX_RESERVED`].
    Reserve(exchange::Reserved),
    /// Asks the stub to look at a frame and to prepare its exchange; answered by [`FromStub::Prepared`].
    Exchange(exchange::Exchange),
    /// Asks for the swap; the target stands still. Answered by [`FromStub::Swapped`].
    Swap,
    /// Ends an exchange, whatever came of it; answered by [`FromStub::Exchanged`], after a failed swap by
    /// [`FromStub::Done`].
    Finish,
    /// Asks how many old frames of the last exchange the target still owns; answered by [`FromStub::Held`].
    CountHeld,
    /// Puts right what a dead stub has left of an exchange; answered by [`FromStub::Done`] or
    /// [`FromStub::NotExchanged`].
    Repair(exchange::Repair),
    /// Asks the stub to end (`SHUTDOWN_poweroff`).
    Shutdown,
    /// Asks the stub to panic: a test of how failure looks.
    Panic,
}

/// What carries the stream to the stub. Either way it opens with the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// A vchan at [`STREAM_VCHAN_PATH`]: pages that dom0 and the stub share.
    Ring,
    /// A TCP connection to [`STREAM_PORT`].
    Tcp,
}

/// What the stub needs to know to receive its target's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receive {
    /// Opens the stream connection; used once.
    pub token: [u8; TOKEN_BYTES],
    /// What the stub sends first on a TCP connection, before it is sent the token: another that has taken the stub's
    /// address does not know it.
    pub greeting: [u8; TOKEN_BYTES],
    /// Where the stub's TCP sequence numbers come from: a stub has no randomness of its own.
    pub seed: u64,
    /// What the stream will come by.
    pub transport: Transport,
    /// The most pages the target may own (`max_pages`), in 4 KiB pages.
    pub max_pages: u64,
    /// The target's own event channel port for xenstore.
    pub store_port: u32,
    /// The domain that serves xenstore.
    pub store_domid: Domid,
    /// The target's own event channel port for its console.
    pub console_port: u32,
    /// The domain that serves the console.
    pub console_domid: Domid,
}

/// What the stub says to stubctl.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromStub<'a> {
    /// Answers [`ToStub::Hello`].
    Hello {
        /// [`VERSION`] of the stub.
        version: u16,
        /// The target, once paired.
        target: Option<Domid>,
    },
    /// The last command without a result of its own (Pair, Finish after a failed swap) is done.
    Done,
    /// The stub accepts one connection by the transport it was told now.
    Listening,
    /// A piece of a blob that a later [`FromStub::Apply`] names. Pieces of one kind come in order.
    Blob {
        /// Which blob.
        kind: BlobKind,
        /// Length of the whole blob in bytes.
        total: u32,
        /// Where this piece starts, in bytes.
        offset: u32,
        /// The piece, at most [`BLOB_CHUNK_BYTES`].
        #[serde(borrow)]
        bytes: &'a [u8],
    },
    /// Asks dom0 to act on the target; answered by [`ToStub::Answer`].
    Apply(Apply),
    /// Asks dom0 for something that a send needs.
    Ask(send::Ask),
    /// How far the receive or the send is; at most a few a second.
    Progress(Progress),
    /// A line for the operator's log.
    Log {
        /// How much it matters.
        level: LogLevel,
        /// The line, at most [`MAX_TEXT_BYTES`].
        #[serde(borrow)]
        text: Untrusted<&'a str>,
    },
    /// The target is complete.
    Restored {
        /// The gfn of the xenstore ring.
        store: Gfn,
        /// The gfn of the console ring.
        console: Gfn,
        /// What it took.
        report: Report,
    },
    /// All of the target's stream is in the ring, and the stub has let go of the target's frames.
    Sent(send::Sent),
    /// The current command failed; the stub is ready for the next.
    Failed {
        /// What was expected, what came, where: at most [`MAX_TEXT_BYTES`].
        #[serde(borrow)]
        text: Untrusted<&'a str>,
    },
    /// A run of the survey: one [`RegionKind`] as a byte for each 2 MiB region.
    Survey {
        /// Index of the first region: its first gfn divided by 512.
        first_region: u64,
        /// [`RegionKind`] codes, at most [`BLOB_CHUNK_BYTES`].
        kinds: &'a [u8],
    },
    /// Answers [`ToStub::Locate`].
    Located {
        /// The frame; `None` behind a hole.
        mfn: Option<Mfn>,
    },
    /// What will be exchanged; the stub waits for [`ToStub::Swap`] or [`ToStub::Finish`].
    Prepared(exchange::Prepared),
    /// The swap is done; the target may run.
    Swapped(exchange::Swapped),
    /// The frame is exchanged, and the stub has let go of the old one.
    Exchanged(exchange::Exchanged),
    /// Old frames of the last exchange that the target still owns.
    Held {
        /// How many.
        nr_frames: u64,
    },
    /// The frame is not exchanged and the target is as it was, unless the reason is [`exchange::Reason::Lost`].
    NotExchanged {
        /// Why, by name.
        reason: exchange::Reason,
        /// Why, in words: at most [`MAX_TEXT_BYTES`].
        #[serde(borrow)]
        text: Untrusted<&'a str>,
    },
    /// The survey is complete.
    SurveyDone {
        /// How many 1 GiB regions are one aligned run of machine memory.
        nr_contiguous_1g: u64,
        /// How many gfns have a frame.
        nr_frames: u64,
    },
}

/// A piece of state that only dom0 may apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobKind {
    /// `xen_cpuid_leaf_t[]`, record X86_CPUID_POLICY.
    CpuidPolicy,
    /// `xen_msr_entry_t[]`, record X86_MSR_POLICY.
    MsrPolicy,
    /// The body of record HVM_CONTEXT.
    HvmContext,
}

/// What the stub asks dom0 to do to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Apply {
    /// `XEN_DOMCTL_set_cpu_policy` with the CPUID and MSR blobs sent before (either may be missing), then libxl's
    /// `static_data_done` callback.
    StaticData {
        /// Whether the stream had no CPUID policy (`XGR_SDD_MISSING_CPUID`).
        missing_cpuid: bool,
        /// Whether the stream had no MSR policy (`XGR_SDD_MISSING_MSR`).
        missing_msr: bool,
    },
    /// `XEN_DOMCTL_settscinfo`, record X86_TSC_INFO.
    TscInfo(TscInfo),
    /// `XEN_DOMCTL_sethvmcontext` with the HVM context blob sent before.
    HvmContext,
}

/// Arguments of `XEN_DOMCTL_settscinfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TscInfo {
    /// `tsc_mode`.
    pub mode: u32,
    /// Guest TSC frequency in kHz.
    pub khz: u32,
    /// Elapsed time in nanoseconds.
    pub nsec: u64,
    /// Incarnation.
    pub incarnation: u32,
}

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is odd.
    Warn,
    /// A phase began or ended.
    Info,
    /// For developers.
    Debug,
}

/// Where a receive or a send is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Paired, nothing to do.
    Idle,
    /// Waiting for the stream's connection.
    Listening,
    /// Headers and static data.
    Opening,
    /// The first pass over the guest's memory.
    Memory,
    /// Pages come again.
    Precopy,
    /// State records, give-back, END.
    Finishing,
    /// The target is complete.
    Restored,
    /// The target has been sent.
    Sent,
    /// A frame is being exchanged.
    Exchanging,
    /// The last command failed.
    Failed,
}

impl Phase {
    /// The word that stands in xenstore and in `stubctl status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Listening => "listening",
            Self::Opening => "opening",
            Self::Memory => "memory",
            Self::Precopy => "precopy",
            Self::Finishing => "finishing",
            Self::Restored => "restored",
            Self::Sent => "sent",
            Self::Exchanging => "exchanging",
            Self::Failed => "failed",
        }
    }
}

/// How far a receive or a send is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Where it is.
    pub phase: Phase,
    /// Stream bytes taken or written so far.
    pub nr_bytes: u64,
    /// Pages filled or sent so far, repeats counted.
    pub nr_pages: u64,
    /// Which pass over memory this is, from 1.
    pub pass: u32,
}

/// What a receive took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Stream bytes taken.
    pub nr_bytes: u64,
    /// Pages filled, repeats counted.
    pub nr_pages: u64,
    /// 1 GiB extents populated and kept.
    pub nr_superpages_1g: u64,
    /// 2 MiB extents populated and kept.
    pub nr_superpages_2m: u64,
    /// 4 KiB pages populated.
    pub nr_pages_4k: u64,
    /// Pages given back: holes and what the stream never named.
    pub nr_given_back: u64,
    /// Pages after VERIFY whose contents were not the stream's.
    pub nr_mismatches: u64,
    /// The first of them.
    pub mismatches: [Option<Gfn>; MAX_MISMATCHES],
    /// Hypercalls by kind.
    pub nr_hypercalls: Hypercalls,
    /// Nanoseconds of processor time in each [`Stage`], by its index, Xen's own work in it included.
    pub stage_ns: [u64; Stage::ALL.len()],
}

/// What a stub does with its processor time while it receives; the rest goes to following the stream and planning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Stage {
    /// Taking frames off the network and bytes out of TCP.
    Network,
    /// Having Xen populate the target, and giving back.
    Populate,
    /// Mapping the target's frames.
    Map,
    /// Copying contents into them.
    Copy,
}

impl Stage {
    /// Every stage, in the order of [`Report::stage_ns`].
    pub const ALL: [Self; 4] = [Self::Network, Self::Populate, Self::Map, Self::Copy];

    /// The name in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Populate => "populate",
            Self::Map => "map",
            Self::Copy => "copy",
        }
    }
}

/// What a 2 MiB region of guest-physical space is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RegionKind {
    /// No frame at all.
    Hole = 0,
    /// 512 frames that are one aligned run of machine memory.
    Superpage = 1,
    /// 512 frames, not one run.
    Small = 2,
    /// Some frames, some holes.
    Partial = 3,
}

impl RegionKind {
    /// Takes a code from the wire.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Hole),
            1 => Some(Self::Superpage),
            2 => Some(Self::Small),
            3 => Some(Self::Partial),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;

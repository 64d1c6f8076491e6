//! libxl's save-helper protocol: messages on standard output, answers on standard input.
//!
//! **Takes** what there is to tell. **Gives** the bytes that libxl's `libxl_save_msgs_gen.pl` agrees on: u16 length,
//! u16 message number, packed arguments, all in native byte order. **Never** writes anything else to standard output.

use log::{Level, Log, Metadata, Record};
use std::io::{self, Read, Write};
use xen_abi::types::{Domid, Gfn};

/// What libxl prints in front of our lines.
const CONTEXT: &str = "stubctl";

/// Longest message body; the length field has 16 bits, and a line for a terminal needs far less.
const MAX_TEXT_BYTES: usize = 4096;

const MSG_LOG: u16 = 1;
const MSG_PROGRESS: u16 = 2;
const MSG_SUSPEND: u16 = 3;
const MSG_SWITCH_QEMU_LOGDIRTY: u16 = 7;
const MSG_STATIC_DATA_DONE: u16 = 8;
const MSG_RESTORE_RESULTS: u16 = 9;
const MSG_COMPLETE: u16 = 10;

/// `xentoollog_level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum ToolLevel {
    Debug = 1,
    Detail = 3,
    Info = 5,
    Warn = 7,
    Error = 8,
}

impl From<Level> for ToolLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => Self::Error,
            Level::Warn => Self::Warn,
            Level::Info => Self::Info,
            Level::Debug => Self::Detail,
            Level::Trace => Self::Debug,
        }
    }
}

/// One message, built up argument by argument.
struct Message(Vec<u8>);

impl Message {
    fn new(number: u16) -> Self {
        Self(vec![0, 0]).bytes(&number.to_ne_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    /// A STRING: u32 length with the final nul, then the bytes. A nul inside would end it early, so it is left out.
    fn text(self, text: &str) -> Self {
        let mut end = text.len().min(MAX_TEXT_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes: Vec<u8> = text.bytes().take(end).filter(|byte| *byte != 0).collect();
        bytes.push(0);
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.u32(len).bytes(&bytes)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Fills the length in: the number and the arguments, not itself.
    fn finish(mut self) -> Vec<u8> {
        let len = u16::try_from(self.0.len() - 2).unwrap_or(u16::MAX);
        self.0[..2].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

fn log_message(level: ToolLevel, text: &str) -> Vec<u8> {
    // errno -1: the text says all, libxl appends nothing.
    Message::new(MSG_LOG).u32(level as u32).u32(u32::MAX).text(CONTEXT).text(text).finish()
}

fn progress_message(what: &str, nr_done: u64, nr_total: u64) -> Vec<u8> {
    Message::new(MSG_PROGRESS).text(CONTEXT).text(what).u64(nr_done).u64(nr_total).finish()
}

fn static_data_done_message(missing: u32) -> Vec<u8> {
    Message::new(MSG_STATIC_DATA_DONE).u32(missing).finish()
}

fn restore_results_message(store: Gfn, console: Gfn) -> Vec<u8> {
    Message::new(MSG_RESTORE_RESULTS).u64(store.raw()).u64(console.raw()).finish()
}

fn switch_qemu_logdirty_message(guest: Domid, enable: bool) -> Vec<u8> {
    Message::new(MSG_SWITCH_QEMU_LOGDIRTY).u32(guest.raw().into()).u32(enable.into()).finish()
}

fn complete_message(retval: i32, errno: i32) -> Vec<u8> {
    Message::new(MSG_COMPLETE).bytes(&retval.to_ne_bytes()).bytes(&errno.to_ne_bytes()).finish()
}

/// What libxl is asked to do in a save; it may take its time over the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callback {
    /// To suspend the guest, its device model included.
    Suspend,
    /// To have the device model report what it writes to the guest.
    StartQemuLog,
    /// To have it stop that.
    EndQemuLog,
}

impl Callback {
    /// Whether this answer means that it was done: the one is a truth value, the others are return codes.
    pub(crate) fn is_done(self, answer: i32) -> bool {
        match self {
            Self::Suspend => answer == 1,
            Self::StartQemuLog | Self::EndQemuLog => answer == 0,
        }
    }
}

/// The running libxl at the other end of standard input and output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Libxl {
    /// Which callbacks it has: bit `1 << message number`.
    callbacks: u32,
}

impl Libxl {
    /// Takes the `cbflags` argument.
    pub(crate) fn new(callbacks: u32) -> Self {
        Self { callbacks }
    }

    /// Reports how far the restore is.
    pub(crate) fn progress(self, what: &str, nr_done: u64, nr_total: u64) -> io::Result<()> {
        send(&progress_message(what, nr_done, nr_total))
    }

    /// Tells that the static data are applied, `missing` being `XGR_SDD_MISSING_*`; gives libxl's answer.
    pub(crate) fn static_data_done(self, missing: u32) -> io::Result<i32> {
        if self.callbacks & 1 << MSG_STATIC_DATA_DONE == 0 {
            return Ok(0);
        }
        send(&static_data_done_message(missing))?;
        answer()
    }

    /// Asks for something; [`Libxl::answer`] waits for what comes of it.
    pub(crate) fn call(self, callback: Callback, guest: Domid) -> io::Result<()> {
        send(&match callback {
            Callback::Suspend => Message::new(MSG_SUSPEND).finish(),
            Callback::StartQemuLog => switch_qemu_logdirty_message(guest, true),
            Callback::EndQemuLog => switch_qemu_logdirty_message(guest, false),
        })
    }

    /// Takes libxl's answer, once standard input is readable.
    pub(crate) fn answer(self) -> io::Result<i32> {
        answer()
    }

    /// Reports that the save is done.
    pub(crate) fn saved(self) -> io::Result<()> {
        send(&complete_message(0, 0))?;
        answer().map(drop)
    }

    /// Reports that the save failed; `errno` is positive and becomes part of libxl's own line.
    pub(crate) fn not_saved(self, errno: i32) -> io::Result<()> {
        send(&complete_message(-1, errno))?;
        answer().map(drop)
    }

    /// Reports the target's xenstore and console rings and that the restore is done.
    pub(crate) fn restored(self, store: Gfn, console: Gfn) -> io::Result<()> {
        send(&restore_results_message(store, console))?;
        send(&complete_message(0, 0))?;
        answer().map(drop)
    }

    /// Reports that the restore failed; `errno` is positive and becomes part of libxl's own line.
    pub(crate) fn failed(self, errno: i32) -> io::Result<()> {
        // libxl wants results in any case, or it adds a complaint of its own.
        send(&restore_results_message(Gfn::new(0), Gfn::new(0)))?;
        send(&complete_message(-1, errno))?;
        answer().map(drop)
    }
}

fn send(message: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(message)?;
    out.flush()
}

fn answer() -> io::Result<i32> {
    let mut bytes = [0; 4];
    io::stdin().read_exact(&mut bytes)?;
    Ok(i32::from_ne_bytes(bytes))
}

/// Sends the lines of the `log` macros to libxl, which filters them by its own `-v`. Warnings and errors that no libxl takes
/// any more go to standard error, which is that of the xl that was.
struct LibxlLog;

impl Log for LibxlLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let message = log_message(record.level().into(), &record.args().to_string());
        // A libxl that is gone shows as a hang-up of standard input.
        if send(&message).is_err() && record.level() <= Level::Warn {
            let level = record.level().as_str().to_ascii_lowercase();
            let _ = writeln!(io::stderr(), "{CONTEXT}: {level}: {}", record.args()); // the last place there is
        }
    }

    fn flush(&self) {}
}

/// Makes the `log` macros of this process write to libxl.
pub(crate) fn install_log() {
    // It fails only where a logger was installed before: then lines go there.
    if log::set_logger(&LibxlLog).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_is_level_errno_context_text() {
        let expected = b"\x1f\0\x01\0\x08\0\0\0\xff\xff\xff\xff\x08\0\0\0stubctl\0\x05\0\0\0oops\0";
        assert_eq!(log_message(ToolLevel::Error, "oops"), expected);
    }

    #[test]
    fn progress_carries_two_texts_and_two_longs() {
        let expected = b"\x26\0\x02\0\x08\0\0\0stubctl\0\x04\0\0\0Ram\0\x07\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0";
        assert_eq!(progress_message("Ram", 7, 256), expected);
    }

    #[test]
    fn results_are_two_frame_numbers() {
        let expected = b"\x12\0\x09\0\xfc\xef\x0f\0\0\0\0\0\xff\xef\x0f\0\0\0\0\0";
        assert_eq!(restore_results_message(Gfn::new(0xfeffc), Gfn::new(0xfefff)), expected);
    }

    #[test]
    fn a_callback_is_its_number_and_its_arguments() {
        assert_eq!(Message::new(MSG_SUSPEND).finish(), b"\x02\0\x03\0");
        let switch = switch_qemu_logdirty_message(Domid::new(9), true);
        assert_eq!(switch, b"\x0a\0\x07\0\x09\0\0\0\x01\0\0\0");
        assert!(Callback::Suspend.is_done(1) && !Callback::Suspend.is_done(0));
        assert!(Callback::EndQemuLog.is_done(0) && !Callback::StartQemuLog.is_done(-1));
    }

    #[test]
    fn completion_is_two_ints() {
        assert_eq!(complete_message(-1, 71), b"\x0a\0\x0a\0\xff\xff\xff\xff\x47\0\0\0");
        assert_eq!(static_data_done_message(1), b"\x06\0\x08\0\x01\0\0\0");
    }

    #[test]
    fn a_text_is_cut_at_a_character_and_loses_its_nuls() {
        let long = "ä".repeat(MAX_TEXT_BYTES);
        let message = log_message(ToolLevel::Info, &long);
        assert!(message.len() < MAX_TEXT_BYTES + 64);
        assert_eq!(Message(Vec::new()).text("a\0b").0, b"\x03\0\0\0ab\0");
    }

    #[test]
    fn a_callback_that_libxl_does_not_have_is_not_called() {
        assert_eq!(Libxl::new(0).static_data_done(3).unwrap(), 0);
    }
}

//! Runs in dom0 as libxl's save helper: saves the same suspended guest twice, through the stub for libxl, and then by the
//! packaged helper into another file.
//!
//! Two saves of a running guest are never alike. This lets the first helper speak with libxl up to its last word, which is
//! withheld; the second finds the guest suspended, and what it asks of libxl is answered here. `NEST_SECOND` names its
//! file, which begins like libxl's own (`tools/libs/light/libxl_save_callout.c` has the protocol).

use e2e::error::{Doing, Error, Result};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

const STUBCTL: &str = "/usr/sbin/stubctl";
const PACKAGED: &str = "/usr/lib/xen-4.17/bin/libxl-save-helper";

/// Messages that libxl answers (`libxl_save_msgs_gen.pl`).
const MSG_SUSPEND: u16 = 3;
const MSG_SWITCH_QEMU_LOGDIRTY: u16 = 7;
const MSG_COMPLETE: u16 = 10;

fn main() -> ExitCode {
    match twice() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nest-twice: {error}");
            ExitCode::FAILURE
        }
    }
}

fn twice() -> Result<()> {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let stream = words.get(1).and_then(|word| word.to_str()?.parse::<i32>().ok());
    let stream = stream.ok_or_else(|| Error::new("reading the command line", format!("{words:?}")))?;
    let second = std::env::var_os("NEST_SECOND").ok_or_else(|| Error::new("NEST_SECOND", "not set"))?;
    fs::copy(format!("/proc/self/fd/{stream}"), &second).doing("copying the file's beginning")?;
    let words: Vec<&OsStr> = words.iter().map(OsString::as_os_str).collect();
    let first = [&[OsStr::new(STUBCTL)], words.as_slice()].concat();
    let last_word = Helper::start(&first)?.converse(&mut libxl_answers)?;
    let again = [&[PACKAGED, "--save-domain", "9"].map(OsStr::new), &words[2..]].concat();
    // As libxl: a truth value, or a return code.
    Helper::start(&again)?.converse(&mut |message| Ok(i32::from(message.number == MSG_SUSPEND)))?;
    send(&mut io::stdout().lock(), &last_word)?;
    libxl_answer().map(drop)
}

/// Lets libxl hear a message of the first helper and gives its answer.
fn libxl_answers(message: &Message) -> Result<i32> {
    send(&mut io::stdout().lock(), message)?;
    if message.is_answered() { libxl_answer() } else { Ok(0) }
}

fn libxl_answer() -> Result<i32> {
    let mut answer = [0; 4];
    io::stdin().lock().read_exact(&mut answer).doing("reading libxl's answer")?;
    Ok(i32::from_ne_bytes(answer))
}

/// A message of a helper's.
struct Message {
    number: u16,
    arguments: Vec<u8>,
}

impl Message {
    fn is_answered(&self) -> bool {
        [MSG_SUSPEND, MSG_SWITCH_QEMU_LOGDIRTY, MSG_COMPLETE].contains(&self.number)
    }
}

fn send(to: &mut impl Write, message: &Message) -> Result<()> {
    let len = u16::try_from(message.arguments.len() + 2).doing("measuring a message")?;
    let mut bytes = [len.to_ne_bytes(), message.number.to_ne_bytes()].concat();
    bytes.extend(&message.arguments);
    to.write_all(&bytes).and_then(|()| to.flush()).doing("passing a message on")
}

struct Helper {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

impl Helper {
    fn start(words: &[&OsStr]) -> Result<Self> {
        let mut command = Command::new("sh");
        // Descriptor 9 is for the second file; the first helper does not know of it.
        command.args(["-c", r#"exec "$@" 9>>"$NEST_SECOND""#, "sh"]).args(words);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().doing("starting a helper")?;
        let piped = child.stdin.take().zip(child.stdout.take());
        let (input, output) = piped.ok_or_else(|| Error::new("starting a helper", "no pipes"))?;
        Ok(Self { child, input, output })
    }

    /// Answers all that it asks, up to its last word, which is a success; gives that.
    fn converse(mut self, answer: &mut dyn FnMut(&Message) -> Result<i32>) -> Result<Message> {
        loop {
            let message = self.message()?;
            if message.number == MSG_COMPLETE {
                self.reply(0)?;
                let status = self.child.wait().doing("waiting for the helper")?;
                let failed = message.arguments.iter().any(|byte| *byte != 0) || !status.success();
                return if failed { Err(Error::new("the helper", "it failed")) } else { Ok(message) };
            }
            let result = answer(&message)?;
            if message.is_answered() {
                self.reply(result)?;
            }
        }
    }

    fn message(&mut self) -> Result<Message> {
        let mut header = [0; 4];
        self.output.read_exact(&mut header).doing("reading a helper's message")?;
        let [l0, l1, n0, n1] = header;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let mut arguments = vec![0; len.saturating_sub(2)];
        self.output.read_exact(&mut arguments).doing("reading a message's arguments")?;
        Ok(Message { number: u16::from_ne_bytes([n0, n1]), arguments })
    }

    fn reply(&mut self, answer: i32) -> Result<()> {
        self.input.write_all(&answer.to_ne_bytes()).doing("answering a helper")
    }
}

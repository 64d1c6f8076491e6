use super::*;
use std::cell::Cell;
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

const BRIEF: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(3600);

/// A socket in the place of a vchan: it is readable as long as there is something to read.
impl Line for UnixStream {
    fn fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn acknowledge(&self) {}

    fn is_open(&self) -> bool {
        true
    }

    fn read(&mut self, out: &mut [u8]) -> Result<usize, Nonsense> {
        Ok(Read::read(self, out).unwrap_or(0))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Nonsense> {
        Ok(Write::write(self, bytes).unwrap_or(0))
    }
}

/// A stub that sends one message again and again, without end.
struct Flood {
    message: Vec<u8>,
    nr_sent: Cell<usize>,
    silence: UnixStream,
}

impl Line for Flood {
    fn fd(&self) -> BorrowedFd<'_> {
        self.silence.as_fd()
    }

    fn acknowledge(&self) {}

    fn is_open(&self) -> bool {
        true
    }

    fn read(&mut self, out: &mut [u8]) -> Result<usize, Nonsense> {
        for byte in out.iter_mut() {
            *byte = self.message[self.nr_sent.get() % self.message.len()];
            self.nr_sent.set(self.nr_sent.get() + 1);
        }
        Ok(out.len())
    }

    fn write(&mut self, _: &[u8]) -> Result<usize, Nonsense> {
        Ok(0)
    }
}

fn encoded(message: &FromStub<'_>) -> Vec<u8> {
    control::encode(message, &mut [0; MAX_MESSAGE_BYTES + 2]).unwrap().to_vec()
}

pub(crate) fn interrupt() -> (Interrupt, PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    (Interrupt::at(reader.into()), writer)
}

pub(crate) fn lives() -> Life<'static> {
    Box::new(|| Ok(()))
}

/// A channel to a stub that is the other end of the socket.
fn channel(interrupt: &Interrupt, patience: Duration) -> (ControlChannel<'_>, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    (ControlChannel::over(Box::new(near), interrupt, lives(), patience), far)
}

pub(crate) fn flood<'a>(
    interrupt: &'a Interrupt,
    message: &FromStub<'_>,
    life: Life<'a>,
    patience: Duration,
) -> ControlChannel<'a> {
    let (silence, _) = UnixStream::pair().unwrap();
    let line = Flood { message: encoded(message), nr_sent: Cell::new(0), silence };
    let mut channel = ControlChannel::over(Box::new(line), interrupt, life, patience);
    // As if each message were allowed: what ends the wait then is what the test is about.
    channel.messages = Messages::without_end();
    channel
}

fn done(message: FromStub<'_>) -> Option<()> {
    matches!(message, FromStub::Done).then_some(())
}

pub(crate) const CHATTER: FromStub<'static> =
    FromStub::Log { level: LogLevel::Debug, text: Untrusted::new("all is well") };

#[test]
fn a_stub_that_talks_without_end_is_late_all_the_same() {
    let (interrupt, _writer) = interrupt();
    let mut channel = flood(&interrupt, &CHATTER, lives(), BRIEF);
    let error = channel.wait("Done", done).unwrap_err();
    assert_eq!(error, ControlError::Silent { expected: "Done", waited: BRIEF });
    assert!(channel.lines.nr_suppressed() > 0);
}

#[test]
fn an_interrupt_ends_the_wait_for_a_stub_that_talks_without_end() {
    let (interrupt, mut writer) = interrupt();
    writer.write_all(b"!").unwrap();
    let mut channel = flood(&interrupt, &CHATTER, lives(), LONG);
    let error = channel.wait("Done", done).unwrap_err();
    assert_eq!(error, ControlError::Stop(crate::interrupt::Stop::Signal));
}

#[test]
fn the_end_of_a_stub_ends_the_wait_for_what_it_has_sent_without_end() {
    let (interrupt, _writer) = interrupt();
    let dead = ControlError::Dead { stub: Domid::new(9), end: End::Crashed };
    let life: Life<'_> = Box::new(move || Err(ControlError::Dead { stub: Domid::new(9), end: End::Crashed }));
    let mut channel = flood(&interrupt, &CHATTER, life, LONG);
    assert_eq!(channel.wait("Done", done).unwrap_err(), dead);
}

#[test]
fn more_messages_than_any_stub_needs_end_the_conversation() {
    let (interrupt, _writer) = interrupt();
    let mut channel = flood(&interrupt, &CHATTER, lives(), LONG);
    channel.messages = Messages::new(Instant::now());
    assert_eq!(channel.wait("Done", done).unwrap_err(), ControlError::Flood);
}

#[test]
fn each_piece_of_an_answer_renews_the_time_and_other_messages_do_not() {
    let (interrupt, _writer) = interrupt();
    let piece = FromStub::Held { nr_frames: 1 };
    let patience = Duration::from_millis(500);
    let mut channel = flood(&interrupt, &piece, lives(), patience);
    let start = Instant::now();
    let pick = |_: FromStub<'_>| {
        if start.elapsed() > patience * 2 { Heard::Answer(()) } else { Heard::Piece }
    };
    channel.wait_for_pieces("Done", pick).unwrap();
    let error = channel.wait_for_pieces("Done", |_| Heard::<()>::Nothing).unwrap_err();
    assert_eq!(error, ControlError::Silent { expected: "Done", waited: patience });
}

#[test]
fn a_stub_that_does_not_read_is_not_waited_for_past_an_interrupt() {
    let (interrupt, mut writer) = interrupt();
    writer.write_all(b"!").unwrap();
    let mut channel = flood(&interrupt, &CHATTER, lives(), LONG);
    let error = channel.send(&ToStub::Swap).unwrap_err();
    assert_eq!(error, ControlError::Stop(crate::interrupt::Stop::Signal));
}

#[test]
fn an_answer_behind_other_messages_is_found() {
    let (interrupt, _writer) = interrupt();
    let (mut channel, mut far) = channel(&interrupt, LONG);
    let burst =
        [vec![encoded(&CHATTER); MESSAGES_PER_TURN], vec![encoded(&FromStub::Done)]].concat().concat();
    let sender = std::thread::spawn(move || far.write_all(&burst).map(|()| far));
    channel.wait("Done", done).unwrap();
    sender.join().unwrap().unwrap();
}

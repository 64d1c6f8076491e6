//! What fuzzing drives: the rooms of this program that take bytes of others.
//!
//! Each takes any bytes. A panic is a fault of ours.

use crate::conf::Conf;
use crate::framing::{Framing, Want};
use crate::interrupt::Interrupt;
use crate::qmp::Qmp;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

/// Follows a stream as the relay does, in pieces of `cut` bytes; returns where its END record ends, if it has one.
///
/// # Panics
/// The framing wants more than it takes.
pub fn end_of_stream(bytes: &[u8], cut: usize) -> Option<u64> {
    let (mut framing, mut rest) = (Framing::new(), bytes);
    loop {
        let len = match framing.want() {
            Want::Nothing => return Some(framing.place().offset),
            Want::Header(len) => len,
            Want::Body(len) => usize::try_from(len).unwrap_or(usize::MAX),
        };
        let len = len.min(rest.len()).min(cut.max(1));
        if len == 0 {
            return None;
        }
        let before = framing.place().offset;
        match framing.want() {
            Want::Header(_) => framing.header(&rest[..len]),
            _ => framing.body(len as u64),
        }
        assert_eq!(framing.place().offset, before + len as u64, "bytes that were wanted and not taken");
        rest = &rest[len..];
    }
}

/// What a configuration is made of.
const WORDS: [&str; 22] = [
    "enabled",
    "config",
    "memory",
    "transport",
    "bridge",
    "start_timeout_s",
    "stall_timeout_s",
    "=",
    " = ",
    "=\"",
    "\"",
    "#",
    "\n",
    "\n",
    "true",
    "\"ring\"",
    "\"tcp\"",
    "/",
    "\0",
    "0",
    "99999999999999999999",
    "\u{2028}",
];

/// Reads a configuration of any text.
///
/// # Panics
/// A setting is taken that is out of its bounds.
pub fn conf(input: &[u8]) {
    let words: String = input.iter().map(|byte| WORDS[usize::from(*byte) % WORDS.len()]).collect();
    for text in [words, String::from_utf8_lossy(input).into_owned()] {
        let mut conf = Conf::default();
        let result = conf.read(Path::new("any.conf"), &text);
        assert!(conf.memory_mib.is_none_or(|mib| (4..=1024).contains(&mib)), "{:?}", conf.memory_mib);
        assert!(conf.config.is_absolute(), "{}", conf.config.display());
        let is_line = conf.bridge.contains(['/', '"', '\0', '\n']);
        assert!(!is_line && conf.bridge.len() < 16, "{:?}", conf.bridge);
        drop(result.map_err(|error| error.to_string()));
    }
}

/// What a device model says: what it should, what it may, and what no QEMU says.
const LINES: [&str; 14] = [
    "{\"QMP\": {\"version\": {}}}\r\n",
    "{\"return\": {}, \"id\": 1}\r\n",
    "{\"return\": {\"status\": \"paused\"}, \"id\": 2}\r\n",
    "{\"return\": {\"status\": \"running\"}, \"id\": 2}\r\n",
    "{\"return\": {}, \"id\": 3}\r\n",
    "{\"return\": {\"status\": \"running\"}, \"id\": 4}\r\n",
    "{\"return\": {\"status\": 7}, \"id\": 4}\r\n",
    "{\"event\": \"STOP\"}\r\n",
    "{\"error\": {\"desc\": \"\u{1b}[2J\"}, \"id\": 3}\r\n",
    "{\"error\": 7, \"id\": 2}\n",
    "null\n",
    "\n",
    "{\"return\": [[[[[[[[[[[[[[[[",
    "\u{fffd}",
];

/// Has a device model go on that answers with any lines, before it is asked, and ends then.
///
/// # Panics
/// It takes them for something else than an answer or an error.
pub fn qmp(input: &[u8]) {
    let said: String = input.iter().map(|byte| LINES[usize::from(*byte) % LINES.len()]).collect();
    let said = [LINES[0], LINES[1], &said].concat();
    let path = std::env::temp_dir().join(format!("stubctl-door-{}", std::process::id()));
    let listener = UnixListener::bind(&path).expect("a socket in the folder for temporary files");
    let model = thread::spawn(move || {
        let mut socket = listener.accept()?.0;
        socket.write_all(said.as_bytes())?;
        socket.shutdown(Shutdown::Write)?;
        io::copy(&mut socket, &mut io::sink())
    });
    let interrupt = Interrupt::deaf();
    if let Ok(Some(mut qmp)) = Qmp::connect(&interrupt, path.clone()) {
        drop(qmp.go_on_if_stopped().map_err(|error| error.to_string()));
    }
    // The client may have left before it had everything.
    drop(model.join().expect("the device model does not panic"));
    std::fs::remove_file(path).expect("the socket is there");
}

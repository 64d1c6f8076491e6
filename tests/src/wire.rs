//! What the harness and its agent in dom0 say to each other over a virtio serial port.
//!
//! **Takes and gives** frames: kind, job, length, bytes. Both ends are ours; a frame that does not fit is an error of
//! the connection, which then ends.

use std::io::{self, Read, Write};

/// The port's name as QEMU and the guest kernel know it.
pub const PORT_NAME: &str = "nest.agent";

/// Longest payload in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 20;

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Agent to harness, once: dom0 is up.
    Hello = 1,
    /// Harness to agent: run this bash script; the payload is its arguments and text, see [`encode_run`].
    Run = 2,
    /// Agent to harness: a piece of a job's output.
    Output = 3,
    /// Agent to harness: the job ended; the payload is its exit code as a decimal number.
    Exit = 4,
    /// Harness to agent: kill the job with all its processes.
    Kill = 5,
}

impl Kind {
    fn from_code(code: u8) -> Option<Self> {
        [Self::Hello, Self::Run, Self::Output, Self::Exit, Self::Kill]
            .into_iter()
            .find(|kind| *kind as u8 == code)
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is about.
    pub kind: Kind,
    /// The job it belongs to; 0 for none.
    pub job: u32,
    /// The rest.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Reads one frame.
    ///
    /// # Errors
    /// The connection ended, or what came is no frame.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut head = [0; 9];
        from.read_exact(&mut head)?;
        let [kind, j0, j1, j2, j3, l0, l1, l2, l3] = head;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let kind = Kind::from_code(kind).filter(|_| len <= MAX_PAYLOAD_BYTES);
        let kind = kind.ok_or_else(|| io::Error::other(format!("not a frame of the nest: {head:?}")))?;
        let mut payload = vec![0; len];
        from.read_exact(&mut payload)?;
        Ok(Self { kind, job: u32::from_le_bytes([j0, j1, j2, j3]), payload })
    }

    /// Writes the frame in one piece.
    ///
    /// # Errors
    /// The payload is too long or the connection ended.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let len = u32::try_from(self.payload.len()).map_err(io::Error::other)?;
        let mut bytes = vec![self.kind as u8];
        bytes.extend_from_slice(&self.job.to_le_bytes());
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&self.payload);
        to.write_all(&bytes)?;
        to.flush()
    }
}

/// Packs a script and its arguments: each argument ends with a zero byte, an empty one ends the list.
pub fn encode_run(script: &str, args: &[String]) -> Vec<u8> {
    let mut payload = Vec::new();
    for arg in args.iter().filter(|arg| !arg.is_empty()) {
        payload.extend_from_slice(arg.as_bytes());
        payload.push(0);
    }
    payload.push(0);
    payload.extend_from_slice(script.as_bytes());
    payload
}

/// Unpacks [`encode_run`]: arguments and script.
pub fn decode_run(payload: &[u8]) -> (Vec<String>, &[u8]) {
    let (mut args, mut rest) = (Vec::new(), payload);
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        let arg = String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned();
        rest = rest.get(end + 1..).unwrap_or_default();
        if arg.is_empty() {
            break;
        }
        args.push(arg);
    }
    (args, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_the_wire() {
        let frame = Frame { kind: Kind::Output, job: 0x0102_0304, payload: b"hello\n".to_vec() };
        let mut wire = Vec::new();
        frame.write(&mut wire).unwrap();
        assert_eq!(wire[..9], [3, 4, 3, 2, 1, 6, 0, 0, 0]);
        assert_eq!(Frame::read(&mut wire.as_slice()).unwrap(), frame);
    }

    #[test]
    fn an_unknown_kind_and_a_long_payload_are_refused() {
        assert!(Frame::read(&mut [9_u8, 0, 0, 0, 0, 0, 0, 0, 0].as_slice()).is_err());
        assert!(Frame::read(&mut [3_u8, 0, 0, 0, 0, 0, 0, 0, 1].as_slice()).is_err());
    }

    #[test]
    fn a_script_keeps_its_arguments_and_its_text() {
        let payload = encode_run("echo \"$1\"\n", &["a b".into(), "c".into()]);
        assert_eq!(decode_run(&payload), (vec!["a b".into(), "c".into()], b"echo \"$1\"\n".as_slice()));
        assert_eq!(decode_run(&encode_run("true", &[])), (vec![], b"true".as_slice()));
    }
}

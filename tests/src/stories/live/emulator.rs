//! The device model's state, which passes behind the libxc stream: what was sent is what libxl gives to the new device
//! model.

use super::receiver::Receiver;
use crate::story::{Stage, Telling};

/// What passed the gate.
const SENT: &str = "/run/emulator.sent";

/// What libxl wrote for the new device model.
const WRITTEN: &str = "/var/lib/xen/emulator.written";

/// libxl removes its file once the device model runs; another name keeps it. The stream waits before the device model's
/// state until this waits for the file.
const CATCH: &str = "(for i in $(seq 3000); do ln /var/lib/xen/qemu-resume.$target /var/lib/xen/emulator.written && break; \
     sleep 0.02; done) </dev/null >/dev/null 2>&1 &";

/// A migration whose device model's state is kept on both sides of libxl.
#[derive(Debug)]
pub(super) struct Emulator(Receiver);

impl Emulator {
    /// Prepares a receiver that keeps it.
    pub(super) fn keep(stage: &Stage, guest: &str) -> Telling<Self> {
        stage.sh(&format!("rm -f {SENT} {WRITTEN}"))?;
        let receiver = Receiver::with_gate(stage, guest, "after", CATCH, &format!("--keep-emulator {SENT}"))?;
        Ok(Self(receiver))
    }

    /// What the guest is to migrate to.
    pub(super) fn receiver(&self) -> Receiver {
        self.0
    }

    /// Both are the same, and not empty.
    ///
    /// # Errors
    /// They differ, or one is missing.
    pub(super) fn expect_untouched(&self, stage: &Stage) -> Telling<String> {
        let bytes = stage.sh(&format!(
            "[ -s {SENT} ] && cmp {SENT} {WRITTEN} && wc -c <{SENT}; code=$?; rm -f {WRITTEN}; exit $code"
        ))?;
        Ok(format!("the device model's state arrived as it was sent: {bytes} bytes"))
    }
}

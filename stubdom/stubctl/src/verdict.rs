//! What came of one frame: for eyes, for scripts, for the exit code.

use crate::error::Error;
use crate::exchange::Exchange;
use crate::frame::State;
use crate::standstill::rescue::AGAIN;
use crate::xen_version::XenVersion;
use control::Untrusted;
use control::exchange::{Outcome, Prepared, Reason, Scope};
use migration::exchange_pv::Exchanged;
use serde_json::{Value, json};
use std::fmt;
use std::time::Duration;
use xen_abi::types::{Domid, Mfn};

/// How a frame ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Out of use, or fit for it.
    Done,
    /// Left as it was.
    Refused,
    /// Exchanged, and somebody holds the old frame still.
    Held,
    /// The guest has lost a page, or may have, and stands still.
    Lost,
    /// dom0 or a stub could not do its part; the exit code of that.
    Failed(u8),
}

impl Kind {
    /// As `stubctl --help` lists them.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Refused => 8,
            Self::Held => 9,
            Self::Lost => 10,
            Self::Failed(code) => code,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Held => "held",
            Self::Lost => "lost",
            Self::Failed(_) => "failed",
        }
    }
}

/// Why a frame is left as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// By name.
    pub(crate) reason: &'static str,
    /// In words.
    pub(crate) text: String,
}

impl Refused {
    pub(crate) fn new(reason: &'static str, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }
}

/// What came of one frame.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    mfn: Mfn,
    /// How it ended.
    pub(crate) kind: Kind,
    /// Why, by name.
    pub(crate) reason: &'static str,
    text: String,
    guest: Option<(Domid, Untrusted<String>)>,
    details: Option<Value>,
}

impl Verdict {
    pub(crate) fn new(mfn: Mfn, kind: Kind, reason: &'static str, text: &str) -> Self {
        Self { mfn, kind, reason, text: text.to_owned(), guest: None, details: None }
    }

    /// A frame that is left as it was.
    pub(crate) fn refused(mfn: Mfn, refused: &Refused) -> Self {
        Self::new(mfn, Kind::Refused, refused.reason, &refused.text)
    }

    /// A frame that was not exchanged, for a reason of this name.
    pub(crate) fn not_exchanged(mfn: Mfn, reason: &'static str, text: &str) -> Self {
        if reason != Reason::Lost.as_str() {
            return Self::new(mfn, Kind::Refused, reason, text);
        }
        let text = format!("{text}; it stays paused: destroy it, and restore it from its last save");
        Self::new(mfn, Kind::Lost, reason, &text)
    }

    /// An exchange that broke off and left the guest standing until it can be put right.
    pub(crate) fn stranded(mfn: Mfn, text: &str) -> Self {
        let text =
            format!("{text}; the guest stays paused, its memory waits for a stub to put it right: {AGAIN}");
        Self::new(mfn, Kind::Lost, "stranded", &text)
    }

    /// A frame at which something failed that has nothing to do with it.
    pub(crate) fn failed(mfn: Mfn, error: &Error) -> Self {
        Self::new(mfn, Kind::Failed(error.code()), "failed", &error.to_string())
    }

    /// Whether the reason may go away by itself, without any more errors of the frame.
    pub(crate) fn is_transient(&self) -> bool {
        const REASONS: [&str; 17] = [
            "being-built",
            "being-saved",
            "beside-free",
            "changing-hands",
            "device-model-busy",
            "device-model-stopped",
            "dom0s",
            "dying",
            "granted",
            "monitored",
            "moved",
            "no-memory",
            "no-owner",
            "not-suspended",
            "paused",
            "stranded",
            "xen",
        ];
        matches!(self.kind, Kind::Failed(_)) || REASONS.contains(&self.reason)
    }

    /// Names the owner.
    pub(crate) fn of_guest(mut self, domid: Domid, name: &Untrusted<String>) -> Self {
        self.guest = Some((domid, name.clone()));
        self
    }

    /// Says that the frame, which stays in use, is not marked any more.
    pub(crate) fn unmarked(mut self, version: XenVersion) -> Self {
        self.text += &format!(
            "; its mark is taken back: it would go out of use when its owner lets go of it, and Xen {version} may crash \
             over a frame that is freed beside free memory"
        );
        if self.kind == Kind::Held {
            self.text +=
                "; so it will be used again once it is let go of: name it in badpage= on Xen's command line";
        }
        self
    }

    /// A check that came out well.
    pub(crate) fn fit(mfn: Mfn, prepared: Prepared) -> Self {
        let text = format!("it can be exchanged: {}", prepared.gfn);
        let details = json!({ "gfn": prepared.gfn.raw(), "in_superpage": prepared.scope != Scope::Page });
        Self { details: Some(details), ..Self::new(mfn, Kind::Done, "fit", &text) }
    }

    /// An exchange, and what Xen says of the old frame now.
    pub(crate) fn exchanged(mfn: Mfn, exchange: &Exchange) -> Self {
        let state = exchange.ended.state;
        let outcome = exchange.swapped.outcome.as_str();
        let pause_us = exchange.stood.guest.as_micros();
        let whole = match exchange.swapped.outcome {
            Outcome::SplitSuperpage => Scope::SplitForMemory,
            Outcome::Page | Outcome::Superpage => exchange.prepared.scope,
        };
        let whole = whole.words();
        let gfn = exchange.prepared.gfn;
        let done = match &exchange.done {
            Ok(done) => {
                format!("exchanged for {}: {gfn} ({outcome}, {whole}), paused {pause_us} us", done.new)
            }
            Err(error) => format!(
                "exchanged: {gfn} ({outcome}, {whole}), paused {pause_us} us; the stub could not clean up behind it: {error}"
            ),
        };
        // An old frame out of use is nobody's any more, whatever the stub saw last: of a page alone that is all.
        let is_page = exchange.swapped.outcome == Outcome::Page;
        let nr_held = if state.is_offlined() && is_page { 0 } else { exchange.nr_held };
        let mut verdict = match (state.is_offlined(), nr_held) {
            (true, 0) => Self::new(mfn, Kind::Done, "exchanged", &done),
            (true, nr_held) => {
                let which = format!("{nr_held} old frames of the same superpage are");
                Self::new(mfn, Kind::Held, "held", &still_held(&done, &which))
            }
            (false, _) => {
                let which = format!("Xen says \"{state}\": the old frame is");
                Self::new(mfn, Kind::Held, "held", &still_held(&done, &which))
            }
        };
        let counts = exchange.swapped.nr_hypercalls.by_name();
        let calls = counts.iter().fold(0_u64, |sum, (_, nr)| sum.saturating_add(*nr));
        let by_kind: serde_json::Map<String, Value> = (counts.iter().filter(|(_, nr)| *nr > 0))
            .map(|&(name, nr)| (name.to_owned(), nr.into()))
            .collect();
        verdict.details = Some(json!({
            "gfn": gfn.raw(),
            "new_mfn": exchange.done.as_ref().ok().map(|done| done.new.raw()),
            "outcome": outcome,
            "scope": exchange.prepared.scope.as_str(),
            "pause_us": pause_us,
            "device_model_us": exchange.stood.device_model.map(|stood| stood.as_micros()),
            "prepare_us": exchange.prepared.ns / 1000,
            "swap_us": exchange.swapped.ns / 1000,
            "finish_us": exchange.done.as_ref().ok().map(|done| done.ns / 1000),
            "hypercalls": calls,
            "hypercalls_by_kind": by_kind,
            "state": state.to_string(),
            "old_frames_held": nr_held,
        }));
        match exchange.ended.for_xen {
            Some(version) => verdict.unmarked(version),
            None => verdict,
        }
    }

    /// An exchange under a PV guest that stood still for `stood`, for all frames of the call, and what Xen says of the old
    /// frame now.
    pub(crate) fn exchanged_pv(mfn: Mfn, done: &Exchanged, stood: Duration, state: State) -> Self {
        let pause_us = stood.as_micros();
        let text = format!("exchanged for {}: {}, suspended {pause_us} us, {state}", done.new, done.pfn);
        let kind = if state.is_offlined() { Kind::Done } else { Kind::Held };
        let details = json!({
            "pfn": done.pfn.raw(),
            "new_mfn": done.new.raw(),
            "entries": done.nr_entries,
            "table_level": done.level,
            "pause_us": pause_us,
            "state": state.to_string(),
        });
        Self { details: Some(details), ..Self::new(mfn, kind, "exchanged", &text) }
    }

    /// One line for scripts.
    pub(crate) fn json(&self) -> Value {
        let mut value = json!({
            "mfn": self.mfn.raw(),
            "result": self.kind.as_str(),
            "reason": self.reason,
            "text": self.text,
        });
        if let Some((domid, name)) = &self.guest {
            value["domid"] = domid.raw().into();
            value["guest"] = name.raw().into();
        }
        if let Some(Value::Object(details)) = &self.details {
            for (key, detail) in details {
                value[key] = detail.clone();
            }
        }
        value
    }
}

fn still_held(done: &str, which: &str) -> String {
    format!(
        "{done}, but {which} held by Xen itself (vcpu_info, event channels) or a back end, which go on using it: restart \
         this guest if it no longer answers, else migrate it (xl migrate to this host will do)"
    )
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.mfn)?;
        if let Some((domid, name)) = &self.guest {
            write!(f, " of {name} ({domid})")?;
        }
        match self.kind {
            Kind::Refused => write!(f, ": refused ({}): {}", self.reason, self.text),
            Kind::Lost => write!(f, ": LOST: {}", self.text),
            Kind::Failed(_) => write!(f, ": not done: {}", self.text),
            Kind::Done | Kind::Held => write!(f, ": {}", self.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MFN: Mfn = Mfn::new(0x77);

    #[test]
    fn a_refusal_leaves_the_guest_and_a_loss_does_not() {
        let refused = Verdict::not_exchanged(MFN, Reason::Granted.as_str(), "another domain has it mapped");
        assert_eq!((refused.kind, refused.kind.exit_code()), (Kind::Refused, 8));
        let lost = Verdict::not_exchanged(MFN, Reason::Lost.as_str(), "gfn:0x5 is lost");
        assert_eq!((lost.kind, lost.kind.exit_code()), (Kind::Lost, 10));
        let words = lost.of_guest(Domid::new(3), &Untrusted::new("db".to_owned())).to_string();
        assert!(
            words.contains("LOST") && words.contains("of db (d3)") && words.contains("destroy it"),
            "{words}"
        );
    }

    #[test]
    fn what_does_not_pass_by_itself_is_not_asked_again_and_again() {
        use crate::pv_suspend::SuspendError;
        use migration::exchange_pv::Error;
        let is_transient = |reason| Verdict::not_exchanged(MFN, reason, "").is_transient();
        let domid = Domid::new(3);
        for reason in ["being-built", "being-saved", "dying", "monitored", SuspendError::Paused(domid).name()]
        {
            assert!(is_transient(reason), "{reason}");
        }
        let huge = Error::HugeP2m { max_pfn: 2, limit: 1 };
        for reason in ["passthrough", "stubs-own", huge.name(), SuspendError::Slow(domid).name()] {
            assert!(!is_transient(reason), "{reason}");
        }
    }

    #[test]
    fn both_kinds_of_exchange_call_a_loss_by_the_same_name() {
        use migration::exchange_pv::{Error, Step};
        use migration::xen::Errno;
        let lost = Error::Lost { mfn: MFN, step: Step::Restore, errno: Errno::ENOMEM };
        assert_eq!(lost.name(), Reason::Lost.as_str());
    }
}

//! What came of one frame: for eyes, for scripts, for the exit code.

use crate::exchange::Exchange;
use crate::frame::State;
use control::Hypercall;
use control::exchange::Prepared;
use serde_json::{Value, json};
use std::fmt;
use xen_front::types::{Domid, Mfn};

/// How a frame ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Out of use, or fit for it.
    Done,
    /// Left as it was.
    Refused,
    /// Exchanged, and somebody holds the old frame still.
    Held,
}

impl Kind {
    /// As `stubctl --help` lists them.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Refused => 8,
            Self::Held => 9,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Held => "held",
        }
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
    guest: Option<(Domid, String)>,
    details: Option<Value>,
}

impl Verdict {
    pub(crate) fn new(mfn: Mfn, kind: Kind, reason: &'static str, text: &str) -> Self {
        Self { mfn, kind, reason, text: text.to_owned(), guest: None, details: None }
    }

    /// Names the owner.
    pub(crate) fn of_guest(mut self, domid: Domid, name: &str) -> Self {
        self.guest = Some((domid, name.to_owned()));
        self
    }

    /// A check that came out well.
    pub(crate) fn fit(mfn: Mfn, prepared: Prepared) -> Self {
        let where_ = if prepared.in_superpage { " in a superpage" } else { "" };
        let text = format!("it can be exchanged: {}{where_}", prepared.gfn);
        let details = json!({ "gfn": prepared.gfn.raw(), "in_superpage": prepared.in_superpage });
        Self { details: Some(details), ..Self::new(mfn, Kind::Done, "fit", &text) }
    }

    /// An exchange, and what Xen says of the old frame now.
    pub(crate) fn exchanged(mfn: Mfn, exchange: &Exchange, state: State) -> Self {
        let outcome = exchange.swapped.outcome.as_str();
        let pause_us = exchange.stood.as_micros();
        let done = format!(
            "exchanged for {}: {} ({outcome}), paused {pause_us} us",
            exchange.done.new, exchange.done.gfn
        );
        let mut verdict = if state.is_offlined() {
            Self::new(mfn, Kind::Done, "exchanged", &done)
        } else {
            let text = format!(
                "{done}, but Xen says \"{state}\": the old frame is held by Xen itself (vcpu_info, event channels) or a \
                 back end, and this guest's events may be lost: migrate it (xl migrate to this host will do) or restart it"
            );
            Self::new(mfn, Kind::Held, "held", &text)
        };
        let calls: u64 = exchange.swapped.nr_hypercalls.iter().sum();
        let by_kind: serde_json::Map<String, Value> =
            (Hypercall::ALL.iter().zip(exchange.swapped.nr_hypercalls))
                .filter(|(_, nr)| *nr > 0)
                .map(|(kind, nr)| (kind.as_str().to_owned(), nr.into()))
                .collect();
        verdict.details = Some(json!({
            "gfn": exchange.done.gfn.raw(),
            "new_mfn": exchange.done.new.raw(),
            "outcome": outcome,
            "in_superpage": exchange.prepared.in_superpage,
            "pause_us": pause_us,
            "swap_us": exchange.swapped.ns / 1000,
            "hypercalls": calls,
            "hypercalls_by_kind": by_kind,
            "state": state.to_string(),
        }));
        verdict
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
            value["guest"] = name.as_str().into();
        }
        if let Some(Value::Object(details)) = &self.details {
            for (key, detail) in details {
                value[key] = detail.clone();
            }
        }
        value
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.mfn)?;
        if let Some((domid, name)) = &self.guest {
            write!(f, " of {name} ({domid})")?;
        }
        match self.kind {
            Kind::Refused => write!(f, ": refused ({}): {}", self.reason, self.text),
            Kind::Done | Kind::Held => write!(f, ": {}", self.text),
        }
    }
}

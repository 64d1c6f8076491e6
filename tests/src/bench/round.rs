//! One round: a command in dom0, its time, and who spent processor time on it.

use super::parse;
use crate::error::Doing;
use crate::story::{Stage, Stop, Telling, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// What stubctl does before the stream runs.
const SET_UP: [&str; 3] = ["create", "greet", "connect"];

/// One round. Times are in seconds, of dom0's clock or of Xen's count.
#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    /// From the command's start to its end.
    pub(super) seconds: f64,
    /// Processor time of dom0 by Xen's count: all that happens there, and nothing else.
    pub(super) dom0: f64,
    /// Processor time of the domain that receives, by Xen's count; of a stub from its birth.
    pub(super) receiver: f64,
    /// Processor time of the command and its children in dom0 by dom0's count: xl, the helper or the relay, hotplug scripts.
    pub(super) command: f64,
    /// Processor time of netback's threads by dom0's count.
    pub(super) netback: f64,
    /// stubctl's report; null of the stock helper.
    pub(super) report: Value,
}

/// Processor time by domain, in nanoseconds.
type Spent = BTreeMap<u32, u64>;

impl Round {
    /// Runs a command in dom0 that must succeed.
    pub(super) fn take(stage: &Stage, command: &str) -> Telling<Self> {
        // Busybox's awk writes %d as 32 bits.
        let netback = "grep -ls '^vif' /proc/[0-9]*/comm | sed s/comm/schedstat/ | xargs -r cat | \
                       awk '{ n += $1 } END { printf \"%.0f\\n\", n }'";
        let output = stage.sh(&format!(
            "TIMEFORMAT='%U %S'; n=$({netback}); nest-cpu >/run/bench.before; a=$(date +%s%N)\n\
             (time {command} >/run/bench.log 2>&1) 2>/run/bench.time || {{ cat /run/bench.log; exit 1; }}\n\
             b=$(date +%s%N); nest-cpu >/run/bench.after; cat /run/bench.before; echo; cat /run/bench.after; echo\n\
             echo $((b - a)) $(($({netback}) - n)) $(cat /run/bench.time)"
        ))?;
        let parts: Vec<&str> = output.split("\n\n").collect();
        let &[before, after, numbers] = parts.as_slice() else {
            return Err(Stop::Failure(format!("three parts of `{command}`, got {output}")));
        };
        let words: Vec<&str> = numbers.split_whitespace().collect();
        let &[took_ns, netback_ns, user, system] = words.as_slice() else {
            return Err(Stop::Failure(format!("four numbers of `{command}`, got {numbers}")));
        };
        let seconds = |ns| parse(ns).map(|ns| Duration::from_nanos(ns).as_secs_f64());
        let (dom0, receiver) = spent(&domains(before)?, &domains(after)?);
        Ok(Self {
            seconds: seconds(took_ns)?,
            dom0,
            receiver,
            command: parse::<f64>(user)? + parse::<f64>(system)?,
            netback: seconds(netback_ns)?,
            report: Value::Null,
        })
    }

    /// Takes stubctl's report of the restore.
    pub(super) fn read_report(&mut self, text: &str) -> Telling {
        self.report = serde_json::from_str(text).doing("reading stubctl's report")?;
        ensure(self.report["restored"] == true, || {
            format!("stubctl's report tells of no restore: {}", self.report)
        })
    }

    /// The stub's processor time in one stage.
    pub(super) fn stage(&self, name: &str) -> Option<f64> {
        self.report["stub"]["cpu_seconds_by_stage"][name].as_f64()
    }

    /// The stub's processor time in no stage, its start included.
    pub(super) fn rest(&self) -> Option<f64> {
        let stages = self.report["stub"]["cpu_seconds_by_stage"].as_object()?;
        Some(self.receiver - stages.values().filter_map(Value::as_f64).sum::<f64>())
    }

    /// stubctl's own processor time while the stream runs, by dom0's count.
    pub(super) fn relay(&self) -> Option<f64> {
        streaming(&self.report["stubctl_cpu_seconds_by_phase"])
    }

    /// All processor time.
    pub(super) fn all(&self) -> f64 {
        self.dom0 + self.receiver
    }

    /// How long the stream ran, where a report tells.
    pub(super) fn streaming(&self) -> Option<f64> {
        streaming(&self.report["seconds_by_phase"])
    }

    /// Everything as one value.
    pub(super) fn json(&self) -> Value {
        json!({
            "seconds": self.seconds,
            "dom0_cpu_seconds": self.dom0,
            "receiver_cpu_seconds": self.receiver,
            "command_cpu_seconds": self.command,
            "netback_cpu_seconds": self.netback,
            "report": self.report,
        })
    }
}

/// The sum over the phases in which the stream runs.
fn streaming(by_phase: &Value) -> Option<f64> {
    let phases = by_phase.as_object()?.iter();
    let streaming = phases.filter(|(name, _)| !SET_UP.contains(&name.as_str()));
    Some(streaming.filter_map(|(_, seconds)| seconds.as_f64()).sum())
}

/// Reads what `nest-cpu` prints: a domain and its nanoseconds a line.
fn domains(text: &str) -> Telling<Spent> {
    let pair = |line: &str| {
        let (domid, ns) = line.split_once(' ').unwrap_or((line, ""));
        Ok((parse(domid)?, parse(ns)?))
    };
    text.lines().map(pair).collect()
}

/// What dom0 and all others ran in between, in seconds; a domain that was not there before has its whole life counted.
fn spent(before: &Spent, after: &Spent) -> (f64, f64) {
    let of = |(domid, ns): (&u32, &u64)| {
        let ns = ns.saturating_sub(before.get(domid).copied().unwrap_or(0));
        (*domid, Duration::from_nanos(ns).as_secs_f64())
    };
    let (dom0, others): (Vec<_>, Vec<_>) = after.iter().map(of).partition(|(domid, _)| *domid == 0);
    let sum = |all: Vec<(u32, f64)>| all.iter().map(|(_, seconds)| seconds).sum();
    (sum(dom0), sum(others))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_split_into_stages_and_the_rest() {
        let mut round = Round { dom0: 2.5, receiver: 1.75, command: 2.0, netback: 0.5, ..Round::default() };
        let report = json!({
            "restored": true,
            "seconds_by_phase": { "create": 0.4, "connect": 0.1, "listening": 0.5, "memory": 2.0 },
            "stubctl_cpu_seconds_by_phase": { "create": 0.1, "greet": 0.1, "memory": 0.5, "finishing": 0.25 },
            "stub": { "cpu_seconds_by_stage": { "network": 0.0, "copy": 1.0, "map": 0.25 } },
        });
        round.read_report(&report.to_string()).unwrap();
        assert_eq!(
            (round.rest(), round.stage("copy"), round.streaming(), round.relay()),
            (Some(0.5), Some(1.0), Some(2.5), Some(0.75))
        );
        assert!((round.all() - 4.25).abs() < 1e-9);
        assert!(Round::default().read_report(r#"{"restored":false}"#).is_err());
    }

    #[test]
    fn a_domain_that_is_new_has_its_life_counted_and_one_that_is_gone_nothing() {
        let before = domains("0 1000000000\n3 5000000000").unwrap();
        let after = domains("0 1500000000\n4 250000000").unwrap();
        assert_eq!(spent(&before, &after), (0.5, 0.25));
        assert!(domains("0").is_err());
    }
}

//! One round: a command in dom0, its time, and who spent processor time on it.

use super::parse;
use crate::error::Doing;
use crate::story::{Stage, Telling, ensure};
use serde_json::{Value, json};
use std::time::Duration;

/// What stubctl does before the stream runs.
const SET_UP: [&str; 3] = ["create", "greet", "connect"];

/// One round. Times are in seconds, of dom0's clock.
#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    /// From the command's start to its end.
    pub(super) seconds: f64,
    /// Processor time of the command and its children in dom0: xl, the helper or the relay, the start of a stub.
    pub(super) command: f64,
    /// Processor time of netback's threads.
    pub(super) netback: f64,
    /// Processor time of the guest that receives, if it is no stub.
    pub(super) guest: Option<f64>,
    /// stubctl's report; null of the stock helper.
    pub(super) report: Value,
}

impl Round {
    /// Runs a command in dom0 that must succeed.
    pub(super) fn take(stage: &Stage, command: &str) -> Telling<Self> {
        // Busybox's awk writes %d as 32 bits.
        let netback = "grep -ls '^vif' /proc/[0-9]*/comm | sed s/comm/schedstat/ | xargs -r cat | \
                       awk '{ n += $1 } END { printf \"%.0f\\n\", n }'";
        let output = stage.sh(&format!(
            "TIMEFORMAT='%U %S'; n=$({netback}); a=$(date +%s%N)\n\
             (time {command} >/run/bench.log 2>&1) 2>/run/bench.time || {{ cat /run/bench.log; exit 1; }}\n\
             echo $(($(date +%s%N) - a)) $(($({netback}) - n)) $(cat /run/bench.time)"
        ))?;
        let words: Vec<&str> = output.lines().next_back().unwrap_or_default().split_whitespace().collect();
        let &[took_ns, netback_ns, user, system] = words.as_slice() else {
            return ensure(false, || format!("four numbers of `{command}`, got {output}"))
                .map(|()| Self::default());
        };
        let seconds = |ns| parse(ns).map(|ns| Duration::from_nanos(ns).as_secs_f64());
        Ok(Self {
            seconds: seconds(took_ns)?,
            command: parse::<f64>(user)? + parse::<f64>(system)?,
            netback: seconds(netback_ns)?,
            ..Self::default()
        })
    }

    /// Takes stubctl's report of the restore.
    pub(super) fn read_report(&mut self, text: &str) -> Telling {
        self.report = serde_json::from_str(text).doing("reading stubctl's report")?;
        ensure(self.report["restored"] == true, || {
            format!("stubctl's report tells of no restore: {}", self.report)
        })
    }

    /// Processor time of the receiving domain.
    pub(super) fn receiver(&self) -> Option<f64> {
        self.guest.or_else(|| self.report["stub_cpu_seconds"].as_f64())
    }

    /// The stub's processor time in one stage.
    pub(super) fn stage(&self, name: &str) -> Option<f64> {
        self.report["stub"]["cpu_seconds_by_stage"][name].as_f64()
    }

    /// The stub's processor time in no stage.
    pub(super) fn rest(&self) -> Option<f64> {
        let stages = self.report["stub"]["cpu_seconds_by_stage"].as_object()?;
        Some(self.receiver()? - stages.values().filter_map(Value::as_f64).sum::<f64>())
    }

    /// All processor time.
    pub(super) fn all(&self) -> f64 {
        self.command + self.netback + self.receiver().unwrap_or(0.0)
    }

    /// How long the stream ran, where a report tells.
    pub(super) fn streaming(&self) -> Option<f64> {
        let phases = self.report["seconds_by_phase"].as_object()?.iter();
        let streaming = phases.filter(|(name, _)| !SET_UP.contains(&name.as_str()));
        Some(streaming.filter_map(|(_, seconds)| seconds.as_f64()).sum())
    }

    /// Everything as one value.
    pub(super) fn json(&self) -> Value {
        json!({
            "seconds": self.seconds,
            "command_cpu_seconds": self.command,
            "netback_cpu_seconds": self.netback,
            "receiver_cpu_seconds": self.receiver(),
            "report": self.report,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_split_into_stages_and_the_rest() {
        let mut round = Round { command: 2.0, netback: 0.5, ..Round::default() };
        let report = json!({
            "restored": true,
            "seconds_by_phase": { "create": 0.4, "connect": 0.1, "listening": 0.5, "memory": 2.0 },
            "stub_cpu_seconds": 1.5,
            "stub": { "cpu_seconds_by_stage": { "network": 0.0, "copy": 1.0, "map": 0.25 } },
        });
        round.read_report(&report.to_string()).unwrap();
        assert_eq!(
            (round.rest(), round.stage("copy"), round.streaming()),
            (Some(0.25), Some(1.0), Some(2.5))
        );
        assert!((round.all() - 4.0).abs() < 1e-9);
        assert!(Round::default().read_report(r#"{"restored":false}"#).is_err());
    }
}

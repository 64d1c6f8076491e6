//! Hypercalls of a restore by kind.
//!
//! **Takes** what Xen traces of dom0 (`nest-hypercalls`) and what the stub reports of itself. **Gives** both under the same
//! names. **Never** times a restore that is traced, and never takes a trace that lost records: that is an error.

use crate::error::{Doing, Error};
use crate::story::{Stage, Telling};
use serde_json::Value;
use std::collections::BTreeMap;

/// Calls by kind, in the names of the stub's report.
pub(super) type Calls = BTreeMap<String, u64>;

/// `memory_op` of all sub-operations: Xen's trace does not tell them apart.
const MEMORY_OP: &str = "memory_op";

/// Sub-operations of `memory_op` that the stub's report tells apart.
const MEMORY_OPS: [&str; 2] = ["populate_physmap", "decrease_reservation"];

/// Restores the guest's file paused and traced, and destroys the guest again; gives dom0's calls.
pub(super) fn of_dom0(stage: &Stage, guest: &str, environment: &str) -> Telling<Calls> {
    let log = "/run/nest-hypercalls.log";
    let traced = format!("{environment}nest-hypercalls xl restore -p /var/lib/xen/save/{guest}");
    let text = stage.sh(&format!("{traced} 2>{log} || {{ code=$?; cat {log}; exit $code; }}"))?;
    stage.sh(&format!("xl destroy {guest}"))?;
    stage.expect_alone()?;
    let value: Value = serde_json::from_str(&text).doing("reading the count of hypercalls")?;
    let calls = parse(&value["0"]);
    let none = || Error::new("counting dom0's hypercalls", format!("none in {text}"));
    Ok(calls.ok_or_else(none)?)
}

/// The stub's own calls.
pub(super) fn of_stub(report: &Value) -> Option<Calls> {
    parse(&report["hypercalls"])
}

/// With all of `memory_op` in one, as dom0's come.
pub(super) fn with_one_memory_op(mut calls: Calls) -> Calls {
    let nr: u64 = MEMORY_OPS.iter().filter_map(|kind| calls.remove(*kind)).sum();
    *calls.entry(MEMORY_OP.to_owned()).or_insert(0) += nr;
    calls
}

fn parse(value: &Value) -> Option<Calls> {
    let kinds = value.as_object()?;
    kinds.iter().map(|(kind, nr)| Some((kind.clone(), nr.as_u64()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_trace_cannot_tell_apart_is_one_kind() {
        let report = json!({ "hypercalls": { "memory_op": 4, "populate_physmap": 67, "mmu_update": 71 } });
        let calls = with_one_memory_op(of_stub(&report).unwrap());
        assert_eq!(calls, Calls::from([("memory_op".into(), 71), ("mmu_update".into(), 71)]));
    }
}

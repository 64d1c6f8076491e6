//! `io/libxenvchan.h`.

use super::{Row, constants, layout};
use crate::vchan::{RingShared, VCHAN_NOTIFY_READ, VCHAN_NOTIFY_WRITE, VchanInterface};
use std::vec::Vec;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    layout!(rows, "struct ring_shared" = RingShared { "cons" = cons, "prod" = prod });
    layout!(rows, "struct vchan_interface" = VchanInterface {
        "left" = left, "right" = right, "left_order" = left_order, "right_order" = right_order,
        "cli_live" = cli_live, "srv_live" = srv_live, "cli_notify" = cli_notify, "srv_notify" = srv_notify,
        "grants" = grants,
    });
    constants!(rows, "VCHAN_NOTIFY_WRITE" = VCHAN_NOTIFY_WRITE, "VCHAN_NOTIFY_READ" = VCHAN_NOTIFY_READ);
    rows
}

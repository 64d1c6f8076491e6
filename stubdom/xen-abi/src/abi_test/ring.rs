//! `io/ring.h`, through the rings of `io/netif.h`.

use super::{Row, constants};
use crate::netif::{RxRequest, RxResponse, TxRequest, TxResponse};
use crate::sring::{REQ_EVENT, REQ_PROD, RING, RSP_EVENT, RSP_PROD, nr_slots, slot_bytes};
use std::vec::Vec;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    constants!(
        rows,
        "offsetof(struct netif_rx_sring, req_prod)" = REQ_PROD,
        "offsetof(struct netif_rx_sring, req_event)" = REQ_EVENT,
        "offsetof(struct netif_rx_sring, rsp_prod)" = RSP_PROD,
        "offsetof(struct netif_rx_sring, rsp_event)" = RSP_EVENT,
        "offsetof(struct netif_rx_sring, ring)" = RING,
        "sizeof(union netif_tx_sring_entry)" = slot_bytes::<TxRequest, TxResponse>(),
        "sizeof(union netif_rx_sring_entry)" = slot_bytes::<RxRequest, RxResponse>(),
        "__RING_SIZE((struct netif_tx_sring *)0, 4096)" = nr_slots::<TxRequest, TxResponse>(),
        "__RING_SIZE((struct netif_rx_sring *)0, 4096)" = nr_slots::<RxRequest, RxResponse>(),
    );
    rows
}

//! `io/netif.h`.

use super::{Row, constants, layout};
use crate::netif::*;
use std::vec::Vec;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    layout!(rows, "struct netif_tx_request" = TxRequest {
        "gref" = gref, "offset" = offset, "flags" = flags, "id" = id, "size" = size,
    });
    layout!(rows, "struct netif_tx_response" = TxResponse { "id" = id, "status" = status });
    layout!(rows, "struct netif_rx_request" = RxRequest { "id" = id, "pad" = pad, "gref" = gref });
    layout!(rows, "struct netif_rx_response" = RxResponse {
        "id" = id, "offset" = offset, "flags" = flags, "status" = status,
    });
    layout!(rows, "struct netif_extra_info" = ExtraInfo { "type" = kind, "flags" = flags, "u" = u });
    constants!(
        rows,
        "NETIF_RSP_DROPPED" = NETIF_RSP_DROPPED,
        "NETIF_RSP_ERROR" = NETIF_RSP_ERROR,
        "NETIF_RSP_OKAY" = NETIF_RSP_OKAY,
        "NETIF_RSP_NULL" = NETIF_RSP_NULL,
        "XEN_NETIF_EXTRA_TYPE_GSO" = XEN_NETIF_EXTRA_TYPE_GSO,
        "XEN_NETIF_EXTRA_TYPE_HASH" = XEN_NETIF_EXTRA_TYPE_HASH,
        "XEN_NETIF_EXTRA_TYPE_MAX" = XEN_NETIF_EXTRA_TYPE_MAX,
        "XEN_NETIF_EXTRA_FLAG_MORE" = XEN_NETIF_EXTRA_FLAG_MORE,
        "XEN_NETIF_GSO_TYPE_TCPV4" = XEN_NETIF_GSO_TYPE_TCPV4,
        "XEN_NETIF_GSO_TYPE_TCPV6" = XEN_NETIF_GSO_TYPE_TCPV6,
        "NETTXF_csum_blank" = TxFlags::CSUM_BLANK.bits(),
        "NETTXF_data_validated" = TxFlags::DATA_VALIDATED.bits(),
        "NETTXF_more_data" = TxFlags::MORE_DATA.bits(),
        "NETTXF_extra_info" = TxFlags::EXTRA_INFO.bits(),
        "NETRXF_data_validated" = RxFlags::DATA_VALIDATED.bits(),
        "NETRXF_csum_blank" = RxFlags::CSUM_BLANK.bits(),
        "NETRXF_more_data" = RxFlags::MORE_DATA.bits(),
        "NETRXF_extra_info" = RxFlags::EXTRA_INFO.bits(),
    );
    rows
}

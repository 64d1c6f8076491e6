//! The network interface's messages (`xen/include/public/io/netif.h`), field for field.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `NETIF_RSP_DROPPED`.
pub const NETIF_RSP_DROPPED: i16 = -2;
/// `NETIF_RSP_ERROR`.
pub const NETIF_RSP_ERROR: i16 = -1;
/// `NETIF_RSP_OKAY`.
pub const NETIF_RSP_OKAY: i16 = 0;
/// `NETIF_RSP_NULL`: the slot held an extra, there is nothing to answer.
pub const NETIF_RSP_NULL: i16 = 1;

/// `XEN_NETIF_EXTRA_TYPE_GSO`.
pub const XEN_NETIF_EXTRA_TYPE_GSO: u8 = 1;
/// `XEN_NETIF_EXTRA_TYPE_HASH`.
pub const XEN_NETIF_EXTRA_TYPE_HASH: u8 = 4;
/// `XEN_NETIF_EXTRA_TYPE_MAX`: one past the last type of Xen 4.17.
pub const XEN_NETIF_EXTRA_TYPE_MAX: u8 = 5;
/// `XEN_NETIF_EXTRA_FLAG_MORE`: another extra follows.
pub const XEN_NETIF_EXTRA_FLAG_MORE: u8 = 1;
/// `XEN_NETIF_GSO_TYPE_TCPV4`.
pub const XEN_NETIF_GSO_TYPE_TCPV4: u8 = 1;
/// `XEN_NETIF_GSO_TYPE_TCPV6`.
pub const XEN_NETIF_GSO_TYPE_TCPV6: u8 = 2;

bitflags! {
    /// `NETTXF_*`: what a transmitted frame is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TxFlags: u16 {
        /// `NETTXF_csum_blank`: the checksum field holds the pseudo header's sum only.
        const CSUM_BLANK = 1 << 0;
        /// `NETTXF_data_validated`.
        const DATA_VALIDATED = 1 << 1;
        /// `NETTXF_more_data`: the frame goes on in the next slot.
        const MORE_DATA = 1 << 2;
        /// `NETTXF_extra_info`: extras follow.
        const EXTRA_INFO = 1 << 3;
    }

    /// `NETRXF_*`: what a received frame is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RxFlags: u16 {
        /// `NETRXF_data_validated`: the back end vouches for the data; no checksum need be verified.
        const DATA_VALIDATED = 1 << 0;
        /// `NETRXF_csum_blank`: the frame never left this host, its checksum was never computed.
        const CSUM_BLANK = 1 << 1;
        /// `NETRXF_more_data`: the frame goes on in the next data slot.
        const MORE_DATA = 1 << 2;
        /// `NETRXF_extra_info`: extras follow.
        const EXTRA_INFO = 1 << 3;
    }
}

/// `struct netif_tx_request`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TxRequest {
    /// The grant of the buffer's page.
    pub gref: u32,
    /// Where in the page the data starts, in bytes.
    pub offset: u16,
    /// [`TxFlags`].
    pub flags: u16,
    /// Comes back in the response.
    pub id: u16,
    /// Of the first slot: the whole frame; of the others: the slot's data. In bytes.
    pub size: u16,
}

/// `struct netif_tx_response`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TxResponse {
    /// The request's id.
    pub id: u16,
    /// `NETIF_RSP_*`.
    pub status: i16,
}

/// `struct netif_rx_request`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RxRequest {
    /// Comes back in the response, unless the slot is used for an extra.
    pub id: u16,
    /// Zero.
    pub pad: u16,
    /// The grant of the buffer's page.
    pub gref: u32,
}

/// `struct netif_rx_response`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RxResponse {
    /// The request's id.
    pub id: u16,
    /// Where in the page the data starts, in bytes.
    pub offset: u16,
    /// [`RxFlags`].
    pub flags: u16,
    /// Negative: `NETIF_RSP_*`, else the number of bytes.
    pub status: i16,
}

/// `struct netif_extra_info`; in a receive ring it overlays a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ExtraInfo {
    /// `XEN_NETIF_EXTRA_TYPE_*`.
    pub kind: u8,
    /// `XEN_NETIF_EXTRA_FLAG_*`.
    pub flags: u8,
    /// The union; its meaning depends on `kind`.
    pub u: [u16; 3],
}

impl From<RxResponse> for ExtraInfo {
    /// Reads the slot as the extra that it is where the protocol says that an extra stands.
    fn from(response: RxResponse) -> Self {
        zerocopy::transmute!(response)
    }
}

//! The stories, in the order in which they are told.

mod bring_up;
mod exchange;
mod exchange_pv;
mod helper;
mod hostile;
mod live;
mod network;
mod order;
mod release;
mod restore;
mod scarce;
mod send;
mod stock;

use crate::soak::Soak;
use crate::story::Story;

/// Every story that `scripts/test` tells.
pub const ALL: &[Story] = &[
    bring_up::BRING_UP,
    stock::SAVE_AND_RESTORE,
    helper::SAVE_HELPER,
    restore::PVH_256,
    restore::HVM_256,
    restore::PVH_1024,
    restore::HVM_1024,
    restore::ONE_GIB,
    order::ANY_ORDER,
    release::TEN_ROUNDS,
    release::TWO_AT_ONCE,
    scarce::FRAGMENTED,
    scarce::MAX_PAGES,
    hostile::DAMAGED,
    hostile::CUT,
    live::PVH,
    live::HVM,
    live::TWO_HOSTS,
    live::FAILURES,
    send::PVH,
    send::HVM,
    restore::TRANSPORTS,
    network::NETWORK,
    exchange::PVH_FRAMES,
    exchange::HVM_FRAMES,
    exchange::REFUSALS,
    exchange::DEATHS,
    exchange::SAVING,
    exchange::NETWORK,
    exchange::WATCH,
    exchange::SCARCE,
    exchange::SCRUBBED,
    exchange_pv::EXCHANGE_PV,
];

/// The long ones, for `scripts/soak`.
pub const SOAKS: &[Soak] = &[
    order::SOAK,
    hostile::SOAK,
    hostile::ALL_CUTS,
    live::RATES_SOAK,
    live::MATRIX,
    live::MATRIX_TCP,
    live::SOAK,
    live::DOWNTIME,
    live::STOCK_HOST,
    live::BACK_AND_FORTH,
    live::EIGHT,
    exchange::SOAK_PVH,
    exchange::SOAK_HVM,
    exchange::ALL_DEATHS,
];

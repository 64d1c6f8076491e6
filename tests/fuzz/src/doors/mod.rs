//! One module a door by which bytes of others come in.

mod control;
mod exchange;
mod network;
mod restore;
mod stream;
mod tables;

pub use control::control;
pub use exchange::exchange;
pub use network::network;
pub use restore::restore;
pub use stream::stream;
pub use tables::tables;

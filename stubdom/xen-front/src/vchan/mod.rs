//! A server of Xen's inter-domain byte channel, as libxenvchan's clients expect it
//! (`xen/include/public/io/libxenvchan.h`; behaviour: `tools/libs/vchan` of Xen's tree).

pub(crate) mod channel;

pub use channel::{Client, VchanError};

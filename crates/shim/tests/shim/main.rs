//! The shim as a whole: the real program, real VMM stand-ins (shells and coreutils), real sockets.

mod console;
mod harness;
mod isolation;
mod life;
mod pager;
mod protocol;

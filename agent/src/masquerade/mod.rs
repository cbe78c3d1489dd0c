//! Masquerade: where it happens and with which addresses, which connections may go, and which destinations are left out.
//! `controllers::masquerade` and `controllers::ip_masq_agent` keep it so.

pub mod addresses;
pub mod collect;
pub mod connections;
pub mod ip_masq_agent;

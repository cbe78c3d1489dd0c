//! The API server: Kubernetes' REST API over the store.

pub mod admission;
pub mod authn;
mod bootstrap;
mod discovery;
mod events;
mod expiry;
mod gc;
mod http;
mod managed;
mod object;
mod openapi;
mod patch;
mod path;
mod protobuf;
mod proxy;
mod query;
pub mod registry;
pub mod resources;
mod router;
pub mod schema;
pub mod selector;
mod server;
mod state;
pub mod status;
mod table;
mod tls;
pub mod token;
mod verbs;

pub use server::{ServeError, serve};
pub use state::ApiServerConfig;

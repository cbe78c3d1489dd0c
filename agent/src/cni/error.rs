//! Errors as the specification wants them on stdout.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Error codes: 1 to 99 are the specification's, 100 and above our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    /// The configuration's `cniVersion` is not one that we speak, or it does not have the verb.
    pub const INCOMPATIBLE_VERSION: Self = Self(1);
    /// A field of the configuration is not supported.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// The container is unknown or gone; the runtime need not clean up.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// A `CNI_*` variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: Self = Self(4);
    /// Input or output failed.
    pub const IO: Self = Self(5);
    /// Something could not be decoded.
    pub const DECODE: Self = Self(6);
    /// The network configuration is wrong.
    pub const INVALID_CONFIG: Self = Self(7);
    /// The runtime should try again later.
    pub const TRY_AGAIN: Self = Self(11);
    /// STATUS: ADD cannot be served.
    pub const NOT_AVAILABLE: Self = Self(50);
    /// STATUS: ADD cannot be served and existing containers may have limited connectivity.
    pub const LIMITED_CONNECTIVITY: Self = Self(51);
    /// Ours: the interface exists already.
    pub const EXISTS: Self = Self(100);
    /// Ours: CHECK found something that is not as ADD left it.
    pub const CHECK_FAILED: Self = Self(101);
}

/// One error: what went wrong in `msg`, cause and mend in `details`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// One of [`Code`].
    pub code: u32,
    /// What went wrong, short.
    pub msg: String,
    /// Cause and mend.
    #[serde(default)]
    pub details: String,
}

impl CniError {
    /// An error with its details.
    pub fn new(code: Code, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code: code.0, msg: msg.into(), details: details.into() }
    }

    /// As the plugin prints it. `version` is repeated from the configuration, as far as it was read.
    pub fn to_json(&self, version: &str) -> Value {
        let mut out = json!({ "cniVersion": version, "code": self.code, "msg": self.msg });
        if !self.details.is_empty() {
            out["details"] = json!(self.details);
        }
        out
    }
}

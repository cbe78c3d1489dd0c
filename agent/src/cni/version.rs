//! Versions of the specification.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A version that we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Version {
    /// 0.3.1: `ips` entries carry their IP version.
    #[serde(rename = "0.3.1")]
    V0_3_1,
    /// 0.4.0: CHECK.
    #[serde(rename = "0.4.0")]
    V0_4_0,
    /// 1.0.0: no IP version in `ips`.
    #[serde(rename = "1.0.0")]
    V1_0_0,
    /// 1.1.0: GC, STATUS, MTU of interfaces, scope of routes.
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl Version {
    /// Every version that we speak, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest version that we speak.
    pub const NEWEST: Self = Self::V1_1_0;

    /// As it stands in `cniVersion`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// All versions that we speak, as one readable list.
    pub fn list() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Version {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|v| v.as_str() == s).ok_or(())
    }
}

//! Query parameters.

use std::time::Duration;

use super::path::query_decode;
use super::status::ApiError;

/// Parameters of a request, decoded.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

/// What to do about fields that the schema does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop them.
    Ignore,
    /// Drop them and say so in a header.
    Warn,
    /// Refuse the object.
    Strict,
}

impl Query {
    /// Takes a query string apart. Broken percent-encoding is refused.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let mut pairs = Vec::new();
        for part in text.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match (query_decode(key), query_decode(value)) {
                (Some(key), Some(value)) => pairs.push((key, value)),
                _ => {
                    return Err(ApiError::bad_request(format!(
                        "invalid query parameter {part:?}: bad escape"
                    )));
                }
            }
        }
        Ok(Self { pairs })
    }

    /// The first value of a parameter; empty if it is not given.
    pub fn get(&self, name: &str) -> &str {
        self.pairs.iter().find(|(k, _)| k == name).map_or("", |(_, v)| v)
    }

    /// Whether a parameter is given at all.
    pub fn has(&self, name: &str) -> bool {
        self.pairs.iter().any(|(k, _)| k == name)
    }

    /// A boolean parameter; false if it is not given.
    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.get(name) {
            "" | "0" | "false" | "False" | "f" => Ok(false),
            "1" | "true" | "True" | "t" => Ok(true),
            other => Err(ApiError::bad_request(format!("{name}: {other:?} is not a boolean"))),
        }
    }

    /// A whole number that is not negative, if given.
    pub fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        match self.get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format!("{name}: {text:?} is not a non-negative whole number"))
            }),
        }
    }

    /// `resourceVersion`: `None` if not given; 0 means "any".
    pub fn resource_version(&self) -> Result<Option<u64>, ApiError> {
        self.number("resourceVersion")
            .map_err(|e| ApiError::bad_request(format!("Invalid value: {}", e.message)))
    }

    /// `dryRun`: `All` or nothing.
    pub fn dry_run(&self) -> Result<bool, ApiError> {
        match self.get("dryRun") {
            "" => Ok(false),
            "All" => Ok(true),
            other => Err(ApiError::bad_request(format!("dryRun: {other:?} is not supported: use \"All\""))),
        }
    }

    /// `fieldValidation`; the default is to warn.
    pub fn field_validation(&self) -> Result<FieldValidation, ApiError> {
        match self.get("fieldValidation") {
            "" | "Warn" => Ok(FieldValidation::Warn),
            "Ignore" => Ok(FieldValidation::Ignore),
            "Strict" => Ok(FieldValidation::Strict),
            other => Err(ApiError::bad_request(format!(
                "fieldValidation: {other:?} is not supported: use \"Ignore\", \"Warn\" or \"Strict\""
            ))),
        }
    }

    /// `timeoutSeconds`, within reason.
    pub fn timeout(&self) -> Result<Option<Duration>, ApiError> {
        Ok(self.number("timeoutSeconds")?.filter(|&s| s > 0).map(|s| Duration::from_secs(s.min(86_400))))
    }

    /// Every parameter as a query string again, for proxied requests.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let q = Query::parse("labelSelector=app%3Dweb%2Ca+in+%28b%29&watch=1&limit=5").unwrap();
        assert_eq!(q.get("labelSelector"), "app=web,a in (b)");
        assert!(q.flag("watch").unwrap());
        assert_eq!(q.number("limit").unwrap(), Some(5));
        assert!(Query::parse("a=%zz").is_err());
        assert!(Query::parse("a=%").is_err());
        assert!(Query::parse("limit=-1").unwrap().number("limit").is_err());
        assert!(Query::parse("dryRun=Some").unwrap().dry_run().is_err());
    }
}

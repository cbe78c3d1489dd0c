//! The kinds of patches.

pub mod json;
pub mod merge;
pub mod strategic;

use serde_json::Value;

use super::http as answers;
use super::registry::Resource;
use super::schema::Schema;
use super::status::ApiError;

/// A patch as it came.
pub enum Patch {
    /// RFC 6902.
    Json(json_patch::Patch),
    /// RFC 7386.
    Merge(Value),
    /// A merge patch that knows how lists are merged.
    Strategic(Value),
    /// A configuration that its manager wants to hold.
    Apply(Value),
}

/// Operations of one JSON patch; more is refused.
const MAX_OPERATIONS: usize = 10_000;

impl Patch {
    /// Reads a patch whose kind the content type says.
    pub fn parse(content_type: &str, body: &[u8], resource: &Resource) -> Result<Self, ApiError> {
        match content_type {
            "application/json-patch+json" => {
                let value = answers::parse(body, false)?;
                if value.as_array().is_some_and(|operations| operations.len() > MAX_OPERATIONS) {
                    return Err(ApiError::bad_request(format!(
                        "a JSON patch may have {MAX_OPERATIONS} operations"
                    )));
                }
                let patch = serde_json::from_value(value)
                    .map_err(|e| ApiError::bad_request(format!("the body is not a JSON patch: {e}")))?;
                Ok(Self::Json(patch))
            }
            "application/merge-patch+json" => Ok(Self::Merge(object(body, false)?)),
            "application/strategic-merge-patch+json" if resource.custom.is_none() => {
                Ok(Self::Strategic(object(body, false)?))
            }
            "application/apply-patch+yaml" => Ok(Self::Apply(object(body, true)?)),
            other => {
                let known = if resource.custom.is_some() {
                    "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
                } else {
                    "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml"
                };
                Err(ApiError::unsupported_media_type(other, known))
            }
        }
    }

    /// Changes an object as the patch says. Applied configurations are merged elsewhere.
    pub fn onto(self, object: &mut Value, schema: Schema<'_>) -> Result<(), ApiError> {
        match self {
            Self::Json(patch) => json::apply(object, &patch)?,
            Self::Merge(patch) => merge::merge(object, &patch),
            Self::Strategic(patch) => strategic::merge(object, &patch, Some(schema))?,
            Self::Apply(_) => return Err(ApiError::internal("an applied configuration is no patch")),
        }
        if object.is_object() { Ok(()) } else { Err(ApiError::bad_request("the patch leaves no object")) }
    }
}

fn object(body: &[u8], yaml: bool) -> Result<Value, ApiError> {
    let value = answers::parse(body, yaml)?;
    if value.is_object() { Ok(value) } else { Err(ApiError::bad_request("the patch is not an object")) }
}

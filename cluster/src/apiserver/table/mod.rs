//! Objects as rows of a table, as `kubectl get` prints them.

pub mod columns;
pub mod jsonpath;
pub mod pod;
pub mod rows;
pub mod text;

use serde_json::{Value, json};

use self::columns::Column;
use super::registry::Resource;
use super::status::ApiError;
use super::verbs::metadata_only;

/// What a row carries beside its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// The object's metadata.
    Metadata,
    /// The object.
    Object,
}

impl Include {
    /// Reads `includeObject`.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        match text {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(ApiError::bad_request(format!(
                "includeObject: {other:?} is not None, Metadata or Object"
            ))),
        }
    }
}

/// A table of objects. `columns`: whether it says what its columns are. `meta`: metadata of the list.
pub fn table(resource: &Resource, objects: &[Value], include: Include, columns: bool, meta: &Value) -> Value {
    let definitions = columns::of(resource);
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let cells: Vec<Value> = definitions.iter().map(|column| column.cell(object)).collect();
            let mut row = json!({"cells": cells});
            match include {
                Include::None => {}
                Include::Metadata => row["object"] = metadata_only(object),
                Include::Object => row["object"] = object.clone(),
            }
            row
        })
        .collect();
    let mut list_meta = json!({});
    for field in ["resourceVersion", "continue", "remainingItemCount"] {
        if let Some(value) = meta.get(field) {
            list_meta[field] = value.clone();
        }
    }
    let definitions: Vec<Value> =
        if columns { definitions.iter().map(Column::definition).collect() } else { Vec::new() };
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta,
        "columnDefinitions": definitions, "rows": rows,
    })
}

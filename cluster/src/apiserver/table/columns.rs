//! Which columns the table of a resource has.

use serde_json::{Value, json};

use super::jsonpath::Path;
use super::rows;
use super::text::age;
use crate::apiserver::registry::{PrinterColumn, Resource};

/// How a cell is made.
enum Source<'a> {
    Built(fn(&Value) -> Value),
    Custom(&'a PrinterColumn, Option<Path>),
}

/// One column.
pub struct Column<'a> {
    name: &'a str,
    kind: &'a str,
    format: &'a str,
    description: &'a str,
    priority: i64,
    source: Source<'a>,
}

impl Column<'_> {
    /// The cell of an object.
    pub fn cell(&self, object: &Value) -> Value {
        match &self.source {
            Source::Built(cell) => cell(object),
            Source::Custom(column, path) => {
                let Some(path) = path else { return Value::Null };
                custom_cell(column, &path.find(object))
            }
        }
    }

    /// The column as the table lists it.
    pub fn definition(&self) -> Value {
        json!({"name": self.name, "type": self.kind, "format": self.format, "description": self.description,
            "priority": self.priority})
    }
}

fn custom_cell(column: &PrinterColumn, found: &[&Value]) -> Value {
    let Some(first) = found.first() else { return Value::Null };
    match (column.kind.as_str(), *first) {
        (_, Value::Null) => Value::Null,
        ("date", Value::String(time)) => json!(age(time)),
        ("integer", value) if value.is_i64() || value.is_u64() => value.clone(),
        ("number", value) if value.is_number() => value.clone(),
        ("boolean", value) if value.is_boolean() => value.clone(),
        ("string", _) => {
            let texts: Vec<String> = found
                .iter()
                .map(|value| match value {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                })
                .collect();
            json!(texts.join(","))
        }
        _ => Value::Null,
    }
}

type Built = (&'static str, &'static str, i64, fn(&Value) -> Value);

/// The columns of a resource's table.
pub fn of(resource: &Resource) -> Vec<Column<'_>> {
    let mut columns = vec![Column {
        name: "Name",
        kind: "string",
        format: "name",
        description: "Name of the object",
        priority: 0,
        source: Source::Built(rows::name),
    }];
    if let Some(custom) = &resource.custom {
        columns.extend(custom.columns.iter().map(|column| Column {
            name: &column.name,
            kind: &column.kind,
            format: &column.format,
            description: &column.description,
            priority: column.priority,
            source: Source::Custom(column, Path::parse(&column.json_path)),
        }));
        if custom.columns.is_empty() {
            columns.push(built(&("Age", "date", 0, rows::age_cell)));
        }
        return columns;
    }
    let built_columns = rows::columns(&resource.group, &resource.plural);
    // Events begin with when they were last seen, not with a name.
    if resource.plural == "events" {
        columns.clear();
    }
    columns.extend(built_columns.iter().map(|column| built(column)));
    columns
}

fn built<'a>(&(name, kind, priority, cell): &Built) -> Column<'a> {
    Column {
        name,
        // Ages are text by the time they are in a cell.
        kind: if kind == "date" { "string" } else { kind },
        format: "",
        description: name,
        priority,
        source: Source::Built(cell),
    }
}

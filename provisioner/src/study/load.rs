//! Reads a course: the one inside the program, or an author's directory.

use std::collections::BTreeMap;
use std::path::Path;

use super::course::{Body, Course, Exercise, Week, WeekFile};
use super::lint;
use crate::lab::{Diagnostic, LabError, embedded_under, line_of, read_text};

/// Where a course's files are.
#[derive(Clone, Debug)]
pub enum Place<'a> {
    /// Inside the program: `labs/weeks`.
    Inside,
    /// A directory with a directory for each week.
    Directory(&'a Path),
}

/// Reads and lints a course. All mistakes are told at once, each with file and line.
pub fn course(place: &Place<'_>) -> Result<Course, LabError> {
    let files = files(place)?;
    let mut found = Vec::new();
    let mut course = Course { weeks: BTreeMap::new() };
    for (path, text) in files.iter().filter(|(path, _)| path.ends_with("/week.toml")) {
        let Some(week) = parse::<WeekFile>(path, text, &mut found) else { continue };
        let directory = path.trim_end_matches("/week.toml");
        let Some(number) = directory.rsplit('/').next().and_then(|d| d.parse().ok()) else {
            let message = "the directory of a week is its number, as in weeks/3/week.toml";
            found.push(Diagnostic { file: path.clone(), line: 1, message: message.into() });
            continue;
        };
        let mut exercises = Vec::new();
        for name in &week.exercises {
            let file = format!("{directory}/{}.toml", name.get_ref());
            match files.get(&file) {
                Some(text) => exercises.extend(parse::<Body>(&file, text, &mut found).map(|body| Exercise {
                    id: format!("{number}/{}", name.get_ref()),
                    file: file.clone(),
                    body,
                })),
                None => found.push(Diagnostic {
                    file: path.clone(),
                    line: line_of(text, name.span().start),
                    message: format!(
                        "exercise {:?}: there is no file {file}; write it, or take the name out",
                        name.get_ref()
                    ),
                }),
            }
        }
        for file in files.keys().filter(|f| f.starts_with(&format!("{directory}/"))) {
            let stem = Path::new(file).file_stem().and_then(|s| s.to_str()).unwrap_or(file);
            if stem != "week" && !week.exercises.iter().any(|e| e.get_ref() == stem) {
                let message =
                    format!("the week does not list exercise {stem:?}; add it to `exercises` in {path}");
                found.push(Diagnostic { file: file.clone(), line: 1, message });
            }
        }
        course.weeks.insert(number, Week { number, title: week.title, exercises });
    }
    if course.weeks.is_empty() && found.is_empty() {
        let (wanted, cause) = (place_name(place), "there is no week in it".to_owned());
        return Err(LabError::NotFound {
            wanted,
            cause,
            mend: "name a directory with N/week.toml in it".into(),
        });
    }
    for exercise in course.exercises() {
        if let Some(text) = files.get(&exercise.file) {
            lint::exercise(&course, exercise, text, &mut found);
        }
    }
    lint::circles(&course, &files, &mut found);
    if found.is_empty() {
        return Ok(course);
    }
    found.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    Err(LabError::Invalid(found))
}

fn place_name(place: &Place<'_>) -> String {
    match place {
        Place::Inside => "labs/weeks".into(),
        Place::Directory(path) => path.display().to_string(),
    }
}

/// Every file by its path, as errors name it.
fn files(place: &Place<'_>) -> Result<BTreeMap<String, String>, LabError> {
    let Place::Directory(root) = place else {
        let inside = embedded_under("weeks").into_iter();
        return Ok(inside.map(|(path, text)| (format!("labs/{path}"), text.to_owned())).collect());
    };
    let unreadable = |path: &Path, e: &std::io::Error| LabError::Unreadable {
        path: path.display().to_string(),
        cause: e.to_string(),
        mend: "name a directory with N/week.toml in it".into(),
    };
    let mut files = BTreeMap::new();
    for week in std::fs::read_dir(root).map_err(|e| unreadable(root, &e))? {
        let week = week.map_err(|e| unreadable(root, &e))?.path();
        if !week.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(&week).map_err(|e| unreadable(&week, &e))? {
            let file = file.map_err(|e| unreadable(&week, &e))?.path();
            if file.extension().is_some_and(|e| e == "toml") {
                files.insert(file.display().to_string(), read_text(&file)?);
            }
        }
    }
    Ok(files)
}

fn parse<T: serde::de::DeserializeOwned>(file: &str, text: &str, found: &mut Vec<Diagnostic>) -> Option<T> {
    match toml::from_str(text) {
        Ok(value) => Some(value),
        Err(error) => {
            let line = line_of(text, error.span().map_or(0, |span| span.start));
            found.push(Diagnostic { file: file.to_owned(), line, message: mended(error.message()) });
            None
        }
    }
}

/// The parser's words, with what to do about it.
fn mended(message: &str) -> String {
    let message = message.trim().replace('\n', " ");
    let mend = if message.starts_with("missing field `ko`") || message.starts_with("missing field `en`") {
        "write the text in both languages"
    } else if message.starts_with("wanted exactly 1 element") {
        "a check stands alone: write a [[step.check]] for each"
    } else if message.starts_with("unknown variant") {
        "use a check that exists; docs/course.md describes each"
    } else {
        "see docs/course.md for what an exercise is made of"
    };
    format!("{message}; {mend}")
}

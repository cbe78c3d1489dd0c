//! Where a lab's text comes from: the labs inside the program, or the user's files.

use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use include_dir::{Dir, include_dir};

use super::LabError;

static LABS: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/../labs");

/// No honest lab file or manifest is larger.
const MAX_BYTES: u64 = 256 * 1024;

/// A lab file's text and the place beside which its apps are looked for.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file, as it is named in errors.
    pub file: String,
    /// Its text.
    pub text: String,
    /// The directory of a file that is not embedded.
    directory: Option<PathBuf>,
}

/// Names of the labs inside the program, sorted.
pub fn embedded_names() -> Vec<String> {
    let mut names: Vec<String> = LABS
        .dirs()
        .filter(|d| d.get_file(d.path().join("lab.toml")).is_some())
        .map(|d| d.path().display().to_string())
        .collect();
    names.sort();
    names
}

/// The text of a file of the embedded `labs/` directory.
pub(crate) fn embedded(path: &str) -> Option<&'static str> {
    LABS.get_file(path)?.contents_utf8()
}

/// Every text file below a directory of the embedded `labs/` directory: path and text.
pub(crate) fn embedded_under(directory: &str) -> Vec<(String, &'static str)> {
    fn collect(directory: &'static Dir<'static>, into: &mut Vec<(String, &'static str)>) {
        let texts =
            directory.files().filter_map(|f| Some((f.path().display().to_string(), f.contents_utf8()?)));
        into.extend(texts);
        directory.dirs().for_each(|d| collect(d, into));
    }
    let mut found = Vec::new();
    if let Some(directory) = LABS.get_dir(directory) {
        collect(directory, &mut found);
    }
    found
}

/// The line, from 1, of a byte offset.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    1 + newlines(&text.as_bytes()[..offset.min(text.len())])
}

/// Names of the apps inside the program, sorted.
pub(super) fn embedded_apps() -> Vec<&'static str> {
    let files = LABS.get_dir("apps").map(Dir::files).into_iter().flatten();
    let mut names: Vec<&str> = files.filter_map(|f| f.path().file_stem()?.to_str()).collect();
    names.sort_unstable();
    names
}

impl Source {
    /// A text that has no file, for tests and tools.
    pub fn text(file: &str, text: &str) -> Self {
        Self { file: file.to_owned(), text: text.to_owned(), directory: None }
    }

    /// Finds `wanted`: a path (it has a `/` or ends in `.toml`), else the name of an embedded lab.
    pub fn find(wanted: &str) -> Result<Self, LabError> {
        if is_path(wanted) {
            return Self::read(Path::new(wanted));
        }
        let inside = format!("{wanted}/lab.toml");
        if let Some(text) = embedded(&inside) {
            return Ok(Self { file: format!("labs/{inside}"), text: text.to_owned(), directory: None });
        }
        let names = embedded_names();
        let hint = super::words::hint(wanted, names.iter().map(String::as_str), "the labs are");
        let mend = if Path::new(wanted).exists() {
            format!("to use the file or directory of that name write ./{wanted}")
        } else {
            hint
        };
        Err(LabError::NotFound { wanted: wanted.into(), cause: "there is no lab of that name".into(), mend })
    }

    fn read(path: &Path) -> Result<Self, LabError> {
        let file = if path.is_dir() { path.join("lab.toml") } else { path.to_owned() };
        let text = read_text(&file)?;
        let directory = file.parent().map(Path::to_owned);
        Ok(Self { file: file.display().to_string(), text, directory })
    }

    /// An app's manifest: an embedded one by its name, or a file beside the lab file by its path. The error is the
    /// cause and the mend.
    pub(super) fn app(&self, wanted: &str) -> Result<(String, String), String> {
        if !wanted.contains('/') && !Path::new(wanted).extension().is_some_and(|e| e == "yaml" || e == "yml")
        {
            return match embedded(&format!("apps/{wanted}.yaml")) {
                Some(text) => Ok((wanted.to_owned(), text.to_owned())),
                None => Err(format!(
                    "there is no app {wanted:?}; {}",
                    super::words::hint(wanted, embedded_apps(), "the apps are")
                )),
            };
        }
        let relative = Path::new(wanted);
        let inside = relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        let Some(directory) = self.directory.as_deref().filter(|_| inside) else {
            return Err(format!(
                "app {wanted:?} is not beside the lab file; write a path below the lab file's directory, such as \
                 \"app.yaml\", or an app's name: {}",
                embedded_apps().join(", ")
            ));
        };
        let name = relative.file_stem().and_then(|s| s.to_str()).unwrap_or(wanted).to_owned();
        read_text(&directory.join(relative)).map(|text| (name, text)).map_err(|e| e.to_string())
    }

    /// The line, from 1, of a byte offset.
    pub(super) fn line(&self, offset: usize) -> usize {
        line_of(&self.text, offset)
    }
}

impl Source {
    /// True if a table begins on the line.
    pub(super) fn is_table_header(&self, line: usize) -> bool {
        self.text.lines().nth(line.saturating_sub(1)).is_some_and(|l| l.trim_start().starts_with('['))
    }

    /// The line on which the table of `line` begins.
    pub(super) fn table_of(&self, line: usize) -> usize {
        (1..=line).rev().find(|l| self.is_table_header(*l)).unwrap_or(0)
    }
}

fn newlines(text: &[u8]) -> usize {
    text.split(|b| *b == b'\n').count() - 1
}

/// True for what is no lab's name but the path of a lab file or of its directory.
pub(super) fn is_path(wanted: &str) -> bool {
    wanted.contains('/') || wanted == "." || wanted == ".." || is_toml(wanted)
}

fn is_toml(wanted: &str) -> bool {
    Path::new(wanted).extension().is_some_and(|e| e == "toml")
}

pub(crate) fn read_text(path: &Path) -> Result<String, LabError> {
    let shown = path.display().to_string();
    let unreadable = |cause: String, mend: &str| LabError::Unreadable {
        path: shown.clone(),
        cause,
        mend: mend.to_owned(),
    };
    let file = fs::File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => unreadable(
            "no such file".into(),
            "check the path, or see `lab list` for the labs that are built in",
        ),
        _ => unreadable(e.to_string(), "make it readable"),
    })?;
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Err(unreadable(
            "not a regular file".into(),
            "name a TOML file, or a directory with a lab.toml",
        ));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| unreadable(e.to_string(), "make it readable"))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(unreadable(
            format!("larger than {} KiB", MAX_BYTES / 1024),
            "a lab file or manifest is a few KiB: check that the path is the right one",
        ));
    }
    String::from_utf8(bytes).map_err(|e| {
        let good = e.utf8_error().valid_up_to();
        let line = 1 + newlines(&e.as_bytes()[..good]);
        unreadable(format!("line {line} is not UTF-8 text"), "save it as UTF-8")
    })
}

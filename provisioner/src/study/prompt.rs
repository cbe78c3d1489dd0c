//! Where the learner types: a line editor at a terminal, plain lines elsewhere.

use std::io::{BufRead, IsTerminal};
use std::path::Path;

use reedline::{DefaultPrompt, DefaultPromptSegment, ExternalPrinter, FileBackedHistory, Reedline, Signal};

use crate::error::{Failure, OrFailure};

const HISTORY: &str = "history";
/// Lines that are remembered.
const HISTORY_LINES: usize = 500;

/// See above.
pub enum Prompt {
    /// A terminal.
    Terminal {
        /// The line editor.
        editor: Box<Reedline>,
        /// Prints above the line that is being typed.
        printer: ExternalPrinter<String>,
    },
    /// A file or a pipe.
    Lines,
}

impl Prompt {
    /// The prompt of this process; what was typed is remembered in `directory`.
    pub fn new(directory: &Path) -> Self {
        if !std::io::stdin().is_terminal() {
            return Self::Lines;
        }
        let printer = ExternalPrinter::default();
        let editor = Reedline::create().with_external_printer(printer.clone());
        // Without a history one can study too.
        let editor = match FileBackedHistory::with_file(HISTORY_LINES, directory.join(HISTORY)) {
            Ok(history) => editor.with_history(Box::new(history)),
            Err(_) => editor,
        };
        Self::Terminal { editor: Box::new(editor), printer }
    }

    /// What prints above the line that is being typed; none where nothing is being typed.
    pub fn printer(&self) -> Option<ExternalPrinter<String>> {
        match self {
            Self::Terminal { printer, .. } => Some(printer.clone()),
            Self::Lines => None,
        }
    }

    /// A line; none at the end of the input and after Ctrl-C and Ctrl-D.
    pub fn read(&mut self) -> Result<Option<String>, Failure> {
        let thing = "the terminal";
        let mend = "use another terminal";
        match self {
            Self::Terminal { editor, .. } => {
                let prompt = DefaultPrompt::new(
                    DefaultPromptSegment::Basic("study".into()),
                    DefaultPromptSegment::Empty,
                );
                match editor.read_line(&prompt).or_failure(thing, mend)? {
                    Signal::Success(line) => Ok(Some(line)),
                    _ => Ok(None),
                }
            }
            Self::Lines => {
                let mut line = String::new();
                let length = std::io::stdin().lock().read_line(&mut line).or_failure(thing, mend)?;
                Ok((length > 0).then_some(line))
            }
        }
    }
}

//! Prose in both languages, and how it is laid out: paragraphs are filled, `- ` begins an item, four spaces keep a line as it
//! is, and backquotes mark what is typed or read on a screen.

use podwire_conformance::report::Lang;
use serde::Deserialize;
use textwrap::{Options, WordSeparator, WordSplitter, WrapAlgorithm};
use toml::Spanned;

/// No line is longer, whatever the terminal.
pub const COLUMNS: usize = 80;

/// A space at which no line ends.
const KEPT: &str = "\u{a0}";

/// The same in English and in Korean.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// English.
    pub en: Spanned<String>,
    /// Korean.
    pub ko: Spanned<String>,
}

impl Text {
    /// In one language.
    pub fn of(&self, lang: Lang) -> &str {
        match lang {
            Lang::En => self.en.get_ref(),
            Lang::Ko => self.ko.get_ref(),
        }
    }
}

/// What a piece of prose is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block<'a> {
    /// Filled.
    Paragraph(&'a str),
    /// Filled, with a dash before it.
    Item(&'a str),
    /// Kept as it is, without its four spaces.
    Verbatim(&'a str),
}

/// Prose, block by block. A paragraph ends at an empty line, at an item, or at a line that is kept.
pub fn blocks(text: &str) -> Vec<(Block<'_>, std::ops::Range<usize>)> {
    let mut found: Vec<(Block<'_>, std::ops::Range<usize>)> = Vec::new();
    let mut open = false;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let range = at..at + line.trim_end().len();
        at += line.len();
        let trimmed = line.trim();
        if trimmed.is_empty() {
            open = false;
        } else if let Some(kept) = line.strip_prefix("    ") {
            found.push((Block::Verbatim(kept.trim_end()), range));
            open = false;
        } else if let Some(item) = trimmed.strip_prefix("- ") {
            found.push((Block::Item(item), range));
            open = true;
        } else if let (true, Some((block, before))) = (open, found.last_mut()) {
            before.end = range.end;
            let whole = text[before.clone()].trim();
            *block = match block {
                Block::Item(_) => Block::Item(whole.strip_prefix("- ").unwrap_or(whole)),
                _ => Block::Paragraph(whole),
            };
        } else {
            found.push((Block::Paragraph(trimmed), range));
            open = true;
        }
    }
    found
}

/// Lays prose out in lines of at most `width` columns; wide characters count two.
pub fn lay_out(text: &str, width: usize) -> Vec<String> {
    let width = width.min(COLUMNS);
    let mut lines: Vec<String> = Vec::new();
    let mut before: Option<Block<'_>> = None;
    for (block, _) in blocks(text) {
        let joined = matches!(
            (before, block),
            (Some(Block::Item(_)), Block::Item(_)) | (Some(Block::Verbatim(_)), Block::Verbatim(_))
        );
        if before.is_some() && !joined {
            lines.push(String::new());
        }
        match block {
            Block::Paragraph(text) => fill(&mut lines, text, width, "", ""),
            Block::Item(text) => fill(&mut lines, text, width, "- ", "  "),
            Block::Verbatim(line) => lines.push(format!("    {line}")),
        }
        before = Some(block);
    }
    lines
}

fn fill(lines: &mut Vec<String>, text: &str, width: usize, first: &str, rest: &str) {
    // What stands in backquotes stays on one line.
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let kept: Vec<String> = words
        .split('`')
        .enumerate()
        .map(|(n, part)| if n % 2 == 1 { part.replace(' ', KEPT) } else { part.to_owned() })
        .collect();
    let options = Options::new(width)
        .initial_indent(first)
        .subsequent_indent(rest)
        // Between words, in Korean too; commands and addresses stay whole.
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation)
        .wrap_algorithm(WrapAlgorithm::FirstFit);
    lines.extend(textwrap::wrap(&kept.join("`"), options).iter().map(|line| line.replace(KEPT, " ")));
}

/// Columns that a line takes on a terminal.
pub fn columns(line: &str) -> usize {
    textwrap::core::display_width(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROSE: &str = "One\ntwo.\n\n- an item\n  goes on\n- another\n\n    kept  as is\n    too\nafter\n";

    #[test]
    fn prose_falls_into_blocks() {
        let found: Vec<Block<'_>> = blocks(PROSE).into_iter().map(|(block, _)| block).collect();
        assert_eq!(
            found,
            [
                Block::Paragraph("One\ntwo."),
                Block::Item("an item\n  goes on"),
                Block::Item("another"),
                Block::Verbatim("kept  as is"),
                Block::Verbatim("too"),
                Block::Paragraph("after"),
            ]
        );
        assert_eq!(
            lay_out(PROSE, 80),
            ["One two.", "", "- an item goes on", "- another", "", "    kept  as is", "    too", "", "after"]
        );
    }

    #[test]
    fn wide_characters_count_two() {
        let lines = lay_out(&"노드마다 파드 주소를 나눠 준다 ".repeat(20), 200);
        assert!(lines.len() > 1 && lines.iter().all(|line| columns(line) <= COLUMNS), "{lines:?}");
        assert_eq!(columns("파드"), 4);
    }
}

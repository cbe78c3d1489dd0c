//! The comparison as a person reads it. Pure.

use std::fmt::Write;

use super::run::Measured;
use super::stats::{Difference, Spread, difference};
use super::{Ends, Quantity};

/// Columns of the longest bar.
const BAR: f64 = 40.0;
/// Of fewer rounds nothing is concluded: all rounds of two equal sides keep apart by chance in 2 of 20 cases with three rounds, in 2 of
/// 70 with four, in 2 of 252 with five.
const ENOUGH: u32 = 5;

/// A table, bars, and what may be concluded.
pub fn text(both: &[Measured; 2], rounds: u32) -> String {
    let [first, second] = both;
    let mut out = String::new();
    let heading = |what: &str| format!("{what:<34}{:>24}{:>24}", first.mode, second.mode);
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{}   {}/{}", heading("between pods of two nodes"), second.mode, first.mode);
    let mut told = Vec::new();
    for quantity in Quantity::ALL {
        let (Some(a), Some(b)) = (first.spread(Ends::Pods, quantity), second.spread(Ends::Pods, quantity))
        else {
            continue;
        };
        let (name, unit) = quantity.words();
        let label = format!("{name}, {unit}");
        let _ = writeln!(out, "{label:<34}{:>24}{:>24}   {:.2}x", cell(&a), cell(&b), b.median / a.median);
        told.push((quantity, a, b));
    }
    let line =
        |label: &str, a: String, b: String, ratio: f64| format!("{label:<34}{a:>24}{b:>24}   {ratio:.2}x");
    let ratio = |a: u32, b: u32| f64::from(b) / f64::from(a.max(1));
    let (a, b) = (first.mtu, second.mtu);
    let _ = writeln!(out, "{}", line("MTU in pods, bytes", a.to_string(), b.to_string(), ratio(a, b)));
    let (a, b) = (first.headers.all, second.headers.all);
    let _ =
        writeln!(out, "{}", line("headers of a packet, bytes", a.to_string(), b.to_string(), ratio(a, b)));
    let (a, b) = (first.wire_bytes_per_byte, second.wire_bytes_per_byte);
    let _ = writeln!(
        out,
        "{}",
        line("bytes on the wire for one of a stream", format!("{a:.4}"), format!("{b:.4}"), b / a)
    );
    let _ = writeln!(out, "\n{}", heading("pods, where nodes alone are 1"));
    for quantity in Quantity::ALL {
        let share = |of: &Measured| {
            let (pods, nodes) = (of.spread(Ends::Pods, quantity)?, of.spread(Ends::Nodes, quantity)?);
            Some(format!("{:.2}x", pods.median / nodes.median))
        };
        if let (Some(a), Some(b)) = (share(first), share(second)) {
            let _ = writeln!(out, "{:<34}{a:>24}{b:>24}", quantity.words().0);
        }
    }
    out.push('\n');
    for (quantity, a, b) in &told {
        let (name, unit) = quantity.words();
        let better = if quantity.more_is_better() { "longer is better" } else { "shorter is better" };
        let _ = writeln!(out, "{name} ({better})");
        let most = a.median.max(b.median);
        for (mode, spread) in [(first.mode, a), (second.mode, b)] {
            let _ = writeln!(out, "  {mode:<8}{} {} {unit}", bar(spread.median, most), number(spread.median));
        }
    }
    out.push('\n');
    if rounds < ENOUGH {
        let _ = writeln!(
            out,
            "{rounds} rounds are too few to tell a difference from noise: --rounds {ENOUGH}, or more"
        );
        told.clear();
    }
    for (quantity, a, b) in &told {
        let name = quantity.words().0;
        let said = match difference(a, b, quantity.more_is_better()) {
            Difference::None => {
                "no difference can be seen on this machine: rounds of both overlap".to_owned()
            }
            Difference::Better => format!("{} is better: in every round", second.mode),
            Difference::Worse => format!("{} is better: in every round", first.mode),
        };
        let _ = writeln!(out, "{name}: {said}");
    }
    let _ = writeln!(
        out,
        "\nMedians of {rounds} round(s), with the least and the most. Both labs ran at the same time and were measured in turns; captures on both\nnodes \
         have proven the mode of each. CPU is that of the whole machine. Namespaces of one machine share its processors, and no\ncable limits \
         them: the ratios are of the software's work, not of a network of yours."
    );
    out
}

/// `12.3 (11.9..12.8)`.
fn cell(spread: &Spread) -> String {
    format!("{} ({}..{})", number(spread.median), number(spread.least), number(spread.most))
}

/// Three digits that matter.
fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn bar(value: f64, most: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 0 to the width of a bar"
    )]
    let columns = (value / most * BAR).round().clamp(1.0, BAR) as usize;
    "█".repeat(columns)
}

#[cfg(test)]
mod tests {
    use super::super::Mode;
    use super::super::overhead::Headers;
    use super::super::run::Row;
    use super::*;

    fn measured(mode: Mode, mtu: u32, all: u32, scale: f64) -> Measured {
        let headers = Headers { all, tcp: 32 };
        let mut spreads = Vec::new();
        for (ends, of) in [(Ends::Nodes, 10.0), (Ends::Pods, 10.0 * scale)] {
            for quantity in Quantity::ALL {
                // The tail of both overlaps, whatever the scale.
                let least = if quantity == Quantity::LatencyTail { 0.0 } else { of * 0.99 };
                let spread = Spread { median: of, least, most: of * 1.01 };
                spreads.push(Row { ends, quantity, spread });
            }
        }
        Measured { mode, mtu, headers, wire_bytes_per_byte: headers.per_byte(mtu), spreads }
    }

    #[test]
    fn the_text_says_what_is_shown_and_what_is_not() {
        let both = [measured(Mode::Native, 1500, 66, 1.0), measured(Mode::Vxlan, 1450, 116, 0.5)];
        insta::assert_snapshot!(text(&both, 5));
        let few = text(&both, 4);
        assert!(few.contains("too few to tell") && !few.contains("in every round"), "{few}");
    }
}

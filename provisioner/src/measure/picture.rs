//! Measurements drawn one below the other on one time axis, as an SVG file.

use podwire_conformance::report::Lang;
use serde_json::{Value, json};
use tera::Tera;

use super::summary::{Count, Summary};
use crate::error::{Failure, OrFailure};

/// Width of a second at most, in pixels.
const WIDEST_SECOND: f64 = 40.0;
/// Width of all seconds at most.
const WIDTH: f64 = 900.0;
/// Height of the bar of a whole second.
const BAR: f64 = 60.0;
/// Height of a pod's row.
const ROW: u32 = 18;
/// Where time begins.
const LEFT: u32 = 250;
/// Pods drawn of one measurement at most.
const MAX_PODS: usize = 40;

/// Draws the measurements with their names as headings.
pub fn svg(summaries: &[Summary], lang: Lang) -> Result<String, Failure> {
    let thing = "the picture";
    let bug = "report this as a bug";
    let mut tera = Tera::default();
    // The name's ending switches escaping on: names of pods come from a file.
    tera.add_raw_template("picture.html", include_str!("picture.svg.tera")).or_failure(thing, bug)?;
    let context = tera::Context::from_serialize(values(summaries, lang)).or_failure(thing, bug)?;
    tera.render("picture.html", &context).or_failure(thing, bug)
}

fn values(summaries: &[Summary], lang: Lang) -> Value {
    let seconds = summaries.iter().map(|s| s.length).max().unwrap_or(0).max(1);
    #[expect(clippy::cast_precision_loss, reason = "a day has 86,400 seconds")]
    let second = (WIDTH / seconds as f64).min(WIDEST_SECOND);
    let mut top = 50;
    let panels: Vec<Value> = summaries
        .iter()
        .map(|summary| {
            let panel = panel(summary, second, top, lang);
            top += height(summary) + 50;
            panel
        })
        .collect();
    let step = [1, 2, 5, 10, 30, 60, 300, 600, 3600].into_iter().find(|s| seconds / s <= 12).unwrap_or(7200);
    let ticks: Vec<Value> = (0..=seconds / step)
        .map(|n| json!({"x": x(n * step, second), "label": format!("{} s", n * step)}))
        .collect();
    json!({
        "lang": lang.to_string(),
        "title": word(lang, "Calls answered and lost", "응답을 받은 호출과 잃은 호출"),
        "answered": word(lang, "answered", "응답"),
        "lost": word(lang, "lost", "손실"),
        "not_sent": word(lang, "no client", "클라이언트 없음"),
        "left": LEFT,
        "right": x(seconds, second),
        "width": x(seconds, second) + 30.0,
        "height": top + 30,
        "axis": top - 20,
        "ticks": ticks,
        "panels": panels,
    })
}

fn word(lang: Lang, en: &'static str, ko: &'static str) -> &'static str {
    if lang == Lang::Ko { ko } else { en }
}

#[expect(clippy::cast_precision_loss, reason = "a day has 86,400 seconds")]
fn x(seconds: u64, second: f64) -> f64 {
    f64::from(LEFT) + seconds as f64 * second
}

fn rows(summary: &Summary) -> usize {
    summary.pods.len().min(MAX_PODS)
}

fn height(summary: &Summary) -> u32 {
    90 + ROW * u32::try_from(rows(summary)).unwrap_or(u32::MAX)
}

fn panel(summary: &Summary, second: f64, top: u32, lang: Lang) -> Value {
    let Count { answered, lost, .. } = summary.count;
    let told = match lang {
        Lang::En => format!("{answered} answered, {lost} lost"),
        Lang::Ko => format!("응답 {answered}건, 손실 {lost}건"),
    };
    let base = f64::from(top) + 20.0 + BAR;
    let most = summary.seconds.values().map(|c| c.answered + c.lost + c.not_sent).max().unwrap_or(0).max(1);
    #[expect(clippy::cast_precision_loss, reason = "calls of one second")]
    let part = |calls: u64| BAR * calls as f64 / most as f64;
    let bars: Vec<Value> = summary
        .seconds
        .iter()
        .map(|(at, count)| {
            let (good, bad, idle) = (part(count.answered), part(count.lost), part(count.not_sent));
            json!({"x": x(*at, second), "width": second * 0.9, "good": good, "bad": bad,
                   "good_y": base - good, "bad_y": base - good - bad,
                   "idle": idle, "idle_y": base - good - bad - idle})
        })
        .collect();
    let pods: Vec<Value> = summary
        .pods
        .iter()
        .take(MAX_PODS)
        .zip(0_u32..)
        .map(|(pod, row)| {
            let y = base + 10.0 + f64::from(row * ROW);
            let cells: Vec<Value> = pod
                .seconds
                .iter()
                .map(
                    |(at, count)| json!({"x": x(*at, second), "width": second * 0.9, "class": class(*count)}),
                )
                .collect();
            let name = if pod.pod.is_empty() {
                word(lang, "no pod to call", "호출할 파드 없음").to_owned()
            } else {
                format!("{} {}", pod.pod, pod.ip)
            };
            json!({"name": name, "y": y, "text_y": y + 11.0, "cells": cells})
        })
        .collect();
    json!({"name": summary.name, "told": told, "y": top, "text_y": top + 12, "base": base, "bars": bars, "pods": pods})
}

fn class(count: Count) -> &'static str {
    match (count.answered, count.lost) {
        (_, 0) => "good",
        (0, _) => "bad",
        _ => "mixed",
    }
}

#[cfg(test)]
mod tests {
    use super::super::summary::tests::journal;
    use super::*;

    #[test]
    fn names_are_escaped_and_both_languages_draw_the_same() {
        let summary = Summary::of("a & b", &journal());
        let (en, ko) =
            (svg(std::slice::from_ref(&summary), Lang::En).unwrap(), svg(&[summary], Lang::Ko).unwrap());
        assert!(
            en.starts_with("<svg ") && en.contains("a &amp; b") && en.contains("b&lt;1&gt; 10.0.0.1"),
            "{en}"
        );
        assert!(en.contains("1 answered, 3 lost") && ko.contains("손실 3건"));
        assert_eq!(en.matches("<rect").count(), ko.matches("<rect").count());
        for class in ["\"good\"", "\"bad\"", "\"idle\""] {
            assert!(en.contains(class), "{class}: {en}");
        }
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        assert!(svg(&[], Lang::En).unwrap().ends_with("</svg>\n"));
    }
}

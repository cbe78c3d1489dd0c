//! JUnit XML: a suite a report, a case a check.

use quick_junit::{NonSuccessKind, Report as Document, TestCase, TestCaseStatus, TestSuite};

use super::{Lang, ReportError, render};
use crate::check::{CheckResult, Report, Verdict};

/// The report as JUnit XML. `failed` is a failure, `inconclusive` an error (nothing was proven), `skipped` is skipped.
pub fn junit(report: &Report) -> Result<String, ReportError> {
    let name = report.context.title.as_deref().unwrap_or("podwire");
    let mut suite = TestSuite::new(format!("{name}: {}", report.expectation));
    suite.add_test_cases(report.checks.iter().map(|check| case(report, check)));
    let mut document = Document::new("podwire");
    document.add_test_suite(suite);
    Ok(document.to_string()?)
}

fn case(report: &Report, check: &CheckResult) -> TestCase {
    let explanation: Vec<String> =
        check.explanation.iter().map(|message| render(Lang::En, message)).collect();
    let message = explanation.join(" ");
    let status = match check.verdict {
        Verdict::Held => TestCaseStatus::success(),
        Verdict::Skipped => with_message(TestCaseStatus::skipped(), &message),
        Verdict::Failed => with_message(TestCaseStatus::non_success(NonSuccessKind::Failure), &message),
        Verdict::Inconclusive => with_message(TestCaseStatus::non_success(NonSuccessKind::Error), &message),
    };
    let mut case = TestCase::new(check.id, status);
    case.set_classname(format!("podwire.{}", report.expectation));
    let mut lines = vec![render(Lang::En, &check.question), message];
    lines.extend(check.evidence.iter().map(|evidence| {
        let time = evidence.timestamp.as_deref().unwrap_or("-");
        format!(
            "{} frame {} {} {} {} > {} {} {}",
            evidence.file,
            evidence.frame,
            evidence.interface,
            time,
            evidence.source,
            evidence.destination,
            evidence.protocol,
            evidence.info
        )
    }));
    case.set_system_out(lines.join("\n"));
    case
}

fn with_message(mut status: TestCaseStatus, message: &str) -> TestCaseStatus {
    status.set_message(message);
    status.set_type("verdict");
    status
}

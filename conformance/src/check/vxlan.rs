//! Expectation `vxlan`: packets between pods cross the wire inside VXLAN only, from node to node, and say whose they are.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::classify::Party;
use super::correlate::{Replaced, correlate, resolve};
use super::evidence::Evidence;
use super::native::Outcome;
use super::result::{CheckResult, Count, Message, Question, Verdict};
use super::scan::{PacketRef, Scan};
use super::soundness::{CAPTURE_COMPLETE, capture_complete, count, losses, negative};
use super::wrapped::{Row, Wrapping};
use super::{CheckError, Context};
use crate::dissect::Encapsulation;
use crate::read::CaptureFile;

const QUESTIONS: [Question; 6] = [
    ("saw-vxlan-traffic", "q-saw-vxlan-traffic"),
    CAPTURE_COMPLETE,
    ("all-in-vxlan", "q-all-in-vxlan"),
    ("outer-is-node", "q-outer-is-node"),
    ("inner-is-pod", "q-inner-is-pod"),
    ("vni-is-identity", "q-vni-is-identity"),
];

/// Asks the six questions.
pub(super) fn judge(scan: &Scan, files: &[CaptureFile], context: &Context) -> Result<Outcome, CheckError> {
    if !scan.classifier.knows_pods() {
        let checks = QUESTIONS.map(|question| CheckResult::without_pods(question, context));
        return Ok(Outcome { checks: checks.into(), notes: Vec::new() });
    }
    let replaced = correlate(files, &scan.classifier, &scan.conversations)?;
    let judge = Judge { scan, files, context, rows: scan.wrapped.rows(), replaced };
    let checks = vec![
        judge.saw_wrapped_traffic()?,
        capture_complete(scan, context),
        judge.all_in_vxlan()?,
        judge.outer_node_addresses()?,
        judge.inner_pod_addresses()?,
        judge.vni_is_identity()?,
    ];
    Ok(Outcome { checks, notes: judge.notes() })
}

struct Judge<'s> {
    scan: &'s Scan,
    files: &'s [CaptureFile],
    context: &'s Context,
    /// Every way in which pods' packets were wrapped on a wire.
    rows: Vec<(Wrapping, Row)>,
    replaced: Vec<Replaced>,
}

type Wrongs = Vec<(PacketRef, Message)>;

impl Judge<'_> {
    fn result(
        &self,
        index: usize,
        verdict: Verdict,
        explanation: Vec<Message>,
        counts: Vec<Count>,
        evidence: Vec<Evidence>,
    ) -> CheckResult {
        CheckResult::new(QUESTIONS[index], verdict, explanation, counts, evidence, self.context)
    }

    /// `Failed` with the packets if there are any wrong ones, else what the capture allows to say.
    fn answer(
        &self,
        index: usize,
        wrongs: &Wrongs,
        failed: Message,
        held: Message,
        counts: Vec<Count>,
    ) -> Result<CheckResult, CheckError> {
        let limit = self.context.evidence_limit;
        if !wrongs.is_empty() {
            let evidence = resolve(self.files, &wrongs[..wrongs.len().min(limit)])?;
            return Ok(self.result(index, Verdict::Failed, vec![failed], counts, evidence));
        }
        let (mut verdict, mut explanation) = negative(self.scan, self.between_pods(), held);
        if self.scan.wrapped.overflow && verdict == Verdict::Held {
            (verdict, explanation) = (Verdict::Inconclusive, vec![Message::new("loss-overflow-wrapped")]);
        }
        let first = self.vxlan().filter(|(w, _, _)| self.is_between_pods(w)).take(limit);
        let places: Wrongs = first.map(|(w, row, _)| (row.first, note(w))).collect();
        Ok(self.result(index, verdict, explanation, counts, resolve(self.files, &places)?))
    }

    /// What is inside VXLAN, with its identifier.
    fn vxlan(&self) -> impl Iterator<Item = (&Wrapping, &Row, u32)> {
        self.rows.iter().filter_map(|(wrapping, row)| match wrapping.encapsulation {
            Encapsulation::Vxlan { vni, .. } => Some((wrapping, row, vni)),
            _ => None,
        })
    }

    fn party(&self, address: Ipv4Addr) -> Party {
        self.scan.classifier.party(address)
    }

    fn is_between_pods(&self, wrapping: &Wrapping) -> bool {
        let (source, destination) = wrapping.inner;
        self.party(source) == Party::Pod && self.party(destination) == Party::Pod
    }

    /// Packets between pods inside VXLAN: the positive control.
    fn between_pods(&self) -> u64 {
        self.vxlan().filter(|(w, _, _)| self.is_between_pods(w)).map(|(_, row, _)| row.packets).sum()
    }

    fn saw_wrapped_traffic(&self) -> Result<CheckResult, CheckError> {
        let seen = self.between_pods();
        let counts = vec![
            count("n-packets", self.scan.packets),
            count("n-in-vxlan", seen),
            count("n-between-pods-wire", self.scan.on_wire.count),
            count("n-between-pods-all", self.scan.between_pods),
        ];
        let mut wrongs = Vec::new();
        let mut explanation = vec![if seen > 0 {
            Message::new("why-wrapped-traffic").with("count", seen)
        } else {
            Message::new("why-no-wrapped-traffic")
        }];
        let lost = losses(self.scan);
        let mut verdict = match (seen > 0, lost.is_empty()) {
            (true, _) => Verdict::Held,
            (false, true) => Verdict::Failed,
            (false, false) => Verdict::Inconclusive,
        };
        if seen == 0 {
            explanation.extend(lost);
        }
        for (hint, inside) in self.context.flows.iter().zip(&self.scan.hinted_inside) {
            if *inside == 0 {
                explanation.push(Message::new("why-flow-not-wrapped").with("flow", hint));
                if verdict == Verdict::Held {
                    verdict = Verdict::Failed;
                }
            }
        }
        if seen > 0 {
            let first = self.vxlan().filter(|(w, _, _)| self.is_between_pods(w));
            wrongs =
                first.take(self.context.evidence_limit).map(|(w, row, _)| (row.first, note(w))).collect();
        }
        Ok(self.result(0, verdict, explanation, counts, resolve(self.files, &wrongs)?))
    }

    fn all_in_vxlan(&self) -> Result<CheckResult, CheckError> {
        let plain = self.scan.on_wire.count;
        let others =
            self.rows.iter().filter(|(w, _)| !matches!(w.encapsulation, Encapsulation::Vxlan { .. }));
        let others: Vec<_> = others.collect();
        let counts = vec![
            count("n-in-vxlan", self.between_pods()),
            count("n-between-pods-wire", plain),
            count("n-in-others", others.iter().map(|(_, row)| row.packets).sum()),
            count("n-opaque", self.scan.opaque.count),
        ];
        if plain > 0 {
            let why = Message::new("why-not-wrapped").with("count", plain);
            return Ok(self.result(
                2,
                Verdict::Failed,
                vec![why],
                counts,
                self.scan.on_wire.evidence.clone(),
            ));
        }
        let wrongs: Wrongs = others.iter().map(|(w, row)| (row.first, note(w))).collect();
        let failed = Message::new("why-other-wrapping").with("count", wrongs.len());
        let mut result = self.answer(2, &wrongs, failed, Message::new("why-all-wrapped"), counts)?;
        if self.scan.opaque.count > 0 && result.verdict != Verdict::Failed {
            result.verdict = Verdict::Inconclusive;
            result.explanation = vec![Message::new("why-opaque").with("count", self.scan.opaque.count)];
            result.evidence.clone_from(&self.scan.opaque.evidence);
        }
        Ok(result)
    }

    fn outer_node_addresses(&self) -> Result<CheckResult, CheckError> {
        let mut wrongs = Vec::new();
        for (wrapping, row, _) in self.vxlan() {
            let Some((from, to)) = wrapping.outer else {
                wrongs.push((row.first, Message::new("note-outer-not-ipv4")));
                continue;
            };
            let ends = [(from, wrapping.inner.0), (to, wrapping.inner.1)];
            let wrong = ends.into_iter().find(|(outer, inner)| !self.may_carry(*outer, *inner));
            if let Some((outer, inner)) = wrong {
                let note = Message::new("note-outer-wrong").with("outer", outer).with("inner", inner);
                wrongs.push((row.first, note));
            }
        }
        let failed = Message::new("why-outer-wrong").with("count", wrongs.len());
        let held = Message::new("why-outer-nodes");
        let counts =
            vec![count("n-in-vxlan", self.between_pods()), count("n-wrong-rows", wrongs.len() as u64)];
        let mut result = self.answer(3, &wrongs, failed, held, counts)?;
        if result.verdict == Verdict::Held && !self.scan.classifier.knows_nodes() {
            result.verdict = Verdict::Inconclusive;
            result.explanation = vec![Message::new("why-nodes-unknown")];
        }
        Ok(result)
    }

    /// Whether a packet of `inner` may have this address around it: that of the node where it is, as far as that is known.
    fn may_carry(&self, outer: Ipv4Addr, inner: Ipv4Addr) -> bool {
        if !self.scan.classifier.knows_nodes() {
            return self.party(outer) != Party::Pod;
        }
        let Some(node) = self.context.node_of(outer) else { return false };
        let home = self.context.node_of(inner).or_else(|| self.context.home_of(inner));
        home.is_none_or(|home| home == node)
    }

    fn inner_pod_addresses(&self) -> Result<CheckResult, CheckError> {
        let (mut wrongs, mut open): (Wrongs, Wrongs) = (Vec::new(), Vec::new());
        for (wrapping, row, _) in self.vxlan() {
            for end in [wrapping.inner.0, wrapping.inner.1] {
                match self.party(end) {
                    Party::Pod => {}
                    // Its address in the pod network: its own traffic, for masquerade takes another.
                    Party::Node if self.context.all_pod_cidrs().iter().any(|net| net.contains(&end)) => {}
                    Party::Node => open.push((row.first, Message::new("note-undecided"))),
                    _ => wrongs.push((row.first, Message::new("note-inner-wrong").with("address", end))),
                }
            }
        }
        let counts = vec![
            count("n-in-vxlan", self.between_pods()),
            count("n-wrong-rows", wrongs.len() as u64),
            count("n-replaced", self.replaced.len() as u64),
            count("n-undecided", open.len() as u64),
        ];
        if !self.replaced.is_empty() {
            wrongs.extend(self.replaced.iter().flat_map(|found| {
                let with = |key| Message::new(key).with("pod", found.pod).with("other", found.key.other);
                [(found.disguised, with("note-replaced")), (found.original, with("note-original"))]
            }));
        }
        let failed = Message::new("why-inner-wrong").with("count", wrongs.len());
        let mut result = self.answer(4, &wrongs, failed, Message::new("why-inner-pods"), counts)?;
        if result.verdict == Verdict::Held && !open.is_empty() {
            result.verdict = Verdict::Inconclusive;
            result.explanation = vec![Message::new("why-inner-undecided").with("count", open.len())];
            open.truncate(self.context.evidence_limit);
            result.evidence = resolve(self.files, &open)?;
        }
        Ok(result)
    }

    fn vni_is_identity(&self) -> Result<CheckResult, CheckError> {
        let mut wrongs = Vec::new();
        let mut compared = 0;
        let mut unknown: BTreeMap<Ipv4Addr, u64> = BTreeMap::new();
        for (wrapping, row, vni) in self.vxlan().filter(|(w, _, _)| self.party(w.inner.0) == Party::Pod) {
            let source = wrapping.inner.0;
            match self.context.identities.get(&source) {
                Some(identity) if *identity == vni => compared += row.packets,
                Some(identity) => wrongs.push((
                    row.first,
                    Message::new("note-vni-wrong")
                        .with("vni", vni)
                        .with("source", source)
                        .with("identity", identity),
                )),
                None => *unknown.entry(source).or_default() += row.packets,
            }
        }
        let counts = vec![count("n-vni-compared", compared), count("n-vni-unknown", unknown.values().sum())];
        let failed = Message::new("why-vni-wrong").with("count", wrongs.len());
        let held = Message::new("why-vni-right").with("count", compared);
        let mut result = self.answer(5, &wrongs, failed, held, counts)?;
        if compared == 0 && result.verdict == Verdict::Held {
            // Nobody has told the identities: the question is not asked.
            result.verdict = Verdict::Skipped;
            result.explanation = vec![Message::new("why-identities-unknown")];
        }
        Ok(result)
    }

    fn notes(&self) -> Vec<Message> {
        let rows = || self.vxlan().filter(|(w, _, _)| self.is_between_pods(w));
        let least = rows().map(|(_, row, _)| row.ttl.0).min();
        let most = rows().map(|(_, row, _)| row.ttl.1).max();
        let ttl = least.zip(most);
        ttl.into_iter()
            .map(|(least, most)| Message::new("fact-ttl-inner").with("least", least).with("most", most))
            .collect()
    }
}

fn note(wrapping: &Wrapping) -> Message {
    Message::new("note-encapsulated")
        .with("how", wrapping.encapsulation)
        .with("source", wrapping.inner.0)
        .with("destination", wrapping.inner.1)
}

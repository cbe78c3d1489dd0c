//! Expectation `native`: packets between pods cross the wire with the pods' own addresses, and nothing around them.

use super::conversation::{Conversation, End, Key};
use super::correlate::{Replaced, correlate, resolve};
use super::evidence::Evidence;
use super::result::{CheckResult, Count, Message, Question, Verdict};
use super::scan::{Found, PacketRef, Scan};
use super::soundness::{CAPTURE_COMPLETE, capture_complete, count, losses, negative};
use super::{CheckError, Context, FlowHint};
use crate::read::CaptureFile;

/// The answers.
pub(super) struct Outcome {
    pub(super) checks: Vec<CheckResult>,
    pub(super) notes: Vec<Message>,
}

/// Asks the five questions of native routing.
pub(super) fn judge(scan: &Scan, files: &[CaptureFile], context: &Context) -> Result<Outcome, CheckError> {
    if !scan.classifier.knows_pods() {
        let checks = QUESTIONS.map(|question| CheckResult::without_pods(question, context));
        return Ok(Outcome { checks: checks.into(), notes: Vec::new() });
    }
    let replaced = correlate(files, &scan.classifier, &scan.conversations)?;
    let judge = Judge { scan, files, context, replaced };
    let checks = vec![
        judge.saw_pod_traffic(),
        capture_complete(scan, context),
        judge.real_source_ip()?,
        judge.no_encapsulation(),
        judge.no_node_address()?,
    ];
    Ok(Outcome { checks, notes: judge.notes() })
}

const QUESTIONS: [Question; 5] = [
    ("saw-pod-traffic", "q-saw-pod-traffic"),
    CAPTURE_COMPLETE,
    ("real-source-ip", "q-real-source-ip"),
    ("no-encapsulation", "q-no-encapsulation"),
    ("no-node-address", "q-no-node-address"),
];

/// Conversations that a node opened towards a pod.
struct Undecided<'s> {
    /// May be a pod's.
    open: Vec<(&'s Key, &'s Conversation)>,
    /// The node's own, as far as its pods were tapped.
    own: u64,
    /// Not of the flows that were named.
    not_asked: u64,
}

struct Judge<'s> {
    scan: &'s Scan,
    files: &'s [CaptureFile],
    context: &'s Context,
    replaced: Vec<Replaced>,
}

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

    /// Packets between pods on the wire, plain or not.
    fn pod_packets(&self) -> u64 {
        self.scan.on_wire.count + self.scan.encapsulated.count
    }

    fn negative(&self, held: Message) -> (Verdict, Vec<Message>) {
        negative(self.scan, self.pod_packets(), held)
    }

    fn saw_pod_traffic(&self) -> CheckResult {
        let unseen: Vec<&FlowHint> = self
            .context
            .flows
            .iter()
            .zip(&self.scan.hinted)
            .filter(|(_, seen)| **seen == 0)
            .map(|(hint, _)| hint)
            .collect();
        let mut explanation = Vec::new();
        let verdict = if self.pod_packets() == 0 {
            let elsewhere = self.scan.between_pods;
            explanation.push(if elsewhere > 0 {
                Message::new("why-pods-not-on-wire").with("count", elsewhere)
            } else {
                Message::new("why-no-pod-traffic").with("cidrs", join(&self.context.all_pod_cidrs()))
            });
            let losses = losses(self.scan);
            let whole = losses.is_empty();
            explanation.extend(losses);
            if whole { Verdict::Failed } else { Verdict::Inconclusive }
        } else {
            explanation.push(
                Message::new("why-pod-traffic")
                    .with("count", self.pod_packets())
                    .with("pairs", self.scan.pairs.len()),
            );
            Verdict::Held
        };
        let mut verdict = verdict;
        for hint in unseen {
            explanation.push(Message::new("why-flow-unseen").with("flow", hint));
            if verdict == Verdict::Held {
                verdict = Verdict::Failed;
            }
        }
        let counts = vec![
            count("n-packets", self.scan.packets),
            count("n-between-pods-wire", self.scan.on_wire.count),
            count("n-between-pods-all", self.scan.between_pods),
            count("n-encapsulated", self.scan.encapsulated.count),
        ];
        self.result(0, verdict, explanation, counts, self.scan.on_wire.evidence.clone())
    }

    fn real_source_ip(&self) -> Result<CheckResult, CheckError> {
        let same_node: &Found = &self.scan.same_node_on_wire;
        let counts = vec![
            count("n-between-pods-wire", self.scan.on_wire.count),
            count("n-replaced", self.replaced.len() as u64),
            count("n-same-node", same_node.count),
        ];
        let mut explanation = Vec::new();
        let mut evidence = Vec::new();
        if !self.replaced.is_empty() {
            explanation.push(Message::new("why-replaced").with("count", self.replaced.len()));
            explanation.extend(self.examples(self.replaced.iter()));
            evidence = self.show(self.replaced.iter())?;
        }
        if same_node.count > 0 {
            explanation.push(Message::new("why-same-node").with("count", same_node.count));
            evidence.extend(same_node.evidence.clone());
        }
        if !explanation.is_empty() {
            return Ok(self.result(2, Verdict::Failed, explanation, counts, evidence));
        }
        let (mut verdict, mut explanation) =
            self.negative(Message::new("why-real").with("count", self.scan.on_wire.count));
        if verdict == Verdict::Held && self.scan.on_wire.count == 0 {
            (verdict, explanation) = (Verdict::Inconclusive, vec![Message::new("why-only-encapsulated")]);
        }
        Ok(self.result(2, verdict, explanation, counts, self.scan.on_wire.evidence.clone()))
    }

    fn no_encapsulation(&self) -> CheckResult {
        let found = &self.scan.encapsulated;
        let counts = vec![
            count("n-between-pods-wire", self.scan.on_wire.count),
            count("n-encapsulated", found.count),
            count("n-opaque", self.scan.opaque.count),
        ];
        if found.count > 0 {
            let kinds: Vec<String> =
                self.scan.encapsulations.iter().map(|(kind, count)| format!("{kind} × {count}")).collect();
            let why =
                Message::new("why-encapsulated").with("count", found.count).with("kinds", kinds.join(", "));
            return self.result(3, Verdict::Failed, vec![why], counts, found.evidence.clone());
        }
        let (mut verdict, mut explanation) =
            self.negative(Message::new("why-plain").with("count", self.scan.on_wire.count));
        let mut evidence = Vec::new();
        if self.scan.opaque.count > 0 {
            if verdict == Verdict::Held {
                verdict = Verdict::Inconclusive;
                explanation.clear();
            }
            explanation.push(Message::new("why-opaque").with("count", self.scan.opaque.count));
            evidence.clone_from(&self.scan.opaque.evidence);
        }
        self.result(3, verdict, explanation, counts, evidence)
    }

    fn no_node_address(&self) -> Result<CheckResult, CheckError> {
        let by_node: Vec<&Replaced> = self.replaced.iter().filter(|found| self.is_node(&found.key)).collect();
        let hinted = self.hinted_in_disguise();
        let Undecided { open, own, not_asked } = self.undecided();
        let counts = vec![
            count(
                "n-conversations-node",
                self.scan.conversations.found.keys().filter(|key| self.is_node(key)).count() as u64,
            ),
            count("n-replaced-by-node", by_node.len() as u64),
            count("n-undecided", open.len() as u64),
        ];
        let mut explanation = Vec::new();
        let mut evidence = Vec::new();
        if !by_node.is_empty() {
            explanation.push(Message::new("why-node-replaced").with("count", by_node.len()));
            explanation.extend(self.examples(by_node.iter().copied()));
            evidence = self.show(by_node.iter().copied())?;
        }
        for (hint, key, conversation) in &hinted {
            explanation
                .push(Message::new("why-node-hinted").with("flow", hint).with("node", self.label(key.other)));
            evidence
                .extend(resolve(self.files, &[(conversation.first, Message::new("note-node-in-place"))])?);
        }
        if !explanation.is_empty() {
            return Ok(self.result(4, Verdict::Failed, explanation, counts, evidence));
        }
        let (mut verdict, mut explanation) = self.negative(Message::new("why-no-node"));
        if verdict == Verdict::Held {
            let decided = [("why-node-own", own), ("why-not-asked", not_asked)];
            let seen = decided.into_iter().filter(|(_, count)| *count > 0);
            explanation.extend(seen.map(|(key, count)| Message::new(key).with("count", count)));
        }
        if !open.is_empty() {
            if verdict == Verdict::Held {
                verdict = Verdict::Inconclusive;
                explanation.clear();
            }
            let nodes_known = self.scan.classifier.knows_nodes();
            explanation.push(
                Message::new(if nodes_known { "why-undecided" } else { "why-undecided-nodes" })
                    .with("count", open.len()),
            );
            let limit = self.context.evidence_limit;
            let places: Vec<_> = open
                .iter()
                .take(limit)
                .map(|(_, found)| (found.first, Message::new("note-undecided")))
                .collect();
            evidence = resolve(self.files, &places)?;
        }
        Ok(self.result(4, verdict, explanation, counts, evidence))
    }

    fn is_node(&self, key: &Key) -> bool {
        self.context.node_of(key.other).is_some()
    }

    /// Named flows of which the wire shows nothing under the pod's address, but packets from a node in its place.
    fn hinted_in_disguise(&self) -> Vec<(&FlowHint, &Key, &Conversation)> {
        let mut found = Vec::new();
        for (hint, seen) in self.context.flows.iter().zip(&self.scan.hinted) {
            if *seen > 0 {
                continue;
            }
            let disguised = self.candidates().find(|(key, _)| self.is_node(key) && matches_hint(hint, key));
            if let Some((key, conversation)) = disguised {
                found.push((hint, key, conversation));
            }
        }
        found
    }

    /// Conversations that might hide a pod: seen on a wire, not opened by the pod, with a node (any address, if the nodes
    /// are not known) at the other end.
    fn candidates(&self) -> impl Iterator<Item = (&Key, &Conversation)> {
        let nodes_known = self.scan.classifier.knows_nodes();
        self.scan.conversations.found.iter().filter(move |(key, conversation)| {
            conversation.wire_packets > 0
                && conversation.opener != Some(End::Pod)
                && (!nodes_known || self.is_node(key))
        })
    }

    /// Candidates sorted into those that nothing decides, oldest first, and the numbers of the decided ones.
    fn undecided(&self) -> Undecided<'_> {
        let mut sorted = Undecided { open: Vec::new(), own: 0, not_asked: 0 };
        for (key, conversation) in self.candidates() {
            if self.replaced.iter().any(|found| found.key == *key) {
                continue;
            }
            let flows = &self.context.flows;
            // Had one of the node's tapped pods sent it, it would have matched a packet at that tap.
            if self.context.node_of(key.other).is_some_and(|node| self.scan.tapped_pods_of(node)) {
                sorted.own += 1;
            } else if !flows.is_empty() && !flows.iter().any(|hint| matches_hint(hint, key)) {
                sorted.not_asked += 1;
            } else {
                sorted.open.push((key, conversation));
            }
        }
        sorted.open.sort_by_key(|(_, conversation)| conversation.first);
        sorted
    }

    fn label(&self, address: std::net::Ipv4Addr) -> String {
        self.context
            .name_of(address)
            .map_or_else(|| address.to_string(), |name| format!("{address} ({name})"))
    }

    /// A sentence for each of the first replacements.
    fn examples<'r>(&self, found: impl Iterator<Item = &'r Replaced>) -> Vec<Message> {
        let sentence = |replaced: &Replaced| {
            Message::new("why-replaced-example")
                .with("pod", self.label(replaced.pod))
                .with("other", self.label(replaced.key.other))
                .with("peer", self.label(replaced.key.pod))
        };
        let mut sentences: Vec<Message> = found.map(sentence).collect();
        sentences.dedup();
        sentences.truncate(4);
        sentences
    }

    /// Each replaced packet followed by its original.
    fn show<'r>(&self, found: impl Iterator<Item = &'r Replaced>) -> Result<Vec<Evidence>, CheckError> {
        let places: Vec<(PacketRef, Message)> = found
            .take(self.context.evidence_limit / 2)
            .flat_map(|replaced| {
                let with = |key| {
                    Message::new(key)
                        .with("pod", self.label(replaced.pod))
                        .with("other", self.label(replaced.key.other))
                };
                [(replaced.disguised, with("note-replaced")), (replaced.original, with("note-original"))]
            })
            .collect();
        resolve(self.files, &places)
    }

    /// What else a reader wants to know.
    fn notes(&self) -> Vec<Message> {
        let mut notes = Vec::new();
        if self.scan.pairs_overflow {
            notes.push(Message::new("fact-many-pairs").with("count", self.scan.pairs.len()));
        }
        let on_wire = || self.scan.pairs.iter().filter(|pair| pair.wire_packets > 0);
        if let (Some(least), Some(most)) =
            (on_wire().map(|pair| pair.wire_ttl.0).min(), on_wire().map(|pair| pair.wire_ttl.1).max())
        {
            notes.push(Message::new("fact-ttl").with("least", least).with("most", most));
        }
        let opened_by_pods = self
            .scan
            .conversations
            .found
            .iter()
            .filter(|(key, found)| self.is_node(key) && found.opener == Some(End::Pod))
            .count();
        if opened_by_pods > 0 {
            notes.push(Message::new("fact-pod-to-node").with("count", opened_by_pods));
        }
        let outside = self.scan.conversations.found.keys().filter(|key| !self.is_node(key)).count();
        if outside > 0 && self.scan.classifier.knows_nodes() {
            notes.push(Message::new("fact-outside").with("count", outside));
        }
        notes
    }
}

/// Whether the pod end of a conversation is the destination of `hint`.
fn matches_hint(hint: &FlowHint, key: &Key) -> bool {
    key.pod == hint.destination && hint.port.is_none_or(|port| key.pod_port == port)
}

fn join(nets: &[ipnet::Ipv4Net]) -> String {
    nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

//! Everything that a report says, in each language. `{name}` is filled in by the message.

use std::fmt;
use std::str::FromStr;

use crate::check::Message;

/// A language of the reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Lang {
    /// English.
    #[default]
    En,
    /// Korean.
    Ko,
}

/// An unknown language.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a language of the reports; there are: en, ko")]
pub struct LangError(String);

impl FromStr for Lang {
    type Err = LangError;

    fn from_str(text: &str) -> Result<Self, LangError> {
        match text {
            "en" => Ok(Self::En),
            "ko" => Ok(Self::Ko),
            other => Err(LangError(other.to_owned())),
        }
    }
}

impl fmt::Display for Lang {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::En => "en",
            Self::Ko => "ko",
        })
    }
}

/// One sentence or label: key, English, Korean.
pub type Entry = (&'static str, &'static str, &'static str);

/// The sentence for `key` in a table; the key itself if there is none.
pub fn phrase_of(table: &[Entry], lang: Lang, key: &'static str) -> &'static str {
    let entry = table.iter().find(|(known, _, _)| *known == key);
    entry.map_or(key, |(_, en, ko)| match lang {
        Lang::En => en,
        Lang::Ko => ko,
    })
}

/// Fills the gaps of a phrase, `{name}` each. What is filled in is not read again for gaps.
pub fn fill_phrase<'a>(phrase: &str, value: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut rest = phrase;
    let mut text = String::with_capacity(rest.len() + 32);
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        let Some((name, after)) = after.split_once('}') else { break };
        text.push_str(value(name).unwrap_or("?"));
        rest = after;
    }
    text.push_str(rest);
    text
}

/// The sentence for `key`; the key itself if there is none, which a test excludes.
pub(crate) fn phrase(lang: Lang, key: &'static str) -> &'static str {
    phrase_of(TABLE, lang, key)
}

/// The message as a sentence.
pub(crate) fn render(lang: Lang, message: &Message) -> String {
    let value = |name: &str| message.args.iter().find(|(known, _)| *known == name).map(|(_, v)| v.as_str());
    fill_phrase(phrase(lang, message.key), value)
}

/// Every phrase, for tests and for the page's template.
pub(super) fn all(lang: Lang) -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE.iter().map(move |(key, en, ko)| (*key, if lang == Lang::En { *en } else { *ko }))
}

#[rustfmt::skip]
const TABLE: &[Entry] = &[
    // the page
    ("title", "Network report", "네트워크 보고서"),
    ("expectation-native", "Native routing", "네이티브 라우팅"),
    ("expectation-vxlan", "VXLAN", "VXLAN"),
    ("expectation-no-loop", "No loop", "루프 없음"),
    ("verdict-held", "Held", "충족"),
    ("verdict-failed", "Failed", "위반"),
    ("verdict-inconclusive", "Inconclusive", "판단 불가"),
    ("verdict-skipped", "Not run", "실행 안 함"),
    ("summary-held", "Every question is answered by packets, and the answer is the expected one.", "모든 질문에 패킷 증거가 있으며, 결과가 기대와 같습니다."),
    ("summary-failed", "At least one expectation is violated. The packets that show it are below.", "기대와 다른 항목이 있습니다. 이를 보여 주는 패킷을 아래에 실었습니다."),
    ("summary-inconclusive", "Nothing wrong was found, but the capture does not prove everything. What is missing is named below.", "위반은 발견되지 않았지만 이 캡처만으로는 모두 증명할 수 없습니다. 부족한 점을 아래에 적었습니다."),
    ("summary-skipped", "No question could be asked.", "확인할 수 있는 질문이 없었습니다."),
    ("h-checks", "Checks", "점검 항목"),
    ("h-context", "What was known", "전제 조건"),
    ("h-files", "Captures", "캡처 파일"),
    ("h-flows", "Traffic between pods", "파드 간 트래픽"),
    ("h-notes", "Also seen", "참고 사항"),
    ("h-reproduce", "How to reproduce", "재현 방법"),
    ("h-evidence", "Packets", "패킷"),
    ("t-expectation", "Expectation", "기대"),
    ("t-nodes", "Nodes", "노드"),
    ("t-pod-cidrs", "Pod networks", "파드 네트워크"),
    ("t-service-cidrs", "Service networks", "서비스 네트워크"),
    ("t-flows-given", "Flows sent on purpose", "의도적으로 보낸 흐름"),
    ("t-unknown", "not given", "지정되지 않음"),
    ("t-file", "File", "파일"),
    ("t-interface", "Interface", "인터페이스"),
    ("t-role", "Seat", "위치"),
    ("t-link", "Link", "링크"),
    ("t-packets", "Packets", "패킷 수"),
    ("t-lost", "Lost", "유실"),
    ("t-time", "Time (UTC)", "시각 (UTC)"),
    ("t-from", "Source", "출발지"),
    ("t-to", "Destination", "목적지"),
    ("t-protocol", "Protocol", "프로토콜"),
    ("t-length", "Length", "길이"),
    ("t-info", "Info", "정보"),
    ("t-frame", "Frame", "프레임"),
    ("t-on-wire", "On the wire", "와이어에서"),
    ("t-check", "Check", "항목"),
    ("t-verdict", "Verdict", "판정"),
    ("t-question", "Question", "질문"),
    ("t-bytes", "First bytes", "앞부분 바이트"),
    ("t-made", "Made {when} in {seconds} s by podwire {version}", "{when} 생성, {seconds}초 소요, podwire {version}"),
    ("t-more-flows", "Flows not listed: {count}.", "흐름 {count}개는 표시하지 않았습니다."),
    ("role-wire", "wire", "와이어"),
    ("role-pod", "pod", "파드"),
    ("role-unknown", "not known", "알 수 없음"),
    // questions
    ("q-saw-pod-traffic", "Did the capture see packets between pods on the wire?", "캡처에 와이어를 지나는 파드 간 패킷이 있습니까?"),
    ("q-capture-complete", "Did the capture keep every packet?", "캡처가 패킷을 빠짐없이 담았습니까?"),
    ("q-real-source-ip", "Does every packet between pods carry the pods' own addresses?", "파드 간 패킷이 모두 실제 파드 주소를 가지고 있습니까?"),
    ("q-no-encapsulation", "Do pods' packets cross the wire without encapsulation?", "파드 패킷이 캡슐화 없이 와이어를 지납니까?"),
    ("q-no-node-address", "Is no node's address in a pod's place?", "파드 주소 자리에 노드 주소가 쓰이지 않았습니까?"),
    ("q-saw-packets", "Did the capture see packets?", "캡처에 패킷이 있습니까?"),
    ("q-no-loop", "Does every packet pass each place once?", "모든 패킷이 각 지점을 한 번씩만 지납니까?"),
    ("q-saw-vxlan-traffic", "Did the capture see packets between pods inside VXLAN?", "캡처에 VXLAN에 담긴 파드 간 패킷이 있습니까?"),
    ("q-all-in-vxlan", "Do all packets between pods cross the wire inside VXLAN?", "파드 간 패킷이 모두 VXLAN에 담겨 와이어를 지납니까?"),
    ("q-outer-is-node", "Are the outer addresses those of the pods' nodes?", "바깥 주소가 각 파드가 있는 노드의 주소입니까?"),
    ("q-inner-is-pod", "Are the inner addresses those of the pods?", "안쪽 주소가 실제 파드의 주소입니까?"),
    ("q-vni-is-identity", "Is the network identifier (VNI) the identity of the sending pod?", "네트워크 식별자(VNI)가 보낸 파드의 아이덴티티입니까?"),
    // counts
    ("n-ipv4", "IPv4 packets", "IPv4 패킷"),
    ("n-loops", "packets that came round again", "되돌아온 패킷"),
    ("n-in-vxlan", "packets between pods inside VXLAN", "VXLAN에 담긴 파드 간 패킷"),
    ("n-in-others", "packets of pods inside something else", "다른 방식으로 캡슐화된 파드 패킷"),
    ("n-wrong-rows", "ways of wrapping that are wrong", "잘못된 캡슐화 유형"),
    ("n-vni-compared", "packets whose VNI is the known identity", "VNI가 알려진 아이덴티티와 같은 패킷"),
    ("n-vni-unknown", "packets whose sender's identity is not known", "보낸 파드의 아이덴티티를 알 수 없는 패킷"),
    ("n-packets", "packets in the captures", "캡처의 전체 패킷"),
    ("n-between-pods-wire", "packets between pods on a wire", "와이어의 파드 간 패킷"),
    ("n-between-pods-all", "packets between pods at any tap", "모든 탭의 파드 간 패킷"),
    ("n-encapsulated", "encapsulated packets of pods", "캡슐화된 파드 패킷"),
    ("n-opaque", "encrypted packets between nodes", "노드 간 암호화 패킷"),
    ("n-dropped", "packets lost while capturing", "캡처 중 유실된 패킷"),
    ("n-unread", "packets cut before their addresses", "주소 앞에서 잘린 패킷"),
    ("n-shortened", "packets shortened by the snap length", "스냅 길이로 줄어든 패킷"),
    ("n-replaced", "conversations with a replaced address", "주소가 바뀐 대화"),
    ("n-replaced-by-node", "conversations with a node in a pod's place", "노드가 파드 자리를 차지한 대화"),
    ("n-same-node", "packets on a wire between pods of one node", "같은 노드의 파드끼리 와이어로 주고받은 패킷"),
    ("n-conversations-node", "conversations between a node and a pod", "노드와 파드 사이의 대화"),
    ("n-undecided", "of them undecided", "그중 판단할 수 없는 대화"),
    // explanations
    ("why-no-pod-cidr", "No pod network is known, so no packet can be told to be a pod's. Name them with --pod-cidr, for example --pod-cidr 10.244.0.0/16.", "파드 네트워크를 알 수 없어 어떤 패킷이 파드의 것인지 구분할 수 없습니다. --pod-cidr 10.244.0.0/16 처럼 --pod-cidr로 지정하십시오."),
    ("why-pod-traffic", "Packets between pods on the wire: {count}, in {pairs} one-way flows.", "와이어에서 파드 간 패킷 {count}개를 확인했습니다(단방향 흐름 {pairs}개)."),
    ("why-no-pod-traffic", "No packet between two addresses of {cidrs} is in the capture. Send traffic between pods of different nodes while capturing, or correct the pod networks.", "{cidrs}의 두 주소 사이를 오간 패킷이 캡처에 없습니다. 캡처하는 동안 서로 다른 노드의 파드 간에 트래픽을 보내거나 파드 네트워크를 바로잡으십시오."),
    ("why-pods-not-on-wire", "Packets between pods were seen ({count}), but only at the pods' own interfaces. Capture on the interface between the nodes as well.", "파드 간 패킷 {count}개가 있지만 파드 인터페이스에서만 보였습니다. 노드 사이의 인터페이스도 함께 캡처하십시오."),
    ("why-flow-unseen", "The flow {flow} was named, but no packet with these addresses is on the wire.", "지정한 흐름 {flow}의 주소를 가진 패킷이 와이어에 없습니다."),
    ("why-complete", "No packet was lost while capturing, and none was cut before its addresses.", "캡처 중 유실된 패킷이 없고, 주소 앞에서 잘린 패킷도 없습니다."),
    ("why-complete-uncounted", "Nothing shows a loss. Not every interface of the files counts its losses, so this rests on the files alone.", "유실의 흔적은 없습니다. 다만 유실 수를 기록하지 않은 인터페이스가 있어, 파일에 적힌 내용에만 근거합니다."),
    ("why-shortened", "Packets shortened by the snap length: {count}.", "스냅 길이로 줄어든 패킷: {count}개."),
    ("why-no-positive-control", "No packet between pods was seen on the wire, so that none of them is wrong proves nothing.", "와이어에서 파드 간 패킷이 보이지 않았으므로, 잘못된 패킷이 없다는 사실은 아무것도 증명하지 못합니다."),
    ("why-incomplete", "Nothing wrong was found, but packets are missing from the capture, and a violation could be among them:", "위반은 발견되지 않았지만 캡처에 빠진 패킷이 있고, 그중에 위반이 있을 수 있습니다."),
    ("loss-dropped", "{interface} of {file}: packets lost: {count}.", "{file}의 {interface}에서 패킷 {count}개가 유실되었습니다."),
    ("loss-truncated", "{file} is truncated: it ends in the middle of the record at byte {offset}. The packets before it were read.", "{file}이 잘려 있습니다. {offset}바이트 위치의 레코드 중간에서 끝납니다. 그 앞의 패킷은 모두 읽었습니다."),
    ("loss-unread", "Packets cut before their addresses could be read: {count}. Capture with a greater snap length.", "패킷 {count}개는 주소를 읽기 전에 잘렸습니다. 스냅 길이를 늘려 캡처하십시오."),
    ("loss-overflow", "There are more conversations between pods and other addresses than are examined (65536).", "파드와 다른 주소 사이의 대화가 검사 한도(65536개)보다 많습니다."),
    ("why-real", "Every packet between pods on the wire ({count}) carries two pod addresses, and no packet of a pod was found under another address.", "와이어의 파드 간 패킷 {count}개 모두 양 끝에 파드 주소가 있고, 다른 주소로 바뀐 파드 패킷은 없습니다."),
    ("why-only-encapsulated", "Packets between pods cross the wire only inside others, so their addresses are not the wire's.", "파드 간 패킷이 다른 패킷 안에 담겨서만 와이어를 지나므로, 그 주소는 와이어의 주소가 아닙니다."),
    ("why-replaced", "Conversations in which a pod's address was replaced on the way: {count}.", "대화 {count}개에서 파드의 주소가 도중에 바뀌었습니다."),
    ("why-replaced-example", "{peer} sees {other} in the place of {pod}.", "{peer}에게는 {pod} 대신 {other}(으)로 보입니다."),
    ("why-same-node", "Packets on a wire whose two ends are pods of the same node: {count}. Such packets have no reason to leave the node: an address was replaced, or a route leads astray.", "와이어의 패킷 {count}개는 양 끝이 같은 노드의 파드입니다. 이런 패킷은 노드를 떠날 이유가 없으므로 주소가 바뀌었거나 경로가 잘못된 것입니다."),
    ("why-plain", "Packets between pods crossed the wire plainly ({count}), and no encapsulated packet carries a pod's address.", "파드 간 패킷 {count}개가 그대로 와이어를 지났고, 파드 주소를 담은 캡슐화 패킷은 없습니다."),
    ("why-encapsulated", "Packets that carry a pod's packet inside: {count} ({kinds}). With native routing there is no tunnel.", "패킷 {count}개가 파드 패킷을 안에 담고 있습니다({kinds}). 네이티브 라우팅에는 터널이 없습니다."),
    ("why-opaque", "Encrypted packets between nodes (WireGuard or ESP): {count}. Whether pods' packets are inside cannot be read.", "노드 사이의 패킷 {count}개가 암호화되어 있어(WireGuard 또는 ESP) 그 안에 파드 패킷이 있는지 읽을 수 없습니다."),
    ("why-no-node", "No packet shows a node's address where a pod's belongs.", "파드 주소가 있어야 할 자리에 노드 주소가 쓰인 패킷이 없습니다."),
    ("why-node-replaced", "Conversations in which a node's address stands in a pod's place: {count}. The same packets were captured with the pod's own address.", "대화 {count}개에서 노드 주소가 파드 자리를 차지했습니다. 같은 패킷이 파드의 원래 주소로도 캡처되었습니다."),
    ("why-node-hinted", "The flow {flow} was sent, but the wire shows packets to its destination from {node} only.", "흐름 {flow}을(를) 보냈지만, 와이어에는 그 목적지로 {node}에서 온 패킷만 있습니다."),
    ("why-node-own", "Conversations that a node opened and none of its tapped pods sent: {count}. They are taken for the node's own; pods that were not tapped are not ruled out.", "노드가 열었고 탭한 파드 중 아무도 보내지 않은 대화: {count}개. 노드 자신의 것으로 보며, 탭하지 않은 파드까지 배제하지는 못합니다."),
    ("why-not-asked", "Conversations between nodes and pods that belong to no named flow: {count}. They were not judged.", "지정한 흐름에 속하지 않는 노드와 파드 사이의 대화: {count}개. 판정하지 않았습니다."),
    ("why-undecided", "Conversations that a node opened towards a pod: {count}. They may be the node's own (a probe, the API server) or a pod's behind masquerading; this capture cannot tell. Tap the pods' interfaces of that node as well, or name the flows that you sent with --flow SRC,DST:PORT.", "노드가 파드로 먼저 연 대화가 {count}개 있습니다. 노드 자신의 것(프로브, API 서버)일 수도, 마스커레이드에 가려진 파드의 것일 수도 있어 이 캡처로는 구분할 수 없습니다. 그 노드의 파드 인터페이스도 함께 탭하거나, 보낸 흐름을 --flow SRC,DST:PORT로 지정하십시오."),
    ("why-undecided-nodes", "Conversations that an address outside the pod networks opened towards a pod: {count}. Name the nodes with --node NAME=IP, so that nodes can be told from others.", "파드 네트워크 밖의 주소가 파드로 먼저 연 대화가 {count}개 있습니다. 노드를 구분할 수 있도록 --node NAME=IP로 지정하십시오."),
    ("why-saw-packets", "IPv4 packets seen: {count}.", "IPv4 패킷 {count}개를 확인했습니다."),
    ("why-no-packets", "No IPv4 packet is in the capture, so that none of them loops proves nothing. Send traffic while capturing.", "캡처에 IPv4 패킷이 없으므로, 루프가 보이지 않는다는 사실은 아무것도 증명하지 못합니다. 캡처하는 동안 트래픽을 보내십시오."),
    ("why-no-loop", "None of the {count} packets came to a tap again with a lower TTL.", "패킷 {count}개 가운데 더 낮은 TTL로 같은 탭에 되돌아온 것은 없습니다."),
    ("why-loops", "Packets that came to the same tap again with a lower TTL: {count}. Routers send them in a circle: two routing tables point at each other.", "패킷 {count}개가 더 낮은 TTL로 같은 탭에 되돌아왔습니다. 라우터들이 패킷을 원을 그리며 돌리고 있습니다. 두 라우팅 테이블이 서로를 가리키는 경우입니다."),
    ("why-loop-example", "{source} → {destination} was seen with TTL {ttls}.", "{source} → {destination} 패킷이 TTL {ttls}(으)로 거듭 보였습니다."),
    ("why-wrapped-traffic", "Packets between pods inside VXLAN on the wire: {count}.", "와이어에서 VXLAN에 담긴 파드 간 패킷 {count}개를 확인했습니다."),
    ("why-no-wrapped-traffic", "No packet between pods inside VXLAN is in the capture. Send traffic between pods of different nodes while capturing on the interface between the nodes.", "VXLAN에 담긴 파드 간 패킷이 캡처에 없습니다. 노드 사이의 인터페이스에서 캡처하면서 서로 다른 노드의 파드끼리 트래픽을 보내십시오."),
    ("why-flow-not-wrapped", "The flow {flow} was named, but no packet inside VXLAN has these addresses.", "지정한 흐름 {flow}의 주소를 가진 VXLAN 패킷이 없습니다."),
    ("why-not-wrapped", "Packets between pods that crossed the wire as they are: {count}. A tunnel leaves none.", "파드 간 패킷 {count}개가 캡슐화되지 않은 채 와이어를 지났습니다. 터널에서는 하나도 없어야 합니다."),
    ("why-other-wrapping", "Ways of wrapping pods' packets other than VXLAN: {count}.", "VXLAN이 아닌 캡슐화 유형이 {count}개 있습니다."),
    ("why-all-wrapped", "No packet between pods crossed the wire outside VXLAN.", "VXLAN 밖으로 와이어를 지난 파드 간 패킷이 없습니다."),
    ("why-outer-wrong", "VXLAN packets whose outer addresses are not those of the pods' nodes: {count} kinds.", "바깥 주소가 파드의 노드 주소가 아닌 VXLAN 패킷 유형: {count}개."),
    ("why-outer-nodes", "Every VXLAN packet goes from the node of its sender to the node of its receiver.", "모든 VXLAN 패킷이 보낸 파드의 노드에서 받는 파드의 노드로 갑니다."),
    ("why-nodes-unknown", "The nodes are not known, so their addresses cannot be told from others. Name them with --node NAME=IP.", "노드를 알 수 없어 노드 주소를 구분할 수 없습니다. --node 이름=IP로 지정하십시오."),
    ("why-inner-wrong", "Packets in which another address stands where a pod's belongs: {count}.", "파드 주소 자리에 다른 주소가 있는 패킷: {count}개."),
    ("why-inner-pods", "Inside VXLAN there are addresses of pods, and of nodes in the pod network, only.", "VXLAN 안에는 파드 주소와 파드 네트워크에 속한 노드 주소만 있습니다."),
    ("why-inner-undecided", "Inside VXLAN a node's underlay address talks with a pod, in {count} kinds of packets. It may be the node itself or a pod behind masquerading; this capture cannot tell.", "VXLAN 안에서 노드의 언더레이 주소가 파드와 통신합니다(패킷 유형 {count}개). 노드 자신인지 마스커레이드된 파드인지 이 캡처로는 알 수 없습니다."),
    ("why-vni-wrong", "Packets whose network identifier is not the identity of their sender: {count} kinds.", "VNI가 보낸 파드의 아이덴티티와 다른 패킷 유형: {count}개."),
    ("why-vni-right", "The network identifier of every packet whose sender is known ({count}) is the sender's identity.", "보낸 파드가 알려진 패킷 {count}개 모두 VNI가 그 파드의 아이덴티티와 같습니다."),
    ("why-identities-unknown", "No pod's identity is known, so network identifiers cannot be compared. They are known while the lab runs.", "파드의 아이덴티티를 알 수 없어 VNI를 비교할 수 없습니다. 실습 환경이 실행 중이면 알 수 있습니다."),
    ("loss-overflow-wrapped", "There are more kinds of wrapped packets than are examined (8192).", "캡슐화된 패킷의 유형이 검사 한도(8192개)보다 많습니다."),
    // facts
    ("fact-ttl-inner", "Time to live of pods' packets inside the tunnel: {least} to {most}.", "터널 안에서 본 파드 패킷의 TTL: {least}~{most}."),
    ("fact-ttl", "Time to live of pods' packets on the wire: {least} to {most}.", "와이어에서 본 파드 패킷의 TTL: {least}~{most}."),
    ("fact-many-pairs", "More than {count} pairs of pods talk; flows are listed for the first ones only.", "파드 쌍이 {count}개를 넘어 처음 것들만 흐름에 실었습니다."),
    ("fact-pod-to-node", "Conversations that pods opened towards nodes: {count}. They are not held against the expectation.", "파드가 노드로 먼저 연 대화가 {count}개 있으며, 위반으로 보지 않습니다."),
    ("fact-outside", "Conversations between pods and addresses that are neither pods nor nodes: {count}.", "파드도 노드도 아닌 주소와 파드 사이의 대화가 {count}개 있습니다."),
    // notes at packets
    ("note-encapsulated", "{how} carries {source} → {destination}", "{how} 안에 {source} → {destination}"),
    ("note-outer-not-ipv4", "the outer packet is not IPv4", "바깥 패킷이 IPv4가 아님"),
    ("note-outer-wrong", "{outer} is not the address of the node of {inner}", "{outer}은(는) {inner}이(가) 있는 노드의 주소가 아님"),
    ("note-inner-wrong", "{address} is neither a pod's nor a node's", "{address}은(는) 파드도 노드도 아님"),
    ("note-vni-wrong", "VNI {vni}, but {source} has identity {identity}", "VNI {vni}, 그러나 {source}의 아이덴티티는 {identity}"),
    ("note-opaque", "encrypted: content cannot be read", "암호화되어 내용을 읽을 수 없음"),
    ("note-unread", "cut before its addresses", "주소 앞에서 잘림"),
    ("note-same-node", "both pods belong to one node", "두 파드가 같은 노드 소속"),
    ("note-replaced", "{other} in the place of {pod}", "{pod} 대신 {other}"),
    ("note-original", "the same packet, with {pod}", "같은 패킷, {pod}의 주소 그대로"),
    ("note-node-in-place", "a node where the named flow's pod belongs", "지정한 흐름의 파드 자리에 노드"),
    ("note-ttl", "the same packet, TTL {ttl}", "같은 패킷, TTL {ttl}"),
    ("note-undecided", "opened by a node: its own, or a pod's in disguise", "노드가 연 대화: 노드 자신의 것인지 가려진 파드의 것인지 불명"),
];

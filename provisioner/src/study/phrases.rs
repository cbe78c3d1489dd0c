//! Everything that the course says by itself, in each language. `{name}` is a gap.

use podwire_conformance::report::{Entry, Lang, fill_phrase, phrase_of};

use super::check::Said;

/// The phrase for `key`; the key itself if there is none, which a test excludes.
pub fn phrase(lang: Lang, key: &'static str) -> &'static str {
    phrase_of(TABLE, lang, key)
}

/// True if there is such a phrase.
pub(super) fn exists(key: &str) -> bool {
    TABLE.iter().any(|(known, _, _)| *known == key)
}

/// A phrase with its gaps filled.
pub fn say(lang: Lang, key: &'static str, args: &[(&str, &str)]) -> String {
    fill_phrase(phrase(lang, key), |name| {
        args.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    })
}

/// What a check saw, as a sentence.
pub fn said(lang: Lang, said: &Said) -> String {
    let args: Vec<(&str, &str)> = said.args.iter().map(|(name, value)| (*name, value.as_str())).collect();
    say(lang, said.key, &args)
}

#[rustfmt::skip]
const TABLE: &[Entry] = &[
    // what checks see
    ("config", "podwire-config says {key} = {is} (wanted: {wanted})", "podwire-config의 {key} 값: {is} (필요한 값: {wanted})"),
    ("config-held", "podwire-config says {key} = {is}", "podwire-config의 {key} 값: {is}"),
    ("agent-runs", "the agent on {node} runs with {key} = {is} (wanted: {wanted})", "{node}의 에이전트가 쓰는 {key} 값: {is} (필요한 값: {wanted})"),
    ("agents-run", "every agent runs with {key} = {wanted}", "모든 에이전트가 쓰는 {key} 값: {wanted}"),
    ("network-missing", "{node} has no NodeNetwork", "{node}의 NodeNetwork가 없음"),
    ("network-has", "the NodeNetwork of {node} has {is} (wanted: in {wanted})", "{node}의 NodeNetwork에 있는 CIDR: {is} (필요한 대역: {wanted})"),
    ("networks-in", "the pod CIDRs of {nodes} are in {wanted}", "{nodes}의 파드 CIDR이 모두 {wanted} 안에 있음"),
    ("networks-both", "every node has a pod CIDR in {new} and still one in {old}", "모든 노드가 {new} 대역의 파드 CIDR을 받았고, {old} 대역의 파드 CIDR도 아직 유지함"),
    ("network-gone", "the NodeNetwork of {node} is gone", "{node}의 NodeNetwork가 삭제됨"),
    ("network-there", "the NodeNetwork of {node} is still there", "{node}의 NodeNetwork가 아직 남아 있음"),
    ("pod-trouble", "pod {pod} is not ready: {is}", "파드 {pod}: 아직 준비되지 않음({is})"),
    ("pod-address", "pod {pod} has address {is} (wanted: in {wanted})", "파드 {pod}의 주소: {is} (필요한 대역: {wanted})"),
    ("pod-ends", "pod {pod} is still terminating", "파드 {pod}: 아직 종료 중"),
    ("pods-in", "{count} pod(s) with {label} have addresses in {wanted}", "{label} 파드 {count}개의 주소가 모두 {wanted} 안에 있음"),
    ("no-pods", "there is no pod with {label}", "{label} 파드가 없음"),
    ("pods-left", "{count} pod(s) with {label} are left", "{label} 파드가 {count}개 남아 있음"),
    ("no-pod", "there is no pod {pod}", "파드 {pod}: 존재하지 않음"),
    ("pod-elsewhere", "pod {pod} runs on {is} (wanted: {wanted})", "파드 {pod}의 노드: {is} (필요한 노드: {wanted})"),
    ("pod-in-node", "pod {pod} has {is}, from the CIDR of {node} ({wanted})", "파드 {pod}의 주소: {is} ({node}의 CIDR인 {wanted} 안에 있음)"),
    ("pod-not-in-node", "pod {pod} has {is}, which is not in the CIDR of {node} ({wanted})", "파드 {pod}의 주소: {is} ({node}의 CIDR인 {wanted} 밖에 있음)"),
    ("route-missing", "{node} has no route to {to} via {other}", "{node}에 {to} 경로가 없음 (필요한 next hop: {other})"),
    ("routes-there", "{count} routes to other nodes' pods in {wanted}, each via the node that owns them", "다른 노드의 파드({wanted})로 가는 경로 {count}개: 모두 해당 노드가 next hop"),
    ("routes-unknown", "the routes of {node} cannot be read", "{node}의 라우팅 테이블을 읽을 수 없음"),
    ("route-left", "{node} still has a route to {to}, in {within}", "{node}에 {within} 대역의 경로가 아직 남아 있음: {to}"),
    ("no-routes", "no node has a route into {within} any more", "어느 노드에도 {within} 대역으로 가는 경로가 남아 있지 않음"),
    ("restarted", "{workload} was restarted, and the rollout is complete", "{workload}: 재시작 완료"),
    ("restarting", "{workload} is being restarted", "{workload}: 재시작 진행 중"),
    ("not-restarted", "{workload} has not been restarted yet", "{workload}: 아직 재시작하지 않음"),
    ("complaint-of", "the operator reports for {node}: {said}", "{node}에 대한 오퍼레이터의 보고: {said}"),
    ("no-complaint-of", "the operator reports no problem for {node}", "{node}에 대해 오퍼레이터가 보고한 문제가 없음"),
    ("no-complaint", "the operator reports no problem", "오퍼레이터가 보고한 문제가 없음"),
    ("no-answer", "{pod} does not answer curl-pod: {why}", "curl-pod가 {pod}에서 응답을 받지 못함: {why}"),
    ("other-source", "{pod} sees {is} instead of curl-pod's own {wanted}", "{pod}에 보이는 출발지 주소: {is} (필요한 주소: curl-pod 자신의 {wanted})"),
    ("all-answer", "all {count} web servers answer, and see curl-pod's own address", "웹 서버 {count}개가 모두 응답하며, 서버에 보이는 출발지는 curl-pod 자신의 주소임"),
    ("no-file", "there is no {file} yet", "{file} 파일이 아직 없음"),
    ("bad-capture", "{file} cannot be read: {why}", "{file} 파일을 읽을 수 없음: {why}"),
    ("native", "{file} proves it: pod to pod on the wire, nothing translated, nothing encapsulated", "{file} 파일로 증명됨: 와이어에서도 파드 주소 그대로이며, 변환도 캡슐화도 없음"),
    ("not-proven-by", "{file} does not prove it ({why}); see: lab check --expect {expect} {file}", "{file}만으로는 증명되지 않음({why}); 확인: lab check --expect {expect} {file}"),
    ("vxlan", "{file} proves it: every packet between pods is inside VXLAN, from node to node", "{file}로 증명됨: 파드 간 패킷이 모두 VXLAN에 담겨 노드에서 노드로 감"),
    ("captured", "{file} has {count} packet(s) from {from} to {to}", "{file} 파일에 {from} 주소에서 {to} 주소로 가는 패킷이 {count}개 있음"),
    ("not-captured", "{file} has no packet from {from} to {to}", "{file} 파일에 {from} 주소에서 {to} 주소로 가는 패킷이 없음"),
    ("empty-capture", "{file} has no packet in it", "{file}에 패킷이 없음"),
    ("address-absent", "none of the {count} packets in {file} has the address {address}", "{file}의 패킷 {count}개 중 {address} 주소를 가진 것이 없음"),
    ("address-present", "{file} has {count} packet(s) with the address {address}", "{file}에 {address} 주소를 가진 패킷이 {count}개 있음"),
    ("asked", "{file} has questions for: {names}", "{file}에 있는 질의: {names}"),
    ("not-asked", "{file} has no question for {name}, only for: {names}", "{file}에 {name} 질의가 없음. 있는 질의: {names}"),
    ("asked-more", "{file} has questions for other names than {name} too: {names}", "{file}에 {name} 말고 다른 이름의 질의도 있음: {names}"),
    ("bad-results", "{file} holds no results: {why}", "{file}에서 결과를 읽을 수 없음: {why}"),
    ("compared", "{file} compares {modes} in {rounds} rounds", "{file}: {modes} 비교, {rounds}회 측정"),
    ("loop", "{file} shows a packet that comes round again", "{file}에 되돌아온 패킷이 있음"),
    ("no-loop", "{file} proves that no packet comes round again", "{file}로 증명됨: 되돌아온 패킷이 없음"),
    ("loop-unknown", "{file} proves nothing about loops; see: lab check --expect no-loop {file}", "{file}만으로는 루프가 있는지 알 수 없음; 확인: lab check --expect no-loop {file}"),
    ("fetched", "{url} answers curl-pod", "curl-pod가 {url} 주소에서 응답을 받음"),
    ("not-fetched", "{url} does not answer curl-pod: {why}", "curl-pod가 {url} 주소에서 응답을 받지 못함: {why}"),
    ("bad-journal", "{file} cannot be read: {why}", "{file} 파일을 읽을 수 없음: {why}"),
    ("still-measuring", "the client is still calling and writing {file}", "클라이언트가 아직 호출하며 {file} 파일에 기록하는 중"),
    ("measured", "{file}: {answered} calls answered, {lost} lost", "{file}: 응답 {answered}건, 손실 {lost}건"),
    ("measuring", "the client is calling and writing {file}", "클라이언트가 호출하며 {file} 파일에 기록하는 중"),
    ("not-measuring", "no client is writing {file}", "{file} 파일에 기록하는 클라이언트가 없음"),
    ("picture", "{file} has been drawn", "{file} 그림이 완성됨"),
    ("not-measurable", "the answer cannot be measured right now", "지금은 정답을 측정할 수 없음"),
    ("not-answered", "the question is open", "질문에 아직 답하지 않음"),
    ("right", "right: {is}", "정답: {is}"),
    ("wrong", "not {is}", "정답이 아님: {is}"),
    // the course
    ("week", "Week {number}: {title}", "{number}주차: {title}"),
    ("minutes", "{minutes} min", "{minutes}분"),
    ("done-mark", "done", "완료"),
    ("step-of", "step {step} of {steps}", "{steps}단계 중 {step}단계"),
    ("list-end", "Begin or go on: lab study WEEK, or lab study WEEK/EXERCISE", "시작하거나 이어서 하기: lab study 주차 또는 lab study 주차/실습"),
    ("lab-comes", "bringing up lab {lab} ...", "실습 환경 {lab} 준비 중..."),
    ("lab-again", "the lab is gone or was replaced: doing your {steps} finished step(s) again ...", "실습 환경이 없어졌거나 새로 만들어져, 완료한 단계 {steps}개를 다시 실행하는 중..."),
    ("first", "{exercise} uses the results of {before}, so that comes first.", "{exercise} 실습에는 {before} 실습의 결과가 필요하므로 그 실습부터 진행합니다."),
    ("go-on", "You continue where you stopped.", "멈췄던 곳에서 이어서 진행합니다."),
    ("other-terminal", "Type here, or in another terminal after running this there:", "여기에 입력하세요. 다른 터미널에서 하려면 다음을 먼저 실행하세요:"),
    ("prompt-help", "Enter: what is missing · hint · solve · text · reset · quit · help", "Enter 확인 · hint 힌트 · solve 대신 실행 · text 설명 · reset 처음부터 · quit 끝내기 · help"),
    ("help", "Any other line runs as a command, with kubectl and lab set up for this lab. Type an answer as it is.\n\n- Enter: what is still missing\n- hint: help, a little more each time\n- solve: type this step's commands for me\n- text: show the step again\n- reset: begin this exercise again\n- quit (or Ctrl-D): stop; progress is kept", "그 밖의 입력은 명령으로 실행됩니다. kubectl과 lab은 이 실습 환경을 쓰도록 설정되어 있습니다. 질문의 답은 그대로 입력하면 됩니다.\n\n- Enter: 아직 남은 것 확인\n- hint: 힌트 보기(볼수록 자세해짐)\n- solve: 이 단계의 명령을 대신 입력\n- text: 단계 설명 다시 보기\n- reset: 이 실습을 처음부터 다시 시작\n- quit(또는 Ctrl-D): 끝내기, 진행 상황은 저장됨"),
    ("no-more-hints", "There are no more hints; `solve` types the commands for you.", "힌트가 더 없습니다. `solve`를 입력하면 명령을 대신 실행합니다."),
    ("missing", "Still missing:", "아직 남은 것:"),
    ("holds", "Done - press Enter.", "완료되었습니다. Enter를 누르세요."),
    ("step-done", "Step done.", "단계 완료."),
    ("exercise-done", "Exercise {exercise} is done.", "실습 {exercise} 완료."),
    ("next", "Next: lab study {exercise}", "다음: lab study {exercise}"),
    ("week-done", "Every exercise here is done. Take the lab down: lab down {lab}", "여기 있는 실습을 모두 마쳤습니다. 실습 환경 정리: lab down {lab}"),
    ("kept", "Progress is kept. Go on: lab study {exercise}; take the lab down: lab down {lab}", "진행 상황이 저장되었습니다. 이어서 하기: lab study {exercise}, 실습 환경 정리: lab down {lab}"),
    ("unknown", "(not known right now)", "(지금은 알 수 없음)"),
    ("command-failed", "the command ended with exit code {code}", "명령이 실패했습니다(종료 코드 {code})"),
    ("must-fail", "no command failed, although one was meant to", "실패해야 하는 명령이 있는데 모두 성공했습니다"),
    ("holds-before", "check {check} holds before its step is done: it proves nothing ({said})", "단계를 실행하기 전에 이미 통과하는 검사라서 아무것도 증명하지 못합니다({check}: {said})"),
    ("not-in-output", "the answer {answer} is nowhere in what the commands print", "정답이 명령 출력 어디에도 없습니다: {answer}"),
    ("wrong-taken", "a wrong answer was accepted", "틀린 답이 정답으로 처리되었습니다"),
    ("never-held", "check {check} does not hold: {said}", "검사를 통과하지 못했습니다({check}: {said})"),
    ("proven", "{exercises} exercise(s), {steps} steps, {checks} checks: each failed before its step and held after it", "실습 {exercises}개, 단계 {steps}개, 검사 {checks}개: 모든 검사가 단계 전에는 실패하고 단계 후에는 통과했습니다"),
    ("not-proven", "{faults} fault(s)", "결함 {faults}개"),
    ("interrupted", "interrupted", "중단되었습니다"),
    ("reset-done", "{exercise} is back at its beginning: lab study {exercise}", "{exercise} 실습을 처음 상태로 되돌렸습니다: lab study {exercise}"),
    ("solved", "{exercise} is solved; the lab is in the state that the exercise ends with.", "{exercise} 실습을 대신 풀었습니다. 실습 환경은 이 실습을 마친 상태입니다."),
    ("not-begun", "{exercise} has not been started: lab study {exercise}", "{exercise} 실습을 아직 시작하지 않았습니다: lab study {exercise}"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn gaps(text: &str) -> BTreeSet<&str> {
        text.split('{').skip(1).filter_map(|part| Some(part.split_once('}')?.0)).collect()
    }

    #[test]
    fn both_languages_have_the_same_gaps_and_each_key_stands_once() {
        let mut keys = BTreeSet::new();
        for (key, en, ko) in TABLE {
            assert!(keys.insert(*key), "{key} stands twice");
            assert_eq!(gaps(en), gaps(ko), "{key}");
            assert!(
                ko.chars().any(|c| ('가'..='힣').contains(&c)) || *key == "unknown",
                "{key} is not Korean"
            );
        }
    }

    #[test]
    fn every_phrase_is_said_somewhere() {
        let sources = [
            include_str!("check/state.rs"),
            include_str!("check/dns.rs"),
            include_str!("check/live.rs"),
            include_str!("walk.rs"),
            include_str!("proof.rs"),
            include_str!("show.rs"),
            include_str!("desk.rs"),
            include_str!("../cli/study.rs"),
        ];
        let mut said = BTreeSet::new();
        for source in sources {
            let code = source.split("#[cfg(test)]").next().unwrap();
            for word in code.split('"').skip(1).step_by(2) {
                if TABLE.iter().any(|(key, _, _)| *key == word) {
                    said.insert(word);
                }
            }
        }
        let unsaid: Vec<_> = TABLE.iter().map(|(key, _, _)| *key).filter(|key| !said.contains(key)).collect();
        assert!(unsaid.is_empty(), "never said: {unsaid:?}");
    }

    #[test]
    fn what_is_filled_in_is_not_read_again() {
        assert_eq!(say(Lang::En, "wrong", &[("is", "{is}")]), "not {is}");
    }
}

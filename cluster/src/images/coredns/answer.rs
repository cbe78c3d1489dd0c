//! One question and its answer. Pure.

use std::str::FromStr as _;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::zone::{DOMAIN, Meaning, Zone};

/// Seconds that an answer may be kept, as in the Corefile of kubeadm.
const TTL: u32 = 30;

/// Longest datagram that is sent to one who says nothing of longer ones (RFC 1035, 2.3.4).
const SHORT: u16 = 512;
/// Longest datagram that is sent at all.
const LONG: u16 = 1232;

/// How the question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram: an answer that is too long is cut, and asked for again by TCP.
    Udp,
    /// In a stream.
    Tcp,
}

/// The answer to a question; none to what is no question at all.
pub fn answer(zone: &Zone, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let request = match Message::from_vec(question) {
        Ok(request) if request.metadata.message_type == MessageType::Query => request,
        Ok(_) => return None,
        Err(_) => {
            let id = question.get(..2)?.try_into().map(u16::from_be_bytes).ok()?;
            return Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok();
        }
    };
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(LONG);
        response.set_edns(edns);
    }
    match &request.queries[..] {
        _ if request.metadata.op_code != OpCode::Query => {
            response.metadata.response_code = ResponseCode::NotImp;
        }
        [query] if query.query_class() == DNSClass::IN => fill(&mut response, zone, query),
        [_] => response.metadata.response_code = ResponseCode::Refused,
        _ => response.metadata.response_code = ResponseCode::FormErr,
    }
    let bytes = response.to_vec().ok()?;
    let longest = request.edns.as_ref().map_or(SHORT, |edns| edns.max_payload().clamp(SHORT, LONG));
    if transport == Transport::Udp && bytes.len() > usize::from(longest) {
        return response.truncate().to_vec().ok();
    }
    Some(bytes)
}

/// What the zone knows is said with authority; that it knows nothing of the world outside too: nobody is asked.
fn fill(response: &mut Message, zone: &Zone, query: &Query) {
    response.metadata.authoritative = true;
    let name = query.name();
    let asked = query.query_type();
    let wants = |kind| asked == kind || asked == RecordType::ANY;
    match zone.meaning(&name.to_ascii()) {
        Meaning::Addresses(all) if wants(RecordType::A) => {
            let record = |ip| Record::from_rdata(name.clone(), TTL, RData::A(A(ip)));
            response.add_answers(all.into_iter().map(record));
        }
        Meaning::Alias(other)
            if asked == RecordType::CNAME || wants(RecordType::A) || wants(RecordType::AAAA) =>
        {
            if let Ok(other) = Name::from_str(&format!("{other}.")) {
                response.add_answer(Record::from_rdata(name.clone(), TTL, RData::CNAME(CNAME(other))));
            }
        }
        Meaning::Addresses(_) | Meaning::Alias(_) => {}
        Meaning::Nothing => response.metadata.response_code = ResponseCode::NXDomain,
    }
    // Who asks keeps a "no" as long as the zone's own record says (RFC 2308).
    if response.answers.is_empty()
        && let Some(soa) = soa()
    {
        response.add_authority(soa);
    }
}

fn soa() -> Option<Record> {
    let name = |prefix: &str| Name::from_str(&format!("{prefix}{DOMAIN}.")).ok();
    let soa = SOA::new(name("ns.dns.")?, name("hostmaster.")?, 1, 7200, 1800, 86_400, TTL);
    Some(Record::from_rdata(name("")?, TTL, RData::SOA(soa)))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use serde_json::json;

    use super::*;

    /// One service with an address, and one with so many endpoints that they fill no short datagram.
    fn zone() -> Zone {
        let service = |name: &str, ip: &str| -> Service {
            let meta = json!({"namespace": "default", "name": name});
            serde_json::from_value(json!({"metadata": meta, "spec": {"clusterIP": ip}})).unwrap()
        };
        let endpoints: Vec<_> = (1..100).map(|n| json!({"addresses": [format!("10.244.0.{n}")]})).collect();
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "x", "labels": {"kubernetes.io/service-name": "many"}},
            "addressType": "IPv4", "endpoints": endpoints,
        }))
        .unwrap();
        Zone::new(&[service("webpod", "10.96.1.1"), service("many", "None")], &[slice])
    }

    fn ask(name: &str, kind: RecordType, edns: bool, transport: Transport) -> Message {
        let mut request = Message::query();
        request.add_query(Query::query(Name::from_str(name).unwrap(), kind));
        if edns {
            let mut own = Edns::new();
            own.set_max_payload(4096);
            request.set_edns(own);
        }
        let bytes = answer(&zone(), &request.to_vec().unwrap(), transport).unwrap();
        let response = Message::from_vec(&bytes).unwrap();
        assert_eq!(response.metadata.id, request.metadata.id);
        assert_eq!(response.queries, request.queries);
        assert_eq!(response.edns.is_some(), edns);
        response
    }

    const WEBPOD: &str = "webpod.default.svc.cluster.local.";

    #[test]
    fn a_name_has_an_address_and_no_other_kind() {
        let response = ask(WEBPOD, RecordType::A, false, Transport::Udp);
        assert_eq!(response.answers.len(), 1);
        assert_eq!(response.answers[0].data, RData::A(A::new(10, 96, 1, 1)));
        let response = ask(WEBPOD, RecordType::AAAA, false, Transport::Udp);
        assert_eq!(response.metadata.response_code, ResponseCode::NoError, "the name exists");
        assert!(response.answers.is_empty() && response.authorities.len() == 1);
    }

    #[test]
    fn nobody_else_is_asked() {
        for name in ["example.org.", "example.org.default.svc.cluster.local."] {
            let response = ask(name, RecordType::A, true, Transport::Udp);
            assert_eq!(response.metadata.response_code, ResponseCode::NXDomain);
            assert_eq!(response.authorities.len(), 1);
        }
    }

    #[test]
    fn what_is_too_long_is_asked_again_by_tcp() {
        let many = "many.default.svc.cluster.local.";
        assert!(ask(many, RecordType::A, true, Transport::Udp).metadata.truncation);
        let response = ask(many, RecordType::A, false, Transport::Tcp);
        assert!(!response.metadata.truncation && response.answers.len() == 99);
    }

    #[test]
    fn what_is_no_question_is_told_so_or_nothing() {
        assert_eq!(answer(&zone(), b"x", Transport::Udp), None);
        let bytes = answer(&zone(), &[7, 8, 1], Transport::Udp).unwrap();
        let response = Message::from_vec(&bytes).unwrap();
        assert_eq!((response.metadata.id, response.metadata.response_code), (0x0708, ResponseCode::FormErr));
        let mut own = Message::response(1, OpCode::Query);
        own.add_query(Query::query(Name::from_str(WEBPOD).unwrap(), RecordType::A));
        assert_eq!(answer(&zone(), &own.to_vec().unwrap(), Transport::Udp), None, "answers are not answered");
    }
}

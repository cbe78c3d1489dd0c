//! The filter language's grammar, by recursive descent.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Expression, Protocol, Side};

/// Longest accepted expression in bytes.
const MAX_LEN: usize = 4096;
/// Deepest accepted nesting.
const MAX_DEPTH: usize = 64;

/// Why an expression is not a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter, column {column}: {message}")]
pub struct FilterError {
    /// Character of the expression, counted from 1.
    pub column: usize,
    /// What is wrong and what is expected.
    pub message: String,
}

pub(super) fn parse(source: &str) -> Result<Expression, FilterError> {
    if source.len() > MAX_LEN {
        return Err(FilterError {
            column: 1,
            message: format!("an expression of {} bytes is too long (limit {MAX_LEN})", source.len()),
        });
    }
    let tokens = tokens(source);
    let end = source.chars().count() + 1;
    let mut parser = Parser { tokens: &tokens, next: 0, end, depth: 0 };
    let expression = parser.any()?;
    match parser.peek() {
        None => Ok(expression),
        Some(")") => Err(parser.error("this \")\" closes nothing")),
        Some(other) => {
            Err(parser
                .error(format!("{other:?} is not understood here: expected \"and\", \"or\" or the end")))
        }
    }
}

struct Token<'s> {
    text: &'s str,
    column: usize,
}

/// Words and the operators `( ) ! && ||`, with the column of each.
fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut word: Option<(usize, usize)> = None;
    let mut skip = 0;
    for (column, (at, character)) in source.char_indices().enumerate() {
        if skip > 0 {
            skip -= 1;
            continue;
        }
        let operator = match character {
            '(' | ')' | '!' => 1,
            '&' if source[at..].starts_with("&&") => 2,
            '|' if source[at..].starts_with("||") => 2,
            _ => 0,
        };
        if operator == 0 && !character.is_whitespace() {
            word.get_or_insert((at, column + 1));
            continue;
        }
        if let Some((start, column)) = word.take() {
            tokens.push(Token { text: &source[start..at], column });
        }
        if operator > 0 {
            tokens.push(Token { text: &source[at..at + operator], column: column + 1 });
            skip = operator - 1;
        }
    }
    if let Some((start, column)) = word {
        tokens.push(Token { text: &source[start..], column });
    }
    tokens
}

struct Parser<'t, 's> {
    tokens: &'t [Token<'s>],
    next: usize,
    end: usize,
    depth: usize,
}

impl<'s> Parser<'_, 's> {
    fn peek(&self) -> Option<&'s str> {
        self.tokens.get(self.next).map(|token| token.text)
    }

    fn eat(&mut self, accepted: &[&str]) -> bool {
        let found = self.peek().is_some_and(|text| accepted.contains(&text));
        self.next += usize::from(found);
        found
    }

    fn error(&self, message: impl Into<String>) -> FilterError {
        let column = self.tokens.get(self.next).map_or(self.end, |token| token.column);
        FilterError { column, message: message.into() }
    }

    fn any(&mut self) -> Result<Expression, FilterError> {
        let mut left = self.all()?;
        while self.eat(&["or", "||"]) {
            left = Expression::Or(Box::new(left), Box::new(self.all()?));
        }
        Ok(left)
    }

    fn all(&mut self) -> Result<Expression, FilterError> {
        let mut left = self.one()?;
        loop {
            let joined = self.eat(&["and", "&&"]);
            // Side by side, as in "tcp port 80", is "and" too.
            if !joined && matches!(self.peek(), None | Some("or" | "||" | ")")) {
                return Ok(left);
            }
            if !joined && !self.peek().is_some_and(begins_expression) {
                return Ok(left);
            }
            left = Expression::And(Box::new(left), Box::new(self.one()?));
        }
    }

    fn one(&mut self) -> Result<Expression, FilterError> {
        if self.depth >= MAX_DEPTH {
            return Err(self.error(format!("nested more than {MAX_DEPTH} deep")));
        }
        self.depth += 1;
        let result = self.nested();
        self.depth -= 1;
        result
    }

    fn nested(&mut self) -> Result<Expression, FilterError> {
        if self.eat(&["not", "!"]) {
            return Ok(Expression::Not(Box::new(self.one()?)));
        }
        if self.eat(&["("]) {
            let inner = self.any()?;
            if !self.eat(&[")"]) {
                return Err(self.error("a \")\" is missing"));
            }
            return Ok(inner);
        }
        self.primitive()
    }

    fn primitive(&mut self) -> Result<Expression, FilterError> {
        let protocol = match self.peek() {
            Some("tcp") => Some(Protocol::Tcp),
            Some("udp") => Some(Protocol::Udp),
            Some("icmp") => Some(Protocol::Icmp),
            Some("arp") => Some(Protocol::Arp),
            Some("ip") => Some(Protocol::Ip),
            Some("ip6") => Some(Protocol::Ip6),
            _ => None,
        };
        if let Some(protocol) = protocol {
            self.next += 1;
            return Ok(Expression::Protocol(protocol));
        }
        let side = if self.eat(&["src"]) {
            Side::Source
        } else if self.eat(&["dst"]) {
            Side::Destination
        } else {
            Side::Either
        };
        match self.peek() {
            Some("host") => self.argument("host", "an IPv4 or IPv6 address", |text| {
                text.parse::<IpAddr>().ok().map(|address| Expression::Address(side, IpNet::from(address)))
            }),
            Some("net") => self.argument("net", "a network like 10.244.0.0/16", |text| {
                text.parse::<IpNet>().ok().map(|net| Expression::Address(side, net.trunc()))
            }),
            Some("port") => self.argument("port", "a port number from 0 to 65535", |text| {
                text.parse::<u16>().ok().map(|port| Expression::Port(side, port))
            }),
            _ if side != Side::Either => {
                Err(self.error("\"src\" and \"dst\" go before \"host\", \"net\" or \"port\""))
            }
            None => Err(self.error(
                "the expression ends where a condition is expected, like \"tcp\" or \"host 10.244.0.5\"",
            )),
            Some(other) => {
                let known = "tcp, udp, icmp, arp, ip, ip6, host, net, port, src, dst, not and \"(\"";
                Err(self.error(format!("{other:?} is not a condition; there are {known}")))
            }
        }
    }

    fn argument(
        &mut self,
        word: &str,
        what: &str,
        read: impl Fn(&str) -> Option<Expression>,
    ) -> Result<Expression, FilterError> {
        self.next += 1;
        let Some(text) = self.peek() else {
            return Err(self.error(format!("{what} is needed after {word:?}")));
        };
        let Some(expression) = read(text) else {
            return Err(self.error(format!("{what} is needed after {word:?}, not {text:?}")));
        };
        self.next += 1;
        Ok(expression)
    }
}

fn begins_expression(text: &str) -> bool {
    let words =
        ["tcp", "udp", "icmp", "arp", "ip", "ip6", "src", "dst", "host", "net", "port", "not", "!", "("];
    words.contains(&text)
}

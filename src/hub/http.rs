//! One request at a time, with redirects followed by hand.
//!
//! By hand, because each hop has to pass two rules. An https hub never leads to plain http, and to nothing but
//! http and https anyway. The token goes to the endpoint's own address (scheme, host and port) and to no other.
//! Addresses in messages are cut to their host: those of file servers carry signatures.

use std::time::Duration;

use ureq::http::{HeaderMap, StatusCode, Uri, header};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, RequestBuilder};

use super::address;
use super::options::{HubOptions, Token};
use crate::error::{Error, ErrorKind, Result};

/// How many redirects one request may follow.
const MAX_HOPS: usize = 10;
/// How long the head of an answer may take, however slowly it drips.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest pause that a server may ask for and be taken seriously.
const MAX_RETRY_AFTER: u64 = 24 * 60 * 60;

/// What went wrong with one attempt, and whether another one may do better.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) retry: Retry,
}

/// Whether an attempt is worth repeating.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// It would end the same way.
    Never,
    /// Once or twice: the host cannot be found or reached, which seldom passes quickly.
    Briefly,
    /// With growing pauses; the server may have said how long the first one should be.
    After(Option<Duration>),
}

impl Failure {
    pub(super) fn again(error: Error) -> Self {
        Self { error, retry: Retry::After(None) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, retry: Retry::Never }
    }
}

/// What a request is about, for messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) repo: &'a str,
    pub(super) revision: &'a str,
    /// The file, or `None` for the repository itself.
    pub(super) file: Option<&'a str>,
}

impl Subject<'_> {
    /// How messages name it.
    pub(super) fn name(&self) -> String {
        match self.file {
            Some(file) => format!("{file} of {}", self.repo),
            None => self.repo.to_owned(),
        }
    }
}

/// An answer of the hub whose status is 200, 206 or 416.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    /// The host that gave it, for messages.
    pub(super) host: String,
}

impl Answer {
    /// The value of a header, if it is there and is plain text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Asks the hub.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    endpoint: Uri,
    token: Option<Token>,
}

impl Client {
    pub(super) fn new(options: &HubOptions) -> Result<Self> {
        let bad = |why: &str| {
            Error::bad_input(format!("the hub's address `{}` {why}", options.endpoint))
                .hint("HF_ENDPOINT=https://huggingface.co")
        };
        let endpoint: Uri = options.endpoint.parse().map_err(|_| bad("is not a URL"))?;
        if !matches!(endpoint.scheme_str(), Some("http" | "https")) || endpoint.host().is_none() {
            return Err(bad("does not begin with https://"));
        }
        if address::has_login(&endpoint) || endpoint.query().is_some() {
            return Err(bad("must have no user name, password or query"));
        }
        if let Some(token) = &options.token
            && !token.secret().bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(Error::bad_input("the token (HF_TOKEN) has characters that no token has"));
        }
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("tramontane/", env!("CARGO_PKG_VERSION")))
            // A compressed body would have another length than the file.
            .accept_encoding("identity")
            .timeout_resolve(Some(options.idle))
            .timeout_connect(Some(options.idle))
            .timeout_recv_response(Some(HEAD_TIMEOUT))
            .timeout_per_read(Some(options.idle))
            .timeout_per_write(Some(options.idle));
        if address::is_loopback(&endpoint) {
            config = config.proxy(None);
        }
        let agent = config.build().new_agent();
        Ok(Self { agent, endpoint, token: options.token.clone() })
    }

    /// A handle that can end a request from another thread.
    pub(super) fn agent(&self) -> Agent {
        self.agent.clone()
    }

    /// The address of `path`, which begins with a slash, on the hub.
    pub(super) fn address(&self, path: &str) -> String {
        format!("{}{path}", self.endpoint.to_string().trim_end_matches('/'))
    }

    /// Fetches `address`, which is on the hub, and follows its redirects.
    pub(super) fn get(
        &self,
        address: &str,
        headers: &[(header::HeaderName, String)],
        subject: Subject<'_>,
    ) -> Result<Answer, Failure> {
        let mut at = parse(address, subject)?;
        for _ in 0..=MAX_HOPS {
            let answer = self.send(self.agent.get(at.clone()), &at, headers)?;
            match answer.status.as_u16() {
                200 | 206 | 416 => return Ok(answer),
                301 | 302 | 303 | 307 | 308 => at = self.next_hop(&at, &answer)?,
                _ if address::origin(&at) != address::origin(&self.endpoint) => {
                    return Err(elsewhere(&answer, subject));
                }
                _ => return Err(self.refused(&answer, subject)),
            }
        }
        Err(too_many_hops(subject))
    }

    /// The headers of `address`: the hub's own, even if the content is elsewhere.
    pub(super) fn head(&self, address: &str, subject: Subject<'_>) -> Result<HeaderMap, Failure> {
        let mut at = parse(address, subject)?;
        for _ in 0..=MAX_HOPS {
            let answer = self.send(self.agent.head(at.clone()), &at, &[])?;
            match answer.status.as_u16() {
                200 => return Ok(answer.headers),
                301 | 302 | 303 | 307 | 308 => {
                    at = self.next_hop(&at, &answer)?;
                    if address::origin(&at) != address::origin(&self.endpoint) {
                        return Ok(answer.headers);
                    }
                }
                _ => return Err(self.refused(&answer, subject)),
            }
        }
        Err(too_many_hops(subject))
    }

    fn send(
        &self,
        mut request: RequestBuilder<WithoutBody>,
        at: &Uri,
        headers: &[(header::HeaderName, String)],
    ) -> Result<Answer, Failure> {
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(token) = self.token_for(at) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.secret()));
        }
        let (parts, body) = request.call().map_err(|e| broken(e, at))?.into_parts();
        Ok(Answer { status: parts.status, headers: parts.headers, body, host: address::host(at) })
    }

    /// The token, if `target` is the hub itself and nobody on the way can read it.
    fn token_for(&self, target: &Uri) -> Option<&Token> {
        let safe = target.scheme_str() == Some("https") || address::is_loopback(target);
        self.token
            .as_ref()
            .filter(|_| safe && address::origin(target) == address::origin(&self.endpoint))
    }

    /// Where a redirect leads, if it may.
    fn next_hop(&self, base: &Uri, answer: &Answer) -> Result<Uri> {
        let refuse = |why: &str| {
            Error::new(ErrorKind::Network, format!("{} redirects {why}", address::host(base)))
                .so("nothing was fetched from there")
        };
        let location =
            answer.header("location").ok_or_else(|| refuse("without saying where to"))?;
        let target =
            address::join(base, location).ok_or_else(|| refuse("to something that is no URL"))?;
        if address::has_login(&target) {
            return Err(refuse("to an address with a user name"));
        }
        match target.scheme_str() {
            Some("https") => Ok(target),
            Some("http") if self.allows_plain(&target) => Ok(target),
            Some("http") => {
                Err(refuse(&format!("to plain http ({}), expected https", address::host(&target))))
            }
            Some(_) | None => Err(refuse("to something other than https")),
        }
    }

    /// Whether plain http may be used to reach `target`: only if the hub itself is reached that way, and a hub
    /// on this machine leads to nothing but this machine.
    fn allows_plain(&self, target: &Uri) -> bool {
        self.endpoint.scheme_str() == Some("http")
            && (address::is_loopback(target) || !address::is_loopback(&self.endpoint))
    }

    /// The meaning of a status that is not what was asked for.
    fn refused(&self, answer: &Answer, subject: Subject<'_>) -> Failure {
        let status = answer.status.as_u16();
        let code = answer.header("x-error-code").unwrap_or_default();
        let repo = subject.repo;
        match (status, code) {
            (_, "GatedRepo") => self.gated(subject).into(),
            (_, "RevisionNotFound") => {
                let what = format!("`{repo}` has no revision `{}`", subject.revision);
                Error::new(ErrorKind::NotFound, what)
                    .hint("a branch, a tag or a commit that its page lists")
                    .into()
            }
            (401 | 403 | 404, "RepoNotFound") => self.not_found(subject).into(),
            (401 | 403, _) => self.gated(subject).into(),
            (404 | 410, _) => self.not_found(subject).into(),
            (408 | 429 | 500..=599, _) => elsewhere(answer, subject),
            _ => Failure { retry: Retry::Never, ..elsewhere(answer, subject) },
        }
    }

    fn not_found(&self, subject: Subject<'_>) -> Error {
        let what = match subject.file {
            Some(file) => format!("`{}` has no file `{file}`", subject.repo),
            None => format!("the hub knows no model `{}`, or does not show it", subject.repo),
        };
        let error = Error::new(ErrorKind::NotFound, what).at(address::host(&self.endpoint));
        match self.token {
            Some(_) => error.hint("the exact name, or a token with access to it"),
            None => error.hint("the exact name; for a private model, HF_TOKEN=…"),
        }
    }

    fn gated(&self, subject: Subject<'_>) -> Error {
        let page = self.address(&format!("/{}", subject.repo));
        let (found, hint) = match &self.token {
            None => (
                "wants to know who asks, and there is no token",
                format!("accepting the conditions on {page}, then HF_TOKEN=… (a read token)"),
            ),
            Some(_) if self.token_for(&self.endpoint).is_none() => (
                "wants a token, and a token is never sent over plain http",
                "HF_ENDPOINT=https://…".to_owned(),
            ),
            Some(_) => (
                "refuses this token",
                format!("accepting the conditions on {page} with the account of this token"),
            ),
        };
        Error::new(ErrorKind::Denied, format!("`{}`: the hub {found}", subject.repo))
            .at(address::host(&self.endpoint))
            .hint(hint)
    }
}

fn parse(address: &str, subject: Subject<'_>) -> Result<Uri> {
    address.parse().map_err(|e| Error::bad_input(format!("`{}`: {e}", subject.name())))
}

fn too_many_hops(subject: Subject<'_>) -> Failure {
    Error::new(ErrorKind::Network, format!("the hub redirects more than {MAX_HOPS} times"))
        .at(subject.name())
        .into()
}

/// A status of a file server. Its links are good for some minutes only, so even a refusal is worth another try:
/// that one begins at the hub, which gives a new link.
fn elsewhere(answer: &Answer, subject: Subject<'_>) -> Failure {
    let what = format!("{} answered {}", answer.host, answer.status);
    let error = Error::new(ErrorKind::Network, what).at(subject.name());
    Failure { error, retry: Retry::After(retry_after(answer)) }
}

/// How long the server asks to be left alone.
fn retry_after(answer: &Answer) -> Option<Duration> {
    let text = answer.header("retry-after")?.trim();
    let seconds = match text.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => {
            let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
            u64::try_from(date.as_second() - jiff::Timestamp::now().as_second()).unwrap_or(0)
        }
    };
    Some(Duration::from_secs(seconds.min(MAX_RETRY_AFTER)))
}

/// The meaning of a request that got no answer.
fn broken(e: ureq::Error, at: &Uri) -> Failure {
    let (why, retry) = diagnose(&e);
    let error = Error::new(ErrorKind::Network, format!("{} {why}", address::host(at)))
        .hint("the network connection, or --offline for what is in the cache")
        .caused_by(e);
    Failure { error, retry }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enums belong to others, and most kinds are one to us"
)]
fn diagnose(e: &ureq::Error) -> (String, Retry) {
    use std::io::ErrorKind as Io;
    let plain = |why: &str, retry| (why.to_owned(), retry);
    match e {
        ureq::Error::HostNotFound => plain("cannot be found", Retry::Briefly),
        ureq::Error::ConnectionFailed => plain("cannot be reached", Retry::Briefly),
        ureq::Error::Timeout(_) => plain("does not answer", Retry::After(None)),
        ureq::Error::Protocol(_) => {
            (format!("does not speak HTTP as expected: {e}"), Retry::After(None))
        }
        ureq::Error::Io(io) => match io.kind() {
            Io::ConnectionRefused => plain("refuses the connection", Retry::Briefly),
            Io::HostUnreachable | Io::NetworkUnreachable | Io::NetworkDown => {
                plain("cannot be reached", Retry::Briefly)
            }
            // What TLS says of a certificate that does not fit.
            Io::InvalidData => (format!("cannot be trusted: {io}"), Retry::Never),
            _ => (format!("broke the connection: {io}"), Retry::After(None)),
        },
        other => (format!("cannot be asked: {other}"), Retry::Never),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(endpoint: &str) -> Client {
        let token = Token::new("hf_secret");
        let options = HubOptions { token, ..HubOptions::new(endpoint, None) };
        Client::new(&options).unwrap()
    }

    fn hop(endpoint: &str, from: &str, location: &str) -> Result<Uri> {
        let mut headers = HeaderMap::new();
        headers.insert("location", location.parse().unwrap());
        let answer = Answer {
            status: StatusCode::FOUND,
            headers,
            body: Body::builder().data(""),
            host: String::new(),
        };
        client(endpoint).next_hop(&from.parse().unwrap(), &answer)
    }

    #[test]
    fn an_https_hub_never_leads_to_plain_http() {
        let (hub, from) = ("https://hub.example", "https://hub.example/a");
        assert!(hop(hub, from, "https://cdn.example/x").is_ok());
        for location in [
            "http://hub.example/a",
            "http://127.0.0.1/a",
            "ftp://hub.example/a",
            "https://hub.example@evil.example/a",
        ] {
            assert!(hop(hub, from, location).is_err(), "{location}");
        }
    }

    #[test]
    fn a_plain_hub_on_this_machine_stays_on_it_or_goes_to_https() {
        let (hub, from) = ("http://127.0.0.1:80", "http://127.0.0.1:80/a");
        assert!(hop(hub, from, "http://localhost:81/x").is_ok());
        assert!(hop(hub, from, "https://cdn.example/x").is_ok());
        assert!(hop(hub, from, "http://cdn.example/x").is_err());
        let (hub, from) = ("http://mirror.lan", "http://mirror.lan/a");
        assert!(hop(hub, from, "http://store.lan/x").is_ok());
    }

    #[test]
    fn the_token_goes_to_the_endpoint_alone() {
        let sent = |endpoint: &str, target: &str| {
            client(endpoint).token_for(&target.parse().unwrap()).is_some()
        };
        assert!(sent("https://hub.example", "https://hub.example/x"));
        assert!(sent("https://hub.example", "https://HUB.example:443/x"));
        assert!(sent("http://127.0.0.1:5000", "http://127.0.0.1:5000/x"));
        for target in [
            "https://cdn.hub.example/x",
            "https://hub.example.evil.example/x",
            "https://hub.example:444/x",
            "http://hub.example/x",
        ] {
            assert!(!sent("https://hub.example", target), "{target}");
        }
        assert!(!sent("http://127.0.0.1:5000", "http://127.0.0.1:5001/x"));
        assert!(!sent("http://mirror.lan", "http://mirror.lan/x"));
    }

    #[test]
    fn addresses_that_are_no_hub_are_refused() {
        for endpoint in
            ["", "hub", "file:///x", "ftp://x", "https://a:b@hub.example", "https://x?y"]
        {
            let options = HubOptions::new(endpoint, None);
            assert!(Client::new(&options).is_err(), "{endpoint}");
        }
        let options =
            HubOptions { token: Token::new("a b\u{7f}"), ..HubOptions::new("https://x", None) };
        let error = Client::new(&options).unwrap_err().to_string();
        assert!(!error.contains("a b"), "{error}");
    }
}

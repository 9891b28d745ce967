//! Addresses: what of them matters, and how they are put together.

use ureq::http::Uri;

/// Scheme, host and port: what a browser calls an origin.
pub(super) fn origin(uri: &Uri) -> (Option<&str>, String, u16) {
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let name = uri.host().unwrap_or_default().to_ascii_lowercase();
    (uri.scheme_str(), name, uri.port_u16().unwrap_or(default))
}

/// Host and port, as messages name them.
pub(super) fn host(uri: &Uri) -> String {
    match (uri.host(), uri.port_u16()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => "the hub".to_owned(),
    }
}

/// Whether a user name or a password stands before the host.
pub(super) fn has_login(uri: &Uri) -> bool {
    uri.authority().is_some_and(|authority| authority.as_str().contains('@'))
}

/// Whether the host is this machine.
pub(super) fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The address that `location` means in an answer from `base`.
pub(super) fn join(base: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let before_path = location.split(['/', '?', '#']).next().unwrap_or_default();
    let absolute = if before_path.contains(':') {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let without_fragment = absolute.split('#').next().unwrap_or_default();
    let uri: Uri = without_fragment.parse().ok()?;
    (uri.scheme().is_some() && uri.host().is_some()).then_some(uri)
}

/// `text` as one segment of an address.
pub(super) fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(b));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{b:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_joined_as_a_browser_joins_them() {
        let base: Uri = "https://hub.example/a/b/c?x=1".parse().unwrap();
        for (location, expected) in [
            ("https://cdn.example/f?s=1#top", "https://cdn.example/f?s=1"),
            ("//cdn.example/f", "https://cdn.example/f"),
            ("/f", "https://hub.example/f"),
            ("f", "https://hub.example/a/b/f"),
        ] {
            assert_eq!(join(&base, location).unwrap(), expected, "{location}");
        }
        for location in ["file:///etc/passwd", "data:,x", "https://", "https:///x", "http//:x y"] {
            let target = join(&base, location);
            assert!(target.is_none(), "{location} gave {target:?}");
        }
    }

    #[test]
    fn names_become_one_segment() {
        assert_eq!(escape("refs/pr/1 é?#"), "refs%2Fpr%2F1%20%C3%A9%3F%23");
    }
}

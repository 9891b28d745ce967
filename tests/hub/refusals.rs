//! What a hub, a network or a repository may not do.

use tramontane::ErrorKind;
use tramontane::hub::{HubOptions, Token, pull};

use crate::fake::{Answer, At, REPO};
use crate::{names, refused, setup};

#[test]
fn denials_say_the_next_step() {
    let s = setup();
    let token = Token::new("hf_very_secret");
    let with_token = HubOptions { token, ..s.options.clone() };
    for (status, code, options, words) in [
        (401, "GatedRepo", &s.options, &["accepting the conditions on http", REPO, "HF_TOKEN"][..]),
        (403, "GatedRepo", &with_token, &["refuses this token", "accepting the conditions on"]),
        (401, "", &with_token, &["refuses this token"]),
        (403, "", &s.options, &["HF_TOKEN"]),
    ] {
        // The list of a gated model is public, its files are not.
        s.hub.bend(move |request, answer| {
            if request.path.contains("/resolve/") {
                Answer::new(status).header("X-Error-Code", code)
            } else {
                answer
            }
        });
        let message = refused(pull(REPO, "main", options, &()), ErrorKind::Denied, words);
        assert!(!message.contains("hf_very_secret"));
    }
    assert_eq!(ErrorKind::Denied.exit_code(), 4);
}

#[test]
fn what_is_not_there_is_named() {
    let s = setup();
    let ask = |repo: &str, revision: &str| pull(repo, revision, &s.options, &());
    refused(ask("essai/inconnu", "main"), ErrorKind::NotFound, &["`essai/inconnu`", "exact name"]);
    refused(ask(REPO, "v9"), ErrorKind::NotFound, &["no revision `v9`"]);
    refused(ask("../x", "main"), ErrorKind::BadInput, &["../x"]);
    s.hub.bend(|_, _| Answer::new(404));
    refused(ask(REPO, "main"), ErrorKind::NotFound, &[REPO]);
    assert!(!s.cache().exists(), "nothing was written");
}

#[test]
fn hostile_lists_write_nothing_outside() {
    let s = setup();
    for name in ["../evil.json", "/etc/evil", "a/../../evil", "C:evil"] {
        s.hub.put(name, b"evil");
        refused(s.pull(), ErrorKind::BadModel, &[name, "leaves the model folder"]);
        s.hub.remove(name);
    }
    // Names that mean something to a system are simply never chosen.
    for name in ["CON", "nul.json", "config.json ", "x/config.json", ".bashrc"] {
        s.hub.put(name, b"evil");
    }
    let pulled = s.pull().unwrap();
    assert_eq!(names(&pulled.path), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(names(s.folder.path()), ["le cache à moi"]);

    let many: Vec<String> =
        (0..1_000_000).map(|n| format!(r#"{{"rfilename": "{n:040}"}}"#)).collect();
    let commit = s.hub.commit();
    let list = format!(r#"{{"sha": "{commit}", "siblings": [{}]}}"#, many.join(","));
    s.hub.bend(move |_, _| Answer::json(&list));
    refused(s.pull(), ErrorKind::BadModel, &["longer than 32 MiB"]);
    for sha in ["../../x", "", "0123"] {
        let list = format!(r#"{{"sha": "{sha}", "siblings": []}}"#);
        s.hub.bend(move |_, _| Answer::json(&list));
        refused(s.pull(), ErrorKind::Network, &["expected 40 hexadecimal digits"]);
    }
}

#[test]
fn a_model_that_is_no_model_is_refused() {
    let s = setup();
    s.hub.remove("model.safetensors");
    refused(s.pull(), ErrorKind::NotSupported, &["pickle", "pytorch_model.bin", REPO]);
    s.hub.put("model.safetensors", b"weights");
    s.hub.remove("config.json");
    refused(s.pull(), ErrorKind::NotSupported, &["no config.json", REPO]);
    assert_eq!(s.hub.sent(), 0);
}

#[test]
#[cfg(target_os = "linux")]
fn a_model_larger_than_the_disk_is_refused_before_it_is_fetched() {
    let s = setup();
    let commit = s.hub.commit();
    let sha256 = "a".repeat(64);
    let list = format!(
        r#"{{"sha": "{commit}", "siblings": [{{"rfilename": "config.json", "size": 9, "blobId": "{commit}"}},
            {{"rfilename": "model.safetensors", "lfs": {{"sha256": "{sha256}", "size": 9000000000000000}}}}]}}"#
    );
    s.hub.bend(move |_, _| Answer::json(&list));
    refused(s.pull(), ErrorKind::NoSpace, &["needs 9450000000000009 more bytes", "are free"]);
    assert_eq!(s.hub.log().len(), 1);
    assert_eq!(ErrorKind::NoSpace.exit_code(), 3);
}

#[test]
fn redirects_follow_the_rules() {
    let s = setup();
    let location = |location: String| {
        s.hub.bend(move |request, answer| match answer.status {
            302 if request.at == At::Hub => Answer::new(302).header("Location", &location),
            _ => answer,
        });
    };
    for (target, words) in [
        ("http://example.invalid/x", &["plain http", "example.invalid"][..]),
        ("file:///etc/passwd", &["redirects to something that is no URL"]),
        ("ftp://127.0.0.1/x", &["redirects to something other than https"]),
        ("http://user@127.0.0.1/x", &["user name"]),
        ("model.safetensors", &["more than 10 times"]),
    ] {
        location(target.to_owned());
        let message = refused(s.pull(), ErrorKind::Network, words);
        assert!(!message.contains("signature"), "{message}");
    }
    // A renamed repository: relative, on the hub itself.
    s.hub.bend(|request, answer| {
        if request.path.starts_with(&format!("/api/models/{REPO}/revision/main?")) {
            let path = request.path.replace("/main?", "/0123456789abcdef0123456789abcdef01234567?");
            return Answer::new(307).header("Location", &path);
        }
        answer
    });
    s.pull().unwrap();
    s.assert_whole();
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let s = setup();
    let options = HubOptions { token: Token::new("hf_very_secret"), ..s.options.clone() };
    pull(REPO, "main", &options, &()).unwrap();
    let log = s.hub.log();
    for request in &log {
        let sent = request.header("authorization");
        match request.at {
            At::Hub => assert_eq!(sent, Some("Bearer hf_very_secret"), "{request:?}"),
            At::Store => {
                let told = request.headers.values().any(|value| value.contains("hf_very_secret"));
                assert!(!told, "{request:?}");
            }
        }
    }
    assert!(log.iter().any(|request| request.at == At::Store));
}

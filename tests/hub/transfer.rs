//! The way of the bytes: resumed, begun again, waited for, never doubled.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tramontane::ErrorKind;
use tramontane::hub::{Event, HubOptions, Progress, pull};

use crate::fake;
use crate::fake::{Answer, At, REPO};
use crate::{SIZE, Seen, names, refused, setup};

#[test]
fn a_beginning_is_continued() {
    let s = setup();
    for (n, tag) in [(SIZE / 2, None), (SIZE - 1, Some("\"v1-model.safetensors\"")), (SIZE, None)] {
        s.leave(n, tag);
        s.hub.reset();
        s.pull().unwrap();
        s.assert_whole();
        assert_eq!(s.hub.sent(), (SIZE - n) as u64);
        std::fs::remove_dir_all(s.repo()).unwrap();
    }
}

#[test]
fn a_beginning_that_is_wrong_is_fetched_again() {
    let s = setup();
    s.leave(SIZE / 2, None);
    let blob = s
        .repo()
        .join("blobs")
        .join(s.blobs().into_iter().find(|name| name.ends_with(".incomplete")).unwrap());
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[7] ^= 1;
    std::fs::write(&blob, &bytes).unwrap();
    s.pull().unwrap();
    s.assert_whole();
    // And one that is longer than the file.
    std::fs::remove_dir_all(s.repo()).unwrap();
    s.leave(SIZE, None);
    std::fs::write(&blob, vec![0; SIZE + 1]).unwrap();
    s.pull().unwrap();
    s.assert_whole();
}

#[test]
fn a_flipped_byte_is_noticed_and_the_file_removed() {
    let s = setup();
    s.hub.bend(|request, mut answer| {
        if request.at == At::Store {
            answer.body[100_000] ^= 0x10;
        }
        answer
    });
    let message = refused(s.pull(), ErrorKind::Network, &["model.safetensors has the hash"]);
    assert!(message.contains(&fake::sha256(&s.hub.file("model.safetensors"))), "{message}");
    assert_eq!(s.blobs().len(), 2, "only the small files stay: {:?}", s.blobs());
    assert!(!s.weights().exists() && !s.weights().with_file_name("config.json").exists());
    assert_eq!(ErrorKind::Network.exit_code(), 4);

    s.hub.bend(|request, mut answer| {
        if request.path.ends_with("/tokenizer.json") {
            answer.body = b"[]".to_vec();
        }
        answer
    });
    std::fs::remove_dir_all(s.repo()).unwrap();
    refused(s.pull(), ErrorKind::Network, &["tokenizer.json has the hash"]);
}

#[test]
fn a_server_without_ranges_begins_again() {
    let s = setup();
    s.leave(SIZE / 2, None);
    let weights = s.hub.file("model.safetensors");
    s.hub.bend(move |request, answer| match request.at {
        At::Store => Answer { body: weights.clone(), ..Answer::new(200) },
        At::Hub => answer,
    });
    s.pull().unwrap();
    s.assert_whole();
    assert_eq!(s.hub.sent(), SIZE as u64);
}

#[test]
fn another_version_on_the_server_begins_again() {
    let s = setup();
    s.leave(SIZE / 2, Some("\"v1-model.safetensors\""));
    s.hub.set_version("v2");
    s.pull().unwrap();
    s.assert_whole();
    assert_eq!(s.hub.sent(), SIZE as u64);
    let tags: Vec<_> = s.hub.log().into_iter().filter(|r| r.at == At::Store).collect();
    assert_eq!(tags.len(), 1, "{tags:?}");
    assert_eq!(tags[0].header("if-range"), Some("\"v1-model.safetensors\""));

    // The repository itself has other weights now: a new content, a new commit.
    s.hub.put("model.safetensors", &fake::noise(SIZE / 2)[1..]);
    s.hub.set_commit(&"a".repeat(40));
    s.pull().unwrap();
    s.assert_whole();
    assert_eq!(names(&s.repo().join("snapshots")).len(), 2);
}

#[test]
fn a_part_that_was_not_asked_for_is_not_used() {
    let s = setup();
    for range in ["bytes 0-9/3145728", "bytes 1572864-9/7", "nonsense", ""] {
        s.leave(SIZE / 2, None);
        s.hub.bend(move |request, mut answer| {
            if answer.status == 206 && request.at == At::Store {
                answer.headers.retain(|(name, _)| name != "Content-Range");
                if !range.is_empty() {
                    answer = answer.header("Content-Range", range);
                }
            }
            answer
        });
        s.pull().unwrap();
        s.assert_whole();
        std::fs::remove_dir_all(s.repo()).unwrap();
    }
    // 416: the server's file ends before the part that is asked for.
    s.leave(SIZE / 2, None);
    s.hub.bend(|request, answer| match request.header("range") {
        Some(_) => Answer::new(416),
        None => answer,
    });
    s.pull().unwrap();
    s.assert_whole();
}

#[test]
fn lengths_that_are_wrong_are_noticed() {
    let s = setup();
    let store = |change: fn(Answer) -> Answer| {
        s.hub.bend(move |request, answer| match request.at {
            At::Store => change(answer),
            At::Hub => answer,
        });
    };
    // Absent: the end of the connection is the end of the file.
    store(|answer| Answer { no_length: true, ..answer });
    s.pull().unwrap();
    s.assert_whole();
    std::fs::remove_dir_all(s.repo()).unwrap();
    // Announced short or long: refused before a byte is written, and what is there stays.
    for length in [10, SIZE as u64 + 10] {
        s.leave(SIZE / 2, Some("\"old\""));
        s.hub.bend(move |request, answer| match request.at {
            At::Store => Answer { length: Some(length), ..answer },
            At::Hub => answer,
        });
        let words = [&*format!("sends {length} bytes, expected {SIZE}")];
        refused(s.pull(), ErrorKind::Network, &words);
        assert!(s.blobs().iter().any(|name| name.ends_with(".incomplete")));
        std::fs::remove_dir_all(s.repo()).unwrap();
    }
    // Not announced, and long.
    store(|mut answer| {
        answer.body.extend([0; 1000]);
        Answer { no_length: true, ..answer }
    });
    refused(s.pull(), ErrorKind::Network, &["sends more bytes"]);
    // Not announced, and always short.
    store(|answer| Answer { no_length: true, cut: Some(1000), ..answer });
    let short = HubOptions { patience: Duration::from_millis(100), ..s.options.clone() };
    refused(pull(REPO, "main", &short, &()), ErrorKind::Network, &["broke off after", "gave up"]);
    // An empty answer.
    store(|answer| Answer { body: Vec::new(), no_length: true, ..answer });
    refused(pull(REPO, "main", &short, &()), ErrorKind::Network, &["broke off after", "gave up"]);
}

#[test]
fn faults_that_pass_are_waited_for() {
    let s = setup();
    let faults = [
        Answer { reset: true, ..Answer::default() },
        Answer { reset: true, ..Answer::default() },
        Answer::new(500),
        Answer::new(503).header("Retry-After", "0"),
        Answer::new(429).header("Retry-After", "0"),
        Answer { silent: Duration::from_millis(1500), ..Answer::new(200) },
    ];
    let n = faults.len();
    for at in [At::Hub, At::Store] {
        let count = AtomicUsize::new(0);
        let faults = faults.clone();
        s.hub.bend(move |request, answer| {
            if request.at != at {
                return answer;
            }
            let n = count.fetch_add(1, Ordering::SeqCst);
            faults.get(n).cloned().unwrap_or(answer)
        });
        let seen = Seen::default();
        pull(REPO, "main", &s.options, &seen).unwrap();
        s.assert_whole();
        assert!(seen.count(|line| line.starts_with("retry")) >= n, "{:?}", seen.lines());
        std::fs::remove_dir_all(s.repo()).unwrap();
    }
    // Broken off in the middle, five times: goes on from there each time.
    let count = AtomicUsize::new(0);
    s.hub.reset();
    s.hub.bend(move |request, answer| match request.at {
        At::Store if count.fetch_add(1, Ordering::SeqCst) < 5 => {
            Answer { cut: Some(400_000), ..answer }
        }
        At::Hub | At::Store => answer,
    });
    s.pull().unwrap();
    s.assert_whole();
    assert_eq!(s.hub.sent(), SIZE as u64, "nothing was sent twice");
}

#[test]
fn faults_that_stay_end_in_bounded_time() {
    let s = setup();
    let options = HubOptions { patience: Duration::from_millis(700), ..s.options.clone() };
    for (answer, words) in [
        (Answer::new(500), &["answered 500", "gave up after"][..]),
        (Answer::new(429).header("Retry-After", "3600"), &["429", "again in 3600 s"]),
        (Answer { reset: true, ..Answer::default() }, &["broke the connection", "gave up"]),
        (
            Answer { silent: Duration::from_secs(5), ..Answer::new(200) },
            &["does not answer", "gave up"],
        ),
        (Answer::json("<html>login</html>"), &["not the expected JSON"]),
        (Answer::new(418), &["answered 418"]),
    ] {
        s.hub.bend(move |_, _| answer.clone());
        refused(pull(REPO, "main", &options, &()), ErrorKind::Network, words);
    }
    let nobody = HubOptions { endpoint: "http://127.0.0.1:9".to_owned(), ..options };
    refused(pull(REPO, "main", &nobody, &()), ErrorKind::Network, &["refuses the connection"]);
}

#[test]
fn a_file_server_that_refuses_an_old_link_is_asked_with_a_new_one() {
    let s = setup();
    let count = AtomicUsize::new(0);
    s.hub.bend(move |request, answer| match request.at {
        At::Store if count.fetch_add(1, Ordering::SeqCst) < 2 => Answer::new(403),
        At::Hub | At::Store => answer,
    });
    s.pull().unwrap();
    s.assert_whole();
    let links = s
        .hub
        .log()
        .iter()
        .filter(|r| r.path.contains("resolve") && r.path.ends_with("model.safetensors"))
        .count();
    assert_eq!(links, 3);
}

#[test]
fn two_at_once_fetch_everything_once() {
    let s = setup();
    s.hub.bend(|request, mut answer| {
        if request.at == At::Store {
            answer.pace = Duration::from_millis(5);
        }
        answer
    });
    let seen = Seen::default();
    let transferred: u64 = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| pull(REPO, "main", &s.options, &seen).unwrap()))
            .collect();
        pulls.into_iter().map(|pull| pull.join().unwrap().transferred).sum()
    });
    s.assert_whole();
    assert_eq!(s.hub.sent(), SIZE as u64, "the weights came once");
    assert!(transferred < SIZE as u64 + 1000);
    assert!(seen.count(|line| line == "wait model.safetensors") >= 1, "{:?}", seen.lines());
}

#[test]
fn cancelling_stops_a_silent_download_and_keeps_what_is_there() {
    let s = setup();
    s.hub.bend(|request, answer| match request.at {
        At::Store => Answer {
            cut: Some(1 << 20),
            length: Some(SIZE as u64),
            silent: Duration::ZERO,
            ..answer
        },
        At::Hub => Answer { ..answer },
    });
    struct Stop(Mutex<Option<Instant>>);
    impl Progress for Stop {
        fn event(&self, event: Event<'_>) {
            if let Event::Advanced { file: "model.safetensors", position } = event
                && position > 500_000
            {
                self.0.lock().unwrap().get_or_insert_with(Instant::now);
            }
        }
        fn cancelled(&self) -> bool {
            self.0.lock().unwrap().is_some()
        }
    }
    let stop = Stop(Mutex::new(None));
    let options = HubOptions { idle: Duration::from_secs(60), ..s.options.clone() };
    refused(pull(REPO, "main", &options, &stop), ErrorKind::Cancelled, &["stopped", "kept"]);
    let since = stop.0.lock().unwrap().unwrap().elapsed();
    assert!(since < options.idle / 2, "the silence was waited for: {since:?}");
    assert!(s.blobs().iter().any(|name| name.ends_with(".incomplete")));
    s.hub.reset();
    s.pull().unwrap();
    s.assert_whole();
    assert!(s.hub.sent() < SIZE as u64);
}

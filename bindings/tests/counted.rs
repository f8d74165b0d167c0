//! Calls that are cancelled, and models that are closed meanwhile. Alone in its file, since it counts what is open in the process.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ampoule_bindings::{AmpouleError, BundleSource, CancelToken, Extractor, OpenOptions, live_objects};

const SENTENCE: &str = "Started on lisinopril for hypertension; developed angioedema.";

fn is_cancelled<T>(result: Result<T, AmpouleError>) -> bool {
    matches!(result, Err(AmpouleError::Cancelled(_)))
}

#[test]
fn what_is_open_is_counted_until_its_last_call_ends() {
    let before = live_objects();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("models/clinical-en.int8.safetensors");
    let options = OpenOptions { threads: 1, ..OpenOptions::default() };
    let extractor = Extractor::open(BundleSource::Path { path: path.to_str().unwrap().to_owned() }, options).unwrap();
    assert_eq!(live_objects(), before + 1);
    assert_eq!(extractor.extract(SENTENCE, None, None).unwrap().len(), 3);

    // Cancelled in the middle: it ends, and nothing goes on.
    // Minutes of computing.
    let text = format!("{SENTENCE}\n").repeat(40_000);
    let token = Arc::new(CancelToken::new());
    std::thread::scope(|scope| {
        let call = scope.spawn(|| extractor.extract(&text, Some(token.clone()), None));
        while extractor.report().unwrap().computed_tokens < 2_000 {
            std::thread::yield_now();
        }
        assert_eq!(extractor.report().unwrap().running_calls, 1);
        token.cancel();
        assert!(is_cancelled(call.join().unwrap()));
    });
    let ended = extractor.report().unwrap();
    assert_eq!(ended.running_calls, 0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(extractor.report().unwrap().computed_tokens, ended.computed_tokens);
    assert!(token.is_cancelled() && is_cancelled(extractor.extract("", Some(token), None)));
    assert!(is_cancelled(extractor.extract(&text, None, Some(30))));
    assert!(is_cancelled(extractor.extract_batch(vec![text.clone()], None, Some(30))));

    // What a long text kept is given back.
    assert!(extractor.report().unwrap().workspace_bytes > 0);
    extractor.trim().unwrap();
    assert_eq!(extractor.report().unwrap().workspace_bytes, 0);
    assert_eq!(extractor.extract(SENTENCE, None, None).unwrap().len(), 3);

    // A stream gives entities long before the text's end, and stops when nobody has it any more.
    let stream = extractor.stream(text.clone(), None, None).unwrap();
    let first = stream.next().unwrap().unwrap();
    assert_eq!(&text[first[0].utf8_start as usize..first[0].utf8_end as usize], "lisinopril");
    assert_eq!((live_objects(), extractor.report().unwrap().running_calls), (before + 2, 1));
    stream.cancel();
    while matches!(stream.next(), Ok(Some(_))) {}
    assert_eq!(stream.next(), Ok(None));
    assert_eq!(extractor.report().unwrap().running_calls, 0);
    let parent = Arc::new(CancelToken::new());
    let linked = extractor.stream(text.clone(), Some(parent.clone()), None).unwrap();
    parent.cancel();
    let end = loop {
        match linked.next() {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert!(is_cancelled(end));
    let dropped = extractor.stream(text.clone(), None, None).unwrap();
    dropped.next().unwrap().unwrap();
    drop((dropped, stream, linked));
    let start = Instant::now();
    while extractor.report().unwrap().running_calls > 0 {
        assert!(start.elapsed() < Duration::from_secs(20), "it goes on");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(live_objects(), before + 1);

    // Closed while a call runs: that one goes on with the model, others are refused, and then it is freed.
    let token = Arc::new(CancelToken::new());
    std::thread::scope(|scope| {
        let call = scope.spawn(|| extractor.extract(&text, Some(token.clone()), None));
        while extractor.report().unwrap().running_calls == 0 {
            std::thread::yield_now();
        }
        extractor.release();
        extractor.release();
        assert_eq!(live_objects(), before + 1);
        for result in [
            extractor.extract("", None, None).map(drop),
            extractor.extract_batch(vec![], None, None).map(drop),
            extractor.stream(String::new(), None, None).map(drop),
            extractor.report().map(drop),
            extractor.labels().map(drop),
            extractor.trim(),
        ] {
            assert!(matches!(result, Err(AmpouleError::Closed(_))));
        }
        token.cancel();
        assert!(is_cancelled(call.join().unwrap()));
    });
    assert_eq!(live_objects(), before);
}

//! Calls: of batches and streams, from threads, on bundles wherever they lie; and what is never said of a text.

use std::path::Path;
use std::sync::{Arc, Barrier, Mutex, OnceLock};

use ampoule_bindings::{
    AmpouleError, BundleSource, Classifier, Computed, Embedder, Entity, Extractor, LoadMode, OpenOptions,
};

const CANARY: &str = "zyxquell";
const SENTENCE: &str = "Started on lisinopril for hypertension; developed angioedema.";

fn bundle() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    root.join("models/clinical-en.int8.safetensors").to_str().unwrap().to_owned()
}

fn extractor() -> Arc<Extractor> {
    let options = OpenOptions { threads: 1, ..OpenOptions::default() };
    Arc::new(Extractor::open(BundleSource::Path { path: bundle() }, options).unwrap())
}

/// Minutes of computing.
fn long() -> String {
    format!("{SENTENCE} {CANARY}\n").repeat(40_000)
}

fn pieces(text: &str, entities: &[Entity]) -> Vec<String> {
    entities.iter().map(|e| text[e.utf8_start as usize..e.utf8_end as usize].to_owned()).collect()
}

#[test]
fn a_stream_and_a_batch_give_what_single_calls_give() {
    let extractor = extractor();
    let text = format!("{SENTENCE} 😀 naïve\r\n").repeat(200);
    let expected = extractor.extract(&text, None, None).unwrap();
    assert_eq!(expected.len(), 600);
    let stream = extractor.stream(text.clone(), None, None).unwrap();
    let mut streamed = Vec::new();
    while let Some(some) = stream.next().unwrap() {
        assert!(!some.is_empty());
        streamed.extend(some);
    }
    assert_eq!(streamed, expected);
    assert_eq!(stream.next(), Ok(None));
    let texts = ["", SENTENCE, "No known allergies.", "é lisinopril"].map(str::to_owned).to_vec();
    let batch = extractor.extract_batch(texts.clone(), None, None).unwrap();
    for (text, found) in texts.iter().zip(batch) {
        assert_eq!(pieces(text, &found), pieces(text, &extractor.extract(text, None, None).unwrap()));
    }
    let labels = extractor.labels().unwrap();
    let records = extractor.extract_batch(texts.clone(), None, None).unwrap();
    let packed = extractor.extract_batch_packed(texts.clone(), None, None).unwrap();
    for (text, packed) in texts.iter().zip(&packed) {
        assert_eq!(extractor.extract_packed_within(text, None, None).unwrap().len(), packed.len());
    }
    for (records, packed) in records.iter().zip(&packed) {
        let rows: Vec<[u32; 8]> = packed
            .chunks(32)
            .map(|row| std::array::from_fn(|i| u32::from_le_bytes(row[4 * i..][..4].try_into().unwrap())))
            .collect();
        assert_eq!(rows.len(), records.len());
        for (row, e) in rows.iter().zip(records) {
            assert_eq!((&labels[row[0] as usize], f32::from_bits(row[1])), (&e.label, e.score));
            assert_eq!(row[2..], [e.utf8_start, e.utf8_end, e.utf16_start, e.utf16_end, e.scalar_start, e.scalar_end]);
        }
    }
    let embedder = Embedder::open(BundleSource::Path { path: bundle() }, OpenOptions::default()).unwrap();
    let width = embedder.width().unwrap() as usize;
    let vectors = embedder.embed_batch(texts.clone(), None, None).unwrap();
    assert_eq!(vectors.len(), texts.len() * width * 4);
    assert_eq!(embedder.embed(&texts[1], None, None).unwrap().len(), width * 4);
    assert!(embedder.embed_batch(vec![], None, None).unwrap().is_empty());
}

#[test]
fn a_bundle_is_opened_wherever_it_lies() {
    let all = std::fs::read(bundle()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.apk");
    for offset in [4u64, 32] {
        std::fs::write(&path, [&vec![7; offset as usize], all.as_slice(), b"end"].concat()).unwrap();
        for load in [LoadMode::Map, LoadMode::Copy] {
            let path = path.to_str().unwrap().to_owned();
            let source = BundleSource::Within { path, offset, length: all.len() as u64 };
            let options = OpenOptions { load: Some(load), verify: true, threads: 2, ..OpenOptions::default() };
            let found = Extractor::open(source, options).unwrap().extract(SENTENCE, None, None).unwrap();
            assert_eq!(pieces(SENTENCE, &found), ["lisinopril", "hypertension", "angioedema"]);
        }
    }
    let found = Extractor::open(BundleSource::Bytes { bytes: all }, OpenOptions::default()).unwrap();
    assert_eq!(found.labels().unwrap(), ["Chemical", "Disease"]);
    // Replaced by renaming, as bundles are updated: what is open goes on.
    let path = folder.path().join("model.safetensors");
    std::fs::copy(bundle(), &path).unwrap();
    let source = BundleSource::Path { path: path.to_str().unwrap().to_owned() };
    let options = OpenOptions { load: Some(LoadMode::Map), ..OpenOptions::default() };
    let open = Extractor::open(source.clone(), options.clone()).unwrap();
    let other = folder.path().join("other");
    std::fs::write(&other, "no bundle").unwrap();
    std::fs::rename(&other, &path).unwrap();
    assert_eq!(open.extract(SENTENCE, None, None).unwrap().len(), 3);
    assert!(matches!(Extractor::open(source, options), Err(AmpouleError::FetchBundle(_))));
}

#[test]
fn a_result_tells_what_computed_it() {
    let (extractor, none) = (extractor(), Computed::default());
    extractor.extract(SENTENCE, None, None).unwrap();
    let once = extractor.computed();
    assert!(once.cpu_tokens > 10 && once.gpu_tokens == 0, "{once:?}");
    let call = Arc::new(extractor.counted());
    assert_eq!(call.computed(), none);
    call.extract(SENTENCE, None, None).unwrap();
    assert_eq!(call.computed(), once);
    let call = extractor.counted();
    let stream = call.stream(SENTENCE.to_owned(), None, None).unwrap();
    while stream.next().unwrap().is_some() {}
    assert_eq!(call.computed(), once);
    // What was ended early came to nothing here.
    let call = extractor.counted();
    call.extract(SENTENCE, None, Some(0)).unwrap_err();
    assert_eq!(call.computed(), none);
    // Nobody else's calls are among its own, and all are among the model's.
    assert_eq!(extractor.computed(), once);
    assert_eq!(extractor.report().unwrap().computed_tokens, 3 * once.cpu_tokens);
    // Closed alone, and with the model.
    let is_closed = |of: &Extractor| matches!(of.extract(SENTENCE, None, None), Err(AmpouleError::Closed(_)));
    let other = call.counted();
    call.release();
    assert!(is_closed(&call) && is_closed(&call.counted()) && !is_closed(&other) && !is_closed(&extractor));
    extractor.release();
    assert!(is_closed(&other) && is_closed(&extractor.counted()) && is_closed(&extractor));
    let embedder = Embedder::open(BundleSource::Path { path: bundle() }, OpenOptions::default()).unwrap();
    let call = embedder.counted();
    call.embed(SENTENCE, None, None).unwrap();
    assert_eq!((call.computed(), embedder.computed()), (once, none));
}

#[test]
fn many_threads_share_a_model_and_many_models_a_process() {
    let models = [extractor(), extractor()];
    let expected = models[0].extract(SENTENCE, None, None).unwrap();
    let together = Barrier::new(8);
    std::thread::scope(|scope| {
        for i in 0..8 {
            let (models, expected, together) = (&models, &expected, &together);
            scope.spawn(move || {
                together.wait();
                for call in 0..20 {
                    assert_eq!(models[(i + call) % 2].extract(SENTENCE, None, None).unwrap(), *expected);
                }
            });
        }
    });
    assert_eq!(ampoule_bindings::self_check().unwrap().last().map(String::as_str), Some("scalar"));
    assert_eq!(ampoule_bindings::version(), env!("CARGO_PKG_VERSION"));
}

fn log() -> &'static Mutex<String> {
    static LOG: OnceLock<Mutex<String>> = OnceLock::new();
    LOG.get_or_init(Default::default)
}

struct Listener;

impl log::Log for Listener {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }
    fn log(&self, record: &log::Record) {
        log().lock().unwrap().push_str(&format!("{}\n", record.args()));
    }
    fn flush(&self) {}
}

#[test]
fn no_error_or_log_holds_the_text() {
    log::set_logger(&Listener).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let extractor = extractor();
    let embedder = Embedder::open(BundleSource::Path { path: bundle() }, OpenOptions::default()).unwrap();
    let text = long();
    let mut said = String::new();
    let mut say = |error: AmpouleError| said.push_str(&format!("{error} {error:?}\n"));
    say(extractor.extract(&text, None, Some(5)).unwrap_err());
    say(extractor.extract_batch(vec![text.clone()], None, Some(5)).unwrap_err());
    say(embedder.embed(&text, None, Some(5)).unwrap_err());
    let stream = extractor.stream(text.clone(), None, Some(5)).unwrap();
    while let Some(result) = stream.next().transpose() {
        if let Err(error) = result {
            say(error);
        }
    }
    extractor.release();
    say(extractor.extract(CANARY, None, None).unwrap_err());
    say(Classifier::open(BundleSource::Path { path: bundle() }, OpenOptions::default()).err().unwrap());
    assert!(said.lines().count() >= 6, "{said}");
    assert!(!said.contains(CANARY) && !log().lock().unwrap().contains(CANARY), "{said}");
}

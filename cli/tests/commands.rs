//! The commands, as a person and as a script meet them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Stands in every text, and must stand in no error, log or run folder.
const CANARY: &str = "zyxquell";

fn ampoule(arguments: &[&str]) -> Output {
    with_stdin(arguments, b"")
}

fn with_stdin(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ampoule"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails before it reads closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints").join(name)
}

/// One `error:` line, one `try:` line, nothing of the text, exit code 1.
fn assert_fails(output: &Output, part: &str) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    let lines: Vec<&str> = message.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("error: ") && lines[1].starts_with("try: "), "{message}");
    assert!(lines[0].contains(part), "{message}");
    assert!(!message.contains(CANARY), "{message}");
}

/// A corpus in the letters that the fixture's vocabulary knows, the canary in every text.
fn corpus(folder: &Path) -> PathBuf {
    let path = folder.join("corpus");
    fs::create_dir_all(&path).unwrap();
    for (file, sentences, first) in [("train.tsv", 48, 0), ("dev.tsv", 8, 100), ("test.tsv", 8, 200)] {
        let mut lines = String::new();
        for i in first..first + sentences {
            // Once it is marked otherwise than anywhere else, so that no model is always right.
            let [begin, inside] = if i == 100 { ["O", "O"] } else { ["B-Disease", "I-Disease"] };
            lines.push_str(&format!("{CANARY}\tO\nthe\tO\npain\t{begin}\nof\t{inside}\n"));
            let word = char::from(b'a' + (i % 26) as u8);
            lines.push_str(&format!("{word}\tO\naspirin\tB-Chemical\n.\tO\n\n"));
        }
        fs::write(path.join(file), lines).unwrap();
    }
    path
}

/// Arguments of a run that takes a few seconds and has several saved states.
fn training<'a>(verb: &'a str, corpus: &'a str, run: &'a str) -> Vec<&'a str> {
    vec![
        verb,
        "--data",
        corpus,
        "--run",
        run,
        "--epochs",
        "4",
        "--threads",
        "2",
        "--set",
        "batch_size=4",
        "--set",
        "save_every=3",
        "--set",
        "optimizer.learning_rate=0.01",
        "--set",
        "window=48",
    ]
}

/// The files of a run's model.
fn model_of(run: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let model = run.join("model");
    let mut files = everything_in(&model);
    files.iter_mut().for_each(|(path, _)| *path = path.strip_prefix(&model).unwrap().to_owned());
    files.sort();
    files
}

fn everything_in(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.path() {
            path if path.is_dir() => all.extend(everything_in(&path)),
            path => all.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    all
}

#[test]
fn the_embedded_model_finds_entities_and_says_where() {
    let note = "Patient on lisinopril 10 mg developed angioede\u{301}ma 👍 and a cough.";
    let output = ampoule(&["extract", "--json", note]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let entities = found["entities"].as_array().unwrap();
    let marked: Vec<(&str, &str)> = entities
        .iter()
        .map(|e| {
            let at = |name: &str| e[name].as_u64().unwrap() as usize;
            (e["label"].as_str().unwrap(), &note[at("start")..at("end")])
        })
        .collect();
    assert!(marked.contains(&("Chemical", "lisinopril")), "{marked:?}");
    assert!(marked.contains(&("Disease", "angioede\u{301}ma")), "{marked:?}");

    let in_unit = |unit: &str| {
        let output = ampoule(&["extract", "--json", "--offsets", unit, note]);
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let last = found["entities"].as_array().unwrap().last().unwrap().clone();
        last["start"].as_u64().unwrap() as usize
    };
    let last = entities.last().unwrap()["start"].as_u64().unwrap() as usize;
    assert_eq!(in_unit("utf16"), note[..last].encode_utf16().count());
    assert_eq!(in_unit("chars"), note[..last].chars().count());

    let shown = text(&ampoule(&["extract", note]).stdout);
    assert!(shown.contains("[lisinopril](Chemical "), "{shown}");
}

#[test]
fn texts_come_from_lines_objects_and_files() {
    let input = b"no finding\nshe took aspirin\r\n";
    let lines = text(&with_stdin(&["extract", "-", "--json"], input).stdout);
    let ids: Vec<serde_json::Value> =
        lines.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["id"].clone()).collect();
    assert_eq!(ids, [1, 2]);
    let objects = b"{\"id\": \"a7\", \"text\": \"aspirin\"}\n\n{\"text\": \"aspirin\"}\n";
    let lines = text(&with_stdin(&["extract", "-", "--jsonl", "--json"], objects).stdout);
    assert!(lines.starts_with("{\"id\":\"a7\",\"entities\":[{\"label\":\"Chemical\",\"start\":0,\"end\":7"), "{lines}");
    assert!(lines.lines().nth(1).unwrap().starts_with("{\"id\":3,"), "{lines}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("note.txt");
    fs::write(&file, "aspirin\nfever\n").unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(text(&ampoule(&["extract", "--file", file, "--json"]).stdout).lines().count(), 1);
    assert_eq!(text(&ampoule(&["extract", "--file", file, "--lines", "--json"]).stdout).lines().count(), 2);
}

#[test]
fn odd_texts_are_no_trouble() {
    let long_word = "x".repeat(100_000);
    for input in ["", "   \n\t ", "\u{301}\u{301}", "a\u{0}b", "\u{feff}", &long_word] {
        let output = with_stdin(&["extract", "-", "--whole", "--json"], input.as_bytes());
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stdout).starts_with("{\"id\":1,\"entities\":["));
    }
}

#[test]
fn failures_say_where_and_what_to_try_and_nothing_of_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let canary = format!("the {CANARY} of aspirin");
    assert_fails(&ampoule(&["extract", &canary, "--model", &path("missing")]), "missing");
    fs::write(path("empty"), b"").unwrap();
    assert_fails(&ampoule(&["extract", &canary, "--model", &path("empty")]), "empty");
    fs::write(path("other"), b"GGUF\x03\0\0\0 not a bundle at all").unwrap();
    assert_fails(&ampoule(&["extract", &canary, "--model", &path("other")]), "other");
    assert_fails(&ampoule(&["extract", &canary, "--min-score", "2"]), "--min-score");
    assert_fails(&ampoule(&["extract", &canary, "--min-score", "Dragon=0.5"]), "Dragon");
    assert_fails(&ampoule(&["extract", &canary, "--device", "ndarray"]), "NdArray");
    assert_fails(&ampoule(&["classify", &canary]), "no model is embedded");
    let encoder = fixture("bert-encoder");
    assert_fails(&ampoule(&["extract", &canary, "--model", encoder.to_str().unwrap()]), "token-classification");

    let mut bytes = format!("fine {CANARY}\n{CANARY} ").into_bytes();
    bytes.extend(b"\xff\xfe\n");
    assert_fails(&with_stdin(&["extract", "-"], &bytes), "line 2: not UTF-8 at byte 9");
    let broken = format!("{{\"text\": \"{CANARY}\"");
    assert_fails(&with_stdin(&["extract", "-", "--jsonl"], broken.as_bytes()), "line 1");
    assert_fails(&with_stdin(&["extract", "-", "--jsonl"], format!("{{\"note\": \"{CANARY}\"}}").as_bytes()), "line 1");

    for arguments in [
        &["extract"] as &[&str],
        &["extract", "Patient", &canary],
        &["extract", &canary, "--ofsets", "utf8"],
        &["extract", &canary, "--offsets", CANARY],
        &["extract", &canary, "--threads", CANARY],
        &[CANARY],
        &["inspect", &canary, &canary],
        &["extract", "--file", "x", &canary],
    ] {
        let usage = ampoule(arguments);
        let message = text(&usage.stderr);
        assert_eq!(usage.status.code(), Some(2), "{message}");
        assert!(message.starts_with("error: ") && message.contains("\ntry: `ampoule"), "{message}");
        assert!(!message.contains(CANARY), "{message}");
    }
    let usage = |arguments: &[&str]| text(&ampoule(arguments).stderr);
    assert!(usage(&["extract", "x", "--ofsets", "utf8"]).contains("--ofsets"));
    assert!(usage(&["quantize", "--precision", "int4", "--model", "x", "--out", "y"]).contains("f32, f16, int8"));
    assert!(usage(&["extract"]).contains("`-` stands for stdin"));
    assert_fails(&ampoule(&["extract", "x", "--window", "4096"]), "windows of 4096 tokens: this model takes 3 to 128");
    let bundle = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/clinical-en.int8.safetensors");
    assert_fails(&ampoule(&["quantize", "--model", bundle, "--out", &path("out")]), "is made of a checkpoint folder");
}

#[test]
fn doctor_says_which_kernel_to_pin_and_a_kernel_can_be_named_in_two_ways() {
    let output = ampoule(&["doctor", "--json", "--autotune", "--threads", "1"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let measured = report["device"]["measured"].as_array().unwrap();
    let fastest = measured.iter().min_by_key(|time| time["microseconds"].as_u64());
    let kernel = fastest.map_or(&report["kernels"][0], |time| &time["kernel"]).as_str().unwrap();
    assert!(report["speed"]["runs"].as_u64().unwrap() > 0 && !kernel.is_empty(), "{report}");

    let with = |name: &std::ffi::OsStr, arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_ampoule"))
            .env("AMPOULE_KERNEL", name)
            .args(["extract", "aspirin"])
            .args(arguments)
            .output()
            .unwrap()
    };
    assert_fails(&with("abacus".as_ref(), &[]), "\"abacus\"");
    for (name, arguments) in
        [("abacus", ["--kernel", kernel].as_slice()), ("abacus", &["--autotune"]), ("", &[]), (kernel, &[])]
    {
        let output = with(name.as_ref(), arguments);
        assert!(output.status.success() && text(&output.stdout).contains("Chemical"), "{name}, {arguments:?}");
    }
    #[cfg(unix)]
    assert_fails(&with(std::os::unix::ffi::OsStrExt::from_bytes(b"\xff"), &[]), "no kernel");
    assert_eq!(ampoule(&["extract", "x", "--kernel", kernel, "--autotune"]).status.code(), Some(2));
}

#[test]
fn bad_data_is_refused_by_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("bert-token");
    let model = model.to_str().unwrap();
    let cases = [
        ("train.tsv", format!("{CANARY}\tI-Disease\n"), "train.tsv:1"),
        ("train.tsv", format!("a\tO\n{CANARY} without tab\n"), "train.tsv:2"),
        (
            "train.jsonl",
            format!(
                "{{\"text\": \"{CANARY}\", \"entities\": [{{\"start\": 0, \"end\": 99, \"label\": \"Disease\"}}]}}\n"
            ),
            "train.jsonl",
        ),
        (
            "train.jsonl",
            format!(
                "{{\"text\": \"{CANARY}\", \"entities\": [{{\"start\": 0, \"end\": 3, \"label\": \"Disease\", \"text\": \"q\"}}]}}\n"
            ),
            "train.jsonl",
        ),
    ];
    for (i, (file, content, part)) in cases.iter().enumerate() {
        let corpus = folder.path().join(format!("c{i}"));
        fs::create_dir_all(&corpus).unwrap();
        fs::write(corpus.join(file), content).unwrap();
        let run = folder.path().join(format!("r{i}"));
        let output =
            ampoule(&["train", "--model", model, "--data", corpus.to_str().unwrap(), "--run", run.to_str().unwrap()]);
        assert_fails(&output, part);
        assert!(!run.exists());
    }
    let sound = corpus(folder.path());
    // A misspelled label would be trained on as one that never occurs, and scored as one that is never found.
    let run = folder.path().join("run");
    let out = folder.path().join("out");
    let (run_text, out_text) = (run.to_str().unwrap(), out.to_str().unwrap());
    let (sound, test) = (sound.display().to_string(), sound.join("test.tsv").display().to_string());
    let lower = folder.path().join("lower.tsv");
    fs::write(&lower, "the\tO\npain\tB-disease\n").unwrap();
    let lower = lower.to_str().unwrap();
    for (data, part) in [
        (format!("{sound}=diseas"), "no entity has a label of [\"diseas\"]"),
        (format!("{sound}=Disease,Diseas"), "\"Diseas\""),
        (format!("{test}=diseas"), "no entity has a label of [\"diseas\"]"),
        (format!("{test}=Disease,Diseas"), "no model has the label \"Diseas\""),
        (lower.to_owned(), "no model has the label \"disease\""),
        (format!("{lower}=Disease"), "it marks \"disease\""),
    ] {
        assert_fails(&ampoule(&["evaluate", "--model", model, "--data", &data]), part);
        assert_fails(&ampoule(&["quantize", "--model", model, "--data", &data, "--out", out_text]), part);
        if data.starts_with(&sound) && !data.starts_with(&test) {
            assert_fails(&ampoule(&["train", "--model", model, "--data", &data, "--run", run_text]), part);
        }
    }
    // A head is not new where the model has the data's labels; else a label that a file covers and never marks teaches nothing.
    let untaught = folder.path().join("untaught");
    fs::create_dir_all(&untaught).unwrap();
    let line = r#"{"text": "a", "entities": [{"start": 0, "end": 1, "label": "Sign"}], "covers": ["Sign", "Test"]}"#;
    fs::write(untaught.join("train.jsonl"), line).unwrap();
    fs::write(untaught.join("dev.jsonl"), line).unwrap();
    let train = ["train", "--model", model, "--data", untaught.to_str().unwrap(), "--run", run_text];
    assert_fails(&ampoule(&train), "no train file marks the label \"Test\"");
    assert!(!run.exists() && !out.exists());
}

#[test]
fn a_student_is_of_the_shape_that_is_asked_for_and_its_log_says_what_that_cost() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(folder.path());
    let (corpus, run) = (corpus.to_str().unwrap(), folder.path().join("run"));
    let checkpoint = fixture("bert-token");
    let mut arguments = training("distill", corpus, run.to_str().unwrap());
    arguments.extend(["--teacher", checkpoint.to_str().unwrap(), "--layers", "2"]);
    let with = |more: &[&str]| ampoule(&[&arguments[..], more].concat());
    assert_fails(&with(&["--vocabulary", "10"]), "a vocabulary of 10 pieces");
    assert_fails(&with(&["--embedding", "32"]), "embeddings 32 wide: expected 2 to 31");
    assert!(!run.exists());

    let shape = ["--hidden", "24", "--basis", "components", "--embedding", "10"];
    let output = with(&shape);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("embeddings 10 wide in place of 32: "), "{}", text(&output.stdout));
    let config: serde_json::Value = serde_json::from_slice(&fs::read(run.join("model/config.json")).unwrap()).unwrap();
    for (field, value) in [("model_type", "electra".into()), ("embedding_size", 10.into()), ("hidden_size", 24.into())]
    {
        let value: serde_json::Value = value;
        assert_eq!(config[field], value);
    }
    let log = fs::read_to_string(run.join("log.jsonl")).unwrap();
    let start = log.lines().find(|line| line.starts_with(r#"{"start""#)).unwrap();
    let start: serde_json::Value = serde_json::from_str(start).unwrap();
    let lost = start["start"]["embedding"]["variance_lost"].as_f64().unwrap();
    assert!(lost > 0.0 && lost < 1.0 && !log.contains(CANARY), "{lost}");
    // Made again, the student is the same, and so is its log.
    assert!(with(&shape).status.success());
    assert_eq!(fs::read_to_string(run.join("log.jsonl")).unwrap(), log);
}

#[test]
fn a_killed_run_goes_on_to_the_same_tensors_and_keeps_no_text() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(folder.path());
    let corpus = corpus.to_str().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let checkpoint = fixture("bert-token");
    let checkpoint = checkpoint.to_str().unwrap();
    let kills: usize = std::env::var("AMPOULE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);

    let stages = r#"stages=[{"epochs": 1, "terms": [{"term": "relations", "weight": 1, "layer_map": [[1, 2]], "heads": 4}]},
        {"epochs": 2, "noise": {"words": 0.2, "texts": 0.5}, "patience": 1, "evaluations_per_epoch": 3},
        {"epochs": 1, "precision": "int8", "optimizer": {"learning_rate": 1e-3}}]"#;
    for (verb, start) in [
        ("train", vec!["--model", checkpoint]),
        ("distill", vec!["--teacher", checkpoint, "--layers", "2", "--set", stages]),
    ] {
        let unbroken = path(&format!("{verb}-unbroken"));
        let mut arguments = training(verb, corpus, &unbroken);
        arguments.extend(&start);
        let begun = std::time::Instant::now();
        let output = ampoule(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let whole = begun.elapsed();
        let expected = model_of(Path::new(&unbroken));
        // Finished again, it is the same: its temperature too.
        assert!(ampoule(&arguments).status.success());
        assert!(model_of(Path::new(&unbroken)) == expected);
        let config = fs::read_to_string(format!("{unbroken}/model/config.json")).unwrap();
        assert!(config.contains("\"ampoule_temperature\": "), "{config}");

        for kill in 0..kills {
            let run = path(&format!("{verb}-killed-{kill}"));
            let mut arguments = training(verb, corpus, &run);
            arguments.extend(&start);
            let mut child = Command::new(env!("CARGO_BIN_EXE_ampoule"))
                .args(&arguments)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            // Spread over the run, its first and last moments included.
            std::thread::sleep(whole.mul_f64((kill as f64 + 0.5) / kills as f64));
            child.kill().unwrap();
            child.wait().unwrap();
            let output = ampoule(&arguments);
            assert!(output.status.success(), "{}", text(&output.stderr));
            assert!(model_of(Path::new(&run)) == expected, "{verb}, kill {kill} of {kills}");
        }
        println!("{verb}: {kills} kills, the same tensors after each");
        for (file, bytes) in everything_in(Path::new(&unbroken)) {
            let is_vocabulary = file.file_name().is_some_and(|n| n == "tokenizer.json");
            let holds = bytes.windows(CANARY.len()).any(|w| w == CANARY.as_bytes());
            assert!(is_vocabulary || !holds, "{}", file.display());
        }
    }

    // What the last stage measured in int8 is what the bundle gives that a device gets.
    let (student, bundle) = (path("distill-unbroken"), path("x.int8.safetensors"));
    let log = fs::read_to_string(Path::new(&student).join("log.jsonl")).unwrap();
    let log: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let stages: Vec<u64> = log.iter().filter_map(|line| line["step"]["stage"].as_u64()).collect();
    assert!(stages.is_sorted() && [1, 2, 3].iter().all(|stage| stages.contains(stage)), "{stages:?}");
    let scores: Vec<f64> = log.iter().filter_map(|line| line["evaluation"]["dev_score"].as_f64()).collect();
    let model = format!("{student}/model");
    assert!(ampoule(&["quantize", "--model", &model, "--out", &bundle, "--data", corpus, "--force"]).status.success());
    let table = ampoule(&["evaluate", "--model", &bundle, "--data", corpus, "--split", "dev", "--json"]);
    let table: serde_json::Value = serde_json::from_slice(&table.stdout).unwrap();
    assert_eq!(table["models"][0]["pooled"]["f1"].as_f64(), scores.last().copied());

    // Settings of a stage that are none, or are the run's, are refused by its number.
    for (stage, part) in [
        (r#"stages=[{}, {"epoch": 1}]"#, "stage 2: unknown field `epoch`"),
        (r#"stages=[{"seed": 2}]"#, "stage 1: seed is a setting of the whole run"),
        (r#"stages=[{}, {"precision": "f16"}]"#, "stage 2: precision must be f32 or int8"),
        (
            r#"stages=[{}, {"terms": [{"term": "soft_targets", "weight": 1, "temperature": 2}]}]"#,
            "stage 2: the loss term",
        ),
    ] {
        let run = path("refused");
        let mut arguments = training("train", corpus, &run);
        arguments.extend(["--model", checkpoint, "--set", stage]);
        assert_fails(&ampoule(&arguments), part);
        assert!(!Path::new(&run).exists());
    }

    // The same folder with other settings is refused, and stays as it is.
    let run = path("train-unbroken");
    let mut arguments = training("train", corpus, &run);
    arguments.extend(["--model", checkpoint, "--seed", "9"]);
    let before = model_of(Path::new(&run));
    assert_fails(&ampoule(&arguments), "another run, of other seed");
    assert!(model_of(Path::new(&run)) == before);

    arguments.truncate(arguments.len() - 2);
    let noise = ["--set", "noise.words=0.2"];
    assert_fails(&ampoule(&[arguments.as_slice(), &noise].concat()), "another run, of other noise");
    assert_fails(
        &ampoule(&[arguments.as_slice(), &["--set", "noise.words=2"]].concat()),
        "noise: words and texts must be in 0..=1",
    );
    assert_fails(&ampoule(&[arguments.as_slice(), &["--set", "noise.typos=2"]].concat()), "typos");

    // So is a run on other data.
    let train = Path::new(corpus).join("train.tsv");
    let texts = fs::read_to_string(&train).unwrap();
    fs::write(&train, texts.replace("aspirin", "naloxone")).unwrap();
    let mut arguments = training("train", corpus, &run);
    arguments.extend(["--model", checkpoint]);
    assert_fails(&ampoule(&arguments), "another run, of other data");
    fs::write(&train, texts).unwrap();

    // The bundle of the trained model answers as the folder does.
    let (model, bundle) = (path("train-unbroken/model"), path("x.f32.safetensors"));
    let output = ampoule(&["quantize", "--model", &model, "--out", &bundle, "--precision", "f32", "--data", corpus]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let note = "the pain of aspirin .";
    let answer = |model: &str| text(&ampoule(&["extract", note, "--json", "--model", model]).stdout);
    assert_eq!(answer(&model), answer(&bundle));
    temperatures_are_fitted_and_shown(&model, corpus, folder.path());
    let table = ampoule(&["evaluate", "--model", &model, "--model", &bundle, "--data", corpus, "--json"]);
    let table: serde_json::Value = serde_json::from_slice(&table.stdout).unwrap();
    assert_eq!(table["models"][0]["pooled"]["f1"], table["models"][1]["pooled"]["f1"]);
    assert!(table["noise"].is_null() && table["models"][0]["pooled"]["noisy"].is_null(), "{table}");

    // Noise costs something, the same each time, and the clean scores are what they were.
    let evaluate = |options: &[&str]| {
        let output =
            ampoule(&[["evaluate", "--model", &model, "--data", corpus, "--dictionary"].as_slice(), options].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let noisy = evaluate(&["--json", "--noise", "0.9"]);
    assert_eq!(noisy, evaluate(&["--json", "--noise", "0.9", "--noise-seed", "1"]));
    assert_ne!(noisy, evaluate(&["--json", "--noise", "0.9", "--noise-seed", "2"]));
    let noisy: serde_json::Value = serde_json::from_str(&noisy).unwrap();
    assert_eq!((&noisy["noise"]["seed"], &noisy["noise"]["settings"]["words"]), (&1.into(), &0.9.into()));
    assert_eq!(noisy["models"][0]["pooled"]["f1"], table["models"][0]["pooled"]["f1"]);
    for model in noisy["models"].as_array().unwrap() {
        let f1 = |at: &serde_json::Value| at["f1"].as_f64().unwrap();
        let (clean, noisy, lost) = (&model["pooled"], &model["pooled"]["noisy"], &model["pooled"]["noisy"]["lost"]);
        assert_eq!(f1(clean) - f1(noisy), lost["difference"].as_f64().unwrap(), "{model}");
        assert!(f1(clean) > f1(noisy) && lost["high"].as_f64() >= lost["difference"].as_f64(), "{model}");
        assert_eq!(model["sets"][0]["noisy"]["scores"]["micro"]["f1"], noisy["f1"], "{model}");
    }
    let none = evaluate(&["--json", "--noise", "0"]);
    let none: serde_json::Value = serde_json::from_str(&none).unwrap();
    assert_eq!(none["models"][0]["pooled"]["noisy"]["lost"]["difference"], 0.0, "{none}");
    let shown = evaluate(&["--noise", "0.9", "--full-windows"]);
    assert!(shown.contains("F1 noisy") && shown.contains("lost (95 %)"), "{shown}");
    for share in ["1.5", "-0.1", "NaN"] {
        let share = format!("--noise={share}");
        assert_fails(&ampoule(&["evaluate", "--model", &model, "--data", corpus, &share]), "--noise is not a share");
    }
    for arguments in [["--noise", CANARY], ["--noise-seed", "3"]] {
        let output = ampoule(&[["evaluate", "--model", &model, "--data", corpus].as_slice(), &arguments].concat());
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("--noise") && !text(&output.stderr).contains(CANARY));
    }
    for command in [vec!["inspect", &bundle, "--verify", "--json"], vec!["inspect", &model, "--json"]] {
        let output = ampoule(&command);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["task"], "token-classification");
    }
}

/// A bundle has the temperature that is fitted on it, without data that of its checkpoint.
fn temperatures_are_fitted_and_shown(model: &str, corpus: &str, folder: &Path) {
    let json = |arguments: &[&str]| -> serde_json::Value {
        let output = ampoule(arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let temperature_of = |path: &str| json(&["inspect", path, "--json"])["temperature"].as_f64().unwrap() as f32;
    let own = temperature_of(model);
    assert!(own != 1.0 && temperature_of(model) == own);
    let [with, without] = ["with", "without"].map(|n| folder.join(n).to_str().unwrap().to_owned());
    let arguments = ["quantize", "--model", model, "--json", "--force", "--out"];
    let said = json(&[arguments.as_slice(), &[&with, "--data", corpus]].concat());
    let fitted = temperature_of(&with);
    assert_eq!(said["fit"]["temperature"].as_f64().unwrap() as f32, fitted);
    assert!(said["fit"]["nll_after"].as_f64().unwrap() < said["fit"]["nll_before"].as_f64().unwrap(), "{said}");
    let change = &said["report"]["temperature"];
    assert_eq!([&change["before"], &change["after"]].map(|t| t.as_f64().unwrap() as f32), [own, fitted]);
    let said = json(&[arguments.as_slice(), &[&without]].concat());
    assert!(said["fit"].is_null() && temperature_of(&without) == own, "{said}");

    let evaluate = ["evaluate", "--model", model, "--model", &with, "--data", corpus, "--split", "dev"];
    let said = json(&[evaluate.as_slice(), &["--json", "--dictionary"]].concat());
    for (i, temperature) in [Some(own), Some(fitted), None].into_iter().enumerate() {
        let found = &said["models"][i]["calibration"];
        assert_eq!(found["temperature"].as_f64().map(|t| t as f32), temperature);
        assert_eq!(found.get("at_one").is_some(), temperature.is_some());
        for at in ["at_one", "at_own"].into_iter().filter(|at| found.get(at).is_some()) {
            let bins = found[at]["bins"].as_array().unwrap();
            let count: u64 = bins.iter().map(|bin| bin["count"].as_u64().unwrap()).sum();
            assert!(bins.len() == 15 && count > 0 && found[at]["count"] == count, "{found}");
            assert!((0.0..=1.0).contains(&found[at]["ece"].as_f64().unwrap()), "{found}");
        }
    }
    // The fit of a model is that of its run and of its bundle.
    let said = json(&[evaluate.as_slice(), &["--json", "--fit", "--temperature", "2.5"]].concat());
    for (i, fit) in [own, fitted].into_iter().enumerate() {
        let found = &said["models"][i]["calibration"];
        assert_eq!(
            [&found["temperature"], &found["fit"]["temperature"]].map(|t| t.as_f64().unwrap() as f32),
            [2.5, fit]
        );
    }
    assert_fails(&ampoule(&["evaluate", "--model", model, "--data", corpus, "--fit"]), "cannot be measured on it");
    for temperature in ["0", "-1", "NaN"] {
        let refused = ampoule(&["extract", "aspirin", "--model", &with, "--temperature", temperature]);
        assert_fails(&refused, "temperature: expected a positive normal number");
    }
    let shown = text(&ampoule(&[evaluate.as_slice(), &["--reliability"]].concat()).stdout);
    assert!(shown.lines().next().unwrap().contains("  ECE at T 1 "), "{shown}");
    for temperature in [1.0, own, fitted] {
        assert!(shown.contains(&format!(" at temperature {temperature}: ")), "{shown}");
    }
    assert!(shown.lines().filter(|line| line.starts_with("0.933..1.000 ")).count() >= 3, "{shown}");
}

/// A mounted tmpfs, unmounted at the end; none where this user may not mount.
struct Mount(PathBuf);

impl Mount {
    fn new(path: PathBuf, options: &str) -> Option<Self> {
        fs::create_dir_all(&path).unwrap();
        let mount = Mount(path);
        mount.call(&["-t", "tmpfs", "-o", options, "tmpfs"]).then_some(mount)
    }

    fn call(&self, arguments: &[&str]) -> bool {
        let status = Command::new("mount").args(arguments).arg(&self.0).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).stderr(Stdio::null()).status();
    }
}

#[test]
fn a_full_disk_is_an_error_and_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::new(folder.path().join("small"), "size=400k") else {
        println!("skipped: this user cannot mount a small tmpfs");
        return;
    };
    let corpus = corpus(folder.path());
    let run = mount.0.join("run");
    let checkpoint = fixture("bert-token");
    let mut arguments = training("train", corpus.to_str().unwrap(), run.to_str().unwrap());
    arguments.extend(["--model", checkpoint.to_str().unwrap()]);
    let output = ampoule(&arguments);
    let state = fs::metadata(run.join("state.safetensors")).map(|m| m.len());
    let left: Vec<_> = everything_in(&mount.0).into_iter().map(|(path, _)| path).collect();
    assert_fails(&output, "No space left on device");
    assert!(text(&output.stderr).contains("try: free some space"));
    assert!(left.iter().all(|path| !path.to_string_lossy().contains(".new")), "{left:?}");
    assert!(state.is_err() || state.is_ok_and(|bytes| bytes > 0));
}

#[test]
fn a_read_only_folder_is_an_error_and_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::new(folder.path().join("still"), "size=64m") else {
        println!("skipped: this user cannot mount a tmpfs");
        return;
    };
    let (corpus, checkpoint) = (corpus(folder.path()), fixture("bert-token"));
    let (run, bundle) = (mount.0.join("run"), mount.0.join("x.safetensors"));
    let mut training = training("train", corpus.to_str().unwrap(), run.to_str().unwrap());
    training.extend(["--model", checkpoint.to_str().unwrap()]);
    let quantize = |force| {
        let mut arguments = vec!["quantize", "--model", checkpoint.to_str().unwrap(), "--precision", "f32"];
        arguments.extend(["--data", corpus.to_str().unwrap(), "--out", bundle.to_str().unwrap()]);
        arguments.extend(force);
        ampoule(&arguments)
    };
    let finished = ampoule(&training);
    assert!(finished.status.success(), "{}", text(&finished.stderr));
    assert!(quantize(None).status.success());
    let before = everything_in(&mount.0);
    assert!(mount.call(&["-o", "remount,ro"]));
    // The finished run is only read.
    let other = mount.0.join("other");
    training[4] = other.to_str().unwrap();
    assert_fails(&ampoule(&training), "Read-only file system");
    assert_fails(&quantize(Some("--force")), "Read-only file system");
    assert!(everything_in(&mount.0) == before);
}

#[test]
fn classifiers_are_trained_quantized_and_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let sentence = |i: usize| ["the pain of a patient", "aspirin and naloxone .", "a pain , aspirin ."][i % 3];
    for (kind, head, field) in [("single", "bert-encoder", "label"), ("multi", "distilbert-encoder", "labels")] {
        let labels = |i: usize| match (kind, i % 3) {
            ("single", i) => serde_json::json!(["symptom", "drug", "both"][i]),
            (_, i) => serde_json::json!([["symptom"].as_slice(), &["drug"], &["drug", "symptom"]][i]),
        };
        let corpus = path(&format!("{kind}-corpus"));
        fs::create_dir_all(&corpus).unwrap();
        for (file, texts) in [("train", 90), ("dev", 12), ("test", 12)] {
            let line =
                |i| serde_json::json!({"text": format!("{CANARY} {}", sentence(i)), field: labels(i)}).to_string();
            let lines: Vec<String> = (0..texts).map(line).collect();
            fs::write(format!("{corpus}/{file}.jsonl"), lines.join("\n")).unwrap();
        }
        let (run, bundle, checkpoint) = (path(kind), path(&format!("{kind}.safetensors")), fixture(head));
        let mut arguments = training("train", &corpus, &run);
        arguments[6] = "12"; // epochs
        // So small a model learns these three sentences at every seed so, and not with dropout and a rate of 0.01.
        arguments.extend(["--set", "dropout=0", "--set", "optimizer.learning_rate=0.003"]);
        arguments.extend(["--model", checkpoint.to_str().unwrap()]);
        arguments.extend((kind == "multi").then_some("--multi-label"));
        let output = ampoule(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));

        let model = format!("{run}/model");
        // A student narrower than its teacher, and one that is a plain encoder.
        let narrow = ["--layers", "2", "--hidden", "16"];
        for (name, start) in [("narrow", narrow.as_slice()), ("own", &["--student", checkpoint.to_str().unwrap()])] {
            let run = path(&format!("{kind}-{name}"));
            let mut arguments = training("distill", &corpus, &run);
            arguments[6] = "1"; // epochs
            arguments.extend(["--teacher", &model]);
            arguments.extend(start);
            arguments.extend(if name == "own" { &["--precision", "int8"][..] } else { &[] });
            let output = ampoule(&arguments);
            assert!(output.status.success(), "{}", text(&output.stderr));
            let config: serde_json::Value =
                serde_json::from_slice(&fs::read(format!("{run}/model/config.json")).unwrap()).unwrap();
            let width = config.get("hidden_size").or(config.get("dim")).unwrap();
            assert_eq!(width, if name == "narrow" { 16 } else { 32 });
            let log = fs::read_to_string(format!("{run}/log.jsonl")).unwrap();
            assert_eq!(log.contains("\"relations\":"), name == "narrow", "{log}");
            // A stage in int8 more, and its bundle.
            assert_eq!(log.contains("\"stage\":2"), name == "own", "{log}");
            assert_eq!(Path::new(&run).join("model.int8.safetensors").exists(), name == "own");
            assert_eq!(config["ampoule_quantization_aware"] == true, name == "own");
        }
        let output = ampoule(&["quantize", "--model", &model, "--out", &bundle, "--data", &corpus]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let output = ampoule(&["evaluate", "--json", "--model", &model, "--model", &bundle, "--data", &corpus]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        for model in said["models"].as_array().unwrap() {
            assert!(model["scores"]["macro_f1"].as_f64().unwrap() > 0.95, "{kind}: {said}");
        }

        let output = ampoule(&["evaluate", "--json", "--noise", "0.9", "--model", &bundle, "--data", &corpus]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let noisy: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let (clean, noisy) = (&noisy["models"][0]["scores"], &noisy["models"][0]["noisy"]);
        assert_eq!(clean, &said["models"][1]["scores"]);
        for score in ["accuracy", "macro_f1"] {
            let lost = clean[score].as_f64().unwrap() - noisy["scores"][score].as_f64().unwrap();
            let said = &noisy["lost"][score];
            assert!((said["difference"].as_f64().unwrap() - lost).abs() < 1e-12 && said["p"].is_f64(), "{noisy}");
        }
        let shown = text(&ampoule(&["evaluate", "--noise", "0.9", "--model", &bundle, "--data", &corpus]).stdout);
        assert!(shown.contains("F1 macro noisy"), "{shown}");

        let input: String = (0..3).map(|i| format!("{CANARY} {}\n", sentence(i))).collect();
        let output = with_stdin(&["classify", "--json", "--model", &bundle, "-"], input.as_bytes());
        assert!(output.status.success(), "{}", text(&output.stderr));
        for (i, line) in text(&output.stdout).lines().enumerate() {
            let said: serde_json::Value = serde_json::from_str(line).unwrap();
            let scored: Vec<(&str, f64)> = said["labels"]
                .as_array()
                .unwrap()
                .iter()
                .map(|label| (label["label"].as_str().unwrap(), label["score"].as_f64().unwrap()))
                .collect();
            let sum: f64 = scored.iter().map(|(_, score)| score).sum();
            let mut found: Vec<&str> =
                scored.iter().filter(|(_, score)| *score > 0.5).map(|(label, _)| *label).collect();
            found.sort_unstable();
            if kind == "single" {
                assert!((sum - 1.0).abs() < 1e-5, "{line}");
                assert_eq!(serde_json::json!(found), serde_json::json!([labels(i)]));
            } else {
                assert_eq!(serde_json::json!(found), labels(i));
            }
        }
    }
}

#[test]
fn the_tiny_recipe_ends_well_above_a_dictionary() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/produce/tiny.sh"))
        .env("AMPOULE", env!("CARGO_BIN_EXE_ampoule"))
        .arg(folder.path())
        .arg("--json")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said: serde_json::Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
    let models = said["models"].as_array().unwrap();
    let f1 = |i: usize| models[i]["pooled"]["f1"].as_f64().unwrap();
    println!("teacher {:.4}, student {:.4}, bundle {:.4}, dictionary {:.4}", f1(0), f1(1), f1(2), f1(3));
    assert_eq!(models[3]["model"], "dictionary");
    assert!((0..3).all(|model| f1(model) >= f1(3) + 0.05), "{said}");
}

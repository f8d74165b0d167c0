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
fn a_line_says_which_device_computed_it_where_there_is_a_choice() {
    let line = |device: &str| -> serde_json::Value {
        serde_json::from_slice(&ampoule(&["extract", "aspirin", "--json", "--device", device]).stdout).unwrap()
    };
    assert!(line("cpu").get("computed").is_none());
    let computed = &line("gpu-or-cpu")["computed"];
    // The special tokens are counted.
    assert!(computed["cpu_tokens"].as_u64().unwrap() >= 3, "{computed}");
    assert_eq!(computed["gpu_tokens"], 0);
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
        &["extract", "--jsno"],
        &["extract", "--devcie", "cpu", &canary],
        &["extract", "--linse", "--file", "x"],
        &["doctor", &canary],
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
    assert!(usage(&["extract", "--devcie", "cpu", "x"]).contains("--devcie: there is no such option"));
    assert_eq!(
        text(&ampoule(&["extract", "--", "--aspirin"]).stdout).split_whitespace().next(),
        Some("--[aspirin](Chemical")
    );
    assert_fails(&ampoule(&["extract", &canary, "--jsonl"]), "--jsonl");
    assert_fails(&ampoule(&["extract", &canary, "--adapter", "x"]), "--adapter");
    assert_fails(&ampoule(&["extract", &canary, "--device", "gpu", "--gpu-from-tokens", "9"]), "--gpu-from-tokens");
    let data = corpus(folder.path());
    let run = path("run");
    let mut train = training("train", data.to_str().unwrap(), &run);
    train.extend(["--model", encoder.to_str().unwrap(), "--adapter", "x"]);
    assert_fails(&ampoule(&train), "adapter names a GPU");
    assert_fails(&ampoule(&["extract", "x", "--window", "4096"]), "windows of 4096 tokens: this model takes 3 to 128");
    let bundle = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/clinical-en.int8.safetensors");
    for more in [["--data", "none"].as_slice(), &["--precision", "f16"], &["--licence", "none"], &["--all"]] {
        let quantize = ["quantize", "--model", bundle, "--out", &path("out")];
        assert_fails(&ampoule(&[quantize.as_slice(), more].concat()), "only golden cases can be made");
    }
    // The embedded bundle has golden cases, so that writing it again with them changes nothing.
    let renewed = ampoule(&["quantize", "--model", bundle, "--out", &path("renewed")]);
    assert!(renewed.status.success(), "{renewed:?}");
    assert_eq!(std::fs::read(path("renewed")).unwrap(), std::fs::read(bundle).unwrap());
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
    let entity = |start: usize, score: f32| {
        format!("{{\"start\": {start}, \"end\": {}, \"label\": \"Disease\", \"score\": {score}}}", start + 3)
    };
    let line = |entities: &str| format!("{{\"text\": \"{CANARY}\", \"entities\": [{entities}]}}\n");
    let cases = cases.into_iter().chain([
        ("train.jsonl", line(&format!("{}, {}", entity(0, 1.0), entity(2, 1.0))), "overlaps"),
        ("train.jsonl", line(&entity(0, 1.5)), "its score 1.5 is not in 0..=1"),
        ("train.jsonl", line(&entity(0, 0.5)), "too few to hold some out"),
    ]);
    for (i, (file, content, part)) in cases.enumerate() {
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
        (lower.to_owned(), "no model has any label of the data"),
        (format!("{lower}=Disease"), "labels that it marks: 1"),
    ] {
        assert_fails(&ampoule(&["evaluate", "--model", model, "--data", &data]), part);
        if data.starts_with(&sound) && !data.starts_with(&test) {
            assert_fails(&ampoule(&["quantize", "--model", model, "--data", &data, "--out", out_text]), part);
            assert_fails(&ampoule(&["train", "--model", model, "--data", &data, "--run", run_text]), part);
        }
    }
    // Of labels some of which are the model's, those that are not are counted and told of, not quoted.
    fs::write(lower, "the\tO\npain\tB-disease\n\nthe\tO\nache\tB-Disease\n").unwrap();
    let output = ampoule(&["evaluate", "--model", model, "--data", lower]);
    let told = text(&output.stderr);
    assert!(
        output.status.success() && told.contains("1 of its 2 labels no model has") && !told.contains("disease"),
        "{told}"
    );
    let below = ampoule(&["quantize", "--model", model, "--out", out_text, "--max-loss", "-5"]);
    assert!(
        below.status.code() == Some(2) && text(&below.stderr).contains("as in --option=-5"),
        "{}",
        text(&below.stderr)
    );
    // A head is not new where the model has the data's labels; else a label that a file covers and never marks teaches nothing.
    let untaught = folder.path().join("untaught");
    fs::create_dir_all(&untaught).unwrap();
    let line = r#"{"text": "a", "entities": [{"start": 0, "end": 1, "label": "Sign"}], "covers": ["Sign", "Test"]}"#;
    fs::write(untaught.join("train.jsonl"), line).unwrap();
    fs::write(untaught.join("dev.jsonl"), line).unwrap();
    let train = ["train", "--model", model, "--data", untaught.to_str().unwrap(), "--run", run_text];
    assert_fails(&ampoule(&train), "no train file marks 1 of the ");
    // What an entity says in the place of its label would stand in the model.
    let marked = |label: &str| {
        serde_json::json!({"text": "a", "entities": [{"start": 0, "end": 1, "label": label}]}).to_string() + "\n"
    };
    let swapped: String = (0..20).map(|i| marked(&format!("{CANARY} {i}"))).collect();
    fs::write(untaught.join("train.jsonl"), &swapped).unwrap();
    fs::write(untaught.join("dev.jsonl"), marked(&format!("{CANARY} 0"))).unwrap();
    assert_fails(&ampoule(&train), "21 entities have 20 labels, so most are there once");
    fs::write(untaught.join("train.jsonl"), marked("Sign").repeat(20) + &marked(CANARY)).unwrap();
    fs::write(untaught.join("dev.jsonl"), marked("Sign")).unwrap();
    let dump = folder.path().join("dump");
    let output = ampoule(&[train.as_slice(), &["--dump-batches", dump.to_str().unwrap()]].concat());
    let told = text(&output.stderr);
    assert!(told.contains("1 of 2 labels are of one entity alone") && !told.contains(CANARY), "{told}");
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

/// From limits to a bundle: shapes that fit, some tried, the best trained to the end, and the same by the command that was said.
#[test]
fn a_budget_becomes_a_student_that_fits() {
    let folder = tempfile::tempdir().unwrap();
    let produce = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/produce");
    let [start, data, teacher, run] =
        [produce.join("start"), produce.join("data/ncbi"), folder.path().join("teacher"), folder.path().join("run")];
    let [start, data, teacher_run, run_text] = [&start, &data, &teacher, &run].map(|path| path.to_str().unwrap());
    let few = ["--set", "steps=12", "--set", "batch_size=4", "--set", "optimizer.learning_rate=1e-3", "--threads", "2"];
    let train = ["train", "--model", start, "--data", data, "--run", teacher_run];
    let output = ampoule(&[train.as_slice(), &few].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));

    let model = teacher.join("model");
    let distill =
        ["distill", "--teacher", model.to_str().unwrap(), "--data", data, "--run", run_text, "--vocabulary", "900"];
    let distill = [distill.as_slice(), &few].concat();
    let with = |more: &[&str]| ampoule(&[&distill[..], more].concat());
    let budget = ["--budget", "0.3 MB, 1000 ms@64", "--tries", "2"];
    let objects = |output: &Output| -> Vec<serde_json::Value> {
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };

    // What cannot be is said before anything is made.
    for (more, part) in [
        (["--budget", "4 apples"].as_slice(), "budget \"4 apples\": expected a size in kB"),
        (&["--budget", "0.3 MB", "--tries", "0"], "--tries 0"),
        (&["--budget", "0.3 MB", "--device-threads", "0"], "--device-threads 0"),
        (&["--budget", "5 ms@4000"], "this teacher reads 3 to 128 tokens at once"),
        (&["--budget", "5 kB"], "no student of this teacher fits 0.005 MB: the smallest takes 0."),
        (&["--budget", "0.3 MB", "--embedding", "900"], "embeddings 900 wide"),
        (
            &["--budget", "0.3 MB", "--set", r#"terms=[{"term":"hidden","weight":1,"layer_map":[[1,1]]}]"#],
            "a layer_map",
        ),
    ] {
        assert_fails(&with(more), part);
        assert!(!run.exists());
    }
    assert_fails(&with(&["--budget", "0.000001 ms@64"]), "of those small enough, the fastest takes");
    for more in [["--layers", "1"], ["--student", start]] {
        assert_eq!(with(&[budget.as_slice(), &more].concat()).status.code(), Some(2));
    }
    assert_eq!(with(&["--tries", "2"]).status.code(), Some(2));
    let without = ampoule(&["distill", "--data", data, "--run", run_text, "--budget", "4 MB"]);
    assert!(without.status.code() == Some(2) && text(&without.stderr).contains("--teacher <FOLDER>: missing"));

    // A plan binds nobody to its budget.
    assert!(with(&["--budget", "0.31 MB", "--plan"]).status.success());
    let planned = objects(&with(&[budget.as_slice(), &["--plan", "--json"]].concat()));
    assert_eq!(planned.len(), 2);
    let shapes = planned[0]["shapes"].as_array().unwrap();
    let tried: Vec<&serde_json::Value> = shapes.iter().filter(|shape| !shape["try"].is_null()).collect();
    assert_eq!(tried.len(), 2);
    for shape in shapes {
        let is_too_large = shape["bytes"].as_u64().unwrap() > 300_000;
        assert_eq!(shape["breaks"] == "bytes", is_too_large, "{shape}");
    }
    assert!(shapes.iter().any(|shape| shape["breaks"] == "bytes"));
    // Two steps in twelve, and one of the last stage's as many.
    let tries = planned[1]["plan"]["tries"].as_array().unwrap();
    assert!(tries.iter().all(|one| one["steps"] == 4 && one["seconds"].as_f64().unwrap() > 0.0), "{}", planned[1]);
    assert!(!run.join("model").exists() && fs::read_dir(run.join("budget")).unwrap().count() == 1);

    let said = objects(&with(&[budget.as_slice(), &["--json"]].concat()));
    assert_eq!(said[0], planned[0], "a search that was made is not made again");
    let of = |name: &str| said.iter().find_map(|object| object.get(name)).unwrap();
    let best = of("best");
    assert!(tried.iter().any(|shape| shape["layers"] == best["layers"] && shape["bytes"] == best["bytes"]));
    let scores: Vec<f64> =
        of("tries").as_array().unwrap().iter().map(|one| one["dev_score"].as_f64().unwrap()).collect();
    assert_eq!(scores.len(), 2);
    let bundle = run.join("model.int8.safetensors");
    let written = fs::metadata(&bundle).unwrap().len();
    let expected = best["bytes"].as_u64().unwrap();
    assert!((written..=written + 8).contains(&expected), "{expected} said, {written} written");
    assert!(of("bundle")["bytes"] != written || said.last().unwrap()["bundle"]["breaks"].is_null());
    for entry in fs::read_dir(run.join("budget")).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        assert!(entry.path().join("model/config.json").is_file());
    }

    // Killed after its first try, it goes on with the same shapes, and ends with the same student.
    let (model, log) = (model_of(&run), fs::read_to_string(run.join("log.jsonl")).unwrap());
    for entry in fs::read_dir(&run).unwrap().flatten().filter(|entry| entry.file_name() != "budget") {
        match entry.path() {
            path if path.is_dir() => fs::remove_dir_all(path).unwrap(),
            path => fs::remove_file(path).unwrap(),
        }
    }
    let second = fs::read_dir(run.join("budget")).unwrap().flatten().map(|e| e.path()).filter(|p| p.is_dir()).max();
    fs::remove_dir_all(second.unwrap()).unwrap();
    let output = with(&budget);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(
        shown.contains("tries left: 1 of 4 steps") && shown.contains("dev F1") && shown.contains(": fits 0.3 MB"),
        "{shown}"
    );
    assert!(model_of(&run) == model && fs::read_to_string(run.join("log.jsonl")).unwrap() == log);

    // The command that is shown is for the same run: there is nothing left of it to do.
    let command = shown.lines().find(|line| line.starts_with("  ampoule distill ")).unwrap();
    let arguments: Vec<&str> = command.split_whitespace().skip(1).collect();
    let output = ampoule(&arguments);
    assert!(output.status.success() && !command.contains("--budget"), "{command}: {}", text(&output.stderr));
    assert!(model_of(&run) == model);
    assert_fails(&with(&["--budget", "0.31 MB"]), "is of a search for another budget");
}

#[test]
fn what_was_meant_is_said_where_something_else_was_named() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (corpus, run, again) = (corpus.to_str().unwrap(), path("run"), path("again"));
    let start = fixture("bert-token");
    let start = start.to_str().unwrap();
    let once = ["train", "--model", start, "--data", corpus, "--epochs", "1"];
    let with = |more: &[&str]| ampoule(&[once.as_slice(), more].concat());
    assert!(with(&["--threads", "1", "--run", &run]).status.success());
    // A run's own settings, as they lie there.
    let output = with(&["--config", &format!("{run}/config.json"), "--run", &again]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(model_of(Path::new(&run)) == model_of(Path::new(&again)));

    let model = format!("{run}/model");
    for verb in [["evaluate", "--data", corpus], ["quantize", "--out", "x.safetensors"]] {
        assert_fails(&ampoule(&[verb.as_slice(), &["--model", &run]].concat()), "run/model is one");
    }
    assert_fails(&ampoule(&["report", "--run", &model, "--data", corpus]), "run/model: not the folder of a run");
    let bundle = path("model.int8.safetensors");
    assert!(ampoule(&["quantize", "--model", &model, "--out", &bundle]).status.success());
    let train = ["train", "--model", &bundle, "--data", corpus, "--run", "x"];
    assert_fails(&ampoule(&train), "a file; a checkpoint is a folder");
    // It would end with a bundle of that name.
    let taken = folder.path().to_str().unwrap();
    assert_fails(&with(&["--run", taken]), "holds \"model.int8.safetensors\", which a run would write over");
    fs::write(path("empty.txt"), "\n\n").unwrap();
    let empty = path("empty.txt");
    let distill =
        ["distill", "--teacher", start, "--layers", "1", "--data", corpus, "--run", "x", "--transfer", &empty];
    assert_fails(&ampoule(&distill), "empty.txt: no text in it");
    let labels = path("labels.jsonl");
    let one = path("one");
    fs::create_dir(&one).unwrap();
    for file in ["train.jsonl", "dev.jsonl"] {
        fs::write(Path::new(&one).join(file), r#"{"text": "the pain", "label": "odd"}"#).unwrap();
    }
    let encoder = fixture("bert-encoder").to_str().unwrap().to_owned();
    let train = ["train", "--model", &encoder, "--data", &one, "--run", "x"];
    assert_fails(&ampoule(&train), "all texts have the same label");
    let swapped = |i| serde_json::json!({"text": "pain", "label": format!("{CANARY} {i}")}).to_string();
    fs::write(Path::new(&one).join("train.jsonl"), (0..20).map(swapped).collect::<Vec<_>>().join("\n")).unwrap();
    assert_fails(&ampoule(&train), "21 texts have 21 labels");
    let sound = |i| serde_json::json!({"text": "pain", "label": if i % 2 == 0 { "odd" } else { "even" }}).to_string();
    let one_swapped = (0..20).map(sound).chain([swapped(0)]).collect::<Vec<_>>();
    fs::write(Path::new(&one).join("train.jsonl"), one_swapped.join("\n")).unwrap();
    // What is told comes before the error, which ends the command before it trains.
    let told = text(&ampoule(&[train.as_slice(), &["--dump-batches", &path("batches")]].concat()).stderr);
    assert!(told.contains("1 of 3 labels are of one text alone") && !told.contains(CANARY), "{told}");
    // A note in a label's place, and labels that nobody has.
    let classifier = fixture("bert-sequence");
    for (label, part) in [
        (format!("{CANARY} ").repeat(9), "its label has 81 characters"),
        (CANARY.into(), "no model has any label of the data"),
    ] {
        fs::write(&labels, serde_json::json!({"text": "the pain", "label": label}).to_string()).unwrap();
        assert_fails(&ampoule(&["evaluate", "--model", classifier.to_str().unwrap(), "--data", &labels]), part);
        let quantize = ["quantize", "--model", classifier.to_str().unwrap(), "--out", "x.safetensors"];
        fs::copy(&labels, Path::new(&one).join("dev.jsonl")).unwrap();
        assert_fails(&ampoule(&[quantize.as_slice(), &["--data", &one]].concat()), part);
    }
    // Options that would do nothing.
    let train = ["train", "--model", start, "--data", corpus, "--run", "x"];
    fs::write(&empty, "a text").unwrap();
    assert_fails(&ampoule(&[train.as_slice(), &["--transfer", &empty]].concat()), "need a teacher");
    assert_fails(&ampoule(&[train.as_slice(), &["--multi-label"]].concat()), "no labels of whole texts");
    for option in ["--dictionary", "--full-windows"] {
        let evaluate = ["evaluate", "--model", classifier.to_str().unwrap(), "--data", &labels, option];
        assert_fails(&ampoule(&evaluate), &format!("{option} is for entities"));
    }
    assert_fails(
        &ampoule(&["evaluate", "--model", start, "--data", &format!("{labels}=odd")]),
        "=LABELS is for entities",
    );
    for unused in [["--max-loss", "2"].as_slice(), &["--force"], &["--offsets", "chars"]] {
        let quantize = ["quantize", "--model", &model, "--out", "x.safetensors"];
        let refused = ampoule(&[quantize.as_slice(), unused].concat());
        let said = text(&refused.stderr);
        assert!(refused.status.code() == Some(2) && said.contains("--data"), "{said}");
    }
    // A dev file from which nothing could be measured, and a teacher that teaches nothing.
    let unmarked = path("dev.jsonl");
    fs::write(&unmarked, r#"{"text": "the pain", "entities": []}"#).unwrap();
    let quantize = ["quantize", "--model", &model, "--out", "x.safetensors", "--data", &format!("{unmarked}=Disease")];
    assert_fails(&ampoule(&quantize), "no entity is marked");
    let hard = r#"terms=[{"term": "hard", "weight": 1}, {"term": "soft_targets", "weight": 0, "temperature": 2}]"#;
    let distill = ["distill", "--teacher", start, "--layers", "1", "--data", corpus, "--plan", "--run", "x"];
    for (more, is_told) in [([].as_slice(), false), (&["--set", hard], true)] {
        let output = ampoule(&[distill.as_slice(), more].concat());
        let said = text(&output.stderr);
        assert!(output.status.success() && said.contains("no loss term needs a teacher") == is_told, "{said}");
    }
    // Another's folder is told of before anything is read.
    for verb in [vec!["train", "--model", "nowhere"], vec!["distill", "--teacher", "nowhere", "--budget", "4 MB"]] {
        let others = [verb.as_slice(), &["--plan", "--data", "nowhere", "--run", start]].concat();
        assert_fails(&ampoule(&others), "config.json: not a run's; name a new folder");
    }
}

#[test]
fn offsets_in_another_unit_are_noticed_and_a_file_alone_is_parted_as_it_was_in_training() {
    let folder = tempfile::tempdir().unwrap();
    let (file, run, bundle) = ["a.jsonl", "run", "b.safetensors"].map(|name| folder.path().join(name)).into();
    let line = |i: usize| {
        let entity = serde_json::json!({"start": 4, "end": 11, "label": "Chemical"});
        serde_json::json!({"text": format!("é {} aspirin of {}", char::from(b'a' + (i % 26) as u8), i), "entities": [entity]})
    };
    fs::write(&file, (0..120).map(|i| line(i).to_string() + "\n").collect::<String>()).unwrap();
    let (model, [file, run, bundle]) =
        (fixture("bert-token"), [&file, &run, &bundle].map(|path| path.to_str().unwrap()));
    let data = format!("{file}=Chemical,Disease");
    let train = ["train", "--model", model.to_str().unwrap(), "--data", &data, "--run", run, "--epochs", "1"];
    let as_bytes = ampoule(&[train.as_slice(), &["--plan"]].concat());
    let warned = text(&as_bytes.stderr);
    assert!(as_bytes.status.success() && warned.contains("120 of 120 entities begin or end inside a word"), "{warned}");
    let output = ampoule(&[train.as_slice(), &["--offsets", "chars"]].concat());
    let said = text(&output.stderr);
    let held_out = |said: &str| said.lines().find(|line| line.contains("texts are held out")).map(str::to_owned);
    assert!(output.status.success() && !said.contains("inside a word") && held_out(&said).is_some(), "{said}");
    let model = format!("{run}/model");
    let quantize = ["quantize", "--model", &model, "--data", &data, "--offsets", "chars", "--force", "--out", bundle];
    let output = ampoule(&quantize);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(held_out(&text(&output.stderr)), held_out(&said));
    // A dev file is whole.
    let dev = folder.path().join("dev.jsonl");
    fs::copy(file, &dev).unwrap();
    let dev = format!("{}=Chemical,Disease", dev.display());
    let json = |data: &str| -> serde_json::Value {
        let quantize = ["quantize", "--json", "--model", &model, "--data", data, "--offsets", "chars", "--force"];
        serde_json::from_slice(&ampoule(&[quantize.as_slice(), &["--out", bundle]].concat()).stdout).unwrap()
    };
    let judgements = |data: &str| json(data)["fit"]["judgements"].as_u64().unwrap();
    assert!(judgements(&dev) > 10 * judgements(&data), "{} of {}", judgements(&data), judgements(&dev));
}

#[test]
fn a_student_made_of_another_model_learns_from_several_teachers_of_other_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(folder.path());
    let (corpus, run) = (corpus.to_str().unwrap(), folder.path().join("run"));
    let [first, second, student] =
        ["roberta-token", "bert-token", "distilbert-encoder"].map(|name| fixture(name).to_str().unwrap().to_owned());
    let cache = folder.path().join("cache").to_str().unwrap().to_owned();
    let mut arguments = training("distill", corpus, run.to_str().unwrap());
    arguments.extend(["--teacher", &first, "--teacher", &second, "--student", &student, "--cache", &cache]);
    let with = |more: &[&str]| ampoule(&[&arguments[..], more].concat());
    let refused = r#"terms=[{"term": "attention", "weight": 1, "layer_map": [[1, 1]], "heads": 4}]"#;
    assert_fails(&with(&["--layers", "2", "--set", refused]), "\"attention\" compares states, which several teachers");
    assert!(!run.exists());
    let terms = r#"terms=[{"term": "soft_targets", "weight": 1, "temperature": 2}, {"term": "spans", "weight": 1}]"#;
    let output = with(&["--layers", "2", "--set", terms]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let config: serde_json::Value = serde_json::from_slice(&fs::read(run.join("model/config.json")).unwrap()).unwrap();
    assert_eq!((&config["model_type"], &config["n_layers"]), (&"distilbert".into(), &1.into()));
    let run = fs::read_to_string(run.join("config.json")).unwrap();
    let run: serde_json::Value = serde_json::from_str(&run).unwrap();
    assert_eq!(run["teacher_sha256"].as_array().map(Vec::len), Some(2), "{run}");
}

/// Nobody reads what it prints, and its terminal closes, which `nohup` says to ignore; what is not ignored saves the run.
#[cfg(target_os = "linux")]
#[test]
fn a_run_goes_on_without_its_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (run, checkpoint) = (path("run"), fixture("bert-token").to_str().unwrap().to_owned());
    let distill = |hangup: &str, run: &str, more: &[&str]| {
        let of = [
            "distill",
            "--teacher",
            &checkpoint,
            "--layers",
            "2",
            "--data",
            corpus.to_str().unwrap(),
            "--threads",
            "1",
        ];
        // A shell cannot take back what it was begun with, as under `nohup` itself.
        let mut child = Command::new("env")
            .args([&format!("--{hangup}-signal=HUP"), env!("CARGO_BIN_EXE_ampoule")])
            .args([of.as_slice(), &["--run", run], more].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        child
    };
    let lines = || fs::read_to_string(Path::new(&run).join("log.jsonl")).unwrap_or_default();
    let goes_on = |child: &mut std::process::Child| {
        let before = lines().lines().count();
        while lines().lines().count() < before + 20 {
            assert!(child.try_wait().unwrap().is_none(), "it ended");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    let kill = |child: &std::process::Child, signal: &str| {
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    };
    for (hangup, signal) in [("ignore", "-TERM"), ("default", "-HUP")] {
        let mut child = distill(hangup, &run, &["--epochs", "9000", "--set", "steps=9000"]);
        goes_on(&mut child);
        if signal == "-TERM" {
            kill(&child, "-HUP");
            goes_on(&mut child);
        }
        kill(&child, signal);
        if signal == "-HUP" {
            kill(&child, signal);
        }
        assert_eq!(child.wait().unwrap().code(), Some(1), "{signal}");
        let state = fs::read(Path::new(&run).join("state.safetensors")).unwrap();
        let header = u64::from_le_bytes(state[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&state[8..8 + header]).unwrap();
        let saved: serde_json::Value = serde_json::from_str(header["__metadata__"]["state"].as_str().unwrap()).unwrap();
        let steps = lines().lines().filter(|line| line.starts_with("{\"step\"")).count();
        assert_eq!(saved["step"].as_u64(), Some(steps as u64), "{signal}");
    }

    let whole = path("whole");
    let more = ["--epochs", "1", "--vocabulary", "80", "--precision", "int8"];
    assert!(distill("default", &whole, &more).wait().unwrap().success());
    assert!(Path::new(&whole).join("model.int8.safetensors").is_file());
    assert!(fs::read_to_string(Path::new(&whole).join("log.jsonl")).unwrap().contains("\"start\""));

    // What is no bundle is not written over.
    let model = format!("{whole}/model");
    let weights = format!("{model}/model.safetensors");
    let before = fs::read(&weights).unwrap();
    assert_fails(&ampoule(&["quantize", "--model", &model, "--out", &weights]), "is there, and is no bundle");
    assert!(fs::read(&weights).unwrap() == before);
    let bundle = format!("{whole}/model.int8.safetensors");
    let output = ampoule(&["quantize", "--model", &model, "--out", &bundle]);
    assert!(output.status.success(), "{}", text(&output.stderr));
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
        {"noise": {"words": 0.2, "texts": 0.5}, "patience": 1, "evaluations_per_epoch": 3},
        {"epochs": 1, "precision": "int8", "optimizer": {"learning_rate": 1e-3}}]"#;
    for (verb, start) in [
        ("train", vec!["--model", checkpoint]),
        ("distill", vec!["--teacher", checkpoint, "--layers", "2", "--set", stages]),
    ] {
        let unbroken = path(&format!("{verb}-unbroken"));
        let mut arguments = training(verb, corpus, &unbroken);
        arguments.extend(&start);
        let planned = ampoule(&[arguments.as_slice(), &["--plan", "--json"]].concat());
        assert!(planned.status.success() && !Path::new(&unbroken).exists(), "{}", text(&planned.stderr));
        let planned: serde_json::Value = serde_json::from_slice(&planned.stdout).unwrap();
        let shown = text(&ampoule(&[arguments.as_slice(), &["--plan"]].concat()).stdout);
        assert!(shown.contains("minutes with 2 threads"), "{shown}");
        let begun = std::time::Instant::now();
        let output = ampoule(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let whole = begun.elapsed();
        let expected = model_of(Path::new(&unbroken));
        let log = fs::read_to_string(format!("{unbroken}/log.jsonl")).unwrap();
        let last: serde_json::Value = log
            .lines()
            .rev()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .find(|l| l["step"].is_object())
            .unwrap();
        let stages = planned["stages"].as_array().unwrap();
        let sum = |name: &str| stages.iter().map(|stage| stage[name].as_f64().unwrap()).sum::<f64>();
        assert_eq!(Some(sum("steps")), last["step"]["steps"].as_f64(), "{planned}");
        assert!(sum("tokens") > sum("steps") && planned["seconds"].as_f64() > Some(0.0), "{planned}");
        // Finished again, it is the same: its temperature too.
        assert!(ampoule(&arguments).status.success());
        assert!(model_of(Path::new(&unbroken)) == expected);
        let config = fs::read_to_string(format!("{unbroken}/model/config.json")).unwrap();
        assert!(config.contains("\"ampoule_temperature\": "), "{config}");

        for kill in 0..kills {
            let run = path(&format!("{verb}-killed-{kill}"));
            let mut arguments = training(verb, corpus, &run);
            arguments.extend(&start);
            // The teacher's answers, which killed runs leave half written, change nothing.
            let cache = path("cache");
            if verb == "distill" {
                arguments.extend(["--cache", &cache]);
            }
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

    let answers = fs::read(Path::new(&path("cache")).join("answers.bin")).unwrap();
    assert!(answers.len() > 1000 && !answers.windows(CANARY.len()).any(|w| w == CANARY.as_bytes()));

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
            r#"stages=[{"epochs": 1}, {"epochs": 2}]"#,
            "--epochs changes nothing: each of the run's stages has its own epochs",
        ),
        (
            r#"stages=[{"epochs": 1, "window": 32}, {"window": 40}]"#,
            "--set changes nothing: each of the run's stages has its own window",
        ),
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

    // And one by another tokenizer.
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    for file in fs::read_dir(checkpoint).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), other.join(file.file_name())).unwrap();
    }
    fs::write(other.join("tokenizer_config.json"), r#"{"do_lower_case": false, "tokenizer_class": "BertTokenizer"}"#)
        .unwrap();
    let mut arguments = training("train", corpus, &run);
    arguments.extend(["--model", other.to_str().unwrap()]);
    assert_fails(&ampoule(&arguments), "another run, of other tokenizer or pooling");

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
    let arguments = ["quantize", "--model", model, "--json", "--out"];
    let said = json(&[arguments.as_slice(), &[&with, "--data", corpus, "--force"]].concat());
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

/// Where `ids` stand one after the other among the numbers of a text.
fn holds_ids(text: &str, ids: &[u32]) -> bool {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
    let numbers: Vec<Option<u32>> = numbers.map(|number| number.parse().ok()).collect();
    numbers.windows(ids.len()).any(|some| some.iter().zip(ids).all(|(a, b)| *a == Some(*b)))
}

/// What a page has to be that is read by people and their machines, and by nobody else.
fn assert_is_a_sound_page(html: &str) {
    assert!(html.starts_with("<!DOCTYPE html>\n<html lang=\"en\">") && html.contains("name=\"viewport\""));
    for part in ["http:", "https:", "url(", "@import", "<script", "<link", "<img", "<iframe", " src=", " onload", "NaN"]
    {
        assert!(!html.contains(part), "{part}");
    }
    let levels: Vec<u32> =
        html.match_indices("<h").filter_map(|(at, _)| html[at + 2..].chars().next()?.to_digit(10)).collect();
    assert!(levels[0] == 1 && levels[1..].iter().all(|&level| level > 1), "{levels:?}");
    assert!(levels.windows(2).all(|two| two[1] <= two[0] + 1), "{levels:?}");
    let pictures = html.matches("<svg").count();
    assert!(pictures > 0 && html.matches("role=\"img\" aria-label=\"").count() == pictures);
    for element in ["svg", "table", "figure", "tbody", "thead", "tr", "th", "td", "div", "p", "main", "text"] {
        let opened = html.matches(&format!("<{element}>")).count() + html.matches(&format!("<{element} ")).count();
        assert_eq!(opened, html.matches(&format!("</{element}>")).count(), "{element}");
    }
    let anchors: Vec<&str> = html.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(anchors.iter().all(|id| html.contains(&format!("id=\"{id}\""))), "{anchors:?}");
}

#[test]
fn a_report_says_how_a_run_learned_and_what_its_models_score_and_nothing_of_the_texts() {
    const HOSTILE: &str = "<script>alert(\"d\")</script>";
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let corpus = corpus(folder.path());
    for file in ["train.tsv", "dev.tsv", "test.tsv"] {
        let texts = fs::read_to_string(corpus.join(file)).unwrap();
        fs::write(corpus.join(file), texts.replace("Disease", HOSTILE)).unwrap();
    }
    let corpus = corpus.to_str().unwrap();
    let (teacher, run) = (path("teacher"), path("run <b>&'1'"));
    let checkpoint = fixture("bert-token");
    let mut arguments = training("train", corpus, &teacher);
    arguments.extend(["--model", checkpoint.to_str().unwrap()]);
    let output = ampoule(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let teacher = format!("{teacher}/model");
    let stages = r#"stages=[{"epochs": 2, "terms": [{"term": "hidden", "weight": 1, "layer_map": [[1, 2]]}]},
            {"noise": {"words": 0.3}, "optimizer": {"learning_rate": 0.02}}]"#;
    let mut arguments = training("distill", corpus, &run);
    arguments.extend(["--teacher", &teacher, "--layers", "2", "--set", stages, "--precision", "int8"]);
    let output = ampoule(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));

    let report = |options: &[&str]| {
        let report = ["report", "--run", &run, "--teacher", &teacher, "--data", corpus, "--resamples", "50"];
        ampoule(&[report.as_slice(), options].concat())
    };
    let files = |folder: &str| {
        ["report.html", "report.json"].map(|name| fs::read_to_string(Path::new(folder).join(name)).unwrap())
    };
    let plain = ["--split", "dev", "--noise", "0.2,0.9", "--timing", "0"];
    let output = report(&[plain.as_slice(), &["--json"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (out, stdout) = (format!("{run}/report"), text(&output.stdout));
    let [html, json] = files(&out);
    let said: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(said, serde_json::from_str::<serde_json::Value>(&stdout).unwrap());
    assert_eq!([&said["format"], &said["version"]], ["ampoule-report", "1.0"]);
    assert_is_a_sound_page(&html);
    assert!(html.contains("&lt;script&gt;alert(&quot;d&quot;)&lt;/script&gt;") && !html.contains("<b>&"));

    // Not a text, not a word, not an id.
    let log = fs::read_to_string(format!("{run}/log.jsonl")).unwrap();
    let tokenizer =
        ampoule::text::Tokenizer::from_json(&fs::read(format!("{run}/model/tokenizer.json")).unwrap()).unwrap();
    let ids = |text: &str| tokenizer.encode(text).unwrap().iter().map(|token| token.id).collect::<Vec<u32>>();
    assert!(ids(CANARY).len() > 2 && holds_ids(&format!("{:?}", ids(CANARY)), &ids(CANARY)));
    for content in [&html, &json, &stdout, &text(&output.stderr), &log] {
        assert!(!content.contains(CANARY) && !content.contains("aspirin") && !holds_ids(content, &ids(CANARY)));
    }

    // The teacher, the student, its bundle; the figures are those of `evaluate`.
    let models = said["models"].as_array().unwrap();
    let field = |name: &str| models.iter().map(|model| model[name].clone()).collect::<Vec<_>>();
    assert_eq!(field("role"), ["teacher", "run", "bundle"]);
    assert_eq!(field("precision"), ["f32", "f32", "int8"]);
    assert_eq!(field("is_runs_teacher"), [serde_json::json!(true), serde_json::Value::Null, serde_json::Value::Null]);
    assert!(models[1]["weights_sha256"] == models[2]["weights_sha256"] && models[0] != models[1]);
    let bundle = format!("{run}/model.int8.safetensors");
    assert_eq!(models[2]["bytes"], fs::metadata(&bundle).unwrap().len());
    let student = format!("{run}/model");
    let evaluate =
        ["evaluate", "--model", &teacher, "--model", &student, "--model", &bundle, "--data", corpus, "--json"];
    let evaluate = [evaluate.as_slice(), &["--split", "dev", "--noise", "0.9", "--resamples", "50"]].concat();
    let expected: serde_json::Value = serde_json::from_slice(&ampoule(&evaluate).stdout).unwrap();
    for (model, expected) in models.iter().zip(expected["models"].as_array().unwrap()) {
        let pooled = &expected["pooled"];
        assert_eq!(model["f1"]["value"], pooled["f1"]);
        assert_eq!(serde_json::json!([model["f1"]["low"], model["f1"]["high"]]), pooled["interval"]);
        assert_eq!(model["noise"][1]["f1"]["value"], pooled["noisy"]["f1"]);
        assert_eq!(model["noise"][1]["lost"], pooled["noisy"]["lost"]);
        assert_eq!(model["calibration"]["at_own"], expected["calibration"]["at_own"]);
        if model["role"] != "teacher" {
            assert_eq!(model["retention"]["value"], pooled["retention"]);
            assert_eq!(model["difference"], pooled["difference_from_first"]);
        }
        let confusion = &model["confusion"];
        for (at, label) in model["labels"].as_array().unwrap().iter().enumerate() {
            let count = |list: &str| confusion[list][at].as_u64().unwrap();
            let row: u64 = confusion["pairs"][at].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
            assert_eq!(confusion["labels"][at], label["label"]);
            assert_eq!(row + count("gold_boundary") + count("missed"), label["support"].as_u64().unwrap());
        }
    }
    let lines = |kind: &str| log.lines().filter(|line| line.starts_with(kind)).count();
    assert_eq!(said["run"]["evaluations"].as_array().unwrap().len(), lines("{\"evaluation\""));
    assert_eq!(said["run"]["steps"], lines("{\"step\""));
    assert_eq!(said["run"]["stages"].as_array().unwrap().len(), 3, "one more in int8");
    let config: serde_json::Value = serde_json::from_slice(&fs::read(format!("{run}/config.json")).unwrap()).unwrap();
    let as_the_last =
        r#"{"noise": {"words": 0.3}, "optimizer": {"learning_rate": 0.002}, "epochs": 1, "precision": "int8"}"#;
    assert_eq!(config["config"]["stages"][2], serde_json::from_str::<serde_json::Value>(as_the_last).unwrap());
    assert!(html.contains("stage 2") && html.contains("Term hidden"));

    // The same again, where nothing is timed; and where it is, all but the times.
    assert!(report(&plain).status.success());
    assert!(files(&out) == [html, json]);
    let timed = path("timed");
    let output =
        report(&["--split", "dev", "--noise", "0.2,0.9", "--timing", "0.05", "--threads", "1", "--out", &timed]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut with_times: serde_json::Value = serde_json::from_str(&files(&timed)[1]).unwrap();
    for (model, untimed) in with_times["models"].as_array_mut().unwrap().iter_mut().zip(models) {
        let speed = model["speed"].take();
        assert!(speed["tokens"].as_u64().is_some_and(|n| (120..=128).contains(&n)), "{speed}");
        assert!(speed["milliseconds_min"].as_f64() <= speed["milliseconds_median"].as_f64(), "{speed}");
        assert!(!cfg!(target_os = "linux") || speed["peak_memory_bytes"].as_u64() > Some(1 << 20), "{speed}");
        model["device"] = untimed["device"].clone();
        assert_eq!(model, untimed);
    }

    // Texts are shown where that is asked for, under a banner; and a reading of the test set is noted.
    let shown = path("shown");
    let output = report(&["--with-text", "--timing", "0", "--noise", "0.1", "--out", &shown]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let [html, json] = files(&shown);
    assert_is_a_sound_page(&html);
    assert!(text(&output.stdout).contains("with texts") && json.contains("\"holds_text\": true"));
    let banner = "This file holds texts of the data";
    assert!(html.contains(banner) && !files(&out)[0].contains(banner));
    let mistakes = serde_json::from_str::<serde_json::Value>(&json).unwrap()["mistakes"].as_array().unwrap().len();
    assert_eq!(html.contains(CANARY), mistakes > 0, "{mistakes}");
    let log = fs::read_to_string(format!("{run}/log.jsonl")).unwrap();
    assert_eq!(log.matches("test_reading").count(), 1, "once for a run, whatever the number of its models");

    // A checkpoint in a model hub's cache is links; what lies beside it is no part of it.
    #[cfg(unix)]
    {
        let links = path("links");
        fs::create_dir(&links).unwrap();
        for entry in fs::read_dir(&teacher).unwrap().flatten() {
            std::os::unix::fs::symlink(entry.path(), Path::new(&links).join(entry.file_name())).unwrap();
        }
        fs::copy(&bundle, Path::new(&links).join("other.int8.safetensors")).unwrap();
        let output = report(&[&plain, ["--model", &links, "--temperature", "2", "--json"].as_slice()].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let all = said["models"].as_array().unwrap();
        assert_eq!([&all[3]["bytes"], &all[0]["bytes"]], [&models[0]["bytes"]; 2]);
        let parts = ["model.safetensors", "config.json", "tokenizer.json"];
        let bytes: u64 = parts.iter().map(|file| fs::metadata(Path::new(&teacher).join(file)).unwrap().len()).sum();
        assert!(
            models[0]["bytes"].as_u64() >= Some(bytes) && models[0]["bytes"].as_u64() < Some(bytes + 10_000),
            "{said}"
        );
        assert!(all.iter().all(|model| model["temperature"] == 2.0) && models[0]["temperature"] != 2.0, "{said}");
    }

    assert_fails(&report(&["--timing=-1"]), "--timing is not a time");
    assert_fails(&report(&["--noise", "2"]), "--noise is not a share");
    assert_fails(&report(&["--model", fixture("bert-encoder").to_str().unwrap()]), "its task is encoder");
    assert_fails(&ampoule(&["report", "--run", &path("none"), "--data", corpus]), "not the folder of a run");
    fs::rename(&student, path("away")).unwrap();
    assert_fails(&report(&[]), "the run has no model yet");
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

/// A model writes labels for texts that have none, and another learns from them; no text has to be annotated by hand.
#[test]
fn what_a_model_found_is_data_to_train_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let letters: Vec<char> = ('a'..='z').collect();
    let texts: Vec<String> =
        letters.iter().map(|c| format!("{CANARY} {c} the pain of aspirin, angioede\u{301}ma")).collect();
    fs::write(path("texts.txt"), texts.join("\n")).unwrap();
    for unit in ["utf8", "utf16"] {
        let (labels, run) = (path(&format!("{unit}.jsonl")), path(unit));
        let texts = path("texts.txt");
        let extract = ["extract", "--file", &texts, "--lines", "--json", "--with-text", "--offsets", unit];
        let output = ampoule(&extract);
        assert!(output.status.success(), "{}", text(&output.stderr));
        fs::write(&labels, &output.stdout).unwrap();
        let first: serde_json::Value = serde_json::from_str(text(&output.stdout).lines().next().unwrap()).unwrap();
        assert_eq!(first["covers"], serde_json::json!(["Chemical", "Disease"]));
        assert!(first["entities"][0]["score"].as_f64().unwrap() > 0.1, "{first}");
        let start = fixture("bert-encoder");
        let mut arguments = training("train", &labels, &run);
        arguments.extend(["--model", start.to_str().unwrap(), "--layers", "2"]);
        let output = ampoule(&arguments);
        let said = text(&output.stderr);
        assert!(output.status.success() && said.contains("of 26 texts are held out"), "{said}");
        assert!(!said.contains(CANARY));
    }
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(Path::new(&path("utf8")).join("model/config.json")).unwrap()).unwrap();
    assert_eq!(config["num_hidden_layers"], 1);
    // A bundle of such a run is measured on what was held out.
    let (labels, run, start) = (path("utf8.jsonl"), path("student"), fixture("bert-token"));
    let mut arguments = training("distill", &labels, &run);
    let more = ["--layers", "2", "--epochs", "1", "--precision", "f32", "--json"];
    arguments.extend(["--teacher", start.to_str().unwrap()]);
    let arguments: Vec<&str> = arguments.into_iter().filter(|a| !["--epochs", "4"].contains(a)).chain(more).collect();
    let output = ampoule(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(Path::new(&run).join("model.f32.safetensors").exists());
    // Units are read from the file, so both runs saw the same.
    assert!(model_of(Path::new(&path("utf8"))) == model_of(Path::new(&path("utf16"))));
    assert_eq!(ampoule(&["extract", "--with-text", "a"]).status.code(), Some(2));
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
        let narrow = path(&format!("{kind}-narrow/model"));
        let beside = ["evaluate", "--model", &model, "--model", &narrow, "--data", &corpus];
        let shown = text(&ampoule(&beside).stdout);
        assert_eq!(shown.matches("difference (95 %)").count(), 2, "{shown}");
        let output = ampoule(&[beside.as_slice(), &["--json"]].concat()).stdout;
        let compared: serde_json::Value = serde_json::from_slice(&output).unwrap();
        for score in ["accuracy", "macro_f1"] {
            let of = |at: usize| compared["models"][at]["scores"][score].as_f64().unwrap();
            let difference = |at: usize| compared["models"][at]["difference_from_first"][score]["difference"].as_f64();
            assert!(difference(0) == Some(0.0) && (difference(1).unwrap() - of(1) + of(0)).abs() < 1e-12, "{compared}");
        }
        // A file is of the split that it is called by.
        let [dev, test] = ["dev", "test"].map(|file| format!("{corpus}/{file}.jsonl"));
        let said_of_dev = text(&ampoule(&["evaluate", "--model", &bundle, "--data", &dev, "--fit", "--json"]).stdout);
        assert!(said_of_dev.contains("\"split\":\"dev\""), "{said_of_dev}");
        let fit = ["evaluate", "--model", &bundle, "--fit", "--split", "dev", "--data", &corpus, "--data", &test];
        assert_fails(&ampoule(&fit), "what is fitted on the test set");
        let both = ["evaluate", "--model", &bundle, "--split", "dev", "--data", &corpus, "--data", &test, "--json"];
        let said_of_both = text(&ampoule(&both).stdout);
        assert!(said_of_both.contains("\"split\":\"mixed\""), "{said_of_both}");
        let log = || fs::read_to_string(format!("{run}/log.jsonl")).unwrap().matches("test_reading").count();
        let before = log();
        for (data, readings) in [(&dev, 0), (&test, 1)] {
            let twice = ["--model", &model, "--model", &model];
            assert!(
                ampoule(&[["evaluate", "--split", "dev", "--data", data].as_slice(), &twice].concat()).status.success()
            );
            assert_eq!(log() - before, readings, "{data}");
        }
        if kind == "single" {
            let two = path("dev.jsonl");
            fs::write(&two, r#"{"text": "the pain", "labels": ["symptom", "drug"]}"#).unwrap();
            for verb in [["evaluate"].as_slice(), &["report", "--run", &run], &["quantize", "--out", "x.safetensors"]] {
                let refused = ampoule(&[verb, &["--model", &model, "--data", &two]].concat());
                assert_fails(&refused, "1 of 1 texts have no label or several");
            }
        }

        let output = ampoule(&["evaluate", "--json", "--noise", "0.9", "--model", &bundle, "--data", &corpus]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let noisy: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let (clean, noisy) = (&noisy["models"][0]["scores"], &noisy["models"][0]["noisy"]);
        let noisy_f1 = &noisy["scores"]["macro_f1"];
        assert_eq!(clean, &said["models"][1]["scores"]);
        for score in ["accuracy", "macro_f1"] {
            let lost = clean[score].as_f64().unwrap() - noisy["scores"][score].as_f64().unwrap();
            let said = &noisy["lost"][score];
            assert!((said["difference"].as_f64().unwrap() - lost).abs() < 1e-12 && said["p"].is_f64(), "{noisy}");
        }
        let shown = text(&ampoule(&["evaluate", "--noise", "0.9", "--model", &bundle, "--data", &corpus]).stdout);
        assert!(shown.contains("F1 macro noisy"), "{shown}");

        let out = path(&format!("{kind}-report"));
        let report =
            ["report", "--run", &run, "--model", &bundle, "--data", &corpus, "--noise", "0.9", "--timing", "0"];
        let output = ampoule(&[report.as_slice(), &["--resamples", "50", "--out", &out, "--json"]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["models"][0]["retention"].is_null());
        for (model, expected) in report["models"].as_array().unwrap().iter().zip(said["models"].as_array().unwrap()) {
            assert_eq!(model["f1"]["value"], expected["scores"]["macro_f1"]);
            assert_eq!(model["accuracy"]["value"], expected["scores"]["accuracy"]);
            assert!(model["auroc"]["value"].is_f64() && model["auroc"]["value"] == expected["scores"]["auroc"]);
            let sum =
                |list: &serde_json::Value| list.as_array().unwrap().iter().filter_map(|n| n.as_u64()).sum::<u64>();
            let confusion = &model["confusion"];
            let pairs: u64 = confusion["pairs"].as_array().unwrap().iter().map(sum).sum();
            let support = model["labels"].as_array().unwrap().iter().filter_map(|label| label["support"].as_u64());
            assert_eq!(pairs + sum(&confusion["missed"]), support.sum::<u64>(), "{model}");
        }
        assert_eq!(report["models"][1]["noise"][0]["f1"]["value"], *noisy_f1);
        let html = fs::read_to_string(format!("{out}/report.html")).unwrap();
        assert_is_a_sound_page(&html);
        assert!(!html.contains(CANARY) && !html.contains("aspirin"));
        // A text in a label's place is not in it, unless texts are asked for; no figure is another for it.
        let (odd, out) = (path("odd.jsonl"), path(&format!("{kind}-odd")));
        let line = |i| match i {
            6 if kind == "single" => serde_json::json!({"text": "odd", field: CANARY}).to_string(),
            6 => serde_json::json!({"text": "odd", field: [CANARY]}).to_string(),
            i => serde_json::json!({"text": sentence(i), field: labels(i)}).to_string(),
        };
        fs::write(&odd, (0..7).map(line).collect::<Vec<_>>().join("\n")).unwrap();
        let report = ["report", "--run", &run, "--data", &odd, "--timing", "0", "--resamples", "50", "--out", &out];
        for with_text in [false, true] {
            let output = ampoule(&[report.as_slice(), if with_text { &["--with-text"] } else { &[] }].concat());
            assert!(output.status.success(), "{}", text(&output.stderr));
            let [html, json] = ["html", "json"].map(|kind| fs::read_to_string(format!("{out}/report.{kind}")).unwrap());
            assert!([&html, &json].iter().all(|file| file.contains(CANARY) == with_text), "{with_text}");
            assert!([&html, &json].iter().all(|file| file.contains("label 1 that no model has") != with_text));
            let said = serde_json::from_str::<serde_json::Value>(&json).unwrap()["models"][0]["f1"]["value"].clone();
            let evaluate = ampoule(&["evaluate", "--json", "--model", &model, "--data", &odd]);
            let expected: serde_json::Value = serde_json::from_slice(&evaluate.stdout).unwrap();
            assert_eq!(said, expected["models"][0]["scores"]["macro_f1"], "{with_text}");
        }

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

/// Queries of one letter, each with a passage of other letters, the canary in every text.
fn searches(folder: &Path) -> String {
    let path = folder.join("searches");
    fs::create_dir_all(&path).unwrap();
    let letter = |i: usize| char::from(b'a' + (i % 26) as u8);
    let line = |json: serde_json::Value| format!("{json}\n");
    let passage =
        |i: usize| serde_json::json!({"id": format!("p{i}"), "text": format!("{CANARY} fever {}", letter(7 * i + 3))});
    fs::write(path.join("corpus.jsonl"), (0..26).map(|i| line(passage(i))).collect::<String>()).unwrap();
    for file in ["train", "dev", "test"] {
        let query = |i: usize| serde_json::json!({"text": format!("{CANARY} pain {}", letter(i)), "positives": [format!("p{i}")]});
        fs::write(path.join(format!("{file}.jsonl")), (0..26).map(|i| line(query(i))).collect::<String>()).unwrap();
    }
    path.to_str().unwrap().to_owned()
}

#[test]
fn embedders_are_trained_distilled_quantized_and_scored() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (corpus, encoder) = (searches(folder.path()), fixture("bert-encoder"));
    let encoder = encoder.to_str().unwrap();
    let run = |verb: &str, name: &str, more: &[&str]| {
        let run = path(name);
        let mut arguments = vec![verb, "--data", &corpus, "--run", &run, "--threads", "2", "--set", "dropout=0"];
        arguments.extend(["--set", "batch_size=13", "--set", "optimizer.learning_rate=0.003"]);
        arguments.extend(more);
        let output = ampoule(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let files = everything_in(Path::new(&run));
        assert!(files.iter().all(|(_, bytes)| !bytes.windows(CANARY.len()).any(|w| w == CANARY.as_bytes())), "{name}");
        (format!("{run}/model"), text(&output.stdout), text(&output.stderr))
    };
    let (teacher, said, shown) = run("train", "teacher", &["--model", encoder, "--epochs", "40"]);
    assert!(said.contains("dev MRR@10 ") && !said.contains("temperature"), "{said}");
    assert!(shown.contains("contrastive") && shown.contains("MRR@10"), "{shown}");
    let narrow =
        ["--teacher", &teacher, "--layers", "1,2", "--hidden", "16", "--epochs", "1", "--precision", "int8", "--json"];
    let cache = path("cache");
    let (student, ..) = run("distill", "student", &[narrow.as_slice(), &["--cache", &cache]].concat());
    let log = fs::read_to_string(path("student/log.jsonl")).unwrap();
    for part in ["\"contrastive\":", "\"embedding\":", "\"relations\":", "\"stage\":2", "\"cached\":"] {
        assert!(log.contains(part), "{log}");
    }
    let bundle = path("teacher.int8.safetensors");
    let output = ampoule(&["quantize", "--model", &teacher, "--out", &bundle, "--data", &corpus, "--max-loss", "20"]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(said.contains("MRR@10 ") && said.contains(" lost") && !said.contains("temperature"), "{said}");

    let models = ["--model", encoder, "--model", &teacher, "--model", &bundle, "--model", &student];
    let evaluate = |more: &[&str]| ampoule(&[&["evaluate", "--data", &corpus], models.as_slice(), more].concat());
    let output = evaluate(&["--bm25", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |model: usize, field: &str| said["models"][model]["pooled"]["scores"][field].as_f64().unwrap();
    assert!(of(1, "mrr_at_10") > 0.6 && of(2, "mrr_at_10") > 0.5 && of(0, "mrr_at_10") < 0.3, "{said}");
    assert!(of(1, "recall_at_10") >= of(1, "recall_at_5") && of(1, "recall_at_5") >= of(1, "recall_at_1"), "{said}");
    // The canary apart, no query has a word of its passage but a letter by chance.
    assert!(said["models"][4]["model"] == "BM25" && of(4, "mrr_at_10") < 0.3, "{said}");
    let gained = &said["models"][1]["pooled"]["difference_from_first"]["mrr_at_10"];
    assert!(gained["low"].as_f64().unwrap() > 0.0 && gained["p"].as_f64().unwrap() < 0.05, "{said}");
    let shown = text(&evaluate(&["--bm25", "--noise", "1"]).stdout);
    for part in ["MRR@10", "R@1", "R@5", "R@10", "difference (95 %)", "BM25", "MRR@10 noisy", "lost (95 %)"] {
        assert!(shown.contains(part), "{shown}");
    }
    // What the command has for other data, and other data for this command.
    assert_fails(&ampoule(&["report", "--run", &path("student"), "--data", &corpus]), "queries of passages");
    for (options, part) in [
        (["--dictionary"].as_slice(), "--dictionary"),
        (&["--full-windows"], "--full-windows"),
        (&["--reliability"], "--reliability"),
        (&["--fit", "--split", "dev"], "--fit"),
        (&["--temperature", "2"], "--temperature"),
    ] {
        assert_fails(&evaluate(options), part);
    }
    let entities = self::corpus(folder.path()).display().to_string();
    let token = fixture("bert-token").display().to_string();
    assert_fails(&ampoule(&["evaluate", "--model", &token, "--data", &entities, "--bm25"]), "--bm25");
    assert_fails(
        &ampoule(&["evaluate", "--model", &token, "--data", &entities, "--data", &corpus]),
        "some of the data",
    );
    let wrong = ["--model", encoder, "--set", r#"terms=[{"term": "hard", "weight": 1}]"#];
    let arguments = ["train", "--data", &corpus, "--run", &path("wrong")];
    assert_fails(&ampoule(&[&arguments, wrong.as_slice()].concat()), "\"hard\" cannot be taught by this data");
    let dump = ["--model", encoder, "--dump-batches", &path("dump")];
    assert_fails(&ampoule(&[&arguments, dump.as_slice()].concat()), "only batches of entities");
    fs::create_dir_all(path("dump/start")).unwrap();
    assert_fails(&ampoule(&[&arguments, dump.as_slice()].concat()), "dump/start is there, and would be written over");
    let endless = ["--model", encoder, "--epochs", "3000000000", "--set", "steps=3"];
    assert_fails(&ampoule(&[&arguments, endless.as_slice()].concat()), "epochs must be at most 2^20");
    // The whole of what shrinks a student; and a file alone, of which some queries are held out.
    let train = format!("{corpus}/train.jsonl");
    let held_out = path("held-out");
    let small = ["--layers", "1", "--hidden", "16", "--basis", "components", "--vocabulary", "80", "--embedding", "12"];
    let of =
        ["distill", "--teacher", &teacher, "--data", &train, "--run", &held_out, "--epochs", "1", "--threads", "2"];
    let output = ampoule(&[of.as_slice(), &small].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("of 26 texts are held out"), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("dev MRR@10 "), "{}", text(&output.stdout));
    fs::write(
        Path::new(&corpus).join("dev.jsonl"),
        format!("{{\"text\": \"{CANARY}\", \"positives\": [\"{CANARY}\"]}}"),
    )
    .unwrap();
    assert_fails(&ampoule(&[&arguments, ["--model", encoder].as_slice()].concat()), "dev.jsonl:1: positive 1");
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

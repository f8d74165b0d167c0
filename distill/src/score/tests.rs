use std::str::FromStr;

use serde_json::Value;

use super::*;

fn fixture(part: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("../../tests/fixtures/seqeval.json")).unwrap();
    all[part].as_array().unwrap().clone()
}

fn number<T: FromStr<Err: std::fmt::Debug>>(value: &Value) -> T {
    value.as_str().unwrap().parse().unwrap()
}

fn prf(value: &Value) -> Prf {
    Prf {
        precision: number(&value[0]),
        recall: number(&value[1]),
        f1: number(&value[2]),
        support: value[3].as_u64().unwrap() as usize,
    }
}

fn by_label(value: &Value) -> BTreeMap<String, Prf> {
    value.as_object().unwrap().iter().map(|(label, figures)| (label.clone(), prf(figures))).collect()
}

/// Texts of words, as the fixture holds them.
fn words(value: &Value) -> Vec<Vec<String>> {
    let texts = value.as_array().unwrap().iter().map(|text| text.as_str().unwrap());
    texts.map(|text| text.split_whitespace().map(String::from).collect()).collect()
}

fn spans(value: &Value) -> Vec<Vec<LabelledSpan>> {
    words(value).iter().map(|tags| spans_of_tags(tags)).collect()
}

fn labels(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn span(label: &str, range: Range<usize>) -> LabelledSpan {
    (label.to_string(), range)
}

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Texts of which the first model finds more than the second.
fn two_models(texts: usize, seed: u64) -> (Vec<Counts>, Vec<Counts>) {
    let mut rng = rng(seed);
    let mut counts = |of: u32, share: f64| {
        let tp = (0..of).filter(|_| rng.random::<f64>() < share).count() as u32;
        Counts { tp, fp: rng.random_range(0..2), fn_: of - tp }
    };
    (0..texts).map(|at| (counts(at as u32 % 6, 0.9), counts(at as u32 % 6, 0.7))).unzip()
}

#[test]
fn tags_and_entity_scores_equal_seqeval_to_the_last_digit() {
    let cases = fixture("tags");
    assert_eq!(cases.len(), 200);
    for case in cases {
        let (gold, found) = (spans(&case["gold"]), spans(&case["found"]));
        let triples: Vec<Vec<_>> =
            gold.iter().map(|text| text.iter().map(|(label, r)| (label.clone(), r.start, r.end)).collect()).collect();
        assert_eq!(serde_json::to_value(triples).unwrap(), case["gold_spans"]);

        let all = gold.iter().chain(&found).flatten().map(|(label, _)| label.clone()).collect();
        let report = ner_scores(&gold, &found, &vec![&all; gold.len()]);
        assert_eq!(report.micro, prf(&case["micro"]));
        assert_eq!(report.macro_avg, prf(&case["macro"]));
        assert_eq!(report.per_label, by_label(&case["labels"]));
    }
}

#[test]
fn label_scores_equal_scikit_learn_to_the_last_digit() {
    let cases = fixture("classes");
    assert_eq!(cases.len(), 60);
    for case in cases {
        let names: Vec<String> = serde_json::from_value(case["labels"].clone()).unwrap();
        let scores: Vec<Vec<(String, f32)>> = words(&case["scores"])
            .iter()
            .map(|text| names.iter().cloned().zip(text.iter().map(|x| x.parse().unwrap())).collect())
            .collect();
        let multi_label = case["multi_label"].as_bool().unwrap();
        let report = classification_scores(&words(&case["gold"]), &scores, &names, multi_label);
        let expected = ClassReport {
            accuracy: number(&case["accuracy"]),
            macro_f1: number(&case["macro_f1"]),
            micro_f1: number(&case["micro_f1"]),
            auroc: case["auroc"].is_string().then(|| number(&case["auroc"])),
            per_label: by_label(&case["per_label"]),
            decisions: report.decisions.clone(),
            by_label: report.by_label.clone(),
            ranked: report.ranked.clone(),
        };
        assert_eq!(report, expected);

        let sorted: Vec<Vec<(String, f32)>> = scores
            .into_iter()
            .map(|mut text| {
                text.sort_by(|a, b| b.1.total_cmp(&a.1));
                text
            })
            .collect();
        assert_eq!(classification_scores(&words(&case["gold"]), &sorted, &names, multi_label), expected);
    }
}

#[test]
fn what_a_data_set_does_not_mark_is_ignored_and_a_span_counts_once() {
    let (both, disease) = (labels(&["Chemical", "Disease"]), labels(&["Disease"]));
    let gold =
        vec![vec![span("Disease", 0..4), span("Disease", 0..4), span("Chemical", 0..4)], vec![span("Disease", 2..9)]];
    let found = vec![
        vec![span("Disease", 0..4), span("Chemical", 0..5), span("Chemical", 0..5)],
        vec![span("Chemical", 2..9), span("Disease", 2..9), span("Disease", 2..8)],
    ];
    let report = ner_scores(&gold, &found, &[&both, &disease]);
    assert_eq!(report.counts, [Counts { tp: 1, fp: 1, fn_: 1 }, Counts { tp: 1, fp: 1, fn_: 0 }]);
    assert_eq!((report.micro.precision, report.micro.recall, report.micro.support), (0.5, 2.0 / 3.0, 3));
    assert!((report.micro.f1 - 4.0 / 7.0).abs() < 1e-12);
    assert_eq!(report.per_label["Chemical"], Prf { support: 1, ..Prf::default() });
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["micro"]["precision"], 0.5);
    assert!(json.get("counts").is_none());
}

/// Random spans of few labels and places, so that many agree.
fn random_spans(rng: &mut ChaCha8Rng) -> Vec<Vec<LabelledSpan>> {
    (0..8)
        .map(|_| {
            let spans = rng.random_range(0..6);
            (0..spans)
                .map(|_| {
                    let start = rng.random_range(0..4);
                    span(["A", "B", "C"][rng.random_range(0..3)], start..start + rng.random_range(1..3))
                })
                .collect()
        })
        .collect()
}

#[test]
fn counts_and_thresholds_agree_with_comparing_every_pair() {
    let covers = [labels(&["A", "B", "C"]), labels(&["A"]), labels(&["B", "C"]), labels(&[])];
    let mut rng = rng(3);
    for _ in 0..200 {
        let (gold, found) = (random_spans(&mut rng), random_spans(&mut rng));
        let covers: Vec<&BTreeSet<String>> = gold.iter().map(|_| &covers[rng.random_range(0..4)]).collect();
        let scored: Vec<Vec<_>> = found
            .iter()
            .map(|text| text.iter().map(|(l, r)| (l.clone(), r.clone(), rng.random_range(0..9) as f32 / 8.0)).collect())
            .collect();
        for threshold in [0.0, 0.5, 1.0, 1.5] {
            let (mut right, mut said, mut held) = (0, 0, 0);
            let mut kept_by_text = Vec::new();
            for ((gold, scored), covers) in gold.iter().zip(&scored).zip(&covers) {
                let once = |spans: &[LabelledSpan]| {
                    let mut unique: Vec<LabelledSpan> = Vec::new();
                    for span in spans {
                        if covers.contains(&span.0) && !unique.contains(span) {
                            unique.push(span.clone());
                        }
                    }
                    unique
                };
                let kept: Vec<LabelledSpan> =
                    scored.iter().filter(|s| s.2 >= threshold).map(|s| (s.0.clone(), s.1.clone())).collect();
                let (gold, found) = (once(gold), once(&kept));
                right += found.iter().filter(|span| gold.contains(span)).count();
                said += found.len();
                held += gold.len();
                kept_by_text.push(kept);
            }
            let got = at_threshold(&gold, &scored, &covers, threshold);
            let divide = |a: usize, b: usize| if b == 0 { 0.0 } else { a as f64 / b as f64 };
            assert_eq!((got.precision, got.recall, got.support), (divide(right, said), divide(right, held), held));
            assert!((got.f1 - divide(2 * right, said + held)).abs() < 1e-12);

            let report = ner_scores(&gold, &kept_by_text, &covers);
            assert_eq!(report.micro, got);
            let sum = |of: fn(&Counts) -> u32| report.counts.iter().map(of).sum::<u32>() as usize;
            assert_eq!((sum(|c| c.tp), sum(|c| c.fp), sum(|c| c.fn_)), (right, said - right, held - right));
        }
    }
}

#[test]
fn the_area_under_the_curve_is_the_share_of_well_ordered_pairs() {
    let mut rng = rng(5);
    for levels in [1, 2, 5, 1000] {
        let pairs: Vec<(f32, bool)> = (0..70)
            .map(|at| (rng.random_range(0..levels) as f32 / levels as f32, at % 3 == 0 || rng.random::<f64>() < 0.2))
            .collect();
        let scores = |held: bool| pairs.iter().filter(move |pair| pair.1 == held).map(|pair| pair.0);
        let won: f64 = scores(true)
            .flat_map(|yes| {
                scores(false).map(move |no| {
                    if yes > no {
                        1.0
                    } else if yes == no {
                        0.5
                    } else {
                        0.0
                    }
                })
            })
            .sum();
        let expected = won / (scores(true).count() * scores(false).count()) as f64;
        let area = area_under_roc(pairs).unwrap();
        assert!((area - expected).abs() < 1e-12, "{levels} levels: {area} is not {expected}");
    }
    assert_eq!(area_under_roc(vec![(0.1, true), (0.9, true)]), None);
}

#[test]
fn odd_label_input_has_scores_too() {
    let names = ["yes".to_string(), "no".to_string()];
    let empty = classification_scores(&[], &[], &names, false);
    assert_eq!((empty.accuracy, empty.macro_f1, empty.auroc), (0.0, 0.0, None));
    assert_eq!(classification_scores(&[vec![]], &[vec![]], &[], true).accuracy, 1.0);

    let gold = [vec!["yes".to_string()], vec!["maybe".to_string()], vec!["no".to_string()]];
    let scores = [vec![], vec![("maybe".to_string(), 1.0)], vec![("no".to_string(), f32::NAN)]];
    let report = classification_scores(&gold, &scores, &names, false);
    assert_eq!(report.accuracy, 2.0 / 3.0, "equals go to the first label, and a label the model lacks is never right");
    assert_eq!(report.per_label["yes"], Prf { precision: 0.5, recall: 1.0, f1: 2.0 / 3.0, support: 1 });
}

#[test]
fn no_spans_at_all_score_zero() {
    assert_eq!(ner_scores(&[], &[], &[]), NerReport::default());
    assert_eq!(interval(&[], 10, 0), (0.0, 0.0));
    assert_eq!(paired_bootstrap(&[], &[], 10, 0).p, 1.0);
}

#[test]
#[should_panic(expected = "one list of gold spans")]
fn lists_of_different_lengths_are_refused() {
    ner_scores(&[vec![]], &[], &[]);
}

#[test]
fn an_interval_holds_its_point_and_follows_its_seed() {
    for seed in 0..8 {
        let (a, _) = two_models(100, seed);
        let point = Tally::of(&a).prf().f1;
        let (low, high) = interval(&a, 200, seed);
        assert!(low < point && point < high && low > 0.0 && high < 1.0, "{low} {point} {high}");
        assert_eq!((low, high), interval(&a, 200, seed));
        assert_ne!((low, high), interval(&a, 200, seed + 1));
        assert_eq!(interval(&a, 0, seed), (point, point));
    }
    let alike = vec![Counts { tp: 3, fp: 1, fn_: 1 }; 30];
    assert_eq!(interval(&alike, 100, 1), (0.75, 0.75));
}

#[test]
fn an_interval_covers_the_truth_as_often_as_it_says() {
    let share = 0.8;
    let mut rng = rng(11);
    let truth = 2.0 * share / (1.0 + share);
    let covered = (0..200)
        .filter(|&seed| {
            let texts: Vec<Counts> = (0..60)
                .map(|_| {
                    let tp = (0..3).filter(|_| rng.random::<f64>() < share).count() as u32;
                    Counts { tp, fp: 0, fn_: 3 - tp }
                })
                .collect();
            let (low, high) = interval(&texts, 100, seed);
            low <= truth && truth <= high
        })
        .count();
    assert!((175..200).contains(&covered), "95 % of 200 is 190, not {covered}");
}

#[test]
fn a_model_does_not_differ_from_itself_and_a_better_one_does() {
    let (a, b) = two_models(300, 1);
    assert_eq!(paired_bootstrap(&a, &a, 200, 9), Bootstrap { difference: 0.0, low: 0.0, high: 0.0, p: 1.0 });
    let ab = paired_bootstrap(&a, &b, 999, 9);
    assert_eq!(ab.difference, Tally::of(&a).prf().f1 - Tally::of(&b).prf().f1);
    assert!(0.0 < ab.low && ab.low < ab.difference && ab.difference < ab.high);
    assert_eq!(ab.p, 2.0 / 1000.0, "no resample on the other side, and one more counted");
    assert_eq!(ab, paired_bootstrap(&a, &b, 999, 9));
    let ba = paired_bootstrap(&b, &a, 999, 9);
    assert_eq!((ba.difference, ba.p), (-ab.difference, ab.p));
    assert!((ba.low + ab.high).abs() < 1e-12 && (ba.high + ab.low).abs() < 1e-12);
}

#[test]
fn labellings_differ_by_what_their_scores_say() {
    let names = ["a", "b", "c"].map(str::to_owned);
    let mut rng = rng(4);
    for multi_label in [false, true] {
        let gold: Vec<Vec<String>> = (0..200).map(|_| vec![names[rng.random_range(0..3)].clone()]).collect();
        let mut scored = |share: f64| {
            let mut score = |label: &String, text: &[String]| {
                let is_right = rng.random::<f64>() < share;
                if text.contains(label) == is_right {
                    0.5 + rng.random::<f32>() / 2.0
                } else {
                    rng.random::<f32>() / 2.0
                }
            };
            let mut row = |text: &Vec<String>| names.iter().map(|l| (l.clone(), score(l, text))).collect::<Vec<_>>();
            classification_scores(&gold, &gold.iter().map(&mut row).collect::<Vec<_>>(), &names, multi_label)
        };
        let (a, b) = (scored(0.9), scored(0.7));
        let ab = paired_label_bootstrap(&a, &b, 500, 3);
        for (found, expected) in [(ab.accuracy, a.accuracy - b.accuracy), (ab.macro_f1, a.macro_f1 - b.macro_f1)] {
            assert!((found.difference - expected).abs() < 1e-12, "{found:?} {expected}");
            assert!(0.0 < found.low && found.low < expected && expected < found.high && found.p < 0.05, "{found:?}");
        }
        let ba = paired_label_bootstrap(&b, &a, 500, 3);
        assert!((ba.accuracy.low + ab.accuracy.high).abs() < 1e-12 && ba.macro_f1.p == ab.macro_f1.p);
        let none = Bootstrap { difference: 0.0, low: 0.0, high: 0.0, p: 1.0 };
        assert_eq!(paired_label_bootstrap(&a, &a, 50, 3), LabelBootstrap { accuracy: none, macro_f1: none });
    }
}

#[test]
fn whether_a_rare_label_is_drawn_moves_no_interval_and_makes_no_difference() {
    // Labels of 60, 30 and 10 texts, and nine of one text; a thirteenth that no text has.
    let counts = [60, 30, 10].into_iter().chain([1; 9]);
    let gold: Vec<Vec<String>> =
        counts.enumerate().flat_map(|(label, count)| vec![vec![format!("l{label:02}")]; count]).collect();
    let names: Vec<String> = (0..13).map(|label| format!("l{label:02}")).collect();
    // The likeliest label, and a second one.
    let labelled = |say: &dyn Fn(usize, &str) -> [String; 2]| {
        let scored = |(at, text): (usize, &Vec<String>)| {
            let [first, second] = say(at, &text[0]);
            vec![(first, 0.6), (second, 0.3)]
        };
        classification_scores(&gold, &gold.iter().enumerate().map(scored).collect::<Vec<_>>(), &names, false)
    };
    let own = |at: usize, label: &str| [label.to_owned(), names[at % 3].clone()];
    let right = labelled(&own);
    // Some common texts are taken for each rare label, and some rare ones for a common one.
    let some = labelled(&|at, label| match at {
        ..100 if at % 10 == 0 => [names[3 + at / 12].clone(), label.to_owned()],
        100.. if at % 2 == 0 => [names[0].clone(), label.to_owned()],
        _ => own(at, label),
    });
    let rare_wrong = labelled(&|at, label| if at >= 100 { ["l00".into(), "l01".into()] } else { own(at, label) });
    for (name, report) in [("right", &right), ("some", &some), ("rare wrong", &rare_wrong)] {
        let LabelIntervals { macro_f1, auroc, .. } = label_intervals(report, 1000, 1);
        let auroc = auroc.unwrap();
        for (of, Interval { value, low, high }) in [("macro F1", macro_f1), ("AUROC", auroc)] {
            let is_within = low <= value && value <= high && 0.0 <= low && high <= 1.0;
            assert!(is_within && (value - low).max(high - value) < 0.25, "{name}, {of}: {low} {value} {high}");
            // Not at an end of it, but for a score that is as good as it can be.
            assert!(
                value == 1.0 || (value - low).min(high - value) > 0.15 * (high - low) || high == low,
                "{name}, {of}: {low} {value} {high}"
            );
        }
    }
    // One text alone decides between two: that is no difference, of labels or of entities.
    let one_wrong = labelled(&|at, label| if at == 105 { ["l00".into(), "l01".into()] } else { own(at, label) });
    assert!(paired_label_bootstrap(&right, &one_wrong, 1000, 1).macro_f1.p > 0.3);
    let one = |right: u32| -> Vec<Counts> {
        (0..200)
            .map(|at| Counts { tp: right * u32::from(at == 0), fp: 0, fn_: (1 - right) * u32::from(at == 0) })
            .collect()
    };
    assert!(paired_bootstrap(&one(1), &one(0), 1000, 1).p > 0.3);
}

#[test]
fn chance_alone_is_significant_no_oftener_than_it_should_be() {
    let significant = (0..200)
        .filter(|&seed| {
            let (a, _) = two_models(60, seed);
            let (b, _) = two_models(60, seed + 1000);
            paired_bootstrap(&a, &b, 100, seed).p < 0.05
        })
        .count();
    assert!(significant <= 20, "5 % of 200 is 10, not {significant}");
}

#[test]
fn a_resample_draws_as_many_texts_as_there_are_with_replacement() {
    let mut drawn = vec![0; 50];
    let mut repeated = 0;
    let values = resampled(50, 400, 2, |picks| {
        assert_eq!(picks.len(), 50);
        picks.iter().for_each(|&at| drawn[at] += 1);
        repeated += usize::from(picks.iter().collect::<BTreeSet<_>>().len() < 50);
        picks[0] as f64
    });
    assert_eq!((values.len(), repeated), (400, 400));
    assert!(values.is_sorted());
    assert!(drawn.iter().all(|&times| (300..500).contains(&times)), "400 times each but for chance: {drawn:?}");
}

#[test]
fn percentiles_are_interpolated() {
    let values: Vec<f64> = (0..=10).map(f64::from).collect();
    assert_eq!(percentile(&values, 0.025), Some(0.25));
    assert_eq!(percentile(&values, 0.975), Some(9.75));
    assert_eq!(percentile(&[4.0], 0.975), Some(4.0));
    assert_eq!(percentile(&[], 0.5), None);
}

/// Spans without overlap of three labels, and what a poor model makes of them.
fn gold_and_found(seed: u64) -> (Vec<LabelledSpan>, Vec<LabelledSpan>) {
    let mut rng = rng(seed);
    let (mut gold, mut found) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < 60 {
        let (length, other) = (rng.random_range(1..6usize), ["A", "B", "C"][rng.random_range(0..3)]);
        let label = ["A", "B", "C"][rng.random_range(0..3)];
        let (whole, half) = (at..at + length, at..at + length.div_ceil(2));
        match rng.random_range(0..7) {
            0 => gold.push(span(label, whole)),
            1 => found.push(span(label, whole)),
            2 => (gold.push(span(label, whole.clone())), found.push(span(other, whole))).0,
            3 => (gold.push(span(label, whole)), found.push(span(other, half))).0,
            4 => {
                gold.push(span(label, whole.clone()));
                found.push(span(label, half.clone()));
                found.extend((half.end < whole.end).then(|| span(other, half.end..whole.end)));
            }
            5 => {
                found.push(span(label, whole.clone()));
                gold.push(span(label, half.clone()));
                gold.extend((half.end < whole.end).then(|| span(other, half.end..whole.end)));
            }
            _ => (gold.push(span(label, whole.clone())), found.push(span(label, whole))).0,
        }
        at += length + 1;
    }
    (gold, found)
}

#[test]
fn a_confusion_has_every_entity_once_and_the_right_ones_on_its_diagonal() {
    let covers = labels(&["A", "B"]);
    for seed in 0..50 {
        let texts: Vec<_> = (0..4).map(|text| gold_and_found(seed * 4 + text)).collect();
        let (gold, found): (Vec<_>, Vec<_>) = texts.into_iter().unzip();
        let all = vec![&covers; gold.len()];
        let confusion = Confusion::of_entities(&gold, &found, &all);
        let report = ner_scores(&gold, &found, &all);
        assert!(confusion.labels.iter().eq(report.per_label.keys()));
        for (at, label) in confusion.labels.iter().enumerate() {
            let counts = &report.by_label[label];
            let sum = |of: fn(&Counts) -> u32| counts.iter().map(of).sum::<u32>() as usize;
            let row: usize = confusion.pairs[at].iter().sum();
            let column: usize = confusion.pairs.iter().map(|row| row[at]).sum();
            assert_eq!(confusion.pairs[at][at], sum(|c| c.tp));
            assert_eq!(row + confusion.gold_boundary[at] + confusion.missed[at], sum(|c| c.tp + c.fn_));
            assert_eq!(column + confusion.found_boundary[at] + confusion.spurious[at], sum(|c| c.tp + c.fp));
        }
        for (text, (gold, found)) in gold.iter().zip(&found).enumerate() {
            let counts = |counts: &Counts| (counts.tp, counts.fp, counts.fn_);
            let by_label = report.by_label.values().map(|texts| counts(&texts[text]));
            let sum = by_label.fold((0, 0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
            assert_eq!(sum, counts(&report.counts[text]));
            // Swapped, what was missed is spurious, and the other way round.
            let of = |a, b, verdict| judge(a, b, &covers).iter().filter(|one| one.verdict == verdict).count();
            assert_eq!(of(gold, found, Verdict::Missed), of(found, gold, Verdict::Spurious));
            assert_eq!(of(gold, found, Verdict::Label), of(found, gold, Verdict::Label));
        }
    }
}

#[test]
fn what_became_of_an_entity_is_told_apart() {
    let covers = labels(&["A", "B"]);
    let verdicts = |gold: &[LabelledSpan], found: &[LabelledSpan]| -> Vec<(Verdict, bool, bool)> {
        let judged = judge(gold, found, &covers);
        judged.iter().map(|one| (one.verdict, one.gold.is_some(), one.found.is_some())).collect()
    };
    let [a, b] = ["A", "B"].map(|label| [span(label, 0..4)]);
    assert_eq!(verdicts(&a, &[a.clone(), a.clone()].concat()), [(Verdict::Right, true, true)]);
    assert_eq!(verdicts(&a, &b), [(Verdict::Label, true, true)]);
    // Of two labels over one range the right one is the pair.
    let both = verdicts(&a, &[b, a.clone()].concat());
    assert_eq!(both, [(Verdict::Right, true, true), (Verdict::Spurious, false, true)]);
    assert_eq!(verdicts(&a, &[span("A", 4..6)])[0].0, Verdict::Missed);
    let halves = [span("A", 0..2), span("A", 2..4)];
    let wide = verdicts(&halves, &a);
    assert_eq!(wide, [(Verdict::Boundary, true, true), (Verdict::Boundary, true, false)]);
    let narrow = verdicts(&a, &halves);
    assert_eq!(narrow, [(Verdict::Boundary, true, true), (Verdict::Boundary, false, true)]);
    assert_eq!(verdicts(&[span("C", 0..4)], &a), [(Verdict::Spurious, false, true)]);
}

#[test]
fn texts_with_one_label_are_taken_for_another_and_those_with_several_are_not() {
    let of = |texts: &[&[&str]]| -> Vec<Vec<String>> {
        texts.iter().map(|text| text.iter().map(|label| label.to_string()).collect()).collect()
    };
    let single = Confusion::of_labels(&of(&[&["x"], &["x"], &["y"]]), &of(&[&["x"], &["y"], &["y"]]), false);
    assert_eq!((single.labels, single.pairs), (of(&[&["x", "y"]]).remove(0), vec![vec![1, 1], vec![0, 1]]));
    let several = Confusion::of_labels(&of(&[&["x"], &["x", "y"], &[]]), &of(&[&["y"], &["x"], &["x"]]), true);
    assert_eq!(several.pairs, [[1, 0], [0, 0]]);
    assert_eq!((several.missed, several.spurious), (vec![1, 1], vec![1, 1]));
}

#[test]
fn what_is_kept_of_a_score_is_one_of_oneself_and_lies_in_its_interval() {
    let (a, b) = two_models(200, 5);
    assert_eq!(retention(&a, &a, 100, 1), Some(Interval { value: 1.0, low: 1.0, high: 1.0 }));
    let kept = retention(&b, &a, 500, 1).unwrap();
    let f1 = |counts: &[Counts]| Tally::of(counts).prf().f1;
    assert_eq!(kept.value, f1(&b) / f1(&a));
    assert!(kept.low < kept.value && kept.value < kept.high && kept.high < 1.0, "{kept:?}");
    let none = vec![Counts { tp: 0, fp: 1, fn_: 1 }; 3];
    assert_eq!(retention(&none, &none, 100, 1), None);
    assert_eq!(retention(&[], &[], 100, 1), None);
    // Resamples in which there is nothing to keep say nothing.
    let rare: Vec<Counts> = (0..3).map(|at| Counts { tp: u32::from(at == 0), fp: 0, fn_: 0 }).collect();
    assert_eq!(retention(&rare, &rare, 100, 1).map(|kept| (kept.low, kept.high)), Some((1.0, 1.0)));

    let names: Vec<String> = ["x", "y"].map(str::to_owned).to_vec();
    let gold: Vec<Vec<String>> = (0..40).map(|at| vec![names[at % 2].clone()]).collect();
    let scores = |wrong: usize| -> Vec<Vec<(String, f32)>> {
        let right = |at: usize| at % 2 == usize::from(at % 10 < wrong);
        let score = |at: usize| if right(at) { 0.9 } else { 0.1 };
        (0..40).map(|at| vec![("x".to_owned(), score(at)), ("y".to_owned(), 1.0 - score(at))]).collect()
    };
    let [most, some] = [1, 4].map(|wrong| classification_scores(&gold, &scores(wrong), &names, false));
    let kept = label_retention(&some, &most, 500, 1).unwrap();
    assert_eq!(kept.value, some.macro_f1 / most.macro_f1);
    let intervals = label_intervals(&some, 500, 1);
    for (interval, value) in [(intervals.accuracy, some.accuracy), (intervals.macro_f1, some.macro_f1)] {
        assert!(interval.value == value && interval.low < value && value < interval.high, "{interval:?}");
    }
    assert_eq!(label_intervals(&some, 0, 1).macro_f1.low, some.macro_f1);
    // The area of a sample is that of its texts by themselves.
    let auroc = intervals.auroc.unwrap();
    assert!(Some(auroc.value) == some.auroc && auroc.low < auroc.value && auroc.value < auroc.high, "{auroc:?}");
    let picks: Vec<usize> = (0..40).map(|at| at * at % 40).collect();
    let picked = |all: Vec<Vec<(String, f32)>>| picks.iter().map(|&at| all[at].clone()).collect::<Vec<_>>();
    let of_picks: Vec<Vec<String>> = picks.iter().map(|&at| gold[at].clone()).collect();
    let alone = classification_scores(&of_picks, &picked(scores(4)), &names, false);
    assert_eq!(super::auroc(&some.ranked, &picks), alone.auroc);
    let one_sided = label_intervals(&classification_scores(&gold[..1], &scores(4)[..1], &names, false), 50, 1);
    assert_eq!(one_sided.auroc, None);
    for (label, prf) in &some.per_label {
        assert!((interval(&some.by_label[label], 0, 1).0 - prf.f1).abs() < 1e-12);
    }
}

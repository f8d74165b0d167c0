//! The page: HTML that is whole in itself, for a screen, a telephone or paper.

use std::fmt::{Display, Write};

use ampoule_distill::score::{Confusion, Interval, Verdict};
use serde_json::Value;

use super::chart::{self, Line, number};
use super::figures::{ModelReport, Report, Role};

/// Labels up to which the whole confusion is a table; of more, the commonest are listed.
const MATRIX_LABELS: usize = 12;
const LISTED: usize = 40;
/// Rows of a table that is kept on one page of paper.
const PAGE_ROWS: usize = 20;

/// Text as HTML has to have it, inside elements and attributes. Characters that control a terminal, or turn the order of others, are
/// shown as a replacement.
pub fn escaped(text: impl Display) -> String {
    let mut out = String::new();
    for c in text.to_string().chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(' '),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' => out.push('\u{fffd}'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The whole page.
pub fn html(report: &Report) -> String {
    let page = Page { report, out: String::new() };
    page.write()
}

struct Page<'a> {
    report: &'a Report,
    out: String,
}

/// In points of 100.
fn points(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

fn with_interval(interval: &Interval) -> String {
    format!("{} ({} to {})", points(interval.value), points(interval.low), points(interval.high))
}

fn or_dash<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "–".to_owned(), show)
}

fn megabytes(bytes: u64) -> String {
    if bytes < 100_000 { format!("{:.1} kB", bytes as f64 / 1e3) } else { format!("{:.1} MB", bytes as f64 / 1e6) }
}

/// A row's first cell.
fn heading_of(key: &str, model: &ModelReport) -> String {
    // A file's name may break where its parts meet.
    let name = escaped(&model.about.name).replace('.', ".<wbr>");
    format!("<th scope=\"row\"><strong>{key}</strong> {name}</th>")
}

/// A, B, … Z, AA.
fn key(number: usize) -> String {
    let letter = char::from(b'A' + (number % 26) as u8);
    if number < 26 { letter.to_string() } else { format!("{}{letter}", key(number / 26 - 1)) }
}

impl Page<'_> {
    fn write(mut self) -> String {
        let report = self.report;
        let title = format!("Distillation report: {}", report.run.path);
        let _ = write!(
            self.out,
            "{}<title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n",
            // Forbids scripts and whatever would be fetched, should markup slip through after all.
            include_str!("head.html"),
            escaped(&title),
            include_str!("style.css")
        );
        self.head(&title);
        self.result();
        self.learning();
        self.labels();
        self.confusions();
        self.noise();
        self.reliability();
        self.cost();
        self.mistakes();
        self.origin();
        self.out.push_str("</main>\n</body>\n</html>\n");
        self.out
    }

    fn is_of_entities(&self) -> bool {
        self.report.models.iter().any(|model| model.micro.is_some())
    }

    fn f1_name(&self) -> &'static str {
        if self.is_of_entities() { "strict F1" } else { "macro F1" }
    }

    fn first(&self) -> &ModelReport {
        &self.report.models[0]
    }

    fn models(&self) -> impl Iterator<Item = (String, &ModelReport)> {
        self.report.models.iter().enumerate().map(|(number, model)| (key(number), model))
    }

    fn paragraph(&mut self, text: &str) {
        let _ = writeln!(self.out, "<p>{text}</p>");
    }

    fn heading(&mut self, id: &str, title: &str) {
        let _ = writeln!(self.out, "<h2 id=\"{id}\">{title}</h2>");
    }

    /// A table that scrolls within itself, and is on one page of paper unless it is long; what it is given is HTML.
    fn table(&mut self, class: &str, caption: &str, header: &[&str], body: &str) {
        let cells: String = header.iter().map(|cell| format!("<th scope=\"col\">{cell}</th>")).collect();
        let whole = if body.matches("<tr").count() > PAGE_ROWS { "" } else { " whole" };
        let _ = writeln!(
            self.out,
            "<div class=\"scroll{whole}\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\"><table class=\"{class}\">\
             <caption>{caption}</caption><thead><tr>{cells}</tr></thead>{body}</table></div>"
        );
    }

    fn figure(&mut self, caption: &str, svg: &str) {
        if !svg.is_empty() {
            let _ = writeln!(self.out, "<figure><figcaption>{caption}</figcaption>{svg}</figure>");
        }
    }

    fn head(&mut self, title: &str) {
        let report = self.report;
        let _ = writeln!(self.out, "<h1>{}</h1>", escaped(title));
        if report.holds_text {
            self.out.push_str(
                "<p class=\"banner\" role=\"note\"><strong>This file holds texts of the data</strong> (section Errors). Keep it where \
                 the data may be, and delete it where they may not.</p>\n",
            );
        }
        let last = &report.models[report.models.len() - 1];
        let mut lead = format!(
            "<strong>{}</strong>, {} in {}, has a {} of {} on the {} data",
            escaped(&last.about.name),
            megabytes(last.about.bytes),
            last.about.precision,
            self.f1_name(),
            with_interval(&last.f1),
            report.split
        );
        if let Some(kept) = &last.retention {
            let of = if self.first().about.role == Role::Teacher { "the teacher’s" } else { "the run’s model’s" };
            let size = last.about.bytes as f64 / self.first().about.bytes.max(1) as f64;
            let _ = write!(lead, ": {} % of {of}, in {} % of its bytes", with_interval(kept), points(size));
        }
        let _ = writeln!(self.out, "<p class=\"lead\">{lead}.</p>");
        self.paragraph(&format!(
            "Scores are in points of 100, with 95 % intervals in brackets, by {} bootstrap samples of texts (seed {}); what compares two \
             models draws the same texts for both.",
            report.bootstraps.resamples, report.bootstraps.seed
        ));
        let mut links = vec![
            ("result", "Result"),
            ("learning", "Learning"),
            ("labels", "Labels"),
            ("confusion", "Confusion"),
            ("noise", "Noise"),
            ("reliability", "Reliability"),
            ("cost", "Size, time, memory"),
        ];
        links.extend(report.holds_text.then_some(("errors", "Errors")));
        links.push(("origin", "Settings and origin"));
        let links: String = links.iter().map(|(id, name)| format!("<li><a href=\"#{id}\">{name}</a></li>")).collect();
        let _ = writeln!(self.out, "<nav aria-label=\"Contents\"><ul>{links}</ul></nav>");
    }

    fn result(&mut self) {
        self.heading("result", "Result");
        let of = if self.first().about.role == Role::Teacher { "teacher" } else { "first" };
        let mut rows = String::new();
        for (key, model) in self.models() {
            let _ = write!(
                rows,
                "<tr>{}<td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>",
                heading_of(&key, model),
                model.about.precision,
                megabytes(model.about.bytes),
                with_interval(&model.f1),
                or_dash(model.retention.as_ref(), |kept| format!("{} %", with_interval(kept))),
                or_dash(model.difference.as_ref(), |d| {
                    let text =
                        format!("{:+.1} ({:+.1} to {:+.1})", 100.0 * d.difference, 100.0 * d.low, 100.0 * d.high);
                    text.replace('-', "−")
                }),
            );
            match (&model.micro, &model.accuracy) {
                (Some(micro), _) => {
                    let _ = write!(rows, "<td>{}</td><td>{}</td></tr>", points(micro.precision), points(micro.recall));
                }
                (None, accuracy) => {
                    let accuracy = or_dash(accuracy.as_ref(), with_interval);
                    let _ = write!(
                        rows,
                        "<td>{accuracy}</td><td>{}</td></tr>",
                        or_dash(model.auroc.as_ref(), with_interval)
                    );
                }
            }
        }
        let kept = format!("of the {of}’s F1");
        let beside = format!("beside the {of}’s");
        let f1 = self.f1_name().replace("strict F1", "strict F1, all labels");
        let last = if self.is_of_entities() { ["precision", "recall"] } else { ["accuracy", "AUROC"] };
        let header = ["model", "kept as", "size", &f1, &kept, &beside, last[0], last[1]];
        self.table("", "Models", &header, &format!("<tbody>{rows}</tbody>"));

        let sets: Vec<String> = self.first().sets.iter().map(|set| set.data.clone()).collect();
        if !sets.is_empty() {
            let mut rows = String::new();
            for (key, model) in self.models() {
                let cells: String =
                    model.sets.iter().map(|set| format!("<td>{}</td>", with_interval(&set.f1))).collect();
                let _ = write!(rows, "<tr>{}{cells}</tr>", heading_of(&key, model));
            }
            let names: Vec<String> = sets.iter().map(escaped).collect();
            let header: Vec<&str> = std::iter::once("model").chain(names.iter().map(String::as_str)).collect();
            self.table("", "F1 by set", &header, &format!("<tbody>{rows}</tbody>"));
        }
    }

    fn learning(&mut self) {
        self.heading("learning", "Learning");
        let run = &self.report.run;
        let each = match run.steps_per_point {
            1 => "Each point is a step".to_owned(),
            n => format!("Each point is the mean of {n} steps"),
        };
        let stages = match run.stages.len() {
            0 | 1 => String::new(),
            n => format!(
                " The run had {n} stages, with a dashed line where one ends; the next began from the best weights of the one before."
            ),
        };
        // A last stage that teaches no labels has none, and its last weights are the run's.
        let last = run.stages.last().copied().unwrap_or_default();
        let best = run.evaluations.iter().rev().find(|evaluation| evaluation.best && evaluation.step >= last);
        let chosen = best.map_or(String::new(), |best| {
            format!(" The dev set chose the weights of step {}, with an F1 of {}.", best.step, points(best.dev_score))
        });
        let text = format!("{} steps. {each}.{stages}{chosen}", run.steps);
        self.paragraph(&text);
        self.out.push_str("<div class=\"figures\">\n");
        fn line<'a>(name: &'a str, pieces: Vec<Vec<(f64, f64)>>, stages: &'a [usize]) -> Line<'a> {
            Line { name, pieces, stages, dots: false, best: None, may_be_logarithmic: false }
        }
        let by_stage = |of: &dyn Fn(&super::figures::CurvePoint) -> Option<f64>| -> Vec<Vec<(f64, f64)>> {
            let stages = run.curve.chunk_by(|a, b| a.stage == b.stage);
            stages.map(|points| points.iter().filter_map(|p| Some((p.step as f64, of(p)?))).collect()).collect()
        };
        let dev: Vec<(f64, f64)> = run.evaluations.iter().map(|e| (e.step as f64, 100.0 * e.dev_score)).collect();
        let best = best.map(|best| (best.step as f64, 100.0 * best.dev_score));
        let dev = Line { dots: true, best, ..line("F1 on the dev set", vec![dev], &run.stages) };
        self.figure("F1 on the dev set; ◆ chosen", &dev.svg());
        let mut lines = vec![("Loss, the weighted sum of its terms".to_owned(), by_stage(&|p| Some(p.loss)))];
        for term in run.terms() {
            lines.push((format!("Term {term}, unweighted"), by_stage(&|p| p.terms.get(term).copied())));
        }
        for (name, pieces) in lines {
            let line = Line { may_be_logarithmic: true, ..line(&name, pieces, &run.stages) };
            let scale = if line.is_logarithmic() { " (logarithmic)" } else { "" };
            self.figure(&format!("{}{scale}", escaped(&name)), &line.svg());
        }
        self.figure("Learning rate", &line("Learning rate", by_stage(&|p| Some(p.rate)), &run.stages).svg());
        self.figure(
            "Norm of the gradient, before clipping",
            &line("Norm of the gradient", by_stage(&|p| Some(p.gradient_norm)), &run.stages).svg(),
        );
        self.out.push_str("</div>\n");
    }

    fn labels(&mut self) {
        self.heading("labels", "Labels");
        let mut names: Vec<&str> = Vec::new();
        for label in self.report.models.iter().flat_map(|model| &model.labels) {
            if !names.contains(&label.label.as_str()) {
                names.push(&label.label);
            }
        }
        names.sort_unstable();
        let mut body = String::new();
        let mut pictures = Vec::new();
        for name in &names {
            let _ = write!(
                body,
                "<tbody class=\"keep\"><tr><th colspan=\"6\" scope=\"rowgroup\">{}</th></tr>",
                escaped(name)
            );
            let mut rows = Vec::new();
            for (key, model) in self.models() {
                let Some(label) = model.labels.iter().find(|label| label.label == **name) else { continue };
                let _ = write!(
                    body,
                    "<tr>{}<td>{}</td><td>{}</td><td>{}</td><td>{} to {}</td><td>{}</td></tr>",
                    heading_of(&key, model),
                    points(label.precision),
                    points(label.recall),
                    points(label.f1.value),
                    points(label.f1.low),
                    points(label.f1.high),
                    label.support
                );
                rows.push((key, label.f1));
            }
            body.push_str("</tbody>");
            pictures.push((*name, rows));
        }
        let pooled: Vec<(String, Interval)> = self.models().map(|(key, model)| (key, model.f1)).collect();
        let title = if self.is_of_entities() { "all labels (pooled)" } else { "all labels (macro)" };
        let _ = write!(body, "<tbody class=\"keep\"><tr><th colspan=\"6\" scope=\"rowgroup\">{title}</th></tr>");
        for (key, model) in self.models() {
            let support: usize = model.labels.iter().map(|label| label.support).sum();
            let [precision, recall] =
                [or_dash(model.micro, |m| points(m.precision)), or_dash(model.micro, |m| points(m.recall))];
            let _ = write!(
                body,
                "<tr>{}<td>{precision}</td><td>{recall}</td><td>{}</td>\
                 <td>{} to {}</td><td>{support}</td></tr>",
                heading_of(&key, model),
                points(model.f1.value),
                points(model.f1.low),
                points(model.f1.high)
            );
        }
        body.push_str("</tbody>");
        let header = ["label, model", "precision", "recall", "F1", "95 %", "support"];
        self.table("", "Scores by label", &header, &body);
        self.out.push_str("<div class=\"figures\">\n");
        self.figure(&format!("F1 of {title}, with its 95 % interval"), &chart::intervals(title, &pooled));
        if names.len() <= MATRIX_LABELS {
            for (name, rows) in pictures {
                self.figure(&format!("F1 of {}", escaped(name)), &chart::intervals(name, &rows));
            }
        }
        self.out.push_str("</div>\n");
    }

    fn confusions(&mut self) {
        self.heading("confusion", "Confusion");
        self.paragraph(match self.report.task {
            "token-classification" => {
                "Entities: a row is a label of the gold standard, a column what was found over the same range. <em>Boundary</em>: \
                 another range that overlaps it. <em>Missed</em>: nothing was found there. <em>Spurious</em>: nothing is there."
            }
            "multi-label-classification" => {
                "Labels of texts, each a question of its own: those given rightly, those missed, and those given that are not there."
            }
            _ => "Texts: a row is the label that they have, a column the label that they were given.",
        });
        for (number, model) in self.report.models.iter().enumerate() {
            let caption = format!("{} {}", key(number), escaped(&model.about.name));
            match self.report.task {
                "multi-label-classification" => self.decisions(&caption, &model.confusion),
                _ if model.confusion.labels.len() > MATRIX_LABELS => self.commonest(&caption, &model.confusion),
                _ => self.matrix(&caption, &model.confusion),
            }
        }
    }

    fn matrix(&mut self, caption: &str, confusion: &Confusion) {
        let ranges = self.is_of_entities();
        let labels: Vec<String> = confusion.labels.iter().map(escaped).collect();
        let mut header = vec![if ranges { "gold \\ found" } else { "gold \\ given" }];
        header.extend(labels.iter().map(String::as_str));
        if ranges {
            header.extend(["boundary", "missed"]);
        }
        let cell = |count: usize, of: usize, class: &str| {
            let share = if of == 0 { 0.0 } else { count as f64 / of as f64 };
            format!("<td class=\"cell{class}\" style=\"--share:{share:.3}\">{count}</td>")
        };
        let mut body = String::from("<tbody>");
        for (gold, label) in labels.iter().enumerate() {
            let others = [confusion.gold_boundary[gold], confusion.missed[gold]];
            let all = confusion.pairs[gold].iter().chain(&others).sum();
            let _ = write!(body, "<tr><th scope=\"row\">{label}</th>");
            for (found, &count) in confusion.pairs[gold].iter().enumerate() {
                body.push_str(&cell(count, all, if gold == found { " right" } else { "" }));
            }
            body.extend(others.iter().filter(|_| ranges).map(|&count| cell(count, all, "")));
            body.push_str("</tr>");
        }
        if ranges {
            for (name, counts) in [("boundary", &confusion.found_boundary), ("spurious", &confusion.spurious)] {
                let cells: String = counts.iter().map(|count| format!("<td>{count}</td>")).collect();
                let _ = write!(body, "<tr><th scope=\"row\"><em>{name}</em></th>{cells}<td></td><td></td></tr>");
            }
        }
        body.push_str("</tbody>");
        self.table("keep", caption, &header, &body);
    }

    fn decisions(&mut self, caption: &str, confusion: &Confusion) {
        let mut body = String::from("<tbody>");
        for (at, label) in confusion.labels.iter().enumerate() {
            let counts = [confusion.pairs[at][at], confusion.missed[at], confusion.spurious[at]];
            let cells: String = counts.iter().map(|count| format!("<td>{count}</td>")).collect();
            let _ = write!(body, "<tr><th scope=\"row\">{}</th>{cells}</tr>", escaped(label));
        }
        body.push_str("</tbody>");
        self.table("", caption, &["label", "right", "missed", "spurious"], &body);
    }

    /// Of many labels what is wrong most often.
    fn commonest(&mut self, caption: &str, confusion: &Confusion) {
        let row = |(count, gold, found): &(usize, String, String)| {
            format!("<tr><th scope=\"row\">{gold}</th><td>{found}</td><td>{count}</td></tr>")
        };
        let rows: String = commonest(confusion).iter().take(LISTED).map(row).collect();
        let caption = format!("{caption}: the commonest; all are in report.json");
        self.table("", &caption, &["gold", "found", "how often"], &format!("<tbody>{rows}</tbody>"));
    }

    fn noise(&mut self) {
        self.heading("noise", "Noise");
        let shares: Vec<f64> = self.first().noise.iter().map(|noisy| noisy.words).collect();
        let text = format!(
            "{} of the same texts with typing errors in a share of their words (seed {}), and in brackets what is lost, and its 95 % \
             interval. The labels are exact in noisy text too.",
            if self.is_of_entities() { "Strict F1" } else { "Macro F1" },
            self.report.noise.seed
        );
        self.paragraph(&text);
        let mut rows = String::new();
        for (key, model) in self.models() {
            let _ = write!(rows, "<tr>{}<td>{}</td>", heading_of(&key, model), points(model.f1.value));
            for noisy in &model.noise {
                let [lost, low, high] = [noisy.lost.difference, noisy.lost.low, noisy.lost.high]
                    .map(|share| points(share).replace('-', "−"));
                let _ = write!(rows, "<td>{} ({lost}; {low} to {high})</td>", points(noisy.f1.value));
            }
            rows.push_str("</tr>");
        }
        let shares: Vec<String> = shares.iter().map(|share| format!("{} % of words", number(100.0 * share))).collect();
        let header: Vec<&str> = ["model", "clean"].into_iter().chain(shares.iter().map(String::as_str)).collect();
        self.table("", "F1 by share of mistyped words", &header, &format!("<tbody>{rows}</tbody>"));
    }

    fn reliability(&mut self) {
        self.heading("reliability", "Reliability");
        self.paragraph(
            "Bars: the share of answers that is right, by their score; ◆ where their mean score lies. On the dashed line a score is what \
             it says: a bar under it is of scores too high. Below, how many answers have such a score. The expected calibration error \
             (ECE) is the mean distance from that line, in points.",
        );
        let mut rows = String::new();
        for (key, model) in self.models() {
            let ece = |share: Option<f64>| or_dash(share, |share| format!("{:.2}", 100.0 * share));
            let _ = write!(
                rows,
                "<tr>{}<td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                heading_of(&key, model),
                ece(model.calibration.at_one.ece),
                model.about.temperature,
                ece(model.calibration.at_own.ece),
                model.calibration.at_own.count
            );
        }
        let header = ["model", "ECE at temperature 1", "temperature", "ECE at that", "answers"];
        self.table("", "Expected calibration error", &header, &format!("<tbody>{rows}</tbody>"));
        self.out.push_str("<div class=\"figures\">\n");
        for (number, model) in self.report.models.iter().enumerate() {
            let name = format!("{} {}", key(number), model.about.name);
            let mut all = vec![("temperature 1".to_owned(), &model.calibration.at_one)];
            if model.calibration.at_one != model.calibration.at_own {
                all.push((format!("temperature {}", model.about.temperature), &model.calibration.at_own));
            }
            for (at, reliability) in all {
                let name = format!("{name}, {at}");
                self.figure(&escaped(&name), &chart::reliability(&name, reliability));
            }
        }
        self.out.push_str("</div>\n");
    }

    fn cost(&mut self) {
        self.heading("cost", "Size, time, memory");
        let machine = &self.report.machine;
        let is_timed = self.report.models.iter().any(|model| model.speed.is_some());
        let text = match is_timed {
            true => format!(
                "Time of a call on a text of so many tokens, from text to answer, on {}; this is another at each measurement. Memory is \
                 the most that a process held which opened the model, let a bundle check itself and made these calls, the program itself counted.",
                escaped(machine.processor.as_deref().unwrap_or(&machine.target))
            ),
            false => "Nothing was timed.".to_owned(),
        };
        self.paragraph(&text);
        let mut rows = String::new();
        for (key, model) in self.models() {
            let _ = write!(
                rows,
                "<tr>{}<td>{}</td><td>{}</td><td>{:.2} M</td>",
                heading_of(&key, model),
                model.about.precision,
                megabytes(model.about.bytes),
                model.about.parameters as f64 / 1e6
            );
            let computes = format!(
                "{}, {} thread{}",
                escaped(model.device.kernel.as_ref().unwrap_or(&model.device.name)),
                model.device.threads,
                if model.device.threads == 1 { "" } else { "s" }
            );
            match &model.speed {
                Some(speed) => {
                    let _ = write!(
                        rows,
                        "<td>{}</td><td>{:.2} ms</td><td>{:.2} ms</td><td>{}</td><td>{}</td>",
                        speed.tokens,
                        speed.milliseconds_median,
                        speed.milliseconds_min,
                        speed.runs,
                        or_dash(speed.peak_memory_bytes, megabytes)
                    );
                }
                None => rows.push_str(&"<td>–</td>".repeat(5)),
            }
            let _ = write!(rows, "<td>{computes}</td></tr>");
        }
        let header = [
            "model",
            "kept as",
            "size",
            "parameters",
            "tokens",
            "median",
            "least",
            "of calls",
            "memory",
            "computed by",
        ];
        self.table("", "What each model takes", &header, &format!("<tbody>{rows}</tbody>"));
    }

    fn mistakes(&mut self) {
        let Some(mistakes) = &self.report.mistakes else { return };
        self.heading("errors", "Errors");
        let last = self.report.models.len() - 1;
        let text = format!(
            "<strong>Texts of the data follow.</strong> {} errors of {} {}, evenly taken.",
            mistakes.len(),
            key(last),
            escaped(&self.report.models[last].about.name)
        );
        self.paragraph(&text);
        let mut rows = String::new();
        for mistake in mistakes {
            let verdict = match mistake.verdict {
                Verdict::Right => "right",
                Verdict::Label => "label",
                Verdict::Boundary => "boundary",
                Verdict::Missed => "missed",
                Verdict::Spurious => "spurious",
            };
            let names = |labels: &[String]| match labels.is_empty() {
                true => "–".to_owned(),
                false => labels.iter().map(escaped).collect::<Vec<_>>().join(", "),
            };
            let marked = match mistake.verdict {
                _ if self.is_of_entities() => format!("<mark>{}</mark>", escaped(&mistake.marked)),
                _ => escaped(&mistake.marked),
            };
            let _ = write!(
                rows,
                "<tr><td dir=\"auto\">{}{marked}{}</td><td>{verdict}</td><td class=\"name\">{}</td><td class=\"name\">{}</td>\
                 <td class=\"name\">{}</td></tr>",
                escaped(&mistake.before),
                escaped(&mistake.after),
                names(&mistake.gold),
                names(&mistake.found),
                escaped(&mistake.id)
            );
        }
        let header = ["text", "error", "gold", "found", "id"];
        self.table("texts", "Errors", &header, &format!("<tbody>{rows}</tbody>"));
    }

    fn origin(&mut self) {
        self.heading("origin", "Settings and origin");
        let report = self.report;
        let run = &report.run;
        let row =
            |name: &str, value: String| format!("<tr><th scope=\"row\">{}</th><td>{value}</td></tr>", escaped(name));
        let hash = |value: &str| format!("<span class=\"hash\">{}</span>", escaped(value));

        let mut rows = String::new();
        for (key, model) in self.models() {
            let about = &model.about;
            let mut text =
                format!("{}<br>{}<br>{}", escaped(&about.path), escaped(&about.shape), hash(&about.weights_sha256));
            text.push_str(match about.is_runs_teacher {
                Some(true) if run.config["teacher_sha256"].is_array() => "<br>It is one of the teachers of this run.",
                Some(true) => "<br>It is the teacher of this run.",
                Some(false) => {
                    "<br><strong>It is not the teacher of this run</strong>, whose weights had another digest."
                }
                None => "",
            });
            rows.push_str(&row(&format!("{key} {}", about.name), text));
        }
        self.table(
            "words",
            "Models: path, shape, SHA-256 of the weights, before they were narrowed",
            &["model", "what it is"],
            &format!("<tbody>{rows}</tbody>"),
        );

        let mut rows = String::new();
        for source in &report.data {
            let text = format!("{}, {} bytes<br>{}", escaped(&source.file), source.bytes, hash(&source.sha256));
            rows.push_str(&row(&source.name, text));
        }
        let caption = format!("Data of this report ({}): SHA-256 of the file", report.split);
        self.table("words", &caption, &["as named", "file"], &format!("<tbody>{rows}</tbody>"));

        let mut rows = String::new();
        rows.push_str(&row("folder", escaped(&run.path)));
        for (name, field) in
            [("start", "student_sha256"), ("teacher", "teacher_sha256"), ("training data", "data_sha256")]
        {
            let digest = match run.config[field].as_array() {
                Some(several) => several.iter().filter_map(Value::as_str).map(hash).collect::<Vec<_>>().join("<br>"),
                None => run.config[field].as_str().map_or("none".to_owned(), hash),
            };
            rows.push_str(&row(&format!("{name}, SHA-256"), digest));
        }
        rows.push_str(&row("measured on a test set before", format!("{} times", run.test_readings)));
        rows.push_str(&row(
            "seeds",
            format!(
                "run {}, noise {}, bootstrap {}",
                escaped(&run.config["config"]["seed"]),
                report.noise.seed,
                report.bootstraps.seed
            ),
        ));
        self.table("words", "The run", &["what", "value"], &format!("<tbody>{rows}</tbody>"));

        let mut settings = Vec::new();
        flattened("", &run.config["config"], &mut settings);
        let rows: String = settings.iter().map(|(name, value)| row(name, escaped(value))).collect();
        self.table("words", "Its settings", &["setting", "value"], &format!("<tbody>{rows}</tbody>"));

        let machine = &report.machine;
        let mut rows = row("program", escaped(report.producer));
        rows.push_str(&row("built for", escaped(&machine.target)));
        rows.push_str(&row(
            "processor",
            machine.processor.as_ref().map_or("the system does not say".to_owned(), escaped),
        ));
        rows.push_str(&row("cores", machine.cores.to_string()));
        rows.push_str(&row("vector instructions", machine.simd.join(" ")));
        rows.push_str(&row("kernels", machine.kernels.join(", ")));
        rows.push_str(&row("this report", format!("{} {}", report.format, report.version)));
        self.table("words", "Machine and versions", &["what", "value"], &format!("<tbody>{rows}</tbody>"));
    }
}

/// What is wrong, as often as it is, with both sides as HTML.
fn commonest(confusion: &Confusion) -> Vec<(usize, String, String)> {
    let mut all = Vec::new();
    for (at, label) in confusion.labels.iter().enumerate() {
        let label = escaped(label);
        let pairs = confusion.pairs[at].iter().zip(&confusion.labels).enumerate().filter(|(found, _)| *found != at);
        all.extend(pairs.map(|(_, (&count, found))| (count, label.clone(), escaped(found))));
        all.push((confusion.gold_boundary[at], label.clone(), "<em>boundary</em>".to_owned()));
        all.push((confusion.missed[at], label.clone(), "<em>missed</em>".to_owned()));
        all.push((confusion.spurious[at], "<em>spurious</em>".to_owned(), label));
    }
    all.retain(|(count, ..)| *count > 0);
    all.sort_by_key(|(count, ..)| std::cmp::Reverse(*count));
    all
}

/// Settings by dotted names; lists stay whole.
fn flattened(name: &str, value: &Value, all: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (field, value) in fields {
                let name = if name.is_empty() { field.clone() } else { format!("{name}.{field}") };
                flattened(&name, value, all);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (i, item) in items.iter().enumerate() {
                flattened(&format!("{name}[{i}]"), item, all);
            }
        }
        Value::String(text) => all.push((name.to_owned(), text.clone())),
        other => all.push((name.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_escaped_is_markup() {
        let hostile = "<script>alert('x')</script> & \"b\" \u{1b}[31m \u{202e}abc\u{2069}\0";
        let shown = escaped(hostile);
        assert!(!shown.contains(['<', '>', '"', '\'', '\u{1b}', '\u{202e}', '\u{2069}', '\0']), "{shown}");
        assert!(
            shown.starts_with("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;b&quot; \u{fffd}[31m"),
            "{shown}"
        );
        assert_eq!([0, 25, 26, 51, 52].map(key), ["A", "Z", "AA", "AZ", "BA"]);
    }

    #[test]
    fn of_many_labels_the_commonest_errors_come_first_and_what_is_right_is_none() {
        let texts = |labels: &[&str]| labels.iter().map(|label| vec![label.to_string()]).collect::<Vec<_>>();
        let gold = texts(&["a", "a", "a", "<b>", "<b>"]);
        let confusion = Confusion::of_labels(&gold, &texts(&["<b>", "<b>", "a", "a", "<b>"]), false);
        let expected = [(2, "a", "&lt;b&gt;"), (1, "&lt;b&gt;", "a")];
        assert_eq!(commonest(&confusion), expected.map(|(n, gold, found)| (n, gold.to_owned(), found.to_owned())));
        let missed = Confusion::of_labels(&gold, &vec![Vec::new(); 5], true);
        assert_eq!(commonest(&missed)[0], (3, "a".to_owned(), "<em>missed</em>".to_owned()));
    }
}

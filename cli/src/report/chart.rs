//! Pictures as SVG inside HTML: no script, nothing fetched, colours by the page's style.
//!
//! Each is 360 wide, as a telephone is, so that its words keep their size there and several stand side by side elsewhere.

use std::fmt::Write;

use ampoule_distill::Reliability;
use ampoule_distill::score::Interval;

use super::page::escaped;

const WIDTH: f64 = 360.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 18.0;

/// A line over steps.
pub struct Line<'a> {
    /// What it shows, for those who hear it.
    pub name: &'a str,
    /// Lines that are not joined: (step, value).
    pub pieces: Vec<Vec<(f64, f64)>>,
    /// The first step of each stage.
    pub stages: &'a [usize],
    /// Whether each point is marked.
    pub dots: bool,
    /// The point that is marked otherwise.
    pub best: Option<(f64, f64)>,
    /// Whether values that are far apart may be shown by their logarithm.
    pub may_be_logarithmic: bool,
}

impl Line<'_> {
    /// Whether its values are shown by their logarithm.
    pub fn is_logarithmic(&self) -> bool {
        let (low, high) = self.range();
        self.may_be_logarithmic && low > 0.0 && high / low > 20.0
    }

    fn values(&self) -> impl Iterator<Item = (f64, f64)> {
        self.pieces.iter().flatten().copied()
    }

    fn range(&self) -> (f64, f64) {
        let values = || self.values().map(|(_, y)| y).filter(|y| y.is_finite());
        (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max))
    }

    pub fn svg(&self) -> String {
        const HEIGHT: f64 = 190.0;
        let (low, high) = self.range();
        let Some((first, last)) = self.values().next().zip(self.values().last()).filter(|_| low.is_finite()) else {
            return String::new();
        };
        let is_log = self.is_logarithmic();
        let to = |y: f64| if is_log { y.max(low).log10() } else { y };
        let ticks =
            if is_log { decades(low, high) } else { ticks(if self.dots { low } else { low.min(0.0) }, high, 5) };
        let (bottom, top) = match is_log {
            true => (to(low), to(high)),
            false => (ticks[0], ticks[ticks.len() - 1].max(high)),
        };
        let end = self.values().map(|(x, _)| x).fold(1.0, f64::max);
        let x = |step: f64| LEFT + (WIDTH - LEFT - RIGHT) * step / end;
        let floor = HEIGHT - 34.0;
        let y = |value: f64| floor - (floor - TOP) * (to(value) - bottom) / (top - bottom).max(1e-12);
        let label = format!(
            "{}: {} at step {}, {} at step {}; least {}, most {}",
            self.name,
            number(first.1),
            first.0,
            number(last.1),
            last.0,
            number(low),
            number(high)
        );
        let mut svg = open(HEIGHT, &label);
        for tick in ticks.iter().filter(|&&tick| to(tick) >= bottom - 1e-9 && to(tick) <= top + 1e-9) {
            horizontal(&mut svg, y(*tick), &number(*tick));
        }
        for tick in self::ticks(0.0, end, 5).into_iter().filter(|tick| *tick <= end) {
            below(&mut svg, x(tick), floor, &number(tick));
        }
        let _ = write!(
            svg,
            r#"<text class="name" x="{:.1}" y="{}" text-anchor="middle">step</text>"#,
            x(end / 2.0),
            HEIGHT - 4.0
        );
        if self.stages.len() > 1 {
            for (i, &stage) in self.stages.iter().enumerate() {
                let at = x((stage as f64 - 1.0).max(0.0));
                if i > 0 {
                    let _ = write!(svg, r#"<path class="stage" d="M{at:.1} {TOP}V{floor}"/>"#);
                }
                let until = self.stages.get(i + 1).map_or(WIDTH - RIGHT, |&next| x(next as f64));
                let words = if until - at > 48.0 { format!("stage {}", i + 1) } else { (i + 1).to_string() };
                let _ = write!(svg, r#"<text x="{:.1}" y="12">{words}</text>"#, at + 3.0);
            }
        }
        for piece in self.pieces.iter().filter(|piece| !piece.is_empty()) {
            let points: Vec<String> = piece.iter().map(|&(s, v)| format!("{:.1} {:.1}", x(s), y(v))).collect();
            let _ = write!(svg, r#"<path class="line" d="M{}"/>"#, points.join("L"));
        }
        if self.dots {
            for (step, value) in self.values() {
                let title = format!("step {step}: {}", number(value));
                let _ = write!(
                    svg,
                    r#"<circle class="dot" cx="{:.1}" cy="{:.1}" r="2.6"><title>{title}</title></circle>"#,
                    x(step),
                    y(value)
                );
            }
        }
        if let Some((step, value)) = self.best {
            diamond(&mut svg, "best", x(step), y(value), 5.5);
        }
        svg.push_str("</svg>");
        svg
    }
}

/// Scores with their intervals, one a row, in points of 100.
pub fn intervals(name: &str, rows: &[(String, Interval)]) -> String {
    let height = TOP + 22.0 * rows.len() as f64 + 34.0;
    let floor = height - 34.0;
    let low = rows.iter().map(|(_, i)| 100.0 * i.low).fold(f64::INFINITY, f64::min);
    let high = rows.iter().map(|(_, i)| 100.0 * i.high).fold(f64::NEG_INFINITY, f64::max);
    let ticks = ticks(low, high, 4);
    let (from, to) = (ticks[0], ticks[ticks.len() - 1].max(high));
    let left = 28.0;
    let x = |value: f64| left + (WIDTH - left - 16.0) * (value - from) / (to - from).max(1e-9);
    let spoken: Vec<String> = rows
        .iter()
        .map(|(key, i)| format!("{key} {:.1} ({:.1} to {:.1})", 100.0 * i.value, 100.0 * i.low, 100.0 * i.high))
        .collect();
    let mut svg = open(height, &format!("{name}: {}", spoken.join(", ")));
    for tick in &ticks {
        let _ = write!(svg, r#"<path class="grid" d="M{:.1} {TOP}V{floor}"/>"#, x(*tick));
        below(&mut svg, x(*tick), floor, &number(*tick));
    }
    for (i, (key, interval)) in rows.iter().enumerate() {
        let y = TOP + 22.0 * i as f64 + 11.0;
        let [value, low, high] = [interval.value, interval.low, interval.high].map(|share| x(100.0 * share));
        let _ = write!(svg, r#"<text class="key" x="8" y="{:.1}">{}</text>"#, y + 4.0, escaped(key));
        let _ = write!(
            svg,
            r#"<path class="line" d="M{low:.1} {y:.1}H{high:.1}M{low:.1} {:.1}v8M{high:.1} {:.1}v8"/>"#,
            y - 4.0,
            y - 4.0
        );
        diamond(&mut svg, "value", value, y, 4.5);
    }
    let middle = (left + WIDTH) / 2.0;
    let _ = write!(
        svg,
        r#"<text class="name" x="{middle:.1}" y="{:.1}" text-anchor="middle">F1</text></svg>"#,
        height - 4.0
    );
    svg
}

/// The share that is right by score, and below it how many answers have such a score.
pub fn reliability(name: &str, reliability: &Reliability) -> String {
    const HEIGHT: f64 = 320.0;
    let floor = HEIGHT - 86.0;
    let x = |share: f64| LEFT + (WIDTH - LEFT - RIGHT) * share;
    let y = |share: f64| floor - (floor - TOP) * share;
    let ece = reliability.ece.map_or("none".to_owned(), |ece| format!("{:.2} points", 100.0 * ece));
    let label = format!("{name}: {} answers, expected calibration error {ece}", reliability.count);
    let mut svg = open(HEIGHT, &label);
    for tick in [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] {
        horizontal(&mut svg, y(tick), &number(tick));
    }
    let most = reliability.bins.iter().map(|bin| bin.count).max().unwrap_or(0).max(1) as f64;
    let base = HEIGHT - 34.0;
    for bin in &reliability.bins {
        let (from, to) = (x(bin.low) + 0.5, x(bin.high) - 0.5);
        if let Some((right, score)) = bin.share_right.zip(bin.mean_score) {
            let title = format!("{} answers with a mean score of {score:.3}: {right:.3} right", bin.count);
            let _ = write!(
                svg,
                r#"<rect class="bar" x="{from:.1}" y="{:.1}" width="{:.1}" height="{:.1}"><title>{title}</title></rect>"#,
                y(right),
                to - from,
                floor - y(right)
            );
            let height = (44.0 * bin.count as f64 / most).max(0.8);
            let _ = write!(
                svg,
                r#"<rect class="count" x="{from:.1}" y="{:.1}" width="{:.1}" height="{height:.1}"/>"#,
                base - height,
                to - from
            );
            diamond(&mut svg, "value", x(score), y(right), 3.6);
        }
    }
    let _ = write!(svg, r#"<path class="ideal" d="M{:.1} {:.1}L{:.1} {:.1}"/>"#, x(0.0), y(0.0), x(1.0), y(1.0));
    let _ = write!(svg, r#"<path class="grid" d="M{LEFT} {base}H{:.1}"/>"#, WIDTH - RIGHT);
    for tick in [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] {
        below(&mut svg, x(tick), base, &number(tick));
    }
    let _ = write!(svg, r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{most}</text>"#, LEFT - 5.0, base - 14.0);
    let middle = x(0.5);
    let _ = write!(
        svg,
        r#"<text class="name" x="{middle:.1}" y="{}" text-anchor="middle">score</text></svg>"#,
        HEIGHT - 4.0
    );
    svg
}

fn open(height: f64, label: &str) -> String {
    format!(r#"<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{}">"#, escaped(label))
}

fn horizontal(svg: &mut String, y: f64, label: &str) {
    let _ = write!(
        svg,
        r#"<path class="grid" d="M{LEFT} {y:.1}H{:.1}"/><text x="{:.1}" y="{:.1}" text-anchor="end">{label}</text>"#,
        WIDTH - RIGHT,
        LEFT - 5.0,
        y + 4.0
    );
}

fn below(svg: &mut String, x: f64, floor: f64, label: &str) {
    let _ = write!(svg, r#"<text x="{x:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#, floor + 15.0);
}

fn diamond(svg: &mut String, class: &str, x: f64, y: f64, r: f64) {
    let _ = write!(
        svg,
        r#"<path class="{class}" d="M{:.1} {y:.1}L{x:.1} {:.1}L{:.1} {y:.1}L{x:.1} {:.1}Z"/>"#,
        x - r,
        y - r,
        x + r,
        y + r
    );
}

/// Round numbers that hold `low` and `high` between them, or reach nearly to `high`; about `count`.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let span = (high - low).max(high.abs() * 1e-3).max(1e-9);
    let rough = span / count as f64;
    let unit = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * unit).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * unit);
    let (first, last) = ((low / step).floor() as i64, (high / step - 0.25).ceil() as i64);
    (first..=last.max(first + 1)).map(|i| i as f64 * step).collect()
}

/// Powers of ten between `low` and `high`; of few decades twos and fives too.
fn decades(low: f64, high: f64) -> Vec<f64> {
    let exponents = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let factors: &[f64] = if high / low < 1e3 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let all = exponents.flat_map(|e| factors.iter().map(move |factor| factor * 10f64.powi(e)));
    all.filter(|tick| (low..=high).contains(tick)).collect()
}

/// A number as briefly as it can be told apart from its neighbours on a scale.
pub fn number(x: f64) -> String {
    let rounded = match x.abs() {
        0.0 => return "0".to_owned(),
        size if size < 1e-3 => return format!("{:e}", format!("{x:.1e}").parse::<f64>().unwrap_or(x)),
        size if size >= 1e4 && x % 1000.0 == 0.0 => return format!("{}k", x / 1000.0),
        size if size >= 100.0 => format!("{x:.1}"),
        size if size >= 1.0 => format!("{x:.3}"),
        _ => format!("{x:.4}"),
    };
    match rounded.contains('.') {
        true => rounded.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => rounded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_have_round_numbers_around_what_they_show() {
        for (low, high) in
            [(0.0, 1.0), (0.745, 0.8437), (0.0, 3121.0), (79.3, 83.7), (0.5, 0.5), (0.0, 0.0), (-3.0, 2e-5)]
        {
            let ticks = ticks(low, high, 5);
            assert!((2..=9).contains(&ticks.len()), "{low}..{high}: {ticks:?}");
            let step = ticks[1] - ticks[0];
            assert!(ticks[0] <= low && ticks[ticks.len() - 1] + 0.26 * step >= high, "{low}..{high}: {ticks:?}");
        }
        let shown: Vec<String> = decades(0.013, 0.9).into_iter().map(number).collect();
        assert_eq!(shown, ["0.02", "0.05", "0.1", "0.2", "0.5"]);
        assert_eq!(decades(2e-7, 0.5).len(), 6);
        for (x, shown) in
            [(0.0, "0"), (0.00025, "2.5e-4"), (0.5, "0.5"), (82.5, "82.5"), (20000.0, "20k"), (1234.0, "1234")]
        {
            assert_eq!(number(x), shown);
        }
    }

    #[test]
    fn a_line_of_nothing_or_of_one_point_is_no_trouble() {
        let line =
            |pieces, dots| Line { name: "<x>", pieces, stages: &[1, 1], dots, best: None, may_be_logarithmic: !dots };
        assert_eq!(line(vec![], false).svg(), "");
        for dots in [false, true] {
            let svg = line(vec![vec![(1.0, 0.0)]], dots).svg();
            assert!(svg.contains("aria-label=\"&lt;x&gt;: 0 at step 1") && !svg.contains("NaN"), "{svg}");
        }
        let empty = Reliability::of(&[]).unwrap();
        assert!(!reliability("x", &empty).contains("NaN"));
        let nothing = Interval { value: 0.0, low: 0.0, high: 0.0 };
        assert!(!intervals("x", &[("A".to_owned(), nothing)]).contains("NaN"));
    }
}

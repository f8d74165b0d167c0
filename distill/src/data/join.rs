//! Tokens back to a text.

use std::ops::Range;

/// To which neighbours a token is written without a space.
#[derive(Clone, Copy, Default)]
struct Glue {
    left: bool,
    right: bool,
}

const NONE: Glue = Glue { left: false, right: false };
const LEFT: Glue = Glue { left: true, right: false };
const RIGHT: Glue = Glue { left: false, right: true };
const BOTH: Glue = Glue { left: true, right: true };

/// Joins the tokens of a sentence to a text that reads as if it had never been tokenized, and gives each token's UTF-8
/// range in it.
///
/// One space stands between two tokens, but none where either is glued to the other. The rule knows the tokens alone, never
/// their tags:
///
/// | Tokens | Glued |
/// |---|---|
/// | `. , ; : ! ? % ) ] } » ” … ® ™ ° ''`, and `'s`, `n't` and their like | to the left |
/// | `( [ { ¿ ¡ « “ ‘ ~` and two backquotes | to the right; also to the left in `(s)` and `(es)` |
/// | hyphens, `/`, `_` | on both sides; a hyphen not to the left after `= < > , : ;` (a sign), nor to the right before `and`, `or`, `to`, `versus` (`size- and sex-dependent`, but `day-to-day`) |
/// | `+/-`, `+/+`, `-/-`, `-/+` of three tokens | to each other only |
/// | `.` between digits (`11q23 . 3`); before a digit and after `= < >` (`P = .01`); between single letters that a `.` follows (`i.v.`) | on both sides; to the right; on both sides |
/// | `,` in `1 , 000` and `1 , 25 - dihydroxy`; `:` between digits | on both sides |
/// | `>` after a hyphen (`-->`); `*` between a letter or digit and a digit | on both sides |
/// | `+` after a letter or digit and before one of `) ] , ; : . / -` (`Ca2+-dependent`) | to the left |
/// | `$ € £ #` before a digit | to the right |
/// | `"` | to the right and to the left, in turn |
/// | `'` (or `’`) before `s t d m ll re ve` and after a word | on both sides |
/// | another `'` | to the left if one is open, or after a plural or a digit (`Coats' disease`, `5' end`), or if none follows; otherwise it opens, to the right |
///
/// Between two tokens that meet with letters or digits there is always a space, except before `n't`.
pub fn join<S: AsRef<str>>(tokens: &[S]) -> (String, Vec<Range<usize>>) {
    let tokens: Vec<&str> = tokens.iter().map(AsRef::as_ref).collect();
    let mut text = String::new();
    let mut ranges = Vec::with_capacity(tokens.len());
    let mut glued = true; // nothing stands before the first
    for (token, glue) in tokens.iter().zip(glues(&tokens)) {
        if !glued && !glue.left {
            text.push(' ');
        }
        let start = text.len();
        text.push_str(token);
        ranges.push(start..text.len());
        glued = glue.right;
    }
    (text, ranges)
}

fn glues(tokens: &[&str]) -> Vec<Glue> {
    let sentence = Sentence { tokens };
    let last_quote = (0..tokens.len()).rev().find(|&i| is_apostrophe(tokens[i]) && !sentence.is_clitic(i));
    let (mut single_open, mut double_open) = (false, false);
    let mut glues = Vec::with_capacity(tokens.len());
    while glues.len() < tokens.len() {
        let i = glues.len();
        if sentence.is_sign_pair(i) {
            glues.extend([RIGHT, BOTH, LEFT]);
            continue;
        }
        glues.push(match tokens[i] {
            "\"" => {
                double_open = !double_open;
                if double_open { RIGHT } else { LEFT }
            }
            token if is_apostrophe(token) => {
                if sentence.is_clitic(i) {
                    BOTH
                } else if single_open {
                    single_open = false;
                    LEFT
                } else if sentence.may_be_prime(i) || last_quote == Some(i) {
                    LEFT
                } else {
                    single_open = true;
                    RIGHT
                }
            }
            _ => sentence.glue(i),
        });
    }
    glues
}

struct Sentence<'a> {
    tokens: &'a [&'a str],
}

impl Sentence<'_> {
    /// The token so far from token `i`; empty beyond the ends.
    fn near(&self, i: usize, by: isize) -> &str {
        i.checked_add_signed(by).and_then(|j| self.tokens.get(j)).copied().unwrap_or_default()
    }

    /// What token `i` is glued to, for all but quotes.
    fn glue(&self, i: usize) -> Glue {
        let (before, after, second) = (self.near(i, -1), self.near(i, 1), self.near(i, 2));
        match self.tokens[i] {
            "(" if second == ")" && matches!(after, "s" | "es") => BOTH,
            "." if ends_in_digit(before) && begins_with_digit(after) => BOTH,
            "." if matches!(before, "=" | "<" | ">") && begins_with_digit(after) => RIGHT,
            "." if is_letter(before) && is_letter(after) && second == "." => BOTH,
            "," if is_number(before) && is_number(after) && after.len() == 3 => BOTH,
            "," if is_locant(before) && is_locant(after) && second == "-" && begins_with_letter(self.near(i, 3)) => {
                BOTH
            }
            ":" if is_number(before) && is_number(after) => BOTH,
            "-" | "\u{2010}" | "\u{2011}" | "\u{2013}" => Glue {
                left: !matches!(before, "=" | "<" | ">" | "," | ":" | ";"),
                right: second == "-" || !matches!(after, "and" | "or" | "to" | "versus"),
            },
            "/" | "_" => BOTH,
            ">" if before == "-" => BOTH,
            "*" if ends_alphanumeric(before) && begins_with_digit(after) => BOTH,
            "+" if ends_alphanumeric(before) && matches!(after, ")" | "]" | "," | ";" | ":" | "." | "/" | "-") => LEFT,
            "$" | "€" | "£" | "#" if begins_with_digit(after) => RIGHT,
            "(" | "[" | "{" | "¿" | "¡" | "«" | "“" | "‘" | "~" | "``" => RIGHT,
            "." | "," | ";" | ":" | "!" | "?" | "%" | ")" | "]" | "}" | "»" | "”" | "…" | "..." | "®" | "™" | "°"
            | "''" => LEFT,
            token if is_contraction(token) => LEFT,
            _ => NONE,
        }
    }

    /// Whether `+/-` or the like begins at token `i`.
    fn is_sign_pair(&self, i: usize) -> bool {
        let is_sign = |token| matches!(token, "+" | "-");
        is_sign(self.tokens[i]) && self.near(i, 1) == "/" && is_sign(self.near(i, 2))
    }

    /// Whether token `i`, an apostrophe, belongs to a word that goes on: `patient ' s`.
    fn is_clitic(&self, i: usize) -> bool {
        let word = self.near(i, 1).to_ascii_lowercase();
        ends_alphanumeric(self.near(i, -1)) && matches!(word.as_str(), "s" | "t" | "d" | "m" | "ll" | "re" | "ve")
    }

    /// Whether token `i`, an apostrophe, stands after a plural (`Coats ' disease`) or a digit (`the 5 ' end`).
    fn may_be_prime(&self, i: usize) -> bool {
        let before = self.near(i, -1);
        let of_clitic = is_apostrophe(self.near(i, -2));
        ends_in_digit(before) || (before.ends_with(['s', 'S', 'x', 'z']) && !of_clitic)
    }
}

fn is_apostrophe(token: &str) -> bool {
    matches!(token, "'" | "’")
}

fn is_contraction(token: &str) -> bool {
    // A token may be as long as the file.
    if token.len() > "’ll".len() {
        return false;
    }
    let word = token.to_ascii_lowercase().replace('’', "'");
    matches!(word.as_str(), "'s" | "'t" | "'d" | "'m" | "'ll" | "'re" | "'ve" | "n't")
}

fn is_number(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|b| b.is_ascii_digit())
}

fn is_letter(token: &str) -> bool {
    let mut characters = token.chars();
    characters.next().is_some_and(char::is_alphabetic) && characters.next().is_none()
}

/// Where something is bound in a molecule: `1`, `25`, `N`.
fn is_locant(token: &str) -> bool {
    is_number(token) || is_letter(token)
}

fn begins_with_digit(token: &str) -> bool {
    token.starts_with(|c: char| c.is_ascii_digit())
}

fn begins_with_letter(token: &str) -> bool {
    token.starts_with(char::is_alphabetic)
}

fn ends_in_digit(token: &str) -> bool {
    token.ends_with(|c: char| c.is_ascii_digit())
}

fn ends_alphanumeric(token: &str) -> bool {
    token.ends_with(char::is_alphanumeric)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn joined(tokenized: &str) -> String {
        join(&tokenized.split(' ').collect::<Vec<_>>()).0
    }

    /// Tokenized as BC5CDR and NCBI-disease are (CC BY 4.0), most after sentences of theirs.
    #[test]
    fn reads_like_natural_text() {
        for (tokenized, text) in [
            ("Torsade de pointes , again .", "Torsade de pointes, again."),
            ("a 56 - year - old woman", "a 56-year-old woman"),
            ("( 0 . 1 - 10 microg / side )", "(0.1-10 microg/side)"),
            ("was 41 . 4 + / - 6 . 5 mg .", "was 41.4 +/- 6.5 mg."),
            ("beta4 ( + / - ) and beta4 - / - mice", "beta4 (+/-) and beta4 -/- mice"),
            ("per 1 , 000 woman - years", "per 1,000 woman-years"),
            ("on days 3 , 5 , 7", "on days 3, 5, 7"),
            ("1 , 25 - dihydroxyvitamin", "1,25-dihydroxyvitamin"),
            ("the patient ' s level", "the patient's level"),
            ("the patient 's level does n't", "the patient's level doesn't"),
            ("Wilms ' tumour and Peters ' anomaly", "Wilms' tumour and Peters' anomaly"),
            ("Knudson ' s ' two - hit ' hypothesis", "Knudson's 'two-hit' hypothesis"),
            ("so - called ' atypical ' drugs", "so-called 'atypical' drugs"),
            ("a 5 ' - exon", "a 5'-exon"),
            ("a \" real \" and \" sham \" test", "a \"real\" and \"sham\" test"),
            ("the mechanism ( s ) involved", "the mechanism(s) involved"),
            ("size - and sex - dependent", "size- and sex-dependent"),
            ("2 - to 3 - year , day - to - day", "2- to 3-year, day-to-day"),
            ("at 11q23 . 3 ( P = . 03 )", "at 11q23.3 (P = .03)"),
            ("given i . v . at 5 mg / kg", "given i.v. at 5 mg/kg"),
            ("C ( 2531 ) - - > T", "C (2531)-->T"),
            ("CYP2D6 * 4 , Na + / glucose", "CYP2D6*4, Na+/glucose"),
            ("p < or = 0 . 001 , 40 %", "p < or = 0.001, 40%"),
            ("in a 1 : 4 ratio : low", "in a 1:4 ratio: low"),
            ("change = - 0 . 5", "change = -0.5"),
            ("¿ Fiebre ? « alta »", "¿Fiebre? «alta»"),
        ] {
            assert_eq!(joined(tokenized), text);
        }
    }

    proptest! {
        #[test]
        fn keeps_every_token_and_no_two_words_meet(
            tokens in prop::collection::vec(
                prop_oneof![
                    "[a-zé0-9]{1,4}", "[-./,:;'\"()+*><=%#]", Just("s".to_owned()), Just("+/-".to_owned()),
                    "[^\\sn]{1,3}",
                ],
                0..40,
            )
        ) {
            let (text, ranges) = join(&tokens);
            prop_assert_eq!(ranges.len(), tokens.len());
            let mut end = 0;
            for (i, (token, range)) in tokens.iter().zip(&ranges).enumerate() {
                prop_assert_eq!(&text[range.clone()], token);
                let gap = &text[end..range.start];
                prop_assert!(gap.is_empty() || (gap == " " && i > 0));
                if i > 0 && ends_alphanumeric(&tokens[i - 1]) && token.starts_with(char::is_alphanumeric) {
                    prop_assert_eq!(gap, " ");
                }
                end = range.end;
            }
            prop_assert_eq!(end, text.len());
        }
    }
}

//! The header's JSON, read by hand: a general parser copies, and hostile text can make it allocate many times its length.

use super::{Dtype, MAX_METADATA_ENTRIES, MAX_NAME_BYTES, MAX_TENSORS};
use crate::error::{Error, Result};

/// What the header says, as it says it.
pub(super) struct Header<'a> {
    pub(super) metadata: Vec<(&'a str, Quoted<'a>)>,
    pub(super) tensors: Vec<Entry<'a>>,
}

/// One tensor of the header.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a str,
    pub(super) dtype: Dtype,
    dims: [u32; 2],
    rank: u8,
    pub(super) begin: u64,
    pub(super) end: u64,
}

impl Entry<'_> {
    pub(super) fn shape(&self) -> &[u32] {
        self.dims.get(..usize::from(self.rank)).unwrap_or_default()
    }

    /// Bytes that its shape takes; `None` past 2⁶⁴.
    pub(super) fn bytes(&self) -> Option<u64> {
        self.shape().iter().try_fold(self.dtype.size() as u64, |bytes, &n| bytes.checked_mul(n.into()))
    }
}

impl<'a> Header<'a> {
    /// Reads the header's grammar. Counts before it collects, so that what it holds in memory is bounded by the header.
    pub(super) fn parse(header: &'a [u8]) -> Result<Self> {
        let text = std::str::from_utf8(header).map_err(|e| {
            Error::corrupt(format!(
                "bundle header, byte {}: expected UTF-8; the file is damaged, or is no bundle",
                e.valid_up_to()
            ))
        })?;
        let (mut metadata_count, mut tensor_count) = (0, 0);
        entries(
            text,
            &mut |_, _| {
                metadata_count += 1;
                Ok(())
            },
            &mut |_| {
                tensor_count += 1;
                Ok(())
            },
        )?;
        for (what, count, most) in
            [("metadata entries", metadata_count, MAX_METADATA_ENTRIES), ("tensors", tensor_count, MAX_TENSORS)]
        {
            if count > most {
                return Err(Error::corrupt(format!("bundle header: expected at most {most} {what}, found {count}")));
            }
        }
        let mut metadata = Vec::with_capacity(metadata_count);
        let mut tensors = Vec::with_capacity(tensor_count);
        entries(
            text,
            &mut |key, value| {
                metadata.push((key, value));
                Ok(())
            },
            &mut |entry| {
                tensors.push(entry);
                Ok(())
            },
        )?;
        metadata.sort_unstable_by_key(|(key, _)| *key);
        tensors.sort_unstable_by_key(|t| t.name);
        let twice =
            |what: &str, name: &str| Error::corrupt(format!("bundle {what} {name:?} stands twice in the header"));
        if let Some(pair) = metadata.windows(2).find(|w| w[0].0 == w[1].0) {
            return Err(twice("metadata", pair[0].0));
        }
        if let Some(pair) = tensors.windows(2).find(|w| w[0].name == w[1].name) {
            return Err(twice("tensor", pair[0].name));
        }
        Ok(Header { metadata, tensors })
    }
}

/// Calls back for each metadata entry and each tensor, in the header's order.
fn entries<'a>(
    text: &'a str,
    on_metadata: &mut dyn FnMut(&'a str, Quoted<'a>) -> Result<()>,
    on_tensor: &mut dyn FnMut(Entry<'a>) -> Result<()>,
) -> Result<()> {
    let mut json = Json::new(text, "bundle header");
    let mut has_metadata = false;
    json.object(|json, key| {
        if key.raw != "__metadata__" {
            let name = key.name()?;
            return on_tensor(tensor(json, name)?);
        }
        if std::mem::replace(&mut has_metadata, true) {
            return Err(Error::corrupt("bundle header: __metadata__ stands twice"));
        }
        json.object(|json, key| on_metadata(key.name()?, json.string()?))
    })?;
    json.end()
}

fn tensor<'a>(json: &mut Json<'a>, name: &'a str) -> Result<Entry<'a>> {
    let (mut dtype, mut shape, mut offsets) = (None, None, None);
    json.object(|json, key| {
        match key.raw {
            "dtype" if dtype.is_none() => dtype = Some(json.string()?.raw),
            "shape" if shape.is_none() => shape = Some(json.numbers()?),
            "data_offsets" if offsets.is_none() => offsets = Some(json.numbers()?),
            _ => return Err(json.expected("\"dtype\", \"shape\" and \"data_offsets\", each once")),
        }
        Ok(())
    })?;
    let corrupt = |what: &str| Error::corrupt(format!("bundle tensor {name:?}: {what}"));
    let dtype = match dtype.ok_or_else(|| corrupt("\"dtype\" is missing"))? {
        "F32" => Dtype::F32,
        "F16" => Dtype::F16,
        "I8" => Dtype::I8,
        "U8" => Dtype::U8,
        _ => return Err(corrupt("its dtype is unknown; expected F32, F16, I8 or U8")),
    };
    let (shape, rank) = shape.ok_or_else(|| corrupt("\"shape\" is missing"))?;
    let dims = match (rank, shape.map(u32::try_from)) {
        (1 | 2, [Ok(outer), Ok(inner)]) => [outer, inner],
        (1 | 2, _) => return Err(corrupt("a dimension is over 4294967295")),
        _ => return Err(corrupt(&format!("expected one or two dimensions, found {rank}"))),
    };
    match offsets.ok_or_else(|| corrupt("\"data_offsets\" is missing"))? {
        ([begin, end], 2) => Ok(Entry { name, dtype, dims, rank: rank as u8, begin, end }),
        _ => Err(corrupt("\"data_offsets\" holds not two numbers")),
    }
}

/// A JSON string between its quotes, escapes and all.
#[derive(Clone, Copy)]
pub(super) struct Quoted<'a> {
    pub(super) raw: &'a str,
    /// Where it begins in the text.
    pub(super) at: usize,
}

impl<'a> Quoted<'a> {
    /// It as a name: short, printable, without escapes.
    fn name(self) -> Result<&'a str> {
        let printable = |b: u8| b.is_ascii_graphic() && b != b'\\';
        if (1..=MAX_NAME_BYTES).contains(&self.raw.len()) && self.raw.bytes().all(printable) {
            return Ok(self.raw);
        }
        Err(Error::corrupt(format!(
            "bundle header, byte {}: expected a name of 1 to {MAX_NAME_BYTES} printable ASCII characters, found one of {} bytes",
            self.at,
            self.raw.len()
        )))
    }

    /// It without escapes, which are never shorter than what they stand for.
    pub(super) fn unescaped(self) -> Result<String> {
        let broken = || Error::corrupt(format!("bundle header: the string at byte {} has a broken escape", self.at));
        let mut out = String::with_capacity(self.raw.len());
        let mut rest = self.raw;
        while let Some((plain, escape)) = rest.split_once('\\') {
            out.push_str(plain);
            let mut after = escape.chars();
            out.push(match after.next().ok_or_else(broken)? {
                c @ ('"' | '\\' | '/') => c,
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'u' => {
                    let unit = code_unit(&mut after).ok_or_else(broken)?;
                    let low = match unit {
                        0xD800..0xDC00 if after.as_str().starts_with("\\u") => {
                            after.nth(1);
                            code_unit(&mut after)
                        }
                        _ => None,
                    };
                    let units = std::iter::once(unit).chain(low);
                    let mut decoded = char::decode_utf16(units);
                    match (decoded.next(), decoded.next()) {
                        (Some(Ok(c)), None) => c,
                        _ => return Err(broken()),
                    }
                }
                _ => return Err(broken()),
            });
            rest = after.as_str();
        }
        out.push_str(rest);
        Ok(out)
    }
}

fn code_unit(chars: &mut std::str::Chars<'_>) -> Option<u16> {
    (0..4).try_fold(0, |unit, _| Some(unit << 4 | chars.next()?.to_digit(16)? as u16))
}

/// A cursor over the JSON that a header may hold: objects, arrays of one kind, strings, whole numbers.
pub(super) struct Json<'a> {
    text: &'a str,
    at: usize,
    place: &'static str,
}

impl<'a> Json<'a> {
    pub(super) fn new(text: &'a str, place: &'static str) -> Self {
        Json { text, at: 0, place }
    }

    fn expected(&self, what: &str) -> Error {
        let found = match self.text.as_bytes().get(self.at) {
            Some(byte) => format!("byte {byte:#04x}"),
            None => "its end".to_owned(),
        };
        Error::corrupt(format!(
            "{}, byte {}: expected {what}, found {found}; the file is damaged, or is no bundle",
            self.place, self.at
        ))
    }

    fn peek(&mut self) -> Option<u8> {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        let blank = rest.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')).count();
        self.at += blank;
        rest.get(blank).copied()
    }

    fn accept(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8, what: &str) -> Result<()> {
        match self.accept(byte) {
            true => Ok(()),
            false => Err(self.expected(what)),
        }
    }

    pub(super) fn end(&mut self) -> Result<()> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.expected("the end")),
        }
    }

    fn object(&mut self, mut member: impl FnMut(&mut Self, Quoted<'a>) -> Result<()>) -> Result<()> {
        self.expect(b'{', "an object")?;
        if self.accept(b'}') {
            return Ok(());
        }
        loop {
            let key = self.string()?;
            self.expect(b':', "a colon")?;
            member(self, key)?;
            if !self.accept(b',') {
                return self.expect(b'}', "a comma or the object's end");
            }
        }
    }

    pub(super) fn array(&mut self, mut element: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.expect(b'[', "an array")?;
        if self.accept(b']') {
            return Ok(());
        }
        loop {
            element(self)?;
            if !self.accept(b',') {
                return self.expect(b']', "a comma or the array's end");
            }
        }
    }

    pub(super) fn string(&mut self) -> Result<Quoted<'a>> {
        self.expect(b'"', "a string")?;
        let at = self.at;
        let bytes = self.text.as_bytes();
        loop {
            match bytes.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                Some(0x20..) => self.at += 1,
                _ => return Err(self.expected("the rest of a string")),
            }
        }
        let raw = self.text.get(at..self.at).unwrap_or_default();
        self.at += 1;
        Ok(Quoted { raw, at })
    }

    fn number(&mut self) -> Result<u64> {
        self.peek();
        let rest = self.text.get(self.at..).unwrap_or_default();
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number = rest.get(..digits).and_then(|d| d.parse().ok());
        let number = number.ok_or_else(|| self.expected("a whole number below 2^64"))?;
        self.at += digits;
        Ok(number)
    }

    /// An array of numbers: the first two, and how many there are.
    fn numbers(&mut self) -> Result<([u64; 2], usize)> {
        let (mut first, mut count) = ([0; 2], 0);
        self.array(|json| {
            let number = json.number()?;
            if let Some(slot) = first.get_mut(count) {
                *slot = number;
            }
            count += 1;
            Ok(())
        })?;
        Ok((first, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn strings_are_those_of_serde_json(text in ".{0,40}|[\\u0000-\\u001f\"\\\\\u{1F600}é]{0,20}", ascii in any::<bool>()) {
            let mut json = serde_json::to_string(&text).unwrap();
            if ascii {
                // As Python's json writes it: each UTF-16 unit escaped.
                let units: String = text.encode_utf16().map(|u| format!("\\u{u:04x}")).collect();
                json = format!("\"{units}\"");
            }
            let mut cursor = Json::new(&json, "test");
            let read = cursor.string().unwrap();
            cursor.end().unwrap();
            prop_assert_eq!(read.unescaped().unwrap(), text);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), json in "[\\[\\]{}\",:\\\\u0-9a-f ]{0,80}") {
            let _ = Header::parse(&bytes);
            let _ = Header::parse(json.as_bytes());
            let accepted = Json::new(&json, "test").string().is_ok_and(|s| s.unescaped().is_ok());
            let first: Option<Result<String, _>> = serde_json::Deserializer::from_str(&json).into_iter().next();
            prop_assert_eq!(accepted, matches!(first, Some(Ok(_))), "{}", json);
        }
    }

    #[test]
    fn broken_escapes_are_refused() {
        for raw in ["\\", "\\x", "\\u12", "\\ud800", "\\ud800\\u0041", "\\udc00", "\\ud83d\\n"] {
            assert!(Quoted { raw, at: 0 }.unescaped().is_err(), "{raw}");
        }
    }
}

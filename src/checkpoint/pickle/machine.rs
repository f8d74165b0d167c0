//! Reads one pickle without ever running it: the opcodes that torch writes (protocols 2 to 5), and a short list of globals.
//!
//! Everything it makes lies in the flat lists of a [`Heap`], so that neither deep nesting nor self-reference costs stack, and
//! every value is paid for from a budget that the file's size sets.

use std::collections::HashMap;
use std::io::{ErrorKind as IoErrorKind, Read, Seek, SeekFrom};

use super::DType;
use crate::error::{Error, ErrorKind, Result};

/// No weight of a model has more dimensions.
const MAX_DIMENSIONS: usize = 8;

/// A global's line; longer ones name nothing that is known.
const MAX_LINE: usize = 256;

/// What one unit of the budget stands for: the bytes of a [`Value`] in a list that grows by doubling.
const BYTES_OF_A_VALUE: u64 = 2 * size_of::<Value>() as u64;

/// The budget of the smallest files, whose many small tensors outweigh their data.
const MIN_BUDGET: u64 = 2 << 20;

/// Bytes `position..end` of a file.
pub(super) struct Source<R> {
    reader: R,
    position: u64,
    end: u64,
}

impl<R: Read> Source<R> {
    /// The bytes `position..end` of a file of which `reader` stands at `position`.
    pub(super) fn new(reader: R, position: u64, end: u64) -> Self {
        Source { reader, position, end }
    }

    /// Where in the file the next byte lies.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    fn claim(&mut self, count: u64) -> Result<u64> {
        let start = self.position;
        match start.checked_add(count).filter(|&end| end <= self.end) {
            Some(end) => self.position = end,
            None => {
                return Err(Error::corrupt(format!(
                    "byte {start}: {count} more bytes expected, {} are there",
                    self.end.saturating_sub(start)
                )));
            }
        }
        Ok(start)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// The next `bytes.len()` bytes.
    pub(super) fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        let start = self.claim(bytes.len() as u64)?;
        self.reader.read_exact(bytes).map_err(|e| unreadable(start, e))
    }

    /// The next `count` bytes; `count` is checked against what is there before anything is allocated.
    pub(super) fn bytes(&mut self, count: u64) -> Result<Vec<u8>> {
        let start = self.claim(count)?;
        let mut bytes = vec![0; usize::try_from(count).map_err(|_| too_large(start))?];
        self.reader.read_exact(&mut bytes).map_err(|e| unreadable(start, e))?;
        Ok(bytes)
    }

    fn text(&mut self, count: u64) -> Result<String> {
        let start = self.position;
        String::from_utf8(self.bytes(count)?)
            .map_err(|_| Error::corrupt(format!("byte {start}: a string is not UTF-8")))
    }

    fn line(&mut self) -> Result<String> {
        let start = self.position;
        let mut line = Vec::new();
        loop {
            match self.array()? {
                [b'\n'] => break,
                [byte] => line.push(byte),
            }
            if line.len() > MAX_LINE {
                return Err(Error::corrupt(format!("byte {start}: a global's name of over {MAX_LINE} bytes")));
            }
        }
        String::from_utf8(line).map_err(|_| Error::corrupt(format!("byte {start}: a global's name is not UTF-8")))
    }
}

impl<R: Read + Seek> Source<R> {
    /// Passes over the next `count` bytes, which must be there.
    pub(super) fn skip(&mut self, count: u64) -> Result<()> {
        let start = self.claim(count)?;
        self.reader.seek(SeekFrom::Start(self.position)).map(|_| ()).map_err(|e| unreadable(start, e))
    }
}

fn unreadable(position: u64, e: std::io::Error) -> Error {
    let kind = match e.kind() {
        IoErrorKind::UnexpectedEof => ErrorKind::Corrupt,
        _ => ErrorKind::NotFound,
    };
    Error::new(kind, format!("byte {position}: cannot be read: {e}")).with_source(e)
}

fn too_large(position: u64) -> Error {
    Error::corrupt(format!("byte {position}: a length that no memory holds"))
}

/// One value of a pickle; the numbers are places in the [`Heap`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    /// A value on which no tensor depends: `None`, a float, bytes, a dtype.
    Plain,
    Bool(bool),
    Int(i64),
    Str(usize),
    Tuple(usize),
    List(usize),
    /// Keys and values in turn.
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

/// A global that may be named.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    Size,
    RebuildTensor,
    RebuildParameter,
    Storage(DType),
}

impl Global {
    /// The global's value, or nothing for one that is refused.
    fn find(module: &str, name: &str) -> Option<Value> {
        Some(Value::Global(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch", "Size") => Global::Size,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            (
                "torch",
                "float32" | "float16" | "bfloat16" | "float64" | "int64" | "int32" | "int16" | "int8" | "uint8"
                | "bool",
            ) => {
                return Some(Value::Plain);
            }
            ("torch", storage) => Global::Storage(DType::of_storage(storage)?),
            _ => return None,
        }))
    }
}

/// What the pickle says of the data that lies elsewhere in the file.
pub(super) struct Storage {
    pub(super) key: String,
    pub(super) dtype: DType,
    /// Number of elements.
    pub(super) count: u64,
}

/// A tensor as a view of a storage; all in elements.
pub(super) struct View {
    pub(super) storage: usize,
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// Everything that one pickle made.
#[derive(Default)]
pub(super) struct Heap {
    pub(super) strings: Vec<String>,
    pub(super) sequences: Vec<Vec<Value>>,
    pub(super) storages: Vec<Storage>,
    pub(super) tensors: Vec<View>,
}

impl Heap {
    pub(super) fn str(&self, value: Value) -> Option<&str> {
        match value {
            Value::Str(i) => self.strings.get(i).map(String::as_str),
            _ => None,
        }
    }

    /// The items of a tuple or list.
    pub(super) fn items(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Tuple(i) | Value::List(i) => self.sequences.get(i).map(Vec::as_slice),
            _ => None,
        }
    }

    /// The entries of a dict that have a string for a key.
    pub(super) fn entries(&self, value: Value) -> Option<impl Iterator<Item = (&str, Value)>> {
        let Value::Dict(i) = value else { return None };
        let pairs = self.sequences.get(i)?.as_chunks::<2>().0;
        Some(pairs.iter().filter_map(|&[key, value]| Some((self.str(key)?, value))))
    }

    fn sizes(&self, value: Value) -> Option<Vec<usize>> {
        let items = self.items(value).filter(|items| items.len() <= MAX_DIMENSIONS)?;
        items.iter().map(|&item| as_number(item)?.try_into().ok()).collect()
    }
}

fn as_number(value: Value) -> Option<u64> {
    match value {
        Value::Int(n) => n.try_into().ok(),
        _ => None,
    }
}

/// Reads one pickle, up to and with its last opcode, and gives its value. `len` is the size of the whole file.
pub(super) fn read<R: Read>(source: &mut Source<R>, len: u64) -> Result<(Value, Heap)> {
    let mut machine = Machine {
        at: source.position(),
        source,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        storage_of_key: HashMap::new(),
        heap: Heap::default(),
        budget: len.max(MIN_BUDGET) / BYTES_OF_A_VALUE,
    };
    let value = machine.run()?;
    Ok((value, machine.heap))
}

struct Machine<'a, R> {
    source: &'a mut Source<R>,
    /// Where the opcode in hand lies, for errors.
    at: u64,
    stack: Vec<Value>,
    /// Heights of the stack at its marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    storage_of_key: HashMap<String, usize>,
    heap: Heap,
    /// How many more values may be made.
    budget: u64,
}

impl<R: Read> Machine<'_, R> {
    fn run(&mut self) -> Result<Value> {
        loop {
            self.at = self.source.position();
            let [opcode] = self.source.array()?;
            match opcode {
                b'.' => return self.pop(),
                0x80 => {
                    let [protocol] = self.source.array()?;
                    if protocol > 5 {
                        return Err(Error::incompatible(format!(
                            "byte {}: pickle protocol {protocol} is not supported; supported are 2 to 5",
                            self.at
                        )));
                    }
                }
                // A frame's length is of use to readers of unbuffered files only.
                0x95 => drop(self.source.array::<8>()?),
                b'(' => {
                    self.charge(1)?;
                    self.marks.push(self.stack.len());
                }
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.push(top)?;
                }
                b'N' => self.push(Value::Plain)?,
                0x88 => self.push(Value::Bool(true))?,
                0x89 => self.push(Value::Bool(false))?,
                b'J' => {
                    let n = i32::from_le_bytes(self.source.array()?);
                    self.push(Value::Int(n.into()))?;
                }
                b'K' => {
                    let [n] = self.source.array()?;
                    self.push(Value::Int(n.into()))?;
                }
                b'M' => {
                    let n = u16::from_le_bytes(self.source.array()?);
                    self.push(Value::Int(n.into()))?;
                }
                0x8a => {
                    let [n] = self.source.array()?;
                    self.push_long(n.into())?;
                }
                0x8b => {
                    let n = self.length32()?;
                    self.push_long(n)?;
                }
                b'G' => {
                    self.source.array::<8>()?;
                    self.push(Value::Plain)?;
                }
                // Python 2's strings, those of protocol 1, and those of protocol 4.
                b'U' | 0x8c => {
                    let [n] = self.source.array()?;
                    self.push_str(n.into())?;
                }
                b'T' | b'X' => {
                    let n = self.length32()?;
                    self.push_str(n)?;
                }
                0x8d => {
                    let n = u64::from_le_bytes(self.source.array()?);
                    self.push_str(n)?;
                }
                b'C' => {
                    let [n] = self.source.array()?;
                    self.push_bytes(n.into())?;
                }
                b'B' => {
                    let n = self.length32()?;
                    self.push_bytes(n)?;
                }
                0x8e | 0x96 => {
                    let n = u64::from_le_bytes(self.source.array()?);
                    self.push_bytes(n)?;
                }
                b')' => self.push_sequence(Value::Tuple, Vec::new())?,
                0x85..=0x87 => {
                    let mut items = Vec::new();
                    for _ in 0x84..opcode {
                        items.push(self.pop()?);
                    }
                    items.reverse();
                    self.push_sequence(Value::Tuple, items)?;
                }
                b't' => {
                    let items = self.pop_mark()?;
                    self.push_sequence(Value::Tuple, items)?;
                }
                b']' => self.push_sequence(Value::List, Vec::new())?,
                b'}' => self.push_sequence(Value::Dict, Vec::new())?,
                b'a' => {
                    let item = self.pop()?;
                    self.extend_list(&[item])?;
                }
                b'e' => {
                    let items = self.pop_mark()?;
                    self.extend_list(&items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.extend_dict(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.extend_dict(&items)?;
                }
                b'q' => {
                    let [n] = self.source.array()?;
                    self.remember(n.into())?;
                }
                b'r' => {
                    let n = u32::from_le_bytes(self.source.array()?);
                    self.remember(n)?;
                }
                0x94 => {
                    let n = u32::try_from(self.memo.len()).map_err(|_| too_large(self.at))?;
                    self.remember(n)?;
                }
                b'h' => {
                    let [n] = self.source.array()?;
                    self.recall(n.into())?;
                }
                b'j' => {
                    let n = u32::from_le_bytes(self.source.array()?);
                    self.recall(n)?;
                }
                b'c' => {
                    let (module, name) = (self.source.line()?, self.source.line()?);
                    let global = self.global(&module, &name)?;
                    self.push(global)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let global = match (self.heap.str(module), self.heap.str(name)) {
                        (Some(module), Some(name)) => self.global(module, name)?,
                        _ => return Err(self.unexpected("the name of a global")),
                    };
                    self.push(global)?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage(id)?;
                    self.push(storage)?;
                }
                b'R' => {
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    let value = self.rebuild(callable, arguments)?;
                    self.push(value)?;
                }
                // The state of an OrderedDict is its `_metadata`, of which no tensor depends.
                b'b' => {
                    self.pop()?;
                    if !matches!(self.top()?, Value::Dict(_)) {
                        return Err(self.unexpected("the state of a dict"));
                    }
                }
                other => {
                    return Err(Error::incompatible(format!(
                        "byte {}: pickle opcode 0x{other:02x} is refused: no file of torch's tensors and plain containers holds it; \
                         {ADVICE}",
                        self.at
                    )));
                }
            }
        }
    }

    fn unexpected(&self, expected: &str) -> Error {
        Error::corrupt(format!("byte {}: the pickle does not hold together: expected {expected}", self.at))
    }

    /// Pays for `values` more values, before they are made.
    fn charge(&mut self, values: usize) -> Result<()> {
        self.budget = self.budget.checked_sub(values as u64).ok_or_else(|| {
            Error::corrupt(format!("byte {}: the pickle makes more values than a file of this size can need", self.at))
        })?;
        Ok(())
    }

    fn push(&mut self, value: Value) -> Result<()> {
        self.charge(1)?;
        self.stack.push(value);
        Ok(())
    }

    /// The top of the stack above the last mark.
    fn top(&self) -> Result<Value> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.get(floor..).and_then(<[Value]>::last) {
            Some(&value) => Ok(value),
            None => Err(self.unexpected("a value on the stack")),
        }
    }

    fn pop(&mut self) -> Result<Value> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// All values above the last mark, and the mark gone.
    fn pop_mark(&mut self) -> Result<Vec<Value>> {
        let mark = self.marks.pop().ok_or_else(|| self.unexpected("a mark on the stack"))?;
        self.charge(self.stack.len() - mark)?;
        Ok(self.stack.split_off(mark))
    }

    fn length32(&mut self) -> Result<u64> {
        Ok(u32::from_le_bytes(self.source.array()?).into())
    }

    /// A whole number of `count` bytes, two's complement.
    fn push_long(&mut self, count: u64) -> Result<()> {
        if count > 8 {
            return Err(self.unexpected("a whole number of at most 8 bytes"));
        }
        let bytes = self.source.bytes(count)?;
        let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        wide[..bytes.len()].copy_from_slice(&bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    fn push_str(&mut self, count: u64) -> Result<()> {
        self.charge(1)?;
        let text = self.source.text(count)?;
        self.heap.strings.push(text);
        self.push(Value::Str(self.heap.strings.len() - 1))
    }

    fn push_bytes(&mut self, count: u64) -> Result<()> {
        self.source.bytes(count)?;
        self.push(Value::Plain)
    }

    fn new_sequence(&mut self, items: Vec<Value>) -> Result<usize> {
        self.charge(2 + items.len())?;
        self.heap.sequences.push(items);
        Ok(self.heap.sequences.len() - 1)
    }

    fn push_sequence(&mut self, kind: fn(usize) -> Value, items: Vec<Value>) -> Result<()> {
        let place = self.new_sequence(items)?;
        self.push(kind(place))
    }

    fn extend_list(&mut self, items: &[Value]) -> Result<()> {
        match self.top()? {
            Value::List(place) => self.extend(place, items),
            _ => Err(self.unexpected("a list to append to")),
        }
    }

    fn extend_dict(&mut self, items: &[Value]) -> Result<()> {
        match self.top()? {
            Value::Dict(place) if items.len().is_multiple_of(2) => self.extend(place, items),
            _ => Err(self.unexpected("a dict, and keys with values")),
        }
    }

    fn extend(&mut self, place: usize, items: &[Value]) -> Result<()> {
        self.charge(items.len())?;
        match self.heap.sequences.get_mut(place) {
            Some(sequence) => sequence.extend_from_slice(items),
            None => return Err(self.unexpected("a container")),
        }
        Ok(())
    }

    fn remember(&mut self, place: u32) -> Result<()> {
        self.charge(2)?;
        self.memo.insert(place, self.top()?);
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Result<()> {
        match self.memo.get(&place) {
            Some(&value) => self.push(value),
            None => Err(self.unexpected("a value that was remembered before")),
        }
    }

    fn global(&self, module: &str, name: &str) -> Result<Value> {
        Global::find(module, name).ok_or_else(|| {
            let full: String = format!("{module}.{name}").chars().take(MAX_LINE).flat_map(char::escape_debug).collect();
            Error::incompatible(format!(
                "byte {}: refused: the pickle names `{full}`, and only tensors and plain containers are read; {ADVICE}",
                self.at
            ))
        })
    }

    /// The storage of a persistent id: `("storage", type, key, location, count)`, and in pre-1.6 streams a last `None`.
    fn storage(&mut self, id: Value) -> Result<Value> {
        let parts = match self.heap.items(id) {
            Some(&[kind, Value::Global(Global::Storage(dtype)), key, _location, count, ref rest @ ..])
                if self.heap.str(kind) == Some("storage") && matches!(rest, [] | [Value::Plain]) =>
            {
                self.heap.str(key).zip(as_number(count)).map(|(key, count)| (dtype, key.to_owned(), count))
            }
            _ => None,
        };
        let Some((dtype, key, count)) = parts else {
            return Err(self.unexpected("a storage: its type, key, place and number of elements"));
        };
        if let Some(&known) = self.storage_of_key.get(&key) {
            return match self.heap.storages.get(known) {
                Some(storage) if storage.dtype == dtype && storage.count == count => Ok(Value::Storage(known)),
                _ => Err(self.unexpected("one type and one size for a storage")),
            };
        }
        self.charge(4)?;
        let place = self.heap.storages.len();
        self.storage_of_key.insert(key.clone(), place);
        self.heap.storages.push(Storage { key, dtype, count });
        Ok(Value::Storage(place))
    }

    /// What one of the known globals makes of its arguments.
    fn rebuild(&mut self, callable: Value, arguments: Value) -> Result<Value> {
        let Value::Global(global) = callable else {
            return Err(self.unexpected("a global to call"));
        };
        let (Value::Tuple(_), Some(items)) = (arguments, self.heap.items(arguments)) else {
            return Err(self.unexpected("a tuple of arguments"));
        };
        match (global, items) {
            (Global::OrderedDict, []) => Ok(Value::Dict(self.new_sequence(Vec::new())?)),
            // Python 2 gives the items as a list of pairs.
            (Global::OrderedDict, &[pairs]) => {
                let pairs = self.heap.items(pairs).ok_or_else(|| self.unexpected("a list of pairs"))?;
                let mut entries = Vec::new();
                for &pair in pairs {
                    match self.heap.items(pair) {
                        Some(&[key, value]) => entries.extend([key, value]),
                        _ => return Err(self.unexpected("a pair of a key and a value")),
                    }
                }
                Ok(Value::Dict(self.new_sequence(entries)?))
            }
            (Global::Size, &[sizes]) if self.heap.items(sizes).is_some() => Ok(sizes),
            (Global::RebuildParameter, &[tensor @ Value::Tensor(_), ..]) => Ok(tensor),
            (Global::RebuildTensor, &[Value::Storage(storage), offset, shape, strides, ..]) => {
                let view = (as_number(offset), self.heap.sizes(shape), self.heap.sizes(strides));
                let (Some(offset), Some(shape), Some(strides)) = view else {
                    return Err(self.unexpected("a tensor's offset, shape and strides"));
                };
                if shape.len() != strides.len() {
                    return Err(self.unexpected("as many strides as dimensions"));
                }
                self.charge(4 + shape.len())?;
                self.heap.tensors.push(View { storage, offset, shape, strides });
                Ok(Value::Tensor(self.heap.tensors.len() - 1))
            }
            _ => Err(self.unexpected("the arguments of a tensor or container")),
        }
    }
}

/// What to do about a file that holds more than is read.
const ADVICE: &str =
    "where its source is trusted, load it in Python and save the tensors with `safetensors.torch.save_file`";

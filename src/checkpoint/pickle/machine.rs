//! Reads one pickle without ever running it: the opcodes that torch writes (protocols 2 to 5), and a short list of
//! globals.
//!
//! Everything it makes lies in the flat lists of a [`Heap`], so that neither deep nesting nor self-reference costs
//! stack, and every value is paid for from a budget that the file's size sets.

use std::collections::HashMap;
use std::io::Read;

use super::DType;
use super::source::{MAX_LINE, Source, too_large};
use crate::error::{Error, Result};

/// No weight of a model has more dimensions.
const MAX_DIMENSIONS: usize = 8;

/// What one unit of the budget stands for: the bytes of a [`Value`] in a list that grows by doubling.
const BYTES_OF_A_VALUE: u64 = 2 * size_of::<Value>() as u64;

/// The budget of the smallest files, whose many small tensors outweigh their data.
const MIN_BUDGET: u64 = 2 << 20;

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

/// The element types that a file may name besides its storages' classes.
const DTYPES: [&str; 10] =
    ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"];

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
            ("torch", dtype) if DTYPES.contains(&dtype) => return Some(Value::Plain),
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
    memo: HashMap<u64, Value>,
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
                b'K' => self.push_unsigned::<1>()?,
                b'M' => self.push_unsigned::<2>()?,
                0x8a => self.push_long::<1>()?,
                0x8b => self.push_long::<4>()?,
                b'G' => {
                    self.source.array::<8>()?;
                    self.push(Value::Plain)?;
                }
                // `U` and `T` are Python 2's strings.
                b'U' | 0x8c => self.push_str::<1>()?,
                b'T' | b'X' => self.push_str::<4>()?,
                0x8d => self.push_str::<8>()?,
                b'C' => self.push_bytes::<1>()?,
                b'B' => self.push_bytes::<4>()?,
                0x8e | 0x96 => self.push_bytes::<8>()?,
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
                    let place = self.number::<1>()?;
                    self.remember(place)?;
                }
                b'r' => {
                    let place = self.number::<4>()?;
                    self.remember(place)?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                b'h' => self.recall::<1>()?,
                b'j' => self.recall::<4>()?,
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
                        "byte {}: pickle opcode 0x{other:02x} is refused: no tensor or plain container needs it; \
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

    /// The next `N` bytes as a whole number.
    fn number<const N: usize>(&mut self) -> Result<u64> {
        let bytes: [u8; N] = self.source.array()?;
        Ok(bytes.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte)))
    }

    fn push_unsigned<const N: usize>(&mut self) -> Result<()> {
        let n = i64::try_from(self.number::<N>()?).map_err(|_| too_large(self.at))?;
        self.push(Value::Int(n))
    }

    /// A whole number in two's complement, after its length, which has `N` bytes.
    fn push_long<const N: usize>(&mut self) -> Result<()> {
        let count = self.number::<N>()?;
        if count > 8 {
            return Err(self.unexpected("a whole number of at most 8 bytes"));
        }
        let bytes = self.source.bytes(count)?;
        let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        wide[..bytes.len()].copy_from_slice(&bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    /// A string after its length, which has `N` bytes.
    fn push_str<const N: usize>(&mut self) -> Result<()> {
        let count = self.number::<N>()?;
        self.charge(1)?;
        let text = self.source.text(count)?;
        self.heap.strings.push(text);
        self.push(Value::Str(self.heap.strings.len() - 1))
    }

    /// Bytes after their length, which has `N` bytes.
    fn push_bytes<const N: usize>(&mut self) -> Result<()> {
        let count = self.number::<N>()?;
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

    fn remember(&mut self, place: u64) -> Result<()> {
        self.charge(2)?;
        self.memo.insert(place, self.top()?);
        Ok(())
    }

    fn recall<const N: usize>(&mut self) -> Result<()> {
        let place = self.number::<N>()?;
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

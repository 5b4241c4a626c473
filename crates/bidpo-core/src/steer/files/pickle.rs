//! The part of Python's pickle in which PyTorch writes tensors, read as data. Nothing is executed: a name of Python code becomes a
//! value, and only the few calls below, which describe tensors, are understood. Opcodes: CPython's Lib/pickle.py.

use std::collections::HashMap;

/// Larger programs describe no vector.
const MAX_VALUES: usize = 1 << 20;

/// A value of the pickled program, by its index.
pub(super) type Id = usize;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// Keys and values in order.
    Dict(Vec<(Id, Id)>),
    /// `module name`.
    Global(String),
    /// Numbers in a file of the archive: type of storage (`FloatStorage`), key.
    Storage {
        kind: String,
        key: String,
    },
    /// A view of a storage; offset, shape and strides in elements.
    Tensor {
        storage: Id,
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    },
    /// A value that says nothing about numbers: a device, a dtype.
    Opaque,
    /// Opcode MARK.
    Mark,
}

/// A program that was read.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    /// The result.
    pub(super) root: Id,
}

/// Why a program was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum PickleError {
    /// It ends early, or is not what it says.
    #[error("the pickled data are damaged ({0})")]
    Damaged(&'static str),
    /// It would run Python code.
    #[error("it holds Python objects ({0}) beside tensors")]
    Code(String),
    /// An opcode that PyTorch does not write.
    #[error("it holds pickled data that bidpo does not read (opcode {0:#04x})")]
    Opcode(u8),
}

impl Pickle {
    /// Reads a program up to its STOP.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, PickleError> {
        Machine { bytes, at: 0, values: Vec::new(), stack: Vec::new(), memo: HashMap::new() }.run()
    }

    pub(super) fn get(&self, id: Id) -> &Value {
        &self.values[id]
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    memo: HashMap<u64, Id>,
}

const SHORT: PickleError = PickleError::Damaged("it ends early");
const STACK: PickleError = PickleError::Damaged("a value is missing");

impl Machine<'_> {
    fn run(mut self) -> Result<Pickle, PickleError> {
        loop {
            match self.byte()? {
                b'.' => {
                    let root = self.pop()?;
                    return Ok(Pickle { values: self.values, root });
                }
                opcode => self.step(opcode)?,
            }
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            0x80 => drop(self.take(1)?), // PROTO
            0x95 => drop(self.take(8)?), // FRAME
            b'(' => self.push(Value::Mark)?,
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = *self.stack.last().ok_or(STACK)?;
                self.stack.push(top);
            }
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'J' => {
                let n = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(n.into()))?;
            }
            b'K' => {
                let n = self.byte()?;
                self.push(Value::Int(n.into()))?;
            }
            b'M' => {
                let n = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(n.into()))?;
            }
            0x8a => {
                let n = self.byte()?.into();
                self.long(n)?;
            }
            b'G' => {
                let x = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(x))?;
            }
            b'X' | b'T' => {
                let n = self.length()?;
                self.text(n)?;
            }
            0x8c | b'U' => {
                let n = self.byte()?.into();
                self.text(n)?;
            }
            b'B' => {
                let n = self.length()?;
                self.take(n)?;
                self.push(Value::Bytes)?;
            }
            b'C' => {
                let n = self.byte()?.into();
                self.take(n)?;
                self.push(Value::Bytes)?;
            }
            b')' => self.push(Value::Tuple(Vec::new()))?,
            b']' => self.push(Value::List(Vec::new()))?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items))?;
            }
            0x85..=0x87 => {
                let n = usize::from(opcode - 0x84);
                let from = self.stack.len().checked_sub(n).ok_or(STACK)?;
                let items = self.stack.split_off(from);
                self.push(Value::Tuple(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set(items)?;
            }
            b'q' => {
                let at = self.byte()?.into();
                self.put(at)?;
            }
            b'r' => {
                let at = u32::from_le_bytes(self.array()?).into();
                self.put(at)?;
            }
            0x94 => {
                let at = self.memo.len() as u64;
                self.put(at)?;
            }
            b'h' => {
                let at = self.byte()?.into();
                self.fetch(at)?;
            }
            b'j' => {
                let at = u32::from_le_bytes(self.array()?).into();
                self.fetch(at)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(format!("{module} {name}")))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) = (&self.values[module], &self.values[name]) else {
                    return Err(STACK);
                };
                let global = format!("{module} {name}");
                self.push(Value::Global(global))?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.storage(id)?;
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.call(function, arguments)?;
            }
            // The state of an object: attributes of a dict or a parameter, which are no numbers of the vector.
            b'b' => {
                self.pop()?;
                let object = *self.stack.last().ok_or(STACK)?;
                if !matches!(self.values[object], Value::Dict(_) | Value::Tensor { .. } | Value::Opaque) {
                    return Err(PickleError::Code(self.describe(object)));
                }
            }
            other => return Err(PickleError::Opcode(other)),
        }
        Ok(())
    }

    fn take(&mut self, n: usize) -> Result<&[u8], PickleError> {
        let end = self.at.checked_add(n).ok_or(SHORT)?;
        let taken = self.bytes.get(self.at..end).ok_or(SHORT)?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        self.take(N)?.try_into().map_err(|_| SHORT)
    }

    fn length(&mut self) -> Result<usize, PickleError> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn text(&mut self, n: usize) -> Result<(), PickleError> {
        let text = String::from_utf8_lossy(self.take(n)?).into_owned();
        self.push(Value::Text(text))
    }

    fn line(&mut self) -> Result<String, PickleError> {
        let n = self.bytes.get(self.at..).and_then(|rest| rest.iter().position(|&b| b == b'\n')).ok_or(SHORT)?;
        let text = String::from_utf8_lossy(self.take(n)?).into_owned();
        self.take(1)?;
        Ok(text)
    }

    /// A little-endian integer in two's complement.
    fn long(&mut self, n: usize) -> Result<(), PickleError> {
        let bytes = self.take(n)?;
        let value = if n > 8 {
            Value::Opaque
        } else {
            let sign = bytes.last().is_some_and(|b| b & 0x80 != 0);
            let mut wide = [if sign { 0xff } else { 0 }; 8];
            wide[..n].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(wide))
        };
        self.push(value)
    }

    fn push(&mut self, value: Value) -> Result<(), PickleError> {
        if self.values.len() >= MAX_VALUES {
            return Err(PickleError::Damaged("more than a million values"));
        }
        self.values.push(value);
        self.stack.push(self.values.len() - 1);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        match self.stack.pop() {
            Some(id) if self.values[id] != Value::Mark => Ok(id),
            _ => Err(STACK),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let at = self.stack.iter().rposition(|&id| self.values[id] == Value::Mark).ok_or(STACK)?;
        let items = self.stack.split_off(at + 1);
        self.stack.pop();
        Ok(items)
    }

    fn put(&mut self, at: u64) -> Result<(), PickleError> {
        let top = *self.stack.last().ok_or(STACK)?;
        self.memo.insert(at, top);
        Ok(())
    }

    fn fetch(&mut self, at: u64) -> Result<(), PickleError> {
        let id = *self.memo.get(&at).ok_or(STACK)?;
        // Each fetch counts, so that a short program cannot fill the memory.
        if self.stack.len() >= MAX_VALUES {
            return Err(PickleError::Damaged("more than a million values"));
        }
        self.stack.push(id);
        Ok(())
    }

    fn append(&mut self, mut items: Vec<Id>) -> Result<(), PickleError> {
        let list = *self.stack.last().ok_or(STACK)?;
        match &mut self.values[list] {
            Value::List(list) if list.len() + items.len() <= MAX_VALUES => list.append(&mut items),
            _ => return Err(STACK),
        }
        Ok(())
    }

    /// Keys and values in turn.
    fn set(&mut self, items: Vec<Id>) -> Result<(), PickleError> {
        let (pairs, rest) = items.as_chunks::<2>();
        let dict = *self.stack.last().ok_or(STACK)?;
        match &mut self.values[dict] {
            Value::Dict(entries) if rest.is_empty() && entries.len() + pairs.len() <= MAX_VALUES => {
                entries.extend(pairs.iter().map(|&[key, value]| (key, value)));
            }
            _ => return Err(STACK),
        }
        Ok(())
    }

    fn tuple(&self, id: Id) -> Result<&[Id], PickleError> {
        match &self.values[id] {
            Value::Tuple(items) => Ok(items),
            _ => Err(STACK),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, PickleError> {
        self.tuple(id)?.iter().map(|&id| self.size(id)).collect()
    }

    fn size(&self, id: Id) -> Result<usize, PickleError> {
        match self.values[id] {
            Value::Int(n) => usize::try_from(n).map_err(|_| PickleError::Damaged("a negative size")),
            _ => Err(STACK),
        }
    }

    /// `("storage", torch.FloatStorage, key, device, number of elements)`.
    fn storage(&mut self, id: Id) -> Result<(), PickleError> {
        let (kind, key) = match *self.tuple(id)? {
            [what, kind, key, ..] if self.values[what] == Value::Text("storage".into()) => (kind, key),
            _ => return Err(PickleError::Damaged("a reference to something other than a storage")),
        };
        let (Value::Global(kind), Value::Text(key)) = (&self.values[kind], &self.values[key]) else {
            return Err(STACK);
        };
        let kind = kind.rsplit([' ', '.']).next().unwrap_or_default().to_owned();
        let storage = Value::Storage { kind, key: key.clone() };
        self.push(storage)
    }

    fn call(&mut self, function: Id, arguments: Id) -> Result<(), PickleError> {
        let Value::Global(name) = self.values[function].clone() else {
            return Err(PickleError::Code(self.describe(function)));
        };
        let arguments = self.tuple(arguments)?.to_vec();
        let value = match (name.as_str(), &arguments[..]) {
            (
                "torch._utils _rebuild_tensor_v2" | "torch._utils _rebuild_tensor",
                [storage, offset, shape, strides, ..],
            ) => {
                if !matches!(self.values[*storage], Value::Storage { .. }) {
                    return Err(STACK);
                }
                Value::Tensor {
                    storage: *storage,
                    offset: self.size(*offset)?,
                    shape: self.sizes(*shape)?,
                    strides: self.sizes(*strides)?,
                }
            }
            ("torch._utils _rebuild_parameter" | "torch._utils _rebuild_parameter_with_state", [tensor, ..]) => {
                self.values[*tensor].clone()
            }
            ("collections OrderedDict" | "builtins dict" | "__builtin__ dict", []) => Value::Dict(Vec::new()),
            ("torch Size", [sizes]) => self.values[*sizes].clone(),
            ("torch device" | "torch dtype", _) => Value::Opaque,
            _ => return Err(PickleError::Code(name.replace(' ', "."))),
        };
        self.push(value)
    }

    fn describe(&self, id: Id) -> String {
        match &self.values[id] {
            Value::Global(name) => name.replace(' ', "."),
            _ => "an object".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs as `pickle.dumps(x, protocol)` of CPython 3.11 writes them.
    #[test]
    fn plain_values() {
        // {"a": [1, -2, 300, 70000], 5: (True, None, 0.5)}, protocol 2
        let program =
            b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM\x2c\x01Jp\x11\x01\x00eK\x05\
            \x88NG?\xe0\x00\x00\x00\x00\x00\x00\x87q\x03u.";
        let pickle = Pickle::read(program).unwrap();
        let Value::Dict(entries) = pickle.get(pickle.root) else { panic!("{pickle:?}") };
        assert_eq!(pickle.get(entries[0].0), &Value::Text("a".into()));
        let Value::List(items) = pickle.get(entries[0].1) else { panic!() };
        let numbers: Vec<_> = items.iter().map(|&i| pickle.get(i).clone()).collect();
        assert_eq!(numbers, [1, -2, 300, 70000].map(Value::Int));
        let Value::Tuple(items) = pickle.get(entries[1].1) else { panic!() };
        let values: Vec<_> = items.iter().map(|&i| pickle.get(i).clone()).collect();
        assert_eq!(values, [Value::Bool(true), Value::None, Value::Float(0.5)]);
    }

    #[test]
    fn code_is_never_run() {
        // pickle.dumps(os.system) applied to a text, protocol 2: cposix\nsystem\n, text, tuple, REDUCE.
        let program = b"\x80\x02cposix\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85q\x02Rq\x03.";
        assert_eq!(Pickle::read(program).unwrap_err(), PickleError::Code("posix.system".into()));
        for (program, error) in [
            (&b""[..], SHORT),
            (b"\x80\x02", SHORT),
            (b".", STACK),
            (b"\x80\x02X\xff\xff\xff\xffa.", SHORT),
            (b"(.", STACK),
            (b"e", STACK),
            (b"K\x01K\x02s.", STACK),
            (b"\x80\x02h\x07.", STACK),
            (b"c__main__\nSecret\n)\x81.", PickleError::Opcode(0x81)),
        ] {
            assert_eq!(Pickle::read(program).unwrap_err(), error, "{program:?}");
        }
        // A dict whose own value it is: cycles are not followed here.
        assert!(Pickle::read(b"}q\x00K\x01h\x00s.").is_ok());
    }
}

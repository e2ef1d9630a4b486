//! Metadata values with their exact types.
#![forbid(unsafe_code)]

/// The type tag of a metadata value; the discriminants are those in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// The type with this tag.
    #[must_use]
    pub fn from_id(id: u32) -> Option<Self> {
        use ValueType as T;
        [
            T::U8,
            T::I8,
            T::U16,
            T::I16,
            T::U32,
            T::I32,
            T::F32,
            T::Bool,
            T::String,
            T::Array,
            T::U64,
            T::I64,
            T::F64,
        ]
        .get(id as usize)
        .copied()
    }

    /// The fewest bytes a value of this type takes in a file.
    #[must_use]
    pub fn min_size(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }

    /// A lower-case name, as `u32` or `string`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    /// A string that is not UTF-8, kept as it is.
    RawString(Vec<u8>),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array value: elements of one type.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    /// Strings of which at least one is not UTF-8, kept as they are.
    RawString(Vec<Vec<u8>>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Value {
    /// The type tag this value has in a file.
    #[must_use]
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) | Self::RawString(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// Type and short content for error messages, as `u32 7` or `array of 3 string`.
    #[must_use]
    pub fn describe(&self) -> String {
        let short = |s: &str| s.chars().take(40).collect::<String>();
        let name = self.value_type().name();
        match self {
            Self::U8(x) => format!("{name} {x}"),
            Self::I8(x) => format!("{name} {x}"),
            Self::U16(x) => format!("{name} {x}"),
            Self::I16(x) => format!("{name} {x}"),
            Self::U32(x) => format!("{name} {x}"),
            Self::I32(x) => format!("{name} {x}"),
            Self::F32(x) => format!("{name} {x}"),
            Self::Bool(x) => format!("{name} {x}"),
            Self::String(x) => format!("{name} {:?}", short(x)),
            Self::RawString(x) => format!("{name} of {} bytes that are not UTF-8", x.len()),
            Self::Array(x) => format!("array of {} {}", x.len(), x.element_type().name()),
            Self::U64(x) => format!("{name} {x}"),
            Self::I64(x) => format!("{name} {x}"),
            Self::F64(x) => format!("{name} {x}"),
        }
    }

    /// Any integer value that is not negative, whatever its width.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(x) => Some(x.into()),
            Self::U16(x) => Some(x.into()),
            Self::U32(x) => Some(x.into()),
            Self::U64(x) => Some(x),
            Self::I8(x) => x.try_into().ok(),
            Self::I16(x) => x.try_into().ok(),
            Self::I32(x) => x.try_into().ok(),
            Self::I64(x) => x.try_into().ok(),
            _ => None,
        }
    }

    /// Appends the value as it stands in a file, without its type tag.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(x) => out.push(*x),
            Self::I8(x) => out.extend(x.to_le_bytes()),
            Self::U16(x) => out.extend(x.to_le_bytes()),
            Self::I16(x) => out.extend(x.to_le_bytes()),
            Self::U32(x) => out.extend(x.to_le_bytes()),
            Self::I32(x) => out.extend(x.to_le_bytes()),
            Self::F32(x) => out.extend(x.to_le_bytes()),
            Self::Bool(x) => out.push(u8::from(*x)),
            Self::String(x) => write_string(out, x.as_bytes()),
            Self::RawString(x) => write_string(out, x),
            Self::Array(x) => x.write(out),
            Self::U64(x) => out.extend(x.to_le_bytes()),
            Self::I64(x) => out.extend(x.to_le_bytes()),
            Self::F64(x) => out.extend(x.to_le_bytes()),
        }
    }
}

impl Array {
    /// The type tag of the elements.
    #[must_use]
    pub fn element_type(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) | Self::RawString(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::String(v) => v.len(),
            Self::RawString(v) => v.len(),
            Self::Array(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F64(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the array as it stands in a file: element type, count, elements.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend((self.element_type() as u32).to_le_bytes());
        out.extend((self.len() as u64).to_le_bytes());
        match self {
            Self::U8(v) => out.extend_from_slice(v),
            Self::I8(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            Self::U16(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            Self::I16(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            Self::U32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            Self::I32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            Self::F32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            Self::Bool(v) => out.extend(v.iter().map(|x| u8::from(*x))),
            Self::String(v) => v.iter().for_each(|x| write_string(out, x.as_bytes())),
            Self::RawString(v) => v.iter().for_each(|x| write_string(out, x)),
            Self::Array(v) => v.iter().for_each(|x| x.write(out)),
            Self::U64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            Self::I64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            Self::F64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        }
    }
}

/// Appends a string as it stands in a file: length in bytes, then the bytes.
pub(super) fn write_string(out: &mut Vec<u8>, s: &[u8]) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend_from_slice(s);
}

/// Appends a whole key-value pair: key, type tag, value.
pub(super) fn write_pair(out: &mut Vec<u8>, key: &str, value: &Value) {
    write_string(out, key.as_bytes());
    out.extend((value.value_type() as u32).to_le_bytes());
    value.write(out);
}

macro_rules! from {
    ($($from:ty => $variant:ident),*) => {
        $(impl From<$from> for Value {
            fn from(x: $from) -> Self { Self::$variant(x.into()) }
        })*
    };
}
from!(u32 => U32, i32 => I32, u64 => U64, i64 => I64, f32 => F32, f64 => F64, bool => Bool, String => String,
      &str => String, Array => Array);

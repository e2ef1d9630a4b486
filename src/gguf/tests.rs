//! The reader's refusals, round trips, and a second reader's opinion.

use proptest::prelude::*;

use super::*;
use crate::quant::GgmlType;

/// Every value type, arrays and nesting; three tensors, the last one quantized.
pub(super) fn small() -> Vec<u8> {
    let nested =
        Array::Array(vec![Array::U8(vec![1, 2]), Array::String(vec!["a".into()]), Array::F64(vec![])]);
    let writer = Writer::new()
        .key("general.architecture", "llama")
        .key("a.u8", Value::U8(200))
        .key("a.i8", Value::I8(-3))
        .key("a.u16", Value::U16(60_000))
        .key("a.i16", Value::I16(-300))
        .key("a.u32", 70_000u32)
        .key("a.i32", -70_000i32)
        .key("a.f32", 1.5f32)
        .key("a.bool", true)
        .key("a.u64", 1u64 << 40)
        .key("a.i64", -(1i64 << 40))
        .key("a.f64", 0.1f64)
        .key("a.strings", Array::String(vec!["x".into(), String::new(), "é".into()]))
        .key("a.raw", Value::RawString(vec![0xff, 0xfe]))
        .key("a.raws", Array::RawString(vec![vec![0xff], b"ok".to_vec()]))
        .key("a.bools", Array::Bool(vec![true, false]))
        .key("a.i16s", Array::I16(vec![-1, 2]))
        .key("a.nested", nested)
        .tensor("scalar", &[], GgmlType::F32)
        .tensor("matrix", &[3, 2], GgmlType::F16)
        .tensor("blocks", &[64, 1, 2], GgmlType::Q8_0);
    let mut stream = writer.start(Vec::new()).unwrap();
    stream.data(&1.0f32.to_le_bytes()).unwrap();
    stream.data(&[1; 6]).unwrap();
    stream.data(&[2; 6]).unwrap();
    stream.data(&[3; 136]).unwrap();
    stream.finish().unwrap()
}

fn reject(bytes: &[u8]) -> GgufError {
    Gguf::parse(bytes).expect_err("should be refused")
}

/// A header with one pair given as raw bytes.
fn with_pair(pair: &[u8]) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend(0u64.to_le_bytes());
    out.extend(1u64.to_le_bytes());
    out.extend_from_slice(pair);
    out
}

fn pair(key: &[u8], ty: u32, value: &[u8]) -> Vec<u8> {
    let mut out = (key.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(key);
    out.extend(ty.to_le_bytes());
    out.extend_from_slice(value);
    out
}

/// A header with tensor infos given as (name, dimensions, type id, offset), and 4096 bytes behind it.
fn with_tensors(infos: &[(&[u8], &[u64], u32, u64)]) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((infos.len() as u64).to_le_bytes());
    out.extend(0u64.to_le_bytes());
    for (name, ne, ty, offset) in infos {
        out.extend((name.len() as u64).to_le_bytes());
        out.extend_from_slice(name);
        out.extend((ne.len() as u32).to_le_bytes());
        out.extend(ne.iter().flat_map(|n| n.to_le_bytes()));
        out.extend(ty.to_le_bytes());
        out.extend(offset.to_le_bytes());
    }
    let end = padded(out.len() as u64, 32).unwrap() as usize;
    out.resize(end + 4096, 0);
    out
}

#[test]
fn every_type_comes_back() {
    let bytes = small();
    let gguf = Gguf::parse(&bytes).unwrap();
    assert_eq!(gguf.version(), 3);
    assert_eq!(gguf.metadata().len(), 18);
    assert_eq!(gguf.get("a.i64"), Some(&Value::I64(-(1 << 40))));
    assert_eq!(gguf.get_f32("a.f32").unwrap().to_bits(), 1.5f32.to_bits());
    assert!(gguf.get_bool("a.bool").unwrap());
    assert_eq!(gguf.get_u32("a.u8").unwrap(), 200);
    let blocks = gguf.tensor("blocks").unwrap();
    assert_eq!((blocks.shape(), blocks.rows(), blocks.bytes), (&[64, 1, 2][..], 2, 136));
    assert_eq!(&bytes[gguf.data_range(blocks)], &[3; 136]);
    assert_eq!(gguf.tensor("scalar").unwrap().ne, [1; 4]);
    // What was read, written again, gives the same bytes.
    let mut again = Writer::new();
    for (key, value) in gguf.metadata() {
        again = again.key(key.clone(), value.clone());
    }
    for tensor in gguf.tensors() {
        again = again.tensor(tensor.name.clone(), tensor.shape(), tensor.ty);
    }
    assert_eq!(again.header().unwrap(), bytes[gguf.header_bytes()]);
}

#[test]
fn getters_name_key_expected_and_found() {
    let gguf = Gguf::parse(&small()).unwrap();
    let words = |e: GgufError| e.to_string();
    assert_eq!(words(gguf.get_str("none").unwrap_err()), "key \"none\" is missing");
    assert_eq!(words(gguf.get_str("a.u8").unwrap_err()), "key \"a.u8\": expected string, found u8 200");
    assert_eq!(words(gguf.get_u32("a.i8").unwrap_err()), "key \"a.i8\": expected u32, found i8 -3");
    assert_eq!(
        words(gguf.get_u32("a.u64").unwrap_err()),
        "key \"a.u64\": expected u32, found u64 1099511627776"
    );
    assert_eq!(
        words(gguf.get_f32("a.strings").unwrap_err()),
        "key \"a.strings\": expected f32, found array of 3 string"
    );
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = small();
    let gguf = Gguf::parse(&bytes).unwrap();
    let end = gguf.data_range(gguf.tensor("blocks").unwrap()).end;
    for len in 0..end {
        reject(&bytes[..len]);
    }
    // The padding behind the last tensor may be missing, as llama.cpp allows.
    for len in end..=bytes.len() {
        Gguf::parse(&bytes[..len]).unwrap();
    }
}

#[test]
fn version_2_is_read_and_others_are_named() {
    let mut bytes = small();
    bytes[4] = 2;
    assert_eq!(Gguf::parse(&bytes).unwrap().version(), 2);
    for version in [0u32, 1, 4, 77] {
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        assert!(matches!(reject(&bytes), GgufError::Version(v) if v == version));
    }
    bytes[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert!(matches!(reject(&bytes), GgufError::BigEndian(3)));
}

#[test]
fn malformed_headers_are_refused() {
    assert!(matches!(reject(b""), GgufError::Magic { .. }));
    assert!(matches!(reject(b"GGML\x03\0\0\0"), GgufError::Magic { .. }));
    let counts = |tensors: u64, pairs: u64| {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend(tensors.to_le_bytes());
        out.extend(pairs.to_le_bytes());
        out
    };
    for n in [1, 1 << 20, 1 << 62, u64::MAX] {
        assert!(matches!(reject(&counts(n, 0)), GgufError::Count { .. }));
        assert!(matches!(reject(&counts(0, n)), GgufError::Count { .. }));
    }
    assert!(Gguf::parse(&counts(0, 0)).is_ok());
}

#[test]
fn malformed_pairs_are_refused() {
    let one = |key: &[u8], ty: u32, value: &[u8]| reject(&with_pair(&pair(key, ty, value)));
    assert!(matches!(one(b"", 0, &[1; 9]), GgufError::EmptyKey { offset: 24 }));
    assert!(matches!(one(b"\xff", 0, &[1; 9]), GgufError::Utf8 { .. }));
    // To ggml this is the alignment.
    assert!(matches!(one(b"general.alignment\0", 4, &[1; 4]), GgufError::Nul { offset: 24, .. }));
    assert!(matches!(one(b"k", 13, &[1; 9]), GgufError::ValueType { found: 13, offset: 33, .. }));
    assert!(matches!(one(b"k", 5, &[1; 3]), GgufError::Truncated { needed: 4, offset: 37, end: 40, .. }));
    assert!(matches!(one(b"k", 8, &u64::MAX.to_le_bytes()), GgufError::Truncated { .. }));
    let array = |ty: u32, n: u64| [&ty.to_le_bytes()[..], &n.to_le_bytes()].concat();
    assert!(matches!(one(b"k", 9, &array(4, 1 << 62)), GgufError::Count { .. }));
    assert!(matches!(one(b"k", 9, &array(8, 1)), GgufError::Count { .. }));
    assert!(matches!(one(b"k", 9, &array(20, 0)), GgufError::ValueType { found: 20, .. }));
    let deep = array(9, 1).repeat(1000);
    assert!(matches!(one(b"k", 9, &deep), GgufError::Nesting { .. }));
    let mut twice = with_pair(&[pair(b"k", 0, &[1]), pair(b"k", 0, &[2])].concat());
    twice[16] = 2;
    assert!(matches!(reject(&twice), GgufError::DuplicateKey { .. }));
    for alignment in [0u32, 3, 33, u32::MAX] {
        let bytes = with_pair(&pair(b"general.alignment", 4, &alignment.to_le_bytes()));
        assert!(matches!(reject(&bytes), GgufError::Alignment(_)));
    }
    let bytes = with_pair(&pair(b"general.alignment", 10, &32u64.to_le_bytes()));
    assert!(matches!(reject(&bytes), GgufError::KeyType { expected: "u32", .. }));
}

#[test]
fn malformed_tensors_are_refused() {
    let one =
        |name: &[u8], ne: &[u64], ty: u32, offset: u64| reject(&with_tensors(&[(name, ne, ty, offset)]));
    assert!(Gguf::parse(&with_tensors(&[(b"t", &[32], 0, 0)])).is_ok());
    assert!(matches!(one(&[b'x'; 64], &[32], 0, 0), GgufError::NameLength { found: 64, .. }));
    assert!(matches!(one(b"\xff", &[32], 0, 0), GgufError::Utf8 { .. }));
    assert!(matches!(one(b"t\0u", &[32], 0, 0), GgufError::Nul { .. }));
    assert!(matches!(one(b"t", &[1; 5], 0, 0), GgufError::Dimensions { found: 5, .. }));
    for id in [4, 36, 43, 1000, u32::MAX] {
        assert!(matches!(one(b"t", &[32], id, 0), GgufError::TensorType { found, .. } if found == id));
    }
    assert!(matches!(one(b"t", &[33], 8, 0), GgufError::BlockSize { found: 33, block: 32, .. }));
    assert!(matches!(one(b"t", &[32], 0, 32), GgufError::Offset { expected: 0, found: 32, .. }));
    for ne in [
        &[u64::MAX][..],
        &[1 << 62, 4],
        &[1 << 32, 1 << 32],
        &[1 << 62],
        &[0, 1 << 62, 1 << 62],
        &[64, (1 << 57) + 1, 0],
    ] {
        assert!(matches!(one(b"t", ne, 0, 0), GgufError::Shape { .. }), "{ne:?}");
    }
    let error = one(b"t", &[2048], 0, 0);
    assert!(matches!(error, GgufError::Data { needed: 8192, .. }), "{error}");
    let words = error.to_string();
    assert!(words.starts_with("tensor \"t\": needs 8192 bytes at 64, file ends at "), "{words}");
    let two = |offset, name: &[u8]| with_tensors(&[(b"t", &[9], 0, 0), (name, &[8], 0, offset)]);
    assert!(Gguf::parse(&two(64, b"u")).is_ok());
    assert!(matches!(reject(&two(64, b"t")), GgufError::DuplicateTensor { .. }));
    assert!(matches!(reject(&two(96, b"u")), GgufError::Offset { expected: 64, found: 96, .. }));
    assert!(matches!(reject(&two(36, b"u")), GgufError::Offset { .. }));
}

#[test]
fn the_writer_refuses_what_a_reader_would() {
    let file = Writer::new;
    assert!(matches!(file().key("k", 1u32).key("k", 2u32).header(), Err(GgufError::DuplicateKey { .. })));
    assert!(matches!(file().key("", 1u32).header(), Err(GgufError::EmptyKey { .. })));
    assert!(matches!(file().key("general.alignment", 48u32).header(), Err(GgufError::Alignment(48))));
    let f32s = |file: Writer, name: &str, ne: &[u64]| file.tensor(name, ne, GgmlType::F32);
    assert!(matches!(
        f32s(f32s(file(), "t", &[1]), "t", &[1]).header(),
        Err(GgufError::DuplicateTensor { .. })
    ));
    assert!(matches!(f32s(file(), &"n".repeat(64), &[1]).header(), Err(GgufError::NameLength { .. })));
    assert!(matches!(f32s(file(), "t", &[1; 5]).header(), Err(GgufError::Dimensions { .. })));
    let mut stream = f32s(file(), "t", &[2]).start(Vec::new()).unwrap();
    assert!(matches!(stream.data(&[0; 9]), Err(GgufError::TensorBytes { given: 9, expected: 8, .. })));
    stream.data(&[0; 7]).unwrap();
    assert!(matches!(stream.finish(), Err(GgufError::TensorBytes { given: 7, expected: 8, .. })));
}

#[test]
fn fingerprints_see_header_length_and_samples() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut seen = std::collections::HashSet::new();
    let mut print = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let print = fingerprint(&GgufFile::open(&path).unwrap());
        assert_eq!(print.len(), 64);
        seen.insert(print)
    };
    let mut bytes = small();
    assert!(print(&bytes));
    assert!(!print(&bytes));
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert!(print(&bytes));
    bytes.push(0);
    assert!(print(&bytes));
    // Past 256 KiB of data only samples are read; the first and the last byte are among them.
    bytes.resize(1 << 20, 0);
    assert!(print(&bytes));
    *bytes.last_mut().unwrap() = 1;
    assert!(print(&bytes));
}

#[test]
fn opening_names_the_path() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().join("none.gguf"), dir.path().to_path_buf()] {
        let error = GgufFile::open(&path).unwrap_err();
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
    let empty = dir.path().join("empty.gguf");
    std::fs::write(&empty, b"").unwrap();
    assert!(matches!(GgufFile::open(&empty), Err(GgufError::Magic { .. })));
}

#[test]
fn summaries_count() {
    let writer = Writer::new()
        .key("general.architecture", "qwen3")
        .key("general.name", "make-believe")
        .key("qwen3.block_count", 2u32)
        .key("qwen3.embedding_length", 32u32)
        .key("qwen3.context_length", 128u32)
        .key("tokenizer.chat_template", "{{ messages }}")
        .key("tokenizer.ggml.tokens", Array::String(vec!["a".into(); 5]))
        .tensor("token_embd.weight", &[32, 5], GgmlType::Q8_0)
        .tensor("output_norm.weight", &[32], GgmlType::F32);
    let mut bytes = writer.header().unwrap();
    bytes.resize(bytes.len() + 4096, 0);
    let summary = ModelSummary::new(&Gguf::parse(&bytes).unwrap()).unwrap();
    assert_eq!((summary.n_block, summary.n_embd, summary.n_vocab), (2, 32, Some(5)));
    assert_eq!(summary.n_parameters, 192);
    assert_eq!(summary.types[0], TypeCount { r#type: "q8_0".into(), tensors: 1, bytes: 170 });
    assert!(summary.has_chat_template && summary.tied_embeddings);
    assert_eq!(summary.file_size, bytes.len() as u64);
    serde_json::to_string(&summary).unwrap();
}

fn any_value() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i64>().prop_map(Value::I64),
        any::<bool>().prop_map(Value::Bool),
        (-1e30f32..1e30).prop_map(Value::F32),
        "\\PC{0,12}".prop_map(Value::String),
    ];
    let array = prop_oneof![
        prop::collection::vec(any::<u16>(), 0..5).prop_map(Array::U16),
        prop::collection::vec(any::<i8>(), 0..5).prop_map(Array::I8),
        prop::collection::vec(any::<u64>(), 0..5).prop_map(Array::U64),
        prop::collection::vec("\\PC{0,6}", 0..5).prop_map(Array::String),
    ];
    let nested =
        array.prop_recursive(2, 8, 3, |inner| prop::collection::vec(inner, 0..3).prop_map(Array::Array));
    prop_oneof![scalar, nested.prop_map(Value::Array)]
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        values in prop::collection::vec(any_value(), 0..6),
        shapes in prop::collection::vec((1u64..4, 1u64..4, prop::sample::select(vec![0u32, 1, 8, 14, 20, 30])), 0..5),
        alignment in prop::sample::select(vec![1u32, 8, 32, 64]),
    ) {
        let mut writer = Writer::new().key("general.alignment", alignment);
        for (i, value) in values.iter().enumerate() {
            writer = writer.key(format!("key.{i}"), value.clone());
        }
        let mut sizes = Vec::new();
        for (i, (a, b, id)) in shapes.iter().enumerate() {
            let ty = GgmlType::from_id(*id).unwrap();
            let ne = [a * ty.block_size(), *b];
            sizes.push((ty.row_size(ne[0]).unwrap() * b) as usize);
            writer = writer.tensor(format!("t.{i}"), &ne, ty);
        }
        let mut stream = writer.start(Vec::new()).unwrap();
        for (i, size) in sizes.iter().enumerate() {
            // In two pieces.
            let data = vec![i as u8 + 1; *size];
            let (a, b) = data.split_at(size / 2);
            if !a.is_empty() { stream.data(a).unwrap(); }
            stream.data(b).unwrap();
        }
        let bytes = stream.finish().unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        for (i, value) in values.iter().enumerate() {
            prop_assert_eq!(gguf.get(&format!("key.{i}")), Some(value));
        }
        for (i, info) in gguf.tensors().iter().enumerate() {
            prop_assert_eq!(&bytes[gguf.data_range(info)], &vec![i as u8 + 1; sizes[i]][..]);
            prop_assert_eq!(gguf.data_range(info).start as u64 % u64::from(alignment), 0);
        }
    }

    #[test]
    fn what_we_take_llama_cpp_takes(at in 0usize..1200, with in any::<u8>()) {
        let writer = Writer::new()
            .key("general.architecture", "llama")
            .key("general.alignment", 32u32)
            .key("a", Array::I16(vec![1, 2, 3]))
            .key("b", Array::String(vec!["x".into(), "y".into()]))
            .tensor("t", &[64, 2], GgmlType::Q8_0)
            .tensor("u", &[5], GgmlType::F32);
        let mut bytes = writer.header().unwrap();
        let header = bytes.len();
        bytes.resize(header + 1024, 0);
        bytes[at % header] = with;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        std::fs::write(&path, &bytes).unwrap();
        llama_cpp_2::send_logs_to_tracing(llama_cpp_2::LogOptions::default().with_logs_enabled(false));
        let theirs = llama_cpp_2::gguf::GgufContext::from_file(&path);
        match Gguf::parse(&bytes) {
            Ok(ours) => {
                // Nested arrays are ours alone.
                let nested = ours.metadata().iter().any(|(_, v)| matches!(v, Value::Array(Array::Array(_))));
                prop_assert!(nested || theirs.is_some(), "byte {} = {with}", at % header);
            }
            // What only we refuse: names that are no text or no C strings, and data that is not there or cannot be
            // (checked there on loading).
            Err(
                GgufError::Utf8 { .. }
                | GgufError::Nul { .. }
                | GgufError::Data { .. }
                | GgufError::Shape { .. },
            ) => {}
            Err(error) => prop_assert!(theirs.is_none(), "byte {} = {with}: {error}", at % header),
        }
    }

    #[test]
    fn no_bytes_panic(at in 0usize..900, with in any::<u8>(), noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = small();
        let len = bytes.len();
        bytes[at % len] = with;
        let _ = Gguf::parse(&bytes);
        let mut random = b"GGUF\x03\0\0\0".to_vec();
        random.extend(noise);
        let _ = Gguf::parse(&random);
    }
}

#[test]
fn a_second_reader_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let writer = Writer::new()
        .key("general.architecture", "llama")
        .key("general.name", "make-believe")
        .key("llama.block_count", 7u32)
        .key("tokenizer.ggml.tokens", Array::String(vec!["a".into(), "b".into()]))
        .tensor("token_embd.weight", &[256, 3], GgmlType::Q4_K)
        .tensor("norm", &[5], GgmlType::F32)
        .tensor("w", &[64, 2, 3], GgmlType::Q8_0);
    let mut bytes = writer.header().unwrap();
    let gguf_len = bytes.len() + 448 + 32 + 416;
    bytes.resize(gguf_len, 0);
    std::fs::write(&path, &bytes).unwrap();
    let ours = Gguf::parse(&bytes).unwrap();
    let theirs = gguf_rs::get_gguf_container(path.to_str().unwrap()).unwrap().decode().unwrap();
    assert_eq!(theirs.num_tensor(), 3);
    assert_eq!(theirs.metadata()["llama.block_count"], 7);
    assert_eq!(theirs.metadata()["general.name"], "make-believe");
    for (a, b) in ours.tensors().iter().zip(theirs.tensors()) {
        assert_eq!((&a.name, a.offset, a.ty.id(), a.bytes), (&b.name, b.offset, b.kind, b.size));
        assert!(b.shape.starts_with(a.shape()), "{:?}", b.shape);
    }
}

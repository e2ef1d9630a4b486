//! The seeds that are no text: small files of each kind, made the same every time.
#![forbid(unsafe_code)]

use std::sync::Arc;

use ggsteer::gguf::{Array, Value, Writer};
use ggsteer::quant::GgmlType;
use parquet::basic::{Compression, Encoding, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

/// Their paths below `fuzz/seeds`, and their bytes.
pub fn all() -> Vec<(&'static str, Vec<u8>)> {
    let mut all = vec![
        ("gguf/model", model()),
        ("gguf/values", values()),
        ("gguf/empty", finished(Writer::new(), &[])),
        ("differential/model", model()),
        ("differential/values", values()),
        ("direction/one", direction(&[1])),
        ("direction/several", direction(&[0, 1, 2])),
        ("calibration/ours", calibration()),
        ("calibration/imatrix", imatrix()),
        ("calibration/legacy", legacy()),
    ];
    let codecs = [
        ("prompts/parquet-plain", Compression::UNCOMPRESSED),
        ("prompts/parquet-snappy", Compression::SNAPPY),
        ("prompts/parquet-gzip", Compression::GZIP(GzipLevel::default())),
        ("prompts/parquet-zstd", Compression::ZSTD(ZstdLevel::default())),
        ("prompts/parquet-lz4", Compression::LZ4_RAW),
    ];
    let usual = || WriterProperties::builder().set_created_by("seeds".into());
    for (name, codec) in codecs {
        all.push((name, prompts(usual().set_compression(codec).build())));
    }
    let encoded = |encoding| {
        let two = usual().set_writer_version(WriterVersion::PARQUET_2_0).set_dictionary_enabled(false);
        prompts(two.set_column_encoding(ColumnPath::from("prompt"), encoding).build())
    };
    all.push(("prompts/parquet-lengths", encoded(Encoding::DELTA_LENGTH_BYTE_ARRAY)));
    all.push(("prompts/parquet-prefixes", encoded(Encoding::DELTA_BYTE_ARRAY)));
    all
}

/// The file of a plan, with these bytes over and over for its tensors' data.
fn finished(writer: Writer, data: &[&[u8]]) -> Vec<u8> {
    let mut stream = writer.start(Vec::new()).expect("a sound plan");
    for bytes in data {
        stream.data(bytes).expect("memory takes it");
    }
    stream.finish().expect("all tensors have their data")
}

fn strings(all: &[&str]) -> Array {
    Array::String(all.iter().map(|&s| s.to_owned()).collect())
}

/// What a model's header has.
fn model() -> Vec<u8> {
    let writer = Writer::new()
        .key("general.architecture", "llama")
        .key("general.name", "a baker")
        .key("llama.block_count", 1u32)
        .key("llama.embedding_length", 32u32)
        .key("llama.context_length", 64u32)
        .key("llama.feed_forward_length", 32u32)
        .key("llama.attention.head_count", 1u32)
        .key("llama.attention.layer_norm_rms_epsilon", 1e-5f32)
        .key("tokenizer.ggml.model", "gpt2")
        .key("tokenizer.ggml.tokens", strings(&["a", "b", "<|end|>"]))
        .key("tokenizer.ggml.token_type", Array::I32(vec![1, 1, 3]))
        .key("tokenizer.chat_template", "{{ messages[0].content }}")
        .key("general.alignment", 32u32)
        .tensor("token_embd.weight", &[32, 3], GgmlType::Q8_0)
        .tensor("blk.0.attn_output.weight", &[32, 2], GgmlType::F16)
        .tensor("output_norm.weight", &[32], GgmlType::F32);
    finished(writer, &[&[1; 102], &[2; 128], &[3; 128]])
}

/// A value of each type, and arrays.
fn values() -> Vec<u8> {
    let writer = Writer::new()
        .key("u8", Value::U8(200))
        .key("i8", Value::I8(-3))
        .key("u16", Value::U16(60_000))
        .key("i16", Value::I16(-300))
        .key("u32", 70_000u32)
        .key("i32", -70_000i32)
        .key("f32", 1.5f32)
        .key("bool", true)
        .key("u64", 1u64 << 40)
        .key("i64", -(1i64 << 40))
        .key("f64", 0.1f64)
        .key("raw", Value::RawString(vec![0xff, 0xfe]))
        .key("strings", strings(&["x", "", "é"]))
        .key("bools", Array::Bool(vec![true, false]))
        .key("f64s", Array::F64(vec![1.0, -2.0]))
        .key("split.no", Value::U16(0))
        .key("split.count", Value::U16(1))
        .tensor("scalar", &[], GgmlType::F32)
        .tensor("none", &[0, 3], GgmlType::F32)
        .tensor("blocks", &[64, 1, 2], GgmlType::Q8_0);
    finished(writer, &[&[1; 4], &[], &[3; 136]])
}

fn direction(blocks: &[u32]) -> Vec<u8> {
    let mut writer = Writer::new()
        .key("general.architecture", "controlvector")
        .key("controlvector.model_hint", "llama")
        .key("controlvector.layer_count", 2i32)
        .key("ggsteer.position", -1i32)
        .key("ggsteer.raw_norm", 5.0f64)
        .key("ggsteer.scores.bypass", 0.5f64)
        .key("ggsteer.scores.induce", 0.25f64)
        .key("ggsteer.scores.kl", 0.125f64)
        .key("ggsteer.erased", strings(&["ab"]));
    for block in blocks {
        writer = writer.tensor(format!("direction.{block}"), &[8], GgmlType::F32);
    }
    let vector: Vec<u8> = (1..=8u8).flat_map(|x| f32::from(x).to_le_bytes()).collect();
    finished(writer, &vec![&vector[..]; blocks.len()])
}

/// Two slices of inputs of 4 elements: 2 rows and 1 to fit on, 1 and none held out.
fn calibration() -> Vec<u8> {
    let writer = Writer::new()
        .key("general.architecture", "ggsteer-calibration")
        .key("ggsteer.calibration.seed", 7u64)
        .key("ggsteer.calibration.generated", 2u64)
        .key("ggsteer.calibration.ablated", strings(&[]))
        .tensor("w.counts", &[3, 2], GgmlType::I64)
        .tensor("w.mean_square", &[4, 2], GgmlType::F32)
        .tensor("w.fit", &[4, 2, 2], GgmlType::BF16)
        .tensor("w.held_out", &[4, 1, 2], GgmlType::BF16);
    let counts: Vec<u8> = [9i64, 2, 1, 5, 1, 0].iter().flat_map(|n| n.to_le_bytes()).collect();
    let squares: Vec<u8> = (0..8u8).flat_map(|x| f32::from(x).to_le_bytes()).collect();
    // 1.0 and 2.0 in bfloat16.
    let rows = [[0x80, 0x3f, 0, 0x40]; 8].concat();
    finished(writer, &[&counts, &squares, &rows, &rows[..16]])
}

fn imatrix() -> Vec<u8> {
    let writer = Writer::new()
        .key("general.type", "imatrix")
        .key("imatrix.datasets", strings(&["recipes.txt"]))
        .tensor("w.in_sum2", &[4, 2], GgmlType::F32)
        .tensor("w.counts", &[1, 2], GgmlType::F32);
    let squares: Vec<u8> = (0..8u8).flat_map(|x| f32::from(x).to_le_bytes()).collect();
    let counts: Vec<u8> = [2f32, 3.0].iter().flat_map(|n| n.to_le_bytes()).collect();
    finished(writer, &[&squares, &counts])
}

/// An imatrix of the older format: one entry of four values.
fn legacy() -> Vec<u8> {
    let mut out = Vec::new();
    for n in [1i32, 8] {
        out.extend(n.to_le_bytes());
    }
    out.extend(b"w.weight");
    for n in [2i32, 4] {
        out.extend(n.to_le_bytes());
    }
    out.extend([1f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()));
    out
}

/// Parquet files are the sixth format of the target `prompts`.
fn prompts(properties: WriterProperties) -> Vec<u8> {
    let schema = parse_message_type("message set { optional binary prompt (UTF8); required int32 n; }");
    let schema = Arc::new(schema.expect("a sound schema"));
    let mut out = vec![b'5'];
    let mut writer = SerializedFileWriter::new(&mut out, schema, Arc::new(properties)).expect("a sound plan");
    let mut group = writer.next_row_group().expect("memory takes it");
    let texts = ["How long must dough rest?", "How long must tea steep?", "How warm is a kiln?"];
    let texts = texts.map(ByteArray::from);
    let mut column = group.next_column().expect("memory takes it").expect("the first column");
    let written = column.typed::<ByteArrayType>().write_batch(&texts, Some(&[1, 1, 0, 1]), None);
    assert_eq!(written.expect("memory takes it"), texts.len());
    column.close().expect("memory takes it");
    let mut column = group.next_column().expect("memory takes it").expect("the second column");
    column.typed::<parquet::data_type::Int32Type>().write_batch(&[1, 2, 3, 4], None, None).expect("memory");
    column.close().expect("memory takes it");
    group.close().expect("memory takes it");
    writer.close().expect("memory takes it");
    out
}

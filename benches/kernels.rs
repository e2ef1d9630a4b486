//! The arithmetic on the residual stream and on the weights, beside the bytes it has to move.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ggsteer::intervention::{Basis, dot};
use ggsteer::quant::{GgmlType, decode, encode};

fn kernels(c: &mut Criterion) {
    let n_embd = 4096;
    let r: Vec<f32> = (0..n_embd).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    let mut x: Vec<f32> = (0..n_embd).map(|i| (i * 53 % 97) as f32 / 97.0).collect();
    let basis = Basis::new(&[&r]).unwrap();
    let mut stream = c.benchmark_group("stream, one row of 4096");
    stream.throughput(Throughput::Bytes(4 * n_embd as u64));
    stream.bench_function("dot in f64", |b| b.iter(|| dot(&r, &x)));
    stream.bench_function("ablate", |b| b.iter(|| basis.ablate(&mut x)));
    stream.finish();

    let mut codecs = c.benchmark_group("weights, one row of 4096");
    codecs.throughput(Throughput::Elements(n_embd as u64));
    for ty in [GgmlType::Q8_0, GgmlType::Q6_K, GgmlType::Q4_K] {
        let bytes = encode(ty, &r, n_embd, None).unwrap();
        let mut row = vec![0.0; n_embd];
        codecs.bench_function(format!("decode {ty}"), |b| b.iter(|| decode(ty, &bytes, &mut row).unwrap()));
        codecs.bench_function(format!("encode {ty}"), |b| b.iter(|| encode(ty, &r, n_embd, None).unwrap()));
    }
    codecs.finish();
}

criterion_group!(benches, kernels);
criterion_main!(benches);

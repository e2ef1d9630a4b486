//! The forward pass of the tiny models, from the equations: f32 values, f64 sums, one token after the other.
//!
//! The residual stream of a token is written three ways: the embedding (for gpt2 plus the position), the attention
//! output and the FFN output of each block. [`Edit`] says what is done to the stream after those writes.

use half::f16;

use super::tiny::{Arch, Model, N_VOCAB, NORM_EPS, ROPE_BASE, project_out};

/// What is done to the residual stream; the default is nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Edit<'a> {
    /// Unit r, of n_embd: x ← x − r(r·x) after the embedding, after each attention and after each FFN.
    pub ablate: Option<&'a [f32]>,
    /// (il, v, c), v of n_embd: x ← x + c·v at the output of block il, at all positions. With `ablate` too, the
    /// ablation comes first and the addition second, so the addition survives until the next write.
    pub add: Option<(usize, &'a [f32], f32)>,
    /// Done after `ablate`, where that is.
    pub shift: Option<Shift<'a>>,
}

/// x ← x − α r (r·x − c) where r·x − c has this sign, in these blocks; the embedding is of block 0.
#[derive(Clone, Copy, Debug)]
pub struct Shift<'a> {
    /// Unit r, of n_embd.
    pub r: &'a [f32],
    /// c.
    pub center: f32,
    /// α.
    pub strength: f32,
    /// 1 above the center, −1 below, 0 for both.
    pub sign: i8,
    /// First and last block.
    pub blocks: (usize, usize),
}

/// What one pass computed. A `Rows` holds one vector a token, in order.
pub struct Trace {
    /// The stream before block 0: n_tokens × n_embd.
    pub embedding: Rows,
    /// The stream after block il's attention: n_layer × n_tokens × n_embd (llama.cpp's `ffn_inp-{il}`).
    pub ffn_inp: Vec<Rows>,
    /// The stream at block il's output: n_layer × n_tokens × n_embd (llama.cpp's `l_out-{il}`).
    pub l_out: Vec<Rows>,
    /// What `attn_output.weight` of block il is multiplied with: n_layer × n_tokens × n_embd.
    pub attn_output_in: Vec<Rows>,
    /// What `ffn_down.weight` of block il is multiplied with: n_layer × n_tokens × n_ff.
    pub ffn_down_in: Vec<Rows>,
    /// What the slices of `ffn_down_exps.weight` of block il are multiplied with: n_layer × n_tokens × n_expert_used ×
    /// n_ff. Empty without experts, as `ffn_down_in` is with them.
    pub ffn_down_exps_in: Vec<ByExpert>,
    /// n_tokens × n_vocab.
    pub logits: Rows,
}

/// One vector a token.
pub type Rows = Vec<Vec<f32>>;

/// For each token the experts it goes through, each with what it is given.
pub type ByExpert = Vec<Vec<(usize, Vec<f32>)>>;

/// Runs `model` over `tokens` at positions 0, 1, …, causally.
pub fn forward(model: &Model, tokens: &[i32], edit: Edit) -> Trace {
    let spec = &model.spec;
    let mut trace = Trace {
        embedding: embed(model, tokens, edit),
        ffn_inp: Vec::new(),
        l_out: Vec::new(),
        attn_output_in: Vec::new(),
        ffn_down_in: Vec::new(),
        ffn_down_exps_in: Vec::new(),
        logits: Vec::new(),
    };
    ablate(&mut trace.embedding, edit, 0);

    let mut stream = trace.embedding.clone();
    for il in 0..spec.n_layer {
        let heads = attention(model, il, &normed(model, &format!("blk.{il}.attn_norm"), &stream));
        write_stream(&mut stream, &linear(model, &format!("blk.{il}.attn_output"), &heads));
        ablate(&mut stream, edit, il);
        trace.attn_output_in.push(heads);
        trace.ffn_inp.push(stream.clone());

        let ffn_in = normed(model, &format!("blk.{il}.ffn_norm"), &stream);
        if spec.experts.0 > 0 {
            let (hidden, written) = experts(model, il, &ffn_in);
            write_stream(&mut stream, &written);
            trace.ffn_down_exps_in.push(hidden);
        } else {
            let hidden = ffn_hidden(model, il, &ffn_in);
            write_stream(&mut stream, &linear(model, &format!("blk.{il}.ffn_down"), &hidden));
            trace.ffn_down_in.push(hidden);
        }
        ablate(&mut stream, edit, il);
        if let Some((_, v, c)) = edit.add.filter(|add| add.0 == il) {
            for x in &mut stream {
                x.iter_mut().zip(v).for_each(|(x, v)| *x += c * v);
            }
        }
        trace.l_out.push(stream.clone());
    }

    let head = if spec.tied { "token_embd" } else { "output" };
    trace.logits = linear(model, head, &normed(model, "output_norm", &stream));
    assert!(trace.logits.iter().all(|row| row.len() == N_VOCAB));
    trace
}

fn embed(model: &Model, tokens: &[i32], edit: Edit) -> Rows {
    let d = model.spec.n_embd;
    let row = |name: &str, i: usize| model.get(name)[i * d..][..d].to_vec();
    let mut rows: Rows = tokens.iter().map(|&token| row("token_embd.weight", token as usize)).collect();
    if model.spec.arch == Arch::Gpt2 {
        // Before the positions are added, it is a write as well.
        ablate(&mut rows, edit, 0);
        let positions: Rows = (0..tokens.len()).map(|t| row("position_embd.weight", t)).collect();
        write_stream(&mut rows, &positions);
    }
    rows
}

fn ablate(stream: &mut Rows, edit: Edit, il: usize) {
    if let Some(r) = edit.ablate {
        for x in stream.iter_mut() {
            project_out(x, r);
        }
    }
    let acts = |shift: &Shift| (shift.blocks.0..=shift.blocks.1).contains(&il);
    if let Some(Shift { r, center, strength, sign, .. }) = edit.shift.filter(acts) {
        for x in stream {
            let along: f64 = x.iter().zip(r).map(|(x, r)| f64::from(*x) * f64::from(*r)).sum();
            let away = along - f64::from(center);
            if away * f64::from(sign) >= 0.0 {
                x.iter_mut()
                    .zip(r)
                    .for_each(|(x, r)| *x -= (f64::from(strength) * away * f64::from(*r)) as f32);
            }
        }
    }
}

fn write_stream(stream: &mut Rows, write: &Rows) {
    for (x, y) in stream.iter_mut().zip(write) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() as f32
}

/// y = Wx + b, with `{name}.weight` of n_out rows of n_in, and `{name}.bias` where the model has it.
fn linear(model: &Model, name: &str, rows: &Rows) -> Rows {
    let weight = model.get(&format!("{name}.weight"));
    let bias = model.find(&format!("{name}.bias"));
    let one = |x: &Vec<f32>| {
        let mut y: Vec<f32> = weight.chunks_exact(x.len()).map(|w| dot(w, x)).collect();
        if let Some(bias) = bias {
            assert_eq!(bias.len(), y.len());
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
        y
    };
    rows.iter().map(one).collect()
}

/// LayerNorm for gpt2, RMSNorm otherwise: γ ⊙ (x − mean) / √(variance + ε) + β, or γ ⊙ x / √(mean of x² + ε).
fn normed(model: &Model, name: &str, rows: &Rows) -> Rows {
    let gain = model.get(&format!("{name}.weight"));
    let bias = model.find(&format!("{name}.bias"));
    let one = |x: &Vec<f32>| -> Vec<f32> {
        let n = x.len() as f64;
        let mean = match model.spec.arch {
            Arch::Gpt2 => x.iter().map(|&v| f64::from(v)).sum::<f64>() / n,
            Arch::Llama | Arch::Qwen2 => 0.0,
        };
        let square = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let scale = 1.0 / (square + f64::from(NORM_EPS)).sqrt();
        let shift = |i: usize| bias.map_or(0.0, |b| b[i]);
        let value = |(i, &v): (usize, &f32)| ((f64::from(v) - mean) * scale) as f32 * gain[i] + shift(i);
        x.iter().enumerate().map(value).collect()
    };
    rows.iter().map(one).collect()
}

/// softmax(q·k / √n_embd_head) v of every head, side by side: what the output projection is given.
fn attention(model: &Model, il: usize, rows: &Rows) -> Rows {
    let spec = &model.spec;
    let (width, kv_width) = (spec.n_embd_head(), spec.n_embd_kv());
    let (mut q, mut k, v) = match spec.arch {
        Arch::Gpt2 => {
            let qkv = linear(model, &format!("blk.{il}.attn_qkv"), rows);
            let part =
                |from: usize, n: usize| -> Rows { qkv.iter().map(|x| x[from..][..n].to_vec()).collect() };
            let d = spec.n_embd;
            (part(0, d), part(d, kv_width), part(d + kv_width, kv_width))
        }
        Arch::Llama | Arch::Qwen2 => {
            let part = |which: &str| linear(model, &format!("blk.{il}.attn_{which}"), rows);
            (part("q"), part("k"), part("v"))
        }
    };
    for (position, x) in q.iter_mut().enumerate().chain(k.iter_mut().enumerate()) {
        x.chunks_exact_mut(width).for_each(|head| rope(spec.arch, head, position));
    }

    let mut out = vec![vec![0.0; spec.n_embd]; rows.len()];
    for (t, out) in out.iter_mut().enumerate() {
        for (h, out) in out.chunks_exact_mut(width).enumerate() {
            let shared = h / (spec.n_head / spec.n_head_kv) * width;
            let query = &q[t][h * width..][..width];
            let scale = 1.0 / (width as f32).sqrt();
            let scores: Vec<f32> = (0..=t).map(|s| scale * dot(query, &k[s][shared..][..width])).collect();
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f64> = scores.iter().map(|&s| f64::from(s - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (i, out) in out.iter_mut().enumerate() {
                let sum: f64 = weights.iter().zip(&v).map(|(w, v)| w * f64::from(v[shared + i])).sum();
                *out = (sum / total) as f32;
            }
        }
    }
    out
}

/// Turns pair i of a head by position · base^(−2i/width). llama pairs neighbours, qwen2 pairs the halves.
fn rope(arch: Arch, head: &mut [f32], position: usize) {
    let width = head.len();
    for i in 0..width / 2 {
        let (a, b) = match arch {
            Arch::Llama => (2 * i, 2 * i + 1),
            Arch::Qwen2 => (i, i + width / 2),
            Arch::Gpt2 => return,
        };
        let angle = position as f64 * f64::from(ROPE_BASE).powf(-2.0 * i as f64 / width as f64);
        let (x, y) = (f64::from(head[a]), f64::from(head[b]));
        head[a] = (x * angle.cos() - y * angle.sin()) as f32;
        head[b] = (x * angle.sin() + y * angle.cos()) as f32;
    }
}

/// GELU(up x) for gpt2, SiLU(gate x) ⊙ (up x) otherwise: what `ffn_down` is given.
fn ffn_hidden(model: &Model, il: usize, rows: &Rows) -> Rows {
    let mut hidden = linear(model, &format!("blk.{il}.ffn_up"), rows);
    if model.spec.arch == Arch::Gpt2 {
        hidden.iter_mut().flatten().for_each(|x| *x = gelu(*x));
        return hidden;
    }
    let gate = linear(model, &format!("blk.{il}.ffn_gate"), rows);
    hidden.iter_mut().flatten().zip(gate.iter().flatten()).for_each(|(x, &g)| *x *= g / (1.0 + (-g).exp()));
    hidden
}

/// Of the experts, the ones with the largest logits, weighted by the softmax over those: what each is given, and the sum.
fn experts(model: &Model, il: usize, rows: &Rows) -> (ByExpert, Rows) {
    let (n_expert, n_used) = model.spec.experts;
    let times = |name: &str, expert: usize, x: &[f32]| -> Vec<f32> {
        let slice = model.slice(&format!("blk.{il}.{name}_exps.weight"), expert);
        slice.chunks_exact(x.len()).map(|w| dot(w, x)).collect()
    };
    let one = |(x, logits): (&Vec<f32>, &Vec<f32>)| {
        let mut chosen: Vec<usize> = (0..n_expert).collect();
        chosen.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        chosen.truncate(n_used);
        let weight = |e: usize| f64::from(logits[e] - logits[chosen[0]]).exp();
        let total: f64 = chosen.iter().map(|&e| weight(e)).sum();
        let mut sum = vec![0.0; x.len()];
        let hidden = chosen.iter().map(|&e| {
            let (gate, up) = (times("ffn_gate", e, x), times("ffn_up", e, x));
            let hidden: Vec<f32> = gate.iter().zip(up).map(|(g, u)| u * g / (1.0 + (-g).exp())).collect();
            let share = (weight(e) / total) as f32;
            sum.iter_mut().zip(times("ffn_down", e, &hidden)).for_each(|(s, y)| *s += share * y);
            (e, hidden)
        });
        (hidden.collect(), sum)
    };
    rows.iter().zip(&linear(model, &format!("blk.{il}.ffn_gate_inp"), rows)).map(one).unzip()
}

/// GELU as ggml's CPU backend computes it: the tanh approximation, looked up in a table over f16. Argument and result
/// are therefore rounded to f16 between −10 and 10.
fn gelu(x: f32) -> f32 {
    if x <= -10.0 {
        return 0.0;
    }
    if x >= 10.0 {
        return x;
    }
    let x = f16::from_f32(x).to_f32();
    let inner = 0.797_884_6 * x * (1.0 + 0.044_715 * x * x);
    f16::from_f32(0.5 * x * (1.0 + inner.tanh())).to_f32()
}

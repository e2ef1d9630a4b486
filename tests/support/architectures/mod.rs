//! Tiny models with random weights, of many architectures: one entry of a table an architecture, saying in words which
//! tensors and keys llama.cpp's loader asks for. Every bias that the loader accepts is in some entry and none is zero,
//! and every norm's weight is far from 1, so that a writer or a norm that is passed over shows.
//!
//! A tensor is its name and its `ne`, each a number or a letter:
//!
//! | letter | elements | letter | elements |
//! |---|---|---|---|
//! | d | the residual stream, `n_embd` | f | `n_ff` |
//! | q | all query heads | g | gate and up in one, 2 f |
//! | k | all key, or all value, heads | e | experts |
//! | w | query, key and value in one, q + 2 k | n, m | query heads, key heads |
//! | v | vocabulary | h | one head |

pub mod table;

use std::io;
use std::path::Path;

use super::tiny::{self, N_VOCAB, Random, Tensor};
use super::writer::{self, Info, Type, Value};
use table::{OUTPUT_NORM, OUTPUT_NORM_B};

/// Width of the residual stream of every model here.
pub const N_EMBD: usize = 64;
/// Blocks of every model here: where they differ in attention, they do so in turns of up to four.
pub const N_BLOCK: usize = 4;

const N_HEAD: usize = 4;
const N_FF: usize = 192;
const N_EXPERT: usize = 4;
const N_CTX: usize = 64;

/// Where the output matrix comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// `output.weight`.
    Own,
    /// `token_embd.weight`: the loader takes no other.
    Tied,
}

/// An architecture, and the variant of it that is built.
#[derive(Clone, Copy)]
pub struct Spec {
    /// `general.architecture`.
    pub name: &'static str,
    /// What sets this entry apart from others of the same name.
    pub variant: &'static str,
    /// Where the output matrix comes from.
    pub head: Head,
    /// Elements of one attention head; 32 makes all heads together wider than the stream.
    n_embd_head: usize,
    n_head_kv: usize,
    /// Keys besides the common ones, or in place of them, without the architecture's name; a slash says that the key has
    /// none in the file either.
    keys: &'static [&'static str],
    /// Tensors outside the blocks, embedding and output matrix apart.
    outside: &'static [&'static str],
    /// Tensors of the blocks that differ, by their number.
    except: &'static [(usize, &'static [&'static str])],
    /// Tensors of a block.
    block: &'static [&'static str],
}

/// An architecture with 2 key heads of 16 for its 4 query heads, and its own output matrix behind a norm.
const fn of(name: &'static str, block: &'static [&'static str]) -> Spec {
    Spec {
        name,
        variant: "",
        head: Head::Own,
        n_embd_head: 16,
        n_head_kv: 2,
        keys: &[],
        outside: &[OUTPUT_NORM],
        except: &[],
        block,
    }
}

/// The same with heads of 32.
const fn wide(name: &'static str, block: &'static [&'static str]) -> Spec {
    Spec { n_embd_head: 32, ..of(name, block) }
}

/// The same with as many key heads as query heads of 16, and a LayerNorm with its bias at the end.
const fn classic(name: &'static str, block: &'static [&'static str]) -> Spec {
    Spec { n_head_kv: N_HEAD, outside: &[OUTPUT_NORM_B], ..of(name, block) }
}

impl Spec {
    /// The same tensors and keys as another architecture's.
    pub fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    /// Name and variant, for messages.
    pub fn title(&self) -> String {
        if self.variant.is_empty() { self.name.into() } else { format!("{} ({})", self.name, self.variant) }
    }

    fn metadata(&self) -> Vec<(String, Value)> {
        let head = self.n_embd_head;
        let common = [
            format!("context_length {N_CTX}, embedding_length {N_EMBD}, block_count {N_BLOCK}"),
            format!("feed_forward_length {N_FF}, attention.head_count {N_HEAD}"),
            format!("attention.head_count_kv {}", self.n_head_kv),
            format!("attention.key_length {head}, attention.value_length {head}"),
            "attention.layer_norm_epsilon 0.00001, attention.layer_norm_rms_epsilon 0.00001".into(),
        ];
        let mut kv = vec![("general.architecture".to_owned(), Value::Str(self.name.to_owned()))];
        for entry in common.iter().map(String::as_str).chain(self.keys.iter().copied()).flat_map(entries) {
            let (key, value) = entry.split_once(' ').expect("a key has a value");
            let array: Vec<&str> = value.split('/').collect();
            let value = match (value.parse::<u32>(), value.parse::<f32>()) {
                (Ok(v), _) => Value::U32(v),
                (_, Ok(v)) => Value::F32(v),
                _ if array.len() == N_BLOCK => {
                    Value::I32s(array.iter().map(|n| n.parse().expect("a number a block")).collect())
                }
                _ => Value::Bool(value.parse().expect("a number, true or false")),
            };
            let key = match key.strip_prefix('/') {
                Some(key) => key.to_owned(),
                None => format!("{}.{key}", self.name),
            };
            kv.retain(|(other, _)| *other != key);
            kv.push((key, value));
        }
        kv.extend(tiny::tokenizer(tiny::N_VOCAB));
        kv
    }

    /// Name and `ne` of every tensor, in file order.
    fn layout(&self) -> Vec<(String, Vec<usize>)> {
        let tensor = |prefix: &str, entry: &str| {
            let mut words = entry.split(' ');
            let name = words.next().expect("a tensor has a name");
            (format!("{prefix}{name}"), words.map(|word| self.size(word)).collect())
        };
        let mut all = vec![tensor("", "token_embd.weight d v")];
        all.extend(self.outside.iter().flat_map(|list| entries(list)).map(|entry| tensor("", entry)));
        for il in 0..N_BLOCK {
            let lists =
                self.except.iter().find(|(block, _)| *block == il).map_or(self.block, |other| other.1);
            let prefix = format!("blk.{il}.");
            all.extend(lists.iter().flat_map(|list| entries(list)).map(|entry| tensor(&prefix, entry)));
        }
        if self.head == Head::Own {
            all.push(tensor("", "output.weight d v"));
        }
        all
    }

    fn size(&self, letter: &str) -> usize {
        let (q, k) = (N_HEAD * self.n_embd_head, self.n_head_kv * self.n_embd_head);
        match letter {
            "d" => N_EMBD,
            "v" => N_VOCAB,
            "h" => self.n_embd_head,
            "n" => N_HEAD,
            "m" => self.n_head_kv,
            "q" => q,
            "k" => k,
            "w" => q + 2 * k,
            "f" => N_FF,
            "g" => 2 * N_FF,
            "e" => N_EXPERT,
            number => number.parse().expect("a letter of the table above or a number"),
        }
    }

    /// The random model of this architecture.
    pub fn random(&self, seed: u64) -> Model {
        let mut random = Random(seed);
        let tensors = self.layout().into_iter().map(|(name, ne)| {
            let (mean, deviation) = scale(&name, ne[0]);
            let data = (0..ne.iter().product()).map(|_| mean + deviation * random.spread()).collect();
            Tensor { name, ne, data }
        });
        Model { spec: *self, tensors: tensors.collect() }
    }
}

/// The parts of a list with commas.
fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim)
}

/// Mean and deviation of a tensor's values: outputs about as large as inputs, writers a little smaller.
fn scale(name: &str, n_in: usize) -> (f32, f32) {
    let matrix = 1.0 / (n_in as f32).sqrt();
    let base =
        name.strip_suffix(".weight").unwrap_or(name).rsplit('.').next().expect("a name has a last part");
    match base {
        "bias" => (0.0, 0.2),
        // What a norm gives the stream is to be no larger than what other writers do.
        "post_attention_norm" | "post_ffw_norm" | "attn_output_norm" | "layer_output_norm" => (0.5, 0.15),
        base if base.ends_with("norm") || base.ends_with("norm_2") || base == "time_mix_ln" => (1.0, 0.2),
        // Some scale it by √n_embd: what the blocks write is to matter beside it nevertheless.
        "token_embd" | "position_embd" => (0.0, 0.3),
        "attn_sinks" => (0.0, 1.0),
        "ssm_a" => (-1.0, 0.3),
        "ssm_d" => (1.0, 0.2),
        "attn_output" | "ssm_out" | "out_proj" => (0.0, 0.5 * matrix),
        // ggml looks GELU up by f16: an input on the border of two comes out 1/2000 off. Wide and faint is best.
        "ffn_down" | "ffn_down_exps" | "ffn_down_shexp" => (0.0, 0.2 * matrix),
        _ => (0.0, matrix),
    }
}

/// A model in memory, in f32.
#[derive(Clone)]
pub struct Model {
    spec: Spec,
    tensors: Vec<Tensor>,
}

impl Model {
    /// The same model with the unit vectors `directions`, at right angles, taken out of its token embedding.
    #[must_use]
    pub fn without(mut self, directions: &[Vec<f32>]) -> Self {
        let embedding = self.tensors.iter_mut().find(|t| t.name == "token_embd.weight");
        for row in embedding.expect("every model has one").data.chunks_exact_mut(N_EMBD) {
            directions.iter().for_each(|r| tiny::project_out(row, r));
        }
        self
    }

    /// Writes the model in F32.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let infos: Vec<_> = (self.tensors.iter())
            .map(|t| Info {
                name: t.name.clone(),
                ne: t.ne.iter().map(|&n| n as u64).collect(),
                ty: Type::F32,
            })
            .collect();
        writer::write(path, &self.spec.metadata(), &infos, |i, out| {
            self.tensors[i].data.iter().try_for_each(|v| out.write_all(&v.to_le_bytes()))
        })
    }
}

//! A constant added to the stream for good: as the bias of a block, where the architecture has a place for one.
#![forbid(unsafe_code)]

use serde::Serialize;

use super::{Plan, RewriteError, ScopeError};
use crate::arch;
use crate::gguf::{GgufFile, NewTensor};
use crate::quant::{self, CodecError, GgmlType};

/// A constant that becomes part of a bias.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedAddition {
    /// The bias, ne = \[n_embd\].
    pub tensor: String,
    /// Its 0-based block.
    pub block: usize,
    /// Whether the file has no such tensor yet; it will be F32.
    pub is_new: bool,
    /// Whether it is added in the middle of the block, so that the block's own FFN sees it: not quite the addition at the
    /// block's output.
    pub in_front_of_ffn: bool,
    /// What is added, n_embd.
    #[serde(skip)]
    pub vector: Vec<f32>,
}

impl Plan {
    /// Plans to add `vector` (n_embd) to what the 0-based `block` writes, at every token. Where the bias is a writer of
    /// the edit too, it loses the directions first. Several vectors for one block add up.
    ///
    /// # Errors
    /// A vector of another width, or with values that are not finite; a block that the model does not have, or one
    /// without a place for a bias in this architecture.
    pub fn add(&mut self, file: &GgufFile, block: usize, vector: &[f32]) -> Result<(), RewriteError> {
        let arch = file.arch()?.to_string();
        let number = |key: &str| file.get_u64(&format!("{arch}.{key}"));
        let (n_embd, n_block) = (number("embedding_length")? as usize, number("block_count")? as usize);
        let index = 0;
        if vector.len() != n_embd {
            return Err(RewriteError::Width { index, expected: n_embd, found: vector.len() });
        }
        if !vector.iter().all(|x| x.is_finite()) {
            return Err(RewriteError::NotFinite { index });
        }
        if block >= n_block {
            return Err(ScopeError::Block { block, n_block }.into());
        }
        let slot = arch::bias_slot(file, block)?;
        let tensor = slot.ok_or_else(|| RewriteError::NoSlot { arch: arch.clone(), block })?;
        if let Some(info) = file.tensor(&tensor)
            && (info.shape() != [n_embd as u64] || !info.ty.can_decode() || !info.ty.can_encode())
        {
            return Err(RewriteError::OtherFile { tensor });
        }
        self.architecture = arch;
        if let Some(planned) = self.additions.iter_mut().find(|a| a.tensor == tensor) {
            planned.vector.iter_mut().zip(vector).for_each(|(sum, x)| *sum += x);
            return Ok(());
        }
        self.additions.push(PlannedAddition {
            is_new: file.tensor(&tensor).is_none(),
            in_front_of_ffn: !tensor.contains("ffn"),
            tensor,
            block,
            vector: vector.to_vec(),
        });
        Ok(())
    }

    /// What is added to a tensor, if anything.
    pub(super) fn addition(&self, tensor: &str) -> Option<&PlannedAddition> {
        self.additions.iter().find(|a| a.tensor == tensor)
    }

    /// The biases that the file does not have yet, in the order in which they come behind its tensors.
    pub(super) fn new_biases(&self) -> impl Iterator<Item = &PlannedAddition> {
        self.additions.iter().filter(|a| a.is_new)
    }
}

impl PlannedAddition {
    /// The tensor a file gets where it has none.
    pub(super) fn new_tensor(&self) -> NewTensor {
        NewTensor { name: self.tensor.clone(), ne: vec![self.vector.len() as u64], ty: GgmlType::F32 }
    }

    /// Its bytes.
    pub(super) fn new_bytes(&self) -> Vec<u8> {
        self.vector.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    /// The bytes of a bias of type `ty`, with the constant added.
    pub(super) fn add_to(&self, ty: GgmlType, bytes: &[u8]) -> Result<Vec<u8>, RewriteError> {
        let wrong = |source: CodecError| RewriteError::Type { tensor: self.tensor.clone(), source };
        let mut bias = vec![0.0; self.vector.len()];
        quant::decode(ty, bytes, &mut bias).map_err(wrong)?;
        bias.iter_mut().zip(&self.vector).for_each(|(b, x)| *b += x);
        quant::encode(ty, &bias, bias.len(), None).map_err(wrong)
    }
}

//! What a file of ours says of how it was made: the `ggsteer.` keys, written and read in one place.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::{Plan, Tied};
use crate::arch::{self, ArchError, Writer};
use crate::direction::Direction;
use crate::gguf::{Array, Gguf, GgufFile, Value, fingerprint};
use crate::quant::GgmlType;

/// How a file was made.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// `ggsteer.edit`: what was done, as `orthogonalize`.
    pub edit: String,
    /// `ggsteer.version` of the program.
    pub version: String,
    /// `ggsteer.source.fingerprint`: [`fingerprint`] of the model it was made from.
    pub source: String,
    /// `ggsteer.direction.{i}.…`.
    pub directions: Vec<RecordedDirection>,
    /// `ggsteer.edit.tensors`: the tensors that were to be edited, where the file says.
    pub tensors: Option<Vec<String>>,
    /// `ggsteer.edit.strengths`: how much of the edit each of them got, 1 being all; nothing where all got all.
    pub strengths: Option<Vec<f32>>,
    /// `ggsteer.edit.types`: the type each of them was to have, where the file says.
    pub types: Option<Vec<String>>,
    /// `ggsteer.edit.preserve_norm`: the columns of matrices (rows of embeddings) got their lengths back.
    pub preserve_norm: bool,
    /// `ggsteer.edit.partial`: the writers of the model could not all be told.
    pub partial: bool,
    /// `ggsteer.edit.rounding`: how quantized tensors were rounded, in a word.
    pub rounding: Option<String>,
    /// `ggsteer.precise.fingerprint`: [`fingerprint`] of the more exact file that the edit started from.
    pub precise: Option<String>,
    /// `ggsteer.addition.{i}.…`.
    pub additions: Vec<RecordedAddition>,
    /// `ggsteer.edit.tied`: what was done about an embedding that is the output matrix too.
    pub tied: Option<Tied>,
}

/// A direction that was written out of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedDirection {
    /// [`Direction::sha256`].
    pub sha256: String,
    /// The 0-based block it was measured at.
    pub block: u32,
    /// The position it was measured at.
    pub position: Option<i32>,
}

/// A direction that was added to a bias.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedAddition {
    /// [`Direction::sha256`].
    pub sha256: String,
    /// The 0-based block.
    pub block: u32,
    /// What it was multiplied by.
    pub scale: f32,
    /// The bias.
    pub tensor: String,
}

const TIED: [(&str, Tied); 3] = [("edit", Tied::Edit), ("untie", Tied::Untie), ("skip", Tied::Skip)];

impl Record {
    /// The record of an `edit` of `file` with `directions`, made now.
    #[must_use]
    pub fn new(edit: &str, file: &GgufFile, directions: &[Direction]) -> Self {
        let recorded = |d: &Direction| RecordedDirection {
            sha256: d.sha256(),
            block: d.block as u32,
            position: d.meta.position,
        };
        Self {
            edit: edit.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            source: fingerprint(file),
            directions: directions.iter().map(recorded).collect(),
            ..Self::default()
        }
    }

    /// With what a plan is about to edit.
    #[must_use]
    pub fn of_plan(mut self, plan: &Plan) -> Self {
        self.tensors = Some(plan.tensors.iter().map(|t| t.writer.tensor.clone()).collect());
        self.types = Some(plan.tensors.iter().map(|t| t.out_type.to_string()).collect());
        let partly = plan.tensors.iter().any(|t| t.strength != 1.0);
        self.strengths = partly.then(|| plan.tensors.iter().map(|t| t.strength as f32).collect());
        self.preserve_norm = plan.tensors.iter().any(|t| t.preserve_norm);
        self.partial = plan.partial.is_some();
        self.tied = plan.tied_embeddings.then_some(plan.tied);
        self
    }

    /// As keys of a file.
    #[must_use]
    pub fn keys(&self) -> Vec<(String, Value)> {
        let mut keys = vec![
            ("ggsteer.edit".to_string(), Value::from(self.edit.as_str())),
            ("ggsteer.version".into(), Value::from(self.version.as_str())),
            ("ggsteer.source.fingerprint".into(), Value::from(self.source.as_str())),
        ];
        if let Some(tensors) = &self.tensors {
            keys.push(("ggsteer.edit.tensors".into(), Array::String(tensors.clone()).into()));
        }
        if let Some(strengths) = &self.strengths {
            keys.push(("ggsteer.edit.strengths".into(), Array::F32(strengths.clone()).into()));
        }
        if let Some(types) = &self.types {
            keys.push(("ggsteer.edit.types".into(), Array::String(types.clone()).into()));
        }
        for (key, said) in [("preserve_norm", self.preserve_norm), ("partial", self.partial)] {
            if said {
                keys.push((format!("ggsteer.edit.{key}"), Value::Bool(true)));
            }
        }
        for (key, text) in
            [("ggsteer.edit.rounding", &self.rounding), ("ggsteer.precise.fingerprint", &self.precise)]
        {
            if let Some(text) = text {
                keys.push((key.into(), Value::from(text.as_str())));
            }
        }
        if let Some((name, _)) = TIED.iter().find(|(_, tied)| Some(*tied) == self.tied) {
            keys.push(("ggsteer.edit.tied".into(), Value::from(*name)));
        }
        for (i, direction) in self.directions.iter().enumerate() {
            let key = |name: &str| format!("ggsteer.direction.{i}.{name}");
            keys.push((key("sha256"), Value::from(direction.sha256.as_str())));
            keys.push((key("block"), Value::from(direction.block)));
            if let Some(position) = direction.position {
                keys.push((key("position"), Value::from(position)));
            }
        }
        for (i, addition) in self.additions.iter().enumerate() {
            let key = |name: &str| format!("ggsteer.addition.{i}.{name}");
            keys.push((key("sha256"), Value::from(addition.sha256.as_str())));
            keys.push((key("block"), Value::from(addition.block)));
            keys.push((key("scale"), Value::from(addition.scale)));
            keys.push((key("tensor"), Value::from(addition.tensor.as_str())));
        }
        keys
    }

    /// What a file says; nothing where ggsteer did not make it.
    #[must_use]
    pub fn read(file: &Gguf) -> Option<Self> {
        let text = |key: &str| file.get_str(key).ok().map(str::to_string);
        let direction = |i: usize| {
            let key = |name: &str| format!("ggsteer.direction.{i}.{name}");
            let position = match file.get(&key("position")) {
                Some(Value::I32(n)) => Some(*n),
                _ => None,
            };
            let block = file.get_u32(&key("block")).ok()?;
            Some(RecordedDirection { sha256: text(&key("sha256"))?, block, position })
        };
        let addition = |i: usize| {
            let key = |name: &str| format!("ggsteer.addition.{i}.{name}");
            Some(RecordedAddition {
                sha256: text(&key("sha256"))?,
                block: file.get_u32(&key("block")).ok()?,
                scale: file.get_f32(&key("scale")).ok()?,
                tensor: text(&key("tensor"))?,
            })
        };
        let names = |key: &str| match file.get(key) {
            Some(Value::Array(Array::String(names))) => Some(names.clone()),
            _ => None,
        };
        let said = |key: &str| matches!(file.get(key), Some(Value::Bool(true)));
        let tied = text("ggsteer.edit.tied");
        Some(Self {
            edit: text("ggsteer.edit")?,
            version: text("ggsteer.version").unwrap_or_default(),
            source: text("ggsteer.source.fingerprint")?,
            directions: (0..).map_while(direction).collect(),
            tensors: names("ggsteer.edit.tensors"),
            types: names("ggsteer.edit.types"),
            preserve_norm: said("ggsteer.edit.preserve_norm"),
            partial: said("ggsteer.edit.partial"),
            rounding: text("ggsteer.edit.rounding"),
            precise: text("ggsteer.precise.fingerprint"),
            additions: (0..).map_while(addition).collect(),
            strengths: match file.get("ggsteer.edit.strengths") {
                Some(Value::Array(Array::F32(values))) => Some(values.clone()),
                _ => None,
            },
            tied: TIED.iter().find(|(name, _)| tied.as_deref() == Some(name)).map(|(_, tied)| *tied),
        })
    }

    /// The writers of the model it was made from: all of them, or those that could be told where the edit was a partial
    /// one.
    ///
    /// # Errors
    /// [`ArchError`]: writers that cannot be told.
    pub fn writers(&self, original: &Gguf) -> Result<Vec<Writer>, ArchError> {
        if self.partial { arch::partial_writers(original) } else { arch::writers(original) }
    }

    /// What each tensor that was to be edited was to get, by its name: its type, none where the file does not say or says
    /// what is none, and how much of the edit, 1 being all. Empty where the file names no tensors.
    #[must_use]
    pub fn edits(&self) -> HashMap<&str, (Option<GgmlType>, f64)> {
        // The first of a name counts.
        let names = self.tensors.as_deref().unwrap_or_default();
        let names = names.iter().enumerate().rev();
        names
            .map(|(i, name)| {
                let ty = self.types.as_ref().and_then(|types| GgmlType::from_name(types.get(i)?));
                let strength = self.strengths.as_ref().and_then(|all| all.get(i));
                (name.as_str(), (ty, strength.map_or(1.0, |s| f64::from(*s))))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Writer;

    #[test]
    fn is_read_as_it_was_written() {
        let direction =
            |block, position| RecordedDirection { sha256: format!("{block:064}"), block, position };
        let mut record = Record {
            edit: "orthogonalize".into(),
            version: "0.1.0".into(),
            source: "f0".into(),
            directions: vec![direction(3, Some(-2)), direction(0, None)],
            ..Record::default()
        };
        let back = |record: &Record| {
            let mut writer = Writer::new().key("general.architecture", "llama");
            for (key, value) in record.keys() {
                writer = writer.key(key, value);
            }
            Record::read(&Gguf::parse(&writer.header().unwrap()).unwrap()).unwrap()
        };
        assert_eq!(back(&record), record);
        assert!(record.edits().is_empty());
        record.tensors = Some(vec!["a".into(), "b".into()]);
        record.tied = Some(Tied::Skip);
        assert_eq!(back(&record), record);
        let edits = |record: &Record| ["a", "b", "c"].map(|name| record.edits().get(name).copied());
        assert_eq!(edits(&record), [Some((None, 1.0)), Some((None, 1.0)), None]);
        record.strengths = Some(vec![1.0, 0.25]);
        assert_eq!(back(&record), record);
        assert_eq!(edits(&record)[1], Some((None, 0.25)));
        record.types = Some(vec!["q4_K".into(), "f16".into()]);
        record.preserve_norm = true;
        record.partial = true;
        record.rounding = Some("calibrated".into());
        record.precise = Some("f1".into());
        let addition = |block| RecordedAddition {
            sha256: "aa".into(),
            block,
            scale: -0.5,
            tensor: "blk.1.ffn_down.bias".into(),
        };
        record.additions = vec![addition(1), addition(2)];
        assert_eq!(back(&record), record);
        assert_eq!(
            edits(&record),
            [Some((Some(GgmlType::Q4_K), 1.0)), Some((Some(GgmlType::F16), 0.25)), None]
        );
        let bare = Writer::new().key("general.architecture", "llama").header().unwrap();
        assert_eq!(Record::read(&Gguf::parse(&bare).unwrap()), None);
    }
}

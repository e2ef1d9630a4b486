//! What a file of ours says of how it was made: the `ggsteer.` keys, written and read in one place.
#![forbid(unsafe_code)]

use super::{Plan, Tied};
use crate::direction::Direction;
use crate::gguf::{Array, Gguf, GgufFile, Value, fingerprint};

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
        let tied = text("ggsteer.edit.tied");
        Some(Self {
            edit: text("ggsteer.edit")?,
            version: text("ggsteer.version").unwrap_or_default(),
            source: text("ggsteer.source.fingerprint")?,
            directions: (0..).map_while(direction).collect(),
            tensors: match file.get("ggsteer.edit.tensors") {
                Some(Value::Array(Array::String(names))) => Some(names.clone()),
                _ => None,
            },
            strengths: match file.get("ggsteer.edit.strengths") {
                Some(Value::Array(Array::F32(values))) => Some(values.clone()),
                _ => None,
            },
            tied: TIED.iter().find(|(name, _)| tied.as_deref() == Some(name)).map(|(_, tied)| *tied),
        })
    }

    /// How much of the edit a tensor was to get: 1 for all of it, 0 for none.
    #[must_use]
    pub fn strength(&self, tensor: &str) -> f64 {
        let Some(tensors) = &self.tensors else { return 1.0 };
        match (tensors.iter().position(|name| name == tensor), &self.strengths) {
            (None, _) => 0.0,
            (Some(_), None) => 1.0,
            (Some(i), Some(strengths)) => strengths.get(i).map_or(1.0, |s| f64::from(*s)),
        }
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
        assert!(record.strength("a") == 1.0);
        record.tensors = Some(vec!["a".into(), "b".into()]);
        record.tied = Some(Tied::Skip);
        assert_eq!(back(&record), record);
        assert_eq!(["a", "c"].map(|name| record.strength(name)), [1.0, 0.0]);
        record.strengths = Some(vec![1.0, 0.25]);
        assert_eq!(back(&record), record);
        assert_eq!(record.strength("b"), 0.25);
        let bare = Writer::new().key("general.architecture", "llama").header().unwrap();
        assert_eq!(Record::read(&Gguf::parse(&bare).unwrap()), None);
    }
}

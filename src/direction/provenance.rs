//! Where a direction comes from: the keys of its file.
#![forbid(unsafe_code)]

use serde::Serialize;

use crate::gguf::{Array, GgufFile, Value};

/// Where a direction comes from. Everything may be unknown: other tools' files say less.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Provenance {
    /// The model's `general.architecture` (`controlvector.model_hint`).
    pub architecture: Option<String>,
    /// The token position it was measured at: negative, from the end of the templated prompt.
    pub position: Option<i32>,
    /// Its length when it was measured.
    pub raw_norm: Option<f64>,
    /// r·x of the harmless and of the harmful mean x it is the difference of, r of unit length.
    pub readings: Option<(f64, f64)>,
    /// Its scores in the selection.
    pub scores: Option<Scores>,
    /// [`crate::gguf::fingerprint`] of the model file.
    pub model_fingerprint: Option<String>,
    /// `general.name` of the model.
    pub model_name: Option<String>,
    /// SHA-256 of the harmful prompts.
    pub prompts_harmful_sha256: Option<String>,
    /// SHA-256 of the harmless prompts.
    pub prompts_harmless_sha256: Option<String>,
    /// Number of harmful prompts.
    pub n_harmful: Option<u32>,
    /// Number of harmless prompts.
    pub n_harmless: Option<u32>,
    /// Program and version that wrote the file.
    pub created_by: Option<String>,
    /// [`sha256`](super::Direction::sha256) of the directions that were ablated while it was measured: it is to be used
    /// with them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub erased: Vec<String>,
    /// `glp.mode`: `project` for a direction to be taken out, `add` for one to be added.
    pub mode: Option<String>,
    /// `glp.alpha_default`: the strength to use when none is given.
    pub alpha_default: Option<f32>,
    /// `glp.hook_point`: the node it belongs to; `l_out` is a block's output.
    pub hook_point: Option<String>,
}

/// The scores by which a direction was chosen (Arditi et al. 2024, appendix C).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Scores {
    /// Mean refusal score on harmful prompts with the direction ablated.
    pub bypass: f64,
    /// Mean refusal score on harmless prompts with the direction added.
    pub induce: f64,
    /// KL(base ‖ ablated) on harmless prompts at the last position.
    pub kl: f64,
}

impl Provenance {
    /// The keys that say which model and which prompts, as in every file of ours.
    pub(crate) fn origin_keys(&self) -> Vec<(&'static str, Value)> {
        let string = |s: &Option<String>| s.as_deref().map(Value::from);
        let created_by = concat!("ggsteer ", env!("CARGO_PKG_VERSION"));
        let keys = [
            ("ggsteer.model.fingerprint", string(&self.model_fingerprint)),
            ("ggsteer.model.name", string(&self.model_name)),
            ("ggsteer.prompts.harmful.sha256", string(&self.prompts_harmful_sha256)),
            ("ggsteer.prompts.harmless.sha256", string(&self.prompts_harmless_sha256)),
            ("ggsteer.prompts.harmful.count", self.n_harmful.map(Value::from)),
            ("ggsteer.prompts.harmless.count", self.n_harmless.map(Value::from)),
            ("ggsteer.created_by", Some(Value::from(self.created_by.as_deref().unwrap_or(created_by)))),
        ];
        keys.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }

    /// The keys of a direction file, in their order there. `norm` stands in for an unknown raw norm.
    pub(super) fn keys(&self, norm: f64) -> Vec<(&'static str, Value)> {
        let default = |s: &Option<String>, other: &str| Some(Value::from(s.as_deref().unwrap_or(other)));
        let score = |f: fn(&Scores) -> f64| self.scores.as_ref().map(|s| Value::F64(f(s)));
        let erased = (!self.erased.is_empty()).then(|| Array::String(self.erased.clone()).into());
        let keys = [
            ("glp.mode", default(&self.mode, "project")),
            ("glp.alpha_default", Some(Value::F32(self.alpha_default.unwrap_or(1.0)))),
            ("glp.hook_point", default(&self.hook_point, "l_out")),
            ("glp.rank", Some(Value::U32(1))),
            ("ggsteer.position", self.position.map(Value::from)),
            ("ggsteer.erased", erased),
            ("ggsteer.raw_norm", Some(Value::F64(self.raw_norm.unwrap_or(norm)))),
            ("ggsteer.readings.harmless", self.readings.map(|r| Value::F64(r.0))),
            ("ggsteer.readings.harmful", self.readings.map(|r| Value::F64(r.1))),
            ("ggsteer.scores.bypass", score(|s| s.bypass)),
            ("ggsteer.scores.induce", score(|s| s.induce)),
            ("ggsteer.scores.kl", score(|s| s.kl)),
        ];
        let keys = keys.into_iter().filter_map(|(key, value)| Some((key, value?)));
        keys.chain(self.origin_keys()).collect()
    }

    /// What a file says; keys that are missing or of another type are unknown.
    pub(crate) fn read(file: &GgufFile) -> Self {
        let string = |key: &str| file.get_str(key).ok().map(str::to_string);
        let double = |key: &str| match file.get(key)? {
            Value::F64(x) => Some(*x),
            Value::F32(x) => Some(f64::from(*x)),
            _ => None,
        };
        let scores = || {
            Some(Scores {
                bypass: double("ggsteer.scores.bypass")?,
                induce: double("ggsteer.scores.induce")?,
                kl: double("ggsteer.scores.kl")?,
            })
        };
        Self {
            architecture: string("controlvector.model_hint"),
            position: match file.get("ggsteer.position") {
                Some(Value::I32(n)) => Some(*n),
                _ => None,
            },
            raw_norm: double("ggsteer.raw_norm"),
            readings: double("ggsteer.readings.harmless").zip(double("ggsteer.readings.harmful")),
            scores: scores(),
            model_fingerprint: string("ggsteer.model.fingerprint"),
            model_name: string("ggsteer.model.name"),
            prompts_harmful_sha256: string("ggsteer.prompts.harmful.sha256"),
            prompts_harmless_sha256: string("ggsteer.prompts.harmless.sha256"),
            n_harmful: file.get_u32("ggsteer.prompts.harmful.count").ok(),
            n_harmless: file.get_u32("ggsteer.prompts.harmless.count").ok(),
            created_by: string("ggsteer.created_by"),
            erased: match file.get("ggsteer.erased") {
                Some(Value::Array(Array::String(all))) => all.clone(),
                _ => Vec::new(),
            },
            mode: string("glp.mode"),
            alpha_default: file.get_f32("glp.alpha_default").ok(),
            hook_point: string("glp.hook_point"),
        }
    }
}

//! Steering as a request asks for it, and as the model applies it.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::directions::Loaded;
use crate::chat::Named;
use crate::intervention::{self, Basis, Intervention, Positions};
use crate::near::did_you_mean;

/// Directions added by one request; more are a mistake.
const MAX_ADDITIONS: usize = 64;

/// The `steering` of a request. An empty one is plain.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Steering {
    /// Erased after every write to the stream: their span.
    #[serde(default)]
    pub ablate: Option<Which>,
    /// Added at the output of their blocks, after the ablation there.
    #[serde(default)]
    pub add: Option<Add>,
    /// Multiplies every addition.
    #[serde(default)]
    pub scale: Option<f32>,
    /// Read at every token that is generated.
    #[serde(default)]
    pub read: Option<Which>,
}

/// Directions by their names, all of them, or none.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected a direction's name, a list of names, true or false")]
pub enum Which {
    /// All there are, or none.
    All(bool),
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// What is added: [`Add::try_from`] says what was wrong where an untagged enum would not, and takes no list for an object.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
pub enum Add {
    /// One.
    One(Term),
    /// Several.
    Several(Vec<Term>),
}

/// One addition.
#[derive(Debug, Clone, PartialEq)]
pub enum Term {
    /// The raw direction, once, at its own block and at all positions.
    Name(String),
    /// The raw direction in another way.
    Whole(Whole),
}

impl TryFrom<Value> for Add {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let term = |value: Value| {
            match value {
            Value::String(name) => Ok(Term::Name(name)),
            Value::Object(_) => serde_json::from_value(value).map(Term::Whole).map_err(|e| e.to_string()),
            _ => Err(
                "expected a direction's name, {\"direction\", \"scale\", \"block\", \"positions\"}, or a list of these"
                    .into(),
            ),
        }
        };
        match value {
            Value::Array(terms) => Ok(Self::Several(terms.into_iter().map(term).collect::<Result<_, _>>()?)),
            one => term(one).map(Self::One),
        }
    }
}

/// One addition, spelled out.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Whole {
    /// Its name.
    pub direction: String,
    /// How much of the raw direction.
    #[serde(default = "one")]
    pub scale: f32,
    /// 0-based block at whose output it is added, in place of its own.
    #[serde(default)]
    pub block: Option<usize>,
    /// Where in the sequence.
    #[serde(default)]
    pub positions: At,
}

/// As [`Positions`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum At {
    /// Everywhere.
    #[default]
    All,
    /// At the prompt's tokens.
    Prompt,
}

fn one() -> f32 {
    1.0
}

/// Steering that cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// A name that no direction has.
    #[error("{at}: no direction is called {name:?}{near}; GET /v1/directions lists those there are")]
    Unknown {
        /// The field that names it.
        at: String,
        /// The name.
        name: String,
        /// A name that comes near.
        near: String,
    },
    /// A block that the model does not have.
    #[error("{at}: block {block}: the model has blocks 0 to {last}")]
    Block {
        /// The field.
        at: String,
        /// The block asked for.
        block: usize,
        /// The model's last block.
        last: usize,
    },
    /// More additions than anybody needs.
    #[error("{found} additions; {MAX_ADDITIONS} are allowed")]
    Many {
        /// How many.
        found: usize,
    },
    /// Directions that cannot be erased together, or a sum that is not finite.
    #[error("{at}: {source}")]
    Intervention {
        /// The field.
        at: &'static str,
        /// What is wrong.
        source: intervention::Error,
    },
}

impl SteeringError {
    /// The field of the request that is to blame.
    #[must_use]
    pub fn at(&self) -> &str {
        match self {
            Self::Unknown { at, .. } | Self::Block { at, .. } => at,
            Self::Many { .. } => "steering.add",
            Self::Intervention { at, .. } => at,
        }
    }
}

/// What is done to a sequence, and what is read off it.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub intervention: Option<Arc<Intervention>>,
    pub read: Vec<Arc<Named>>,
}

impl Steering {
    /// What it means with these directions on a model of `n_block` blocks.
    pub(super) fn apply(&self, directions: &Loaded, n_block: usize) -> Result<Applied, SteeringError> {
        let mut intervention = Intervention::default();
        let erased =
            self.ablate.as_ref().map_or(Ok(Vec::new()), |w| w.find(directions, "steering.ablate"))?;
        let vectors: Vec<&[f32]> = erased.iter().map(|n| n.direction.vector.as_slice()).collect();
        let at = "steering.ablate";
        intervention.ablate =
            Basis::new(&vectors).map_err(|source| SteeringError::Intervention { at, source })?;
        let terms = self.add.as_ref().map_or(&[][..], Add::terms);
        if terms.len() > MAX_ADDITIONS {
            return Err(SteeringError::Many { found: terms.len() });
        }
        for (i, term) in terms.iter().enumerate() {
            let at = match &self.add {
                Some(Add::Several(_)) => format!("steering.add[{i}]"),
                _ => "steering.add".into(),
            };
            let (name, scale, block, positions) = match term {
                Term::Name(name) => (name, 1.0, None, Positions::All),
                Term::Whole(whole) => (&whole.direction, whole.scale, whole.block, whole.positions.into()),
            };
            let named = find(directions, name, &at)?;
            let block = block.unwrap_or(named.direction.block);
            if block >= n_block {
                return Err(SteeringError::Block { at, block, last: n_block - 1 });
            }
            let scale = scale * self.scale.unwrap_or(1.0);
            if scale != 0.0 {
                let added = Intervention::add(block, &named.direction.vector, scale, positions);
                let at = "steering.add";
                let added = added.map_err(|source| SteeringError::Intervention { at, source })?;
                intervention.add.extend(added.add);
            }
        }
        let read = self.read.as_ref().map_or(Ok(Vec::new()), |w| w.find(directions, "steering.read"))?;
        let intervention = (intervention != Intervention::default()).then(|| Arc::new(intervention));
        Ok(Applied { intervention, read })
    }
}

impl Steering {
    /// Whether it names this direction.
    pub(super) fn names(&self, name: &str) -> bool {
        let among = |which: &Which| match which {
            Which::All(_) => false,
            Which::One(one) => one == name,
            Which::Several(names) => names.iter().any(|one| one == name),
        };
        let added = self.add.as_ref().map_or(&[][..], Add::terms).iter().any(|term| match term {
            Term::Name(one) | Term::Whole(Whole { direction: one, .. }) => one == name,
        });
        added || [&self.ablate, &self.read].into_iter().flatten().any(among)
    }
}

impl Which {
    /// Those it names, each once.
    fn find(&self, directions: &Loaded, at: &str) -> Result<Vec<Arc<Named>>, SteeringError> {
        let names = match self {
            Self::All(all) => {
                return Ok(directions.iter().filter(|_| *all).cloned().collect());
            }
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        };
        let mut found: Vec<Arc<Named>> = Vec::new();
        for name in names {
            let named = find(directions, name, at)?;
            if !found.iter().any(|other| Arc::ptr_eq(other, &named)) {
                found.push(named);
            }
        }
        Ok(found)
    }
}

impl Add {
    fn terms(&self) -> &[Term] {
        match self {
            Self::One(term) => std::slice::from_ref(term),
            Self::Several(terms) => terms,
        }
    }
}

impl From<At> for Positions {
    fn from(at: At) -> Self {
        match at {
            At::All => Self::All,
            At::Prompt => Self::Prompt,
        }
    }
}

fn find(directions: &Loaded, name: &str, at: &str) -> Result<Arc<Named>, SteeringError> {
    directions.iter().find(|named| named.name == name).cloned().ok_or_else(|| SteeringError::Unknown {
        at: at.into(),
        name: name.chars().take(100).collect(),
        near: did_you_mean(name, directions.iter().map(|named| named.name.as_str())),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::direction::{Direction, Provenance};

    fn loaded() -> Loaded {
        let named = |(name, block, vector): (&str, usize, [f32; 2])| {
            let direction = Direction::new(vector.to_vec(), block, Provenance::default()).unwrap();
            Arc::new(Named { name: name.into(), direction })
        };
        [("a", 0, [3.0, 4.0]), ("b", 1, [0.0, 2.0]), ("b again", 1, [0.0, 1.0])].map(named).into()
    }

    fn apply(value: Value) -> Result<Applied, String> {
        let steering: Steering = serde_json::from_value(value).map_err(|e| e.to_string())?;
        steering.apply(&loaded(), 3).map_err(|e| format!("{}: {e}", e.at()))
    }

    #[test]
    fn all_ways_to_say_it() {
        for plain in [
            json!({}),
            json!({"ablate": false, "add": []}),
            json!({"ablate": []}),
            json!({"add": "a", "scale": 0}),
            json!({"ablate": null, "add": null, "scale": null, "read": null}),
        ] {
            let applied = apply(plain.clone()).unwrap();
            assert!(applied.intervention.is_none() && applied.read.is_empty(), "{plain}");
        }
        let erased = |value| apply(json!({ "ablate": value })).unwrap().intervention.unwrap();
        assert_eq!(erased(json!("a")).ablate.vectors(), [[0.6, 0.8]]);
        assert_eq!(erased(json!(["a", "b", "a"])).ablate.vectors().len(), 2);
        let added =
            |value| apply(json!({ "add": value, "scale": 2 })).unwrap().intervention.unwrap().add.clone();
        let one = |block, vector: [f32; 2], positions| {
            vec![intervention::Addition { block, vector: vector.to_vec(), positions }]
        };
        assert_eq!(added(json!("a")), one(0, [6.0, 8.0], Positions::All));
        let whole = json!({"direction": "a", "scale": -0.5, "block": 2, "positions": "prompt"});
        assert_eq!(added(whole.clone()), one(2, [-3.0, -4.0], Positions::Prompt));
        assert_eq!(added(json!([whole, "b"])).len(), 2);
        let names = |value| {
            let applied = apply(json!({ "read": value })).unwrap();
            applied.read.iter().map(|named| named.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(json!(true)), ["a", "b", "b again"]);
        assert_eq!(names(json!(["b", "b", "a"])), ["b", "a"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (steering, words) in [
            (json!({"ablat": "a"}), "unknown field `ablat`"),
            (json!({"ablate": 1}), "a direction's name, a list of names, true or false"),
            (json!({"add": {"direction": "a", "blok": 1}}), "unknown field `blok`"),
            (json!({"add": ["a", 0.5]}), "\"positions\"}, or a list"),
            (json!({"add": [["a"]]}), "\"positions\"}, or a list"),
            (json!({"ablate": "bb"}), "steering.ablate: no direction is called \"bb\""),
            (json!({"read": ["A b"]}), "steering.read: no direction"),
            (json!({"add": ["a", {"direction": "c"}]}), "steering.add[1]: no direction is called \"c\""),
            (json!({"add": {"direction": "a", "block": 3}}), "block 3: the model has blocks 0 to 2"),
            (json!({"add": "a", "scale": 1e38}), "not finite"),
            (json!({"ablate": ["b", "b again"]}), "linear combination"),
            (json!({"add": vec!["a"; MAX_ADDITIONS + 1]}), "65 additions"),
        ] {
            let error = apply(steering.clone()).unwrap_err();
            assert!(error.contains(words), "{steering}: {error}");
        }
    }

    #[test]
    fn the_names_in_use_are_known() {
        let steering = |value| serde_json::from_value::<Steering>(value).unwrap();
        let both = steering(json!({"ablate": ["a"], "add": [{"direction": "b"}, "c"]}));
        assert!(["a", "b", "c"].iter().all(|name| both.names(name)) && !both.names("d"));
        assert!(!steering(json!({"ablate": true})).names("a"));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let word = prop::sample::select(vec![
            "a",
            "b",
            "c",
            "ablate",
            "add",
            "direction",
            "scale",
            "block",
            "prompt",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(|x| json!(x)),
            any::<i64>().prop_map(Value::from),
            word.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((word.clone(), inner), 0..4).prop_map(|all| Value::Object(
                    all.into_iter().map(|(k, v)| (k.to_string(), v)).collect()
                )),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_is_asked_the_outcome_is_finite_or_an_error(
            ablate in any_json(), add in any_json(), scale in any_json(), read in any_json(),
        ) {
            let steering = json!({ "ablate": ablate, "add": add, "scale": scale, "read": read });
            if let Ok(applied) = apply(steering) {
                prop_assert!(applied.read.len() <= 3);
                for addition in applied.intervention.iter().flat_map(|i| &i.add) {
                    prop_assert!(addition.block < 3 && addition.vector.iter().all(|x| x.is_finite()));
                }
            }
        }
    }
}

//! Round trips, other tools' files, refusals.

use super::*;
use crate::gguf::Value;

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn write(path: &Path, writer: Writer, data: &[&[u8]]) {
    let mut stream = writer.start(Vec::new()).unwrap();
    for d in data {
        stream.data(d).unwrap();
    }
    std::fs::write(path, stream.finish().unwrap()).unwrap();
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[test]
fn comes_back_as_it_was_saved() {
    let dir = dir();
    let path = dir.path().join("d.gguf");
    let meta = Provenance {
        architecture: Some("qwen3".into()),
        position: Some(-2),
        raw_norm: Some(5.0),
        readings: Some((-1.5, 3.5)),
        scores: Some(Scores { bypass: -3.5, induce: 1.25, kl: 0.04 }),
        model_fingerprint: Some("ab".repeat(32)),
        model_name: Some("make-believe 1B".into()),
        prompts_harmful_sha256: Some("cd".repeat(32)),
        prompts_harmless_sha256: Some("ef".repeat(32)),
        n_harmful: Some(128),
        n_harmless: Some(127),
        created_by: Some("ggsteer test".into()),
        erased: vec!["12".repeat(32), "34".repeat(32)],
        mode: Some("project".into()),
        alpha_default: Some(1.0),
        hook_point: Some("l_out".into()),
    };
    let saved = Direction::new(vec![3.0, 0.0, -4.0], 7, meta).unwrap();
    saved.save(&path, false).unwrap();
    let loaded = Direction::load(&path, None).unwrap();
    assert_eq!(loaded, saved);
    assert!((loaded.norm() - 5.0).abs() < 1e-12);
    assert_eq!(loaded.unit(), [0.6, 0.0, -0.8]);
    assert!(matches!(saved.save(&path, false), Err(DirectionError::Output(OutputError::Exists { .. }))));
    saved.save(&path, true).unwrap();
}

#[test]
fn the_file_is_a_control_vector() {
    let dir = dir();
    let path = dir.path().join("d.gguf");
    let meta = Provenance { architecture: Some("llama".into()), ..Provenance::default() };
    Direction::new(vec![1.0; 8], 3, meta).unwrap().save(&path, false).unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.arch().unwrap(), "controlvector");
    assert_eq!(file.get_str("controlvector.model_hint").unwrap(), "llama");
    assert_eq!(file.get("controlvector.layer_count"), Some(&Value::I32(3)));
    assert_eq!(file.get_str("glp.mode").unwrap(), "project");
    assert_eq!(file.get("glp.alpha_default"), Some(&Value::F32(1.0)));
    assert_eq!(file.get_str("glp.hook_point").unwrap(), "l_out");
    assert_eq!(file.get("glp.rank"), Some(&Value::U32(1)));
    let tensor = file.tensor("direction.3").unwrap();
    assert_eq!((tensor.ty, tensor.shape()), (GgmlType::F32, &[8][..]));
}

#[test]
fn files_of_other_tools_load() {
    let dir = dir();
    let path = dir.path().join("other.gguf");
    let writer = || Writer::new().key("general.architecture", "controlvector");
    write(&path, writer().tensor("direction.5", &[2], GgmlType::F32), &[&bytes(&[1.0, 2.0])]);
    let one = Direction::load(&path, None).unwrap();
    assert_eq!((one.block, one.vector.as_slice()), (5, &[1.0, 2.0][..]));
    assert_eq!(one.meta, Provenance::default());
    one.check_model("anything", 2).unwrap();

    let several =
        writer().tensor("direction.2", &[2], GgmlType::F32).tensor("direction.11", &[2], GgmlType::F32);
    write(&path, several, &[&bytes(&[1.0, 2.0]), &bytes(&[3.0, 4.0])]);
    let error = Direction::load(&path, None).unwrap_err().to_string();
    assert!(error.contains("must be chosen") && error.contains("[2, 11]"), "{error}");
    assert_eq!(Direction::load(&path, Some(11)).unwrap().vector, [3.0, 4.0]);
    let error = Direction::load(&path, Some(3)).unwrap_err().to_string();
    assert!(error.contains("no direction for block 3") && error.contains("[2, 11]"), "{error}");
}

#[test]
fn bad_directions_are_refused() {
    let nan = Direction::new(vec![0.0, f32::NAN], 1, Provenance::default());
    assert!(matches!(nan, Err(DirectionError::NotFinite { index: 1, .. })));
    assert!(matches!(Direction::new(vec![0.0; 4], 1, Provenance::default()), Err(DirectionError::Zero)));
    assert!(matches!(Direction::new(vec![], 1, Provenance::default()), Err(DirectionError::Zero)));
    let meta = Provenance { architecture: Some("llama".into()), ..Provenance::default() };
    let direction = Direction::new(vec![1.0; 512], 1, meta).unwrap();
    let width = direction.check_model("llama", 256).unwrap_err();
    assert_eq!(width.to_string(), "direction has n_embd 512, model has 256");
    assert!(matches!(direction.check_model("qwen3", 512), Err(DirectionError::Architecture { .. })));

    let dir = dir();
    let path = dir.path().join("x.gguf");
    let writer = |arch: &str| Writer::new().key("general.architecture", arch);
    write(&path, writer("llama"), &[]);
    let error = Direction::load(&path, None).unwrap_err();
    assert!(matches!(error, DirectionError::NotAControlVector { .. }), "{error}");
    write(&path, writer("controlvector"), &[]);
    assert!(matches!(Direction::load(&path, None), Err(DirectionError::Empty { .. })));
    let two_rows = writer("controlvector").tensor("direction.1", &[1, 2], GgmlType::F32);
    write(&path, two_rows, &[&bytes(&[1.0, 2.0])]);
    assert!(matches!(Direction::load(&path, None), Err(DirectionError::Tensor { .. })));
    let half = writer("controlvector").tensor("direction.1", &[2], GgmlType::F16);
    write(&path, half, &[&[0; 4]]);
    assert!(matches!(Direction::load(&path, None), Err(DirectionError::Tensor { .. })));
    let zero = writer("controlvector").tensor("direction.1", &[2], GgmlType::F32);
    write(&path, zero, &[&[0; 8]]);
    assert!(matches!(Direction::load(&path, None), Err(DirectionError::Zero)));
    std::fs::write(&path, b"words").unwrap();
    let error = Direction::load(&path, None).unwrap_err().to_string();
    assert!(error.contains("x.gguf") && error.contains("not a GGUF file"), "{error}");
    let error = Direction::load(dir.path().join("none.gguf"), None).unwrap_err().to_string();
    assert_eq!(error.matches("none.gguf").count(), 1, "{error}");
}

//! What an engine's process says about its passes, and whether to believe it.
//!
//! Both sides print JSON objects: one line per pass, or one object that holds them under `passes`.
//! Owns the reading of them. An engine that decoded other ids, or another number of passes, has not
//! measured what was asked and counts as failed.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One pass as an engine reports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pass {
    /// 1-based; the first is the cold one.
    pub pass: usize,
    /// Ids decoded.
    pub tokens: usize,
    /// Wall time.
    pub seconds: f64,
    /// Bytes the process fetched from block devices, as the kernel counts them for it.
    #[serde(default)]
    pub read_bytes: Option<u64>,
    /// Fingerprint of the ids.
    #[serde(default)]
    pub ids_hash: Option<String>,
    /// The likeliest token after the last id.
    #[serde(default)]
    pub next: Option<u32>,
}

impl Pass {
    /// Tokens per second, from the two numbers that were measured.
    pub fn tokens_per_s(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }
}

/// What every pass must have done.
#[derive(Clone, Debug)]
pub struct Expected {
    pub passes: usize,
    pub tokens: usize,
    pub ids_hash: String,
}

/// Reads an engine's stdout.
///
/// # Errors
/// In words: no passes, or not those that were asked for.
pub fn read_passes(stdout: &str, expected: &Expected) -> Result<Vec<Pass>, String> {
    let mut passes = Vec::new();
    for line in stdout.lines().filter(|line| line.trim_start().starts_with('{')) {
        let object: Value = serde_json::from_str(line).map_err(|error| format!("bad JSON: {error}"))?;
        let found = match object.get("passes") {
            Some(Value::Array(found)) => found.clone(),
            _ => vec![object],
        };
        for pass in found {
            passes.push(serde_json::from_value::<Pass>(pass).map_err(|error| format!("bad pass: {error}"))?);
        }
    }
    check(&passes, expected)?;
    Ok(passes)
}

fn check(passes: &[Pass], expected: &Expected) -> Result<(), String> {
    if passes.len() != expected.passes {
        return Err(format!("{} passes were reported, {} asked for", passes.len(), expected.passes));
    }
    for (index, pass) in passes.iter().enumerate() {
        if pass.pass != index + 1 || pass.tokens != expected.tokens {
            let Pass { pass, tokens, .. } = pass;
            return Err(format!(
                "pass {pass} of {tokens} tokens, expected {} of {}",
                index + 1,
                expected.tokens
            ));
        }
        if !(pass.seconds > 0.0 && pass.seconds.is_finite()) {
            return Err(format!("pass {} took {} s", pass.pass, pass.seconds));
        }
        if pass.ids_hash.as_ref().is_some_and(|hash| *hash != expected.ids_hash) {
            return Err("other ids were decoded than were given".to_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(stdout: &str) -> Result<Vec<Pass>, String> {
        read_passes(stdout, &Expected { passes: 2, tokens: 4, ids_hash: "ab".into() })
    }

    #[test]
    fn lines_and_one_object_say_the_same() {
        let lines = "{\"pass\":1,\"tokens\":4,\"seconds\":2.0,\"read_bytes\":7}\nnoise\n{\"pass\":2,\"tokens\":4,\"seconds\":1}";
        let object = "{\"load_s\":1,\"passes\":[{\"pass\":1,\"tokens\":4,\"seconds\":2.0,\"read_bytes\":7},{\"pass\":2,\"tokens\":4,\"seconds\":1,\"x\":0}]}";
        let passes = read(lines).unwrap();
        assert_eq!(passes, read(object).unwrap());
        assert_eq!((passes[0].tokens_per_s(), passes[0].read_bytes), (2.0, Some(7)));
        assert_eq!((passes[1].tokens_per_s(), passes[1].read_bytes), (4.0, None));
    }

    #[test]
    fn passes_that_were_not_asked_for_are_no_measurement() {
        let pass = |pass: usize, tokens: usize, seconds: f64, hash: &str| {
            format!("{{\"pass\":{pass},\"tokens\":{tokens},\"seconds\":{seconds},\"ids_hash\":\"{hash}\"}}\n")
        };
        let good = pass(1, 4, 1.0, "ab");
        for (second, reason) in [
            (String::new(), "1 passes were reported"),
            (pass(1, 4, 1.0, "ab"), "pass 1 of 4"),
            (pass(2, 5, 1.0, "ab"), "pass 2 of 5"),
            (pass(2, 4, 0.0, "ab"), "took 0 s"),
            (pass(2, 4, 1.0, "cd"), "other ids"),
            ("{\"pass\":2}\n".into(), "bad pass"),
            ("{\"pass\":".into(), "bad JSON"),
        ] {
            let problem = read(&format!("{good}{second}")).unwrap_err();
            assert!(problem.contains(reason), "{problem}");
        }
    }
}

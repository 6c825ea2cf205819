//! Logits against candle-transformers' own quantized dense models on the same files: a second
//! implementation in the same process, independent of the captured vectors.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::fs::File;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2, quantized_qwen3};
use common::{PLAIN, golden, load};
use drafthorse_draft::{LanguageModel, LogitRows, TokenId};

const TOKENS: [TokenId; 12] = [3, 17, 90, 41, 5, 66, 101, 2, 77, 30, 8, 55];

/// The last position's logits as candle computes them.
fn oracle(name: &str, input: &Tensor) -> Vec<f32> {
    let mut file = File::open(golden(name)).unwrap();
    let content = Content::read(&mut file).unwrap();
    let device = Device::Cpu;
    let logits = match name {
        "qwen2" => {
            let mut model = quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &device).unwrap();
            model.forward(input, 0).unwrap()
        }
        "qwen3" => {
            let mut model = quantized_qwen3::ModelWeights::from_gguf(content, &mut file, &device).unwrap();
            model.forward(input, 0).unwrap()
        }
        _ => {
            let mut model = quantized_llama::ModelWeights::from_gguf(content, &mut file, &device).unwrap();
            model.forward(input, 0).unwrap()
        }
    };
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn dense_logits_agree_with_candles_own_models() {
    for name in ["llama", "qwen2", "qwen3"] {
        let input = Tensor::new(&TOKENS[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let theirs = oracle(name, &input);
        let mut model = load(&golden(name), PLAIN);
        let mut ours = Vec::new();
        model.forward(&TOKENS, LogitRows::Last, &mut ours).unwrap();
        assert_eq!(ours.len(), theirs.len(), "{name}");
        let mean = theirs.iter().sum::<f32>() / theirs.len() as f32;
        let std = (theirs.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / theirs.len() as f32).sqrt();
        let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / std;
        println!("{name}: largest difference {worst:.5} of the logits' standard deviation");
        assert!(worst < 0.01, "{name}: {worst}");
    }
}

//! Numbers that other programs computed, from tests/gold: PyTorch's AdamW.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::train::{AdamW, Schedule};
use serde_json::Value;

/// The gradient of coordinate `i` at `step`: the formula of tests/gold/adamw.py, exact in binary.
fn gradient(step: i64, i: i64) -> f64 {
    let k = (step * 37 + i * 101 + step * i * 13) % 1024 - 512;
    k as f64 / 64.0 * if (step + i) % 17 == 0 { 50.0 } else { 1.0 }
}

/// A hundred steps with weight decay, warm-up and two blocks with different learning rates, under two schedules.
#[test]
fn a_hundred_steps_of_adamw_equal_pytorch() {
    let gold: Value = serde_json::from_slice(&std::fs::read(common::gold("adamw.json")).unwrap()).unwrap();
    let number = |v: &Value| v.as_f64().unwrap();
    let (steps, warmup) = (number(&gold["steps"]) as usize, number(&gold["warmup"]) as usize);
    let rates: Vec<f64> = gold["rates"].as_array().unwrap().iter().map(number).collect();
    for schedule in ["cosine", "linear"] {
        let mut opt = AdamW::new(8, number(&gold["weight_decay"]));
        let mut x: Vec<f64> = (0..8).map(|i| (f64::from(i) - 3.5) / 4.0).collect();
        let mut kept = gold[schedule].as_array().unwrap().iter();
        let mut largest = 0f64;
        let mut next = kept.next();
        for step in 0..steps {
            let factor = schedule.parse::<Schedule>().unwrap().factor(step, warmup, steps);
            let lr: Vec<f64> = rates.iter().map(|r| r * factor).collect();
            let g: Vec<f64> = (0..8).map(|i| gradient(step as i64, i)).collect();
            opt.step(&mut x, &g, &lr);
            if let Some(point) = next.filter(|p| p["step"] == step + 1) {
                for (ours, theirs) in x.iter().zip(point["x"].as_array().unwrap()) {
                    largest = largest.max((ours - number(theirs)).abs());
                }
                next = kept.next();
            }
        }
        assert!(next.is_none(), "{schedule}: a step of the reference was not reached");
        eprintln!("{schedule}: largest difference {largest:e}");
        assert!(largest < 1e-12, "{schedule}: {largest:e}");
    }
}

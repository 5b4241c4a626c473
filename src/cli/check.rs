//! `bidpo check`.

use bidpo::train::*;
use std::process::ExitCode;

/// Options of `bidpo check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: super::ModelArgs,
    #[arg(long)]
    gold: Vec<std::path::PathBuf>,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let model = args.model.load()?;
    for f in &args.gold {
        let g: serde_json::Value = serde_json::from_slice(&std::fs::read(f)?)?;
        let ints = |v: &serde_json::Value| {
            v.as_array().unwrap().iter().map(|x| x.as_i64().unwrap() as i32).collect::<Vec<_>>()
        };
        let pairs: Vec<PairTokens> = g["pairs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| PairTokens {
                prompt: ints(&p["prompt_ids"]),
                chosen: ints(&p["chosen_ids"]),
                rejected: ints(&p["rejected_ids"]),
            })
            .collect();
        let layer = g["layer"].as_u64().unwrap() as usize;
        let dir = g["direction"].as_f64().unwrap();
        let beta = g["beta"].as_f64().unwrap();
        let v: Vec<f32> = g["v"].as_array().unwrap().iter().map(|x| (x.as_f64().unwrap() * dir) as f32).collect();
        let want: Vec<f64> = g["mean_grad"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        let max = pairs.iter().map(|p| p.n_tokens()).max().unwrap();
        let mut e = Engine::new(&model, layer, max, 1, args.model.threads())?;
        let mut got = vec![0.0f64; v.len()];
        let (mut loss, mut tcap, mut trun, mut tok) = (0.0, 0.0, 0.0, 0);
        for (i, p) in pairs.iter().enumerate() {
            let t = std::time::Instant::now();
            let ex = e.capture(&[p])?;
            tcap += t.elapsed().as_secs_f64();
            if i == 0 {
                println!("{:?} {:?} nodes {}", e.compare(&[p], &ex)?, ex.ops, ex.n_nodes());
            }
            e.run(&ex, &v, true)?;
            let t = std::time::Instant::now();
            let s = e.run(&ex, &v, true)?;
            trun += t.elapsed().as_secs_f64();
            tok += p.n_tokens();
            let gp = &g["pairs"][i];
            let margin = s.logp[0].gap() - ex.reference[0].gap();
            let z = dir * beta * margin;
            loss += (1.0 + (-z).exp()).ln() / 8.0;
            let c = -beta / (1.0 + z.exp());
            for (a, b) in got.iter_mut().zip(&s.grads[0]) {
                *a += c * b / 8.0;
            }
            println!(
                "ref {:.3} {} | policy {:.3} {}",
                ex.reference[0].chosen, gp["ref_chosen_logp"], s.logp[0].rejected, gp["policy_rejected_logp"]
            );
        }
        let dot: f64 = got.iter().zip(&want).map(|(a, b)| a * b).sum();
        let n = |x: &[f64]| x.iter().map(|a| a * a).sum::<f64>().sqrt();
        println!(
            "{}: 1-cos {:.3e} norm ratio {:.5} loss {loss} vs {} capture {tcap:.2}s run {trun:.2}s tokens {tok}",
            f.display(),
            1.0 - dot / n(&got) / n(&want),
            n(&got) / n(&want),
            g["mean_loss"]
        );
    }
    Ok(ExitCode::SUCCESS)
}

use drafthorse_offload::*;
fn main() {
    let mut a = std::env::args().skip(1);
    let file = a.next().unwrap();
    let shares = a.next().unwrap();
    let tokens: usize = a.next().unwrap().parse().unwrap();
    let rows: usize = a.next().map_or(1, |r| r.parse().unwrap());
    let trace = Trace::parse(&std::fs::read(&file).unwrap()).unwrap();
    let w = Workload::from_trace(&trace, tokens, rows);
    let name = std::path::Path::new(&file).file_name().unwrap().to_string_lossy().to_string();
    for s in shares.split(',') {
        let slots = (s.parse::<f64>().unwrap() * w.bank() as f64) as usize;
        let run = |p: Box<dyn Policy>| { let mut r = Replay::new(&w, slots, p); w.windows().iter().for_each(|x| r.step(x)); r.hit_rate() };
        let rate = |k: PolicyKind| run(k.build(&w.policy_config(slots)));
        let (lru, lfu) = (rate(PolicyKind::Lru), rate(PolicyKind::Lfu));
        let t = std::time::Instant::now();
        let g = rate(PolicyKind::Gating);
        let us = t.elapsed().as_secs_f64() * 1e6 / (w.windows().len() as f64);
        let b = run(Box::new(policy::Belady::new(&w)));
        println!("{name} {s} slots {slots} lru {lru:.4} lfu {lfu:.4} ({:.3}) gating {g:.4} ({:.3}) belady {b:.4}  {us:.0} us/layer", (lfu - lru) / (b - lru), (g - lru) / (b - lru));
    }
}

use std::io::Write;
use std::time::Instant;

use offshoot_data::Rng;
use offshoot_eval::{ChildFeatures, FeatureMatrix, Labelled, ProbeSettings, agreement, knn, linear_probe};

#[test]
fn speed() {
    let classes = 100usize;
    let dim = 384;
    let make = |rows: usize, seed: u64| {
        let mut rng = Rng::for_example(seed, "s", 0, 0);
        let mut c = Rng::for_example(0, "c", 0, 0);
        let centres: Vec<f64> = (0..classes * dim).map(|_| 0.12 * c.normal()).collect();
        let labels: Vec<u32> = (0..rows).map(|_| rng.below(classes as u64) as u32).collect();
        let mut m = |s: f64| FeatureMatrix { rows, dim, values: (0..rows * dim).map(|i| (s * centres[labels[i / dim] as usize * dim + i % dim] + rng.normal()) as f32).collect() };
        let f = ChildFeatures { cls: m(1.0), mean_patches: m(0.7) };
        (f, labels)
    };
    let (train, val) = (make(8000, 1), make(1000, 2));
    for (name, (f, l)) in [("train", &train), ("val", &val)] {
        let mut out = std::fs::File::create(format!("/tmp/eval-{name}.bin")).unwrap();
        for v in &f.cls.values { out.write_all(&v.to_le_bytes()).unwrap(); }
        for v in l { out.write_all(&v.to_le_bytes()).unwrap(); }
    }
    let device = offshoot_zoo::tensor::device("cpu").unwrap();
    for _ in 0..3 {
        let t = Instant::now();
        let k = knn(Labelled { features: &train.0.cls, labels: &train.1 }, Labelled { features: &val.0.cls, labels: &val.1 }, classes, &[10, 20, 100, 200], 0.07, &device).unwrap();
        println!("knn {:?} {:?}", t.elapsed(), k.scores);
        let t = Instant::now();
        let a = agreement(&val.0.cls, &val.0.mean_patches, 20, &device).unwrap();
        println!("agreement {:?} {:?}", t.elapsed(), a);
    }
    for classes_used in [10usize, 100] {
        let labels = |l: &[u32]| l.iter().map(|&x| x % classes_used as u32).collect::<Vec<_>>();
        let (a, b) = (labels(&train.1), labels(&val.1));
        let t = Instant::now();
        let p = linear_probe(Labelled { features: &train.0, labels: &a }, Labelled { features: &val.0, labels: &b }, classes_used, &ProbeSettings::default(), &device, &mut |_, _| {}).unwrap();
        println!("linear {classes_used} classes {:?} {} {:?} {:?}", t.elapsed(), p.best, p.best_setting, p.grid.iter().map(|c| c.accuracy).collect::<Vec<_>>());
    }
}

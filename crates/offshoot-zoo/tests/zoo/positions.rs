//! Resampled positions against numbers from PyTorch.

use offshoot_zoo::positions::bicubic;

/// From PyTorch 2.x in float64:
///
/// ```python
/// x = torch.arange(n * n, dtype=torch.float64)
/// grid = (torch.sin(0.7 * x) + 0.01 * x).reshape(1, 1, n, n)
/// # with an offset
/// s = (side + offset) / n
/// F.interpolate(grid, scale_factor=(s, s), mode="bicubic", recompute_scale_factor=False, align_corners=False)
/// # without
/// F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
/// ```
#[test]
fn bicubic_gives_pytorchs_numbers() {
    /// Grid, side, offset, some elements of the result, and the sum of all.
    type Case = (usize, usize, f64, &'static [(usize, f64)], f64);
    let cases: [Case; 6] = [
        (
            14,
            6,
            0.1,
            &[
                (0, -0.426292344),
                (1, -0.14354234),
                (7, 0.501413306),
                (18, 0.73496026),
                (35, 2.175367862),
            ],
            30.764488119,
        ),
        (
            14,
            6,
            0.0,
            &[
                (0, -0.451266465),
                (1, -0.141993565),
                (7, 0.533974456),
                (34, 1.233414813),
                (35, 2.085530693),
            ],
            31.371203221,
        ),
        (
            7,
            3,
            0.1,
            &[(0, -0.371599971), (1, 0.905192149), (4, -0.691221315), (8, 0.750372437)],
            2.811092434,
        ),
        (
            4,
            9,
            0.0,
            &[
                (0, -0.127546826),
                (1, 0.066161467),
                (10, 0.129472895),
                (40, -0.18292467),
                (80, -0.992980138),
            ],
            13.814682809,
        ),
        (
            3,
            2,
            0.1,
            &[(0, 0.292466368), (1, 0.746012873), (2, -0.234213363), (3, -0.546783671)],
            0.257482207,
        ),
        (
            5,
            5,
            0.1,
            &[
                (0, -0.002608629),
                (1, 0.642380819),
                (12, 0.969509333),
                (24, -0.507670732),
            ],
            4.435456481,
        ),
    ];
    for (n, side, offset, elements, sum) in cases {
        let grid: Vec<f64> = (0..n * n).map(|i| (0.7 * i as f64).sin() + 0.01 * i as f64).collect();
        let matrix = bicubic(n, side, offset);
        let dot = |row: &[f32]| row.iter().zip(&grid).map(|(a, b)| f64::from(*a) * b).sum::<f64>();
        let resampled: Vec<f64> = matrix.chunks(n * n).map(dot).collect();
        assert_eq!(resampled.len(), side * side);
        for &(at, expected) in elements {
            let ours = resampled[at];
            assert!(
                (ours - expected).abs() < 1e-6,
                "{n} -> {side} + {offset}, element {at}: {ours} against {expected}"
            );
        }
        let ours: f64 = resampled.iter().sum();
        assert!(
            (ours - sum).abs() < 1e-5,
            "{n} -> {side} + {offset}, sum: {ours} against {sum}"
        );
    }
}

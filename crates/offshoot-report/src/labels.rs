//! Where labels go so that they hide neither each other nor, where it can be helped, the dots.

use crate::chart::{Anchor, Frame};

/// A label that would like a place beside its point.
pub(crate) struct Label {
    /// What it says.
    pub(crate) text: String,
    /// Its point.
    pub(crate) at: (f64, f64),
    /// Whether it would rather hide a dot than not be there.
    pub(crate) needed: bool,
}

/// A place for a label.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Where the text hangs: the baseline.
    pub(crate) at: (f64, f64),
    /// On which side.
    pub(crate) anchor: Anchor,
    /// Where a line to the point begins, if the label is not right beside it.
    pub(crate) leader: Option<(f64, f64)>,
}

#[derive(Clone, Copy)]
struct Area {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Area {
    fn overlaps(&self, other: &Self) -> bool {
        self.left < other.right && other.left < self.right && self.top < other.bottom && other.top < self.bottom
    }

    fn around((x, y): (f64, f64), r: f64) -> Self {
        Self {
            left: x - r,
            right: x + r,
            top: y - r,
            bottom: y + r,
        }
    }

    /// The area of a line that runs along an axis.
    fn between(a: (f64, f64), b: (f64, f64)) -> Self {
        Self {
            left: a.0.min(b.0) - 1.0,
            right: a.0.max(b.0) + 1.0,
            top: a.1.min(b.1) - 1.0,
            bottom: a.1.max(b.1) + 1.0,
        }
    }
}

/// Directions from the point to the label, the preferred ones first: a front has its free space above and to the left, or below and
/// to the left where less is better.
const DIRECTIONS: [(f64, f64); 8] = [
    (-0.75, -0.75),
    (0.0, -1.0),
    (-1.0, 0.0),
    (0.75, 0.75),
    (0.0, 1.0),
    (1.0, 0.0),
    (0.75, -0.75),
    (-0.75, 0.75),
];

/// Finds a place for each label in turn, the most important first; none for one that does not fit. `dots` are points with
/// their radii, `path` is the step line of the front, and `lower` says whether it is a lower edge.
pub(crate) fn place(
    labels: &[Label],
    dots: &[(f64, f64, f64)],
    path: &[(f64, f64)],
    frame: &Frame,
    font: f64,
    lower: bool,
) -> Vec<Option<Place>> {
    let bounds = Area {
        left: frame.left + 1.0,
        right: frame.right + 4.0,
        top: frame.top - 8.0,
        bottom: frame.bottom - 1.0,
    };
    let dots: Vec<Area> = dots.iter().map(|&(x, y, r)| Area::around((x, y), r)).collect();
    let steps: Vec<Area> = path.windows(2).map(|pair| Area::between(pair[0], pair[1])).collect();
    let mut taken: Vec<Area> = Vec::new();
    let mut places = Vec::with_capacity(labels.len());
    for label in labels {
        let width = label.text.chars().count() as f64 * font * 0.6;
        let mut best: Option<(f64, Place, Area)> = None;
        // One that is not needed stays near its point and on the free side.
        let (rings, directions) = if label.needed { (4, 8) } else { (2, 3) };
        for (ring, distance) in [9.0, 20.0, 32.0, 46.0].into_iter().enumerate().take(rings) {
            for (rank, (dx, dy)) in DIRECTIONS.into_iter().enumerate().take(directions) {
                let dy = if lower { -dy } else { dy };
                let (x, y) = (label.at.0 + dx * distance, label.at.1 + dy * distance);
                let (anchor, left) = match dx {
                    dx if dx < 0.0 => (Anchor::End, x - width),
                    dx if dx > 0.0 => (Anchor::Start, x),
                    _ => (Anchor::Middle, x - width / 2.0),
                };
                // Text stands on its baseline: its box is centred on the end of the direction.
                let baseline = y + font * 0.36;
                let area = Area {
                    left: left - 2.0,
                    right: left + width + 2.0,
                    top: y - font * 0.6,
                    bottom: y + font * 0.6,
                };
                let inside = area.left >= bounds.left
                    && area.right <= bounds.right
                    && area.top >= bounds.top
                    && area.bottom <= bounds.bottom;
                if !inside || taken.iter().any(|other| other.overlaps(&area)) {
                    continue;
                }
                let hidden = dots.iter().chain(&steps).filter(|other| other.overlaps(&area)).count();
                if hidden > 0 && !label.needed {
                    continue;
                }
                let cost = hidden as f64 + 0.6 * ring as f64 + 0.04 * rank as f64;
                if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
                    let leader = (ring > 0).then_some((x, y));
                    best = Some((
                        cost,
                        Place {
                            at: (x, baseline),
                            anchor,
                            leader,
                        },
                        area,
                    ));
                }
            }
        }
        if let Some((_, _, area)) = &best {
            taken.push(*area);
        }
        places.push(best.map(|(_, place, _)| place));
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(at: (f64, f64)) -> Label {
        Label {
            text: "384x12".into(),
            at,
            needed: false,
        }
    }

    #[test]
    fn labels_keep_off_each_other_and_the_crowd_gets_none() {
        let frame = Frame {
            left: 0.0,
            right: 200.0,
            top: 0.0,
            bottom: 200.0,
        };
        let labels: Vec<Label> = (0..40).map(|_| label((100.0, 100.0))).collect();
        let places = place(&labels, &[], &[], &frame, 10.0, false);
        let placed = places.iter().flatten().count();
        assert!((1..=6).contains(&placed), "{placed}");
        let wall: Vec<(f64, f64, f64)> = vec![(100.0, 100.0, 300.0)];
        assert!(place(&labels[..1], &wall, &[], &frame, 10.0, false)[0].is_none());
        let needed = Label {
            needed: true,
            ..label((100.0, 100.0))
        };
        assert!(place(&[needed], &wall, &[], &frame, 10.0, false)[0].is_some());
        let cornered = Label {
            needed: true,
            ..label((5.0, 5.0))
        };
        assert!(place(&[cornered], &[], &[], &frame, 10.0, false)[0].is_some_and(|p| p.anchor != Anchor::End));
    }
}

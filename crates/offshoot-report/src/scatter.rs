//! Score over cost: every child a dot, the Pareto front a stepped line, the children one looks for named.

use crate::chart::{Frame, Scale, Svg};
use crate::labels::{Label, place};
use crate::units::Unit;

/// One child in the chart.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dot {
    /// Its cost.
    pub(crate) x: f64,
    /// Its score.
    pub(crate) y: f64,
    /// Step of the colour scale.
    pub(crate) shade: usize,
    /// What is said of it when it is pointed at.
    pub(crate) tip: String,
    /// What it is called in the chart if there is room: its id.
    pub(crate) id: String,
    /// What it must be called: a familiar name, or what it is.
    pub(crate) name: Option<String>,
    /// Whether it is the intact parent.
    pub(crate) intact: bool,
    /// Whether it is the child that was picked.
    pub(crate) picked: bool,
}

/// A chart of score over cost.
pub(crate) struct Scatter<'a> {
    /// Id of the element, unique in the page.
    pub(crate) id: &'a str,
    /// Its title.
    pub(crate) title: &'a str,
    /// What it shows, in words.
    pub(crate) description: &'a str,
    /// Unit and name of the horizontal axis.
    pub(crate) x: (Unit, &'a str),
    /// Unit and name of the vertical axis.
    pub(crate) y: (Unit, &'a str),
    /// The children.
    pub(crate) dots: &'a [Dot],
    /// Indices of the dots on the front, ascending in cost.
    pub(crate) front: &'a [usize],
    /// Whether neighbours are joined: for a family along one axis.
    pub(crate) joined: bool,
    /// Whether less of the score is better.
    pub(crate) lower: bool,
}

impl Scatter<'_> {
    /// Draws the chart at `width` by `height`; `class` is the caller's own word.
    pub(crate) fn draw(&self, class: &str, (width, height): (f64, f64)) -> String {
        let narrow = width < 420.0;
        let frame = Frame {
            left: 44.0,
            right: width - 16.0,
            top: 30.0,
            bottom: height - 44.0,
        };
        let costs: Vec<f64> = self.dots.iter().map(|dot| dot.x).collect();
        let x = Scale::fitting(&costs, 8.0, (frame.left, frame.right));
        let scores: Vec<f64> = self.dots.iter().map(|dot| dot.y).collect();
        let y = Scale::of_scores(&scores, self.y.0, (frame.bottom, frame.top));
        let id = format!("{}-{class}", self.id);
        let mut svg = Svg::new(&id, class, (width, height), self.title, self.description);
        let named = |name: &str, scale: &Scale| format!("{name}{}", if scale.is_log() { " (log scale)" } else { "" });
        let (x_name, y_name) = (named(self.x.1, &x), named(self.y.1, &y));
        let wanted = (
            if narrow { 4 } else { (width / 90.0) as usize },
            (height / 60.0) as usize,
        );
        frame.draw(&mut svg, (&x, self.x.0, &x_name), (&y, self.y.0, &y_name), wanted);

        let at = |dot: &Dot| (x.at(dot.x), y.at(dot.y));
        let steps = self.steps(&at, frame.right);
        if self.joined {
            let mut points: Vec<(f64, f64)> = self.dots.iter().map(at).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            svg.polyline("join", &points, "");
        }
        svg.polyline("front", &steps, "");

        let radius = if narrow || self.dots.len() > 250 { 3.0 } else { 4.0 };
        let mut on_front = vec![false; self.dots.len()];
        for &index in self.front {
            if let Some(flag) = on_front.get_mut(index) {
                *flag = true;
            }
        }
        // The front is drawn over the crowd, the named over the front.
        let mut order: Vec<usize> = (0..self.dots.len()).collect();
        order.sort_by_key(|&i| (self.dots[i].intact, on_front[i]));
        for i in order {
            let dot = &self.dots[i];
            let class = format!("dot q{}{}", dot.shade, if on_front[i] { " best" } else { "" });
            if dot.intact {
                svg.diamond(&format!("{class} intact"), at(dot), radius + 2.5, &dot.tip);
            } else {
                svg.circle(&class, at(dot), radius, &dot.tip);
            }
            if dot.picked {
                svg.circle("ring", at(dot), radius + 4.0, "");
            }
        }
        self.label(&mut svg, &frame, &steps, &at, &on_front, radius);
        svg.finish()
    }

    /// The stepped line of the front: level until a dearer child is better.
    fn steps(&self, at: &impl Fn(&Dot) -> (f64, f64), right: f64) -> Vec<(f64, f64)> {
        let mut steps: Vec<(f64, f64)> = Vec::new();
        for dot in self.front.iter().filter_map(|&i| self.dots.get(i)) {
            let (x, y) = at(dot);
            if let Some(&(_, level)) = steps.last() {
                steps.push((x, level));
            }
            steps.push((x, y));
        }
        if let Some(&(_, level)) = steps.last() {
            steps.push((right, level));
        }
        steps
    }

    fn label(
        &self,
        svg: &mut Svg,
        frame: &Frame,
        steps: &[(f64, f64)],
        at: &impl Fn(&Dot) -> (f64, f64),
        on_front: &[bool],
        radius: f64,
    ) {
        // Named children first, then the front from both ends inwards, so that its ends keep theirs.
        let mut wanted: Vec<usize> = (0..self.dots.len()).filter(|&i| self.dots[i].name.is_some()).collect();
        let unnamed: Vec<usize> = self
            .front
            .iter()
            .copied()
            .filter(|&i| self.dots.get(i).is_some_and(|dot| dot.name.is_none()))
            .collect();
        let half = unnamed.len().div_ceil(2);
        for (i, &index) in unnamed.iter().enumerate().take(half) {
            wanted.push(index);
            let opposite = unnamed[unnamed.len() - 1 - i];
            if opposite != index {
                wanted.push(opposite);
            }
        }
        let labels: Vec<Label> = wanted
            .iter()
            .map(|&i| {
                let dot = &self.dots[i];
                Label {
                    text: dot.name.clone().unwrap_or_else(|| dot.id.clone()),
                    at: at(dot),
                    needed: dot.name.is_some(),
                }
            })
            .collect();
        let circles: Vec<(f64, f64, f64)> = self
            .dots
            .iter()
            .map(|dot| (at(dot), dot))
            .map(|((x, y), dot)| (x, y, radius + f64::from(dot.intact)))
            .collect();
        let places = place(&labels, &circles, steps, frame, 11.0, self.lower);
        for ((label, found), &i) in labels.iter().zip(places).zip(&wanted) {
            let Some(found) = found else { continue };
            if let Some(leader) = found.leader {
                svg.line("leader", label.at, leader);
            }
            let class = if label.needed { "label named" } else { "label" };
            let class = if on_front[i] {
                format!("{class} onfront")
            } else {
                class.to_owned()
            };
            svg.text(&class, found.at, found.anchor, &label.text);
        }
    }
}

//! Elastic pre-training as a learner: students, teacher, optimizer and data, one step at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use offshoot_data::{Batches, Loader, LoaderConfig, Prepared, Rng, Source};
use offshoot_eval::agreement::K;
use offshoot_eval::knn::TEMPERATURE;
use offshoot_eval::{FeatureMatrix, Labelled};
use offshoot_family::{Shape, Space};
use offshoot_zoo::materialize::{Plan, compile, materialize};
use offshoot_zoo::network::{KeepAll, StochasticDepth, Subset};
use offshoot_zoo::tensor::{Device, kernels};
use offshoot_zoo::{Backbone, DropPath, TensorSpec, Weights};

use super::heads::Heads;
use super::recipe::{ElasticRecipe, Schedules};
use super::sampling::Sampler;
use super::step::{Batch, Elastic, Objective, Pass};
use crate::train::error::LearnerError;
use crate::train::optimizer::{self, AdamW, Gradients, Rate};
use crate::train::state::TrainState;
use crate::train::trainer::{Clock, Learner, MAX_SKIPPED, StepReport};

/// The images that probes look at.
pub struct ProbeImages {
    /// Training images that vote; none without labels.
    pub references: Option<Prepared>,
    /// Held-out images that are scored.
    pub queries: Prepared,
    /// Number of classes.
    pub classes: usize,
}

/// A child as training needs it.
struct Cut {
    network: Box<dyn Backbone>,
    /// How its backbone and its heads are cut out of the intact student's, the backbone first.
    plan: Plan,
    /// Tensors of the backbone.
    backbone: usize,
    /// The intact network's number of each of its blocks.
    blocks: Vec<usize>,
}

/// Teacher, students and optimizer of a run.
pub struct ElasticLearner {
    recipe: ElasticRecipe,
    network: Box<dyn Backbone>,
    /// Its blocks.
    blocks: usize,
    heads: Heads,
    /// Of backbone and heads, by name.
    specs: BTreeMap<String, TensorSpec>,
    schedules: Schedules,
    space: Space,
    sampler: Sampler,
    /// The children met so far.
    children: BTreeMap<Shape, Cut>,
    student: Weights,
    teacher: Weights,
    adam: AdamW,
    /// Steps in a row that were skipped.
    skipped: u64,
    /// Whether it starts from weights that the recipe alone does not give.
    taken_over: bool,
    loader: Loader,
    batches: Option<Batches>,
    probe: ProbeImages,
    device: Device,
}

impl ElasticLearner {
    /// A learner at step 0 of a resolved recipe, on the images `train` of `source`.
    ///
    /// # Errors
    /// If the recipe's numbers, the space or the data do not work.
    pub fn new(
        recipe: &ElasticRecipe,
        source: Arc<dyn Source>,
        train: Vec<usize>,
        probe: ProbeImages,
        device: &Device,
    ) -> Result<Self, LearnerError> {
        let loader = Loader::new(source, train, loader_config(recipe))?;
        let network = recipe.network()?;
        let heads = recipe.projection_heads(network.as_ref());
        let specs = [network.specs(), heads.specs()].concat();
        let blocks = specs
            .iter()
            .filter_map(|spec| spec.block)
            .max()
            .map_or(0, |last| last + 1);
        let student = offshoot_zoo::initialise(&specs, recipe.seed, device);
        let space = recipe.space()?;
        Ok(Self {
            schedules: recipe.schedules(),
            blocks,
            sampler: Sampler::new(
                &space,
                &network.sampling_groups(&space),
                recipe.space.sampling_scale,
                recipe.seed,
            )?,
            space,
            heads,
            specs: specs.into_iter().map(|s| (s.name.clone(), s)).collect(),
            children: BTreeMap::new(),
            // The teacher starts as a copy of the student (elastic.md 4.4).
            teacher: student.clone(),
            student,
            adam: AdamW::new(recipe.optim.beta1, recipe.optim.beta2, recipe.optim.epsilon),
            skipped: 0,
            taken_over: false,
            loader,
            batches: None,
            probe,
            network,
            device: device.clone(),
            recipe: recipe.clone(),
        })
    }

    /// Takes the backbone of students and teacher over from `weights` instead of the fresh one; heads stay fresh. To be called before
    /// the first step. The first checkpoint is then written before it, so that a run needs them only once.
    ///
    /// # Errors
    /// If they are not those of the recipe's network.
    pub fn start_from(&mut self, weights: &Weights) -> Result<(), LearnerError> {
        if let Some(problem) = weights.mismatch(&self.network.specs()) {
            return Err(LearnerError::State(problem.to_string()));
        }
        for (name, weight) in weights.iter() {
            self.student.insert(name, weight.clone());
            self.teacher.insert(name, weight.clone());
        }
        self.taken_over = true;
        Ok(())
    }

    /// The intact network.
    pub fn network(&self) -> &dyn Backbone {
        self.network.as_ref()
    }

    /// The teacher's backbone: the parent of the family.
    pub fn parent(&self) -> Weights {
        let mut parent = Weights::new();
        for spec in self.network.specs() {
            parent.insert(
                &spec.name,
                self.teacher
                    .get(&spec.name)
                    .expect("the teacher has every tensor")
                    .clone(),
            );
        }
        parent
    }

    /// Images that could not be read so far: name and reason.
    pub fn damaged(&self) -> Vec<(String, String)> {
        self.batches.as_ref().map(|b| b.damaged().to_vec()).unwrap_or_default()
    }

    /// Makes the network and plan of the child of `shape` if they were not made before.
    fn meet(&mut self, shape: &Shape) -> Result<(), LearnerError> {
        if !self.children.contains_key(shape) {
            let mut view = self.network.child(shape, "")?;
            if !self.recipe.space.alpha {
                view.gains.clear();
            }
            let network = offshoot_zoo::backbone(&view.child)?;
            let mut plan = compile(&self.network.specs(), Some(&network.specs()), &view)?;
            let backbone = plan.len();
            plan.extend(compile(&self.heads.specs(), None, &view)?);
            self.children.insert(
                shape.clone(),
                Cut {
                    network,
                    plan,
                    backbone,
                    blocks: view.blocks,
                },
            );
        }
        Ok(())
    }

    /// Class-token features of the child of `shape` of the teacher.
    fn features(&self, shape: &Shape, images: &Prepared) -> Result<FeatureMatrix, LearnerError> {
        let Cut {
            network,
            plan,
            backbone,
            ..
        } = &self.children[shape];
        let weights = materialize(&self.teacher, &plan[..*backbone]);
        let batches = images.batches();
        let image = self.network.image();
        Ok(offshoot_eval::extract(network.as_ref(), &weights, &self.device, batches, image, &mut |_| {})?.cls)
    }

    /// Clips backbone and heads each on their own, updates the student and moves the teacher. What was wrong with the
    /// gradients, if anything was; then nothing is changed.
    fn update(&mut self, step: u64, gradients: Gradients, values: &mut Vec<(String, f64)>) -> Option<String> {
        let head = |name: &str| name.starts_with("heads.");
        let norms: [f64; 2] = optimizer::norms(&gradients, |name| usize::from(head(name)));
        values.push(("gradient_norm/backbone".into(), norms[0]));
        values.push(("gradient_norm/heads".into(), norms[1]));
        if norms.iter().any(|n| !n.is_finite()) {
            return Some("the gradient is not finite".into());
        }
        let scales = norms.map(|norm| optimizer::clip(norm, self.recipe.optim.clip));
        let (specs, schedules, layers) = (&self.specs, &self.schedules, self.network.layers());
        self.adam.update(&mut self.student, gradients, |name| Rate {
            gradient_scale: scales[usize::from(head(name))],
            ..schedules.rate(&specs[name], layers, step)
        });
        // What is frozen is the same in both, and stays it to the bit.
        let trained = self.student.only(|name| !specs[name].frozen);
        optimizer::average(&mut self.teacher, &trained, self.schedules.momentum.at(step));
        None
    }
}

/// How the recipe's batches are loaded.
pub fn loader_config(recipe: &ElasticRecipe) -> LoaderConfig {
    let workers = recipe.data.workers.value().copied().unwrap_or(1);
    LoaderConfig {
        batch: recipe.train.batch,
        seed: recipe.seed,
        crops: recipe.crops.clone(),
        masks: Some(recipe.masks.clone()),
        workers,
        prefetch: workers + 2,
        max_damaged: recipe.data.max_damaged,
    }
}

/// Random subsets for stochastic depth, a pure function of (seed, step, pass, branch).
struct RandomSubsets {
    rule: StochasticDepth,
    /// Rate, at the last block where it grows.
    rate: f64,
    /// The intact network's number of each block, and of its last.
    blocks: (Vec<usize>, usize),
    seed: u64,
    step: u64,
    pass: Pass,
}

impl DropPath for RandomSubsets {
    fn subset(&mut self, branch: usize, batch: usize) -> Option<Subset> {
        let stream = format!("elastic.drop-path.{:?}", self.pass);
        let rng = || Rng::for_example(self.seed, &stream, self.step, branch as u64);
        match self.rule {
            StochasticDepth::None => None,
            StochasticDepth::Subset => {
                let keep = kept(batch, self.rate);
                if keep == batch {
                    return None;
                }
                let mut images: Vec<usize> = (0..batch).collect();
                rng().shuffle(&mut images);
                images.truncate(keep);
                images.sort_unstable();
                Some(Subset {
                    images,
                    scale: batch as f64 / keep as f64,
                })
            }
            StochasticDepth::Linear => {
                // A block keeps its own rate wherever it stands in a child (elastic.md 2.3).
                let (block, last) = (self.blocks.0[branch / 2], self.blocks.1);
                let rate = self.rate * block as f64 / last.max(1) as f64;
                if rate == 0.0 {
                    return None;
                }
                let mut rng = rng();
                let images = (0..batch).filter(|_| rng.unit() >= rate).collect();
                Some(Subset {
                    images,
                    scale: 1.0 / (1.0 - rate),
                })
            }
        }
    }
}

/// Images of `batch` that a branch runs on: `max(int(batch * (1 - rate)), 1)` (elastic.md 2.2).
fn kept(batch: usize, rate: f64) -> usize {
    ((batch as f64 * (1.0 - rate)) as usize).max(1)
}

impl Learner for ElasticLearner {
    type Error = LearnerError;

    fn steps(&self) -> u64 {
        self.recipe.steps()
    }

    fn taken_over(&self) -> bool {
        self.taken_over
    }

    fn start(&mut self, first: u64) -> Result<(), LearnerError> {
        self.batches = Some(self.loader.start(first));
        Ok(())
    }

    fn step(&mut self, step: u64, clock: &dyn Clock) -> Result<StepReport, LearnerError> {
        let asked = clock.elapsed();
        let batches = self.batches.as_mut().expect("start was called");
        let loaded = batches.next().expect("batches have no end")?;
        let waited = clock.elapsed().saturating_sub(asked);
        let crops = &self.recipe.crops;
        let side = |px: u32| [usize::from(crops.channels), px as usize, px as usize];
        let images = loaded.batch;
        let batch = Batch::new(
            images,
            (loaded.globals, side(crops.globals.px)),
            (loaded.locals, side(crops.locals.px)),
            Some(&loaded.masks),
            &self.device,
        );
        let shape = self.sampler.draw(step);
        self.meet(&shape)?;
        let Cut {
            network: child,
            plan,
            blocks: kept,
            ..
        } = &self.children[&shape];
        let blocks = self.blocks;
        // A space of the intact shape alone has no elastic student: the network trains as it would without a family.
        let elastic = (self.sampler.cycle() > 0).then_some(Elastic {
            network: child.as_ref(),
            plan,
        });
        let (rate, seed) = (self.recipe.optim.drop_path, self.recipe.seed);
        let mut drop_path = |pass| -> Box<dyn DropPath> {
            if rate == 0.0 {
                return Box::new(KeepAll);
            }
            let intact = matches!(pass, Pass::IntactGlobal | Pass::IntactLocal);
            let kept = if intact { (0..blocks).collect() } else { kept.clone() };
            Box::new(RandomSubsets {
                rule: self.network.stochastic_depth(),
                rate,
                blocks: (kept, blocks.saturating_sub(1)),
                seed,
                step,
                pass,
            })
        };
        let objective = Objective {
            network: self.network.as_ref(),
            heads: &self.heads,
            loss: &self.recipe.loss,
        };
        let temperature = self.schedules.teacher_temperature.at(step);
        let tracked = self.student.tracked();
        let terms = kernels::on_workers(|| {
            objective.losses(
                &tracked,
                &self.teacher,
                elastic.as_ref(),
                &batch,
                temperature,
                &mut drop_path,
            )
        });
        let name = |name: String| {
            if name == "total" {
                "loss".into()
            } else {
                format!("loss/{name}")
            }
        };
        let mut values: Vec<(String, f64)> = terms.values().into_iter().map(|(n, v)| (name(n), v)).collect();
        let finite = values.iter().all(|(_, v)| v.is_finite());
        let skipped = if finite {
            let gradients = tracked.gradients(&mut kernels::on_workers(|| terms.total.backward()));
            drop((tracked, terms, batch));
            self.update(step, gradients, &mut values)
        } else {
            Some("the loss is not finite".into())
        };
        self.skipped = if skipped.is_some() { self.skipped + 1 } else { 0 };
        if self.skipped >= MAX_SKIPPED {
            return Err(LearnerError::Diverged {
                steps: self.skipped,
                last: step,
            });
        }
        let schedules = &self.schedules;
        values.extend([
            ("learning_rate".into(), schedules.learning_rate.at(step)),
            ("weight_decay".into(), schedules.weight_decay.at(step)),
            ("momentum".into(), schedules.momentum.at(step)),
            ("teacher_temperature".into(), temperature),
            ("skipped".into(), f64::from(u8::from(skipped.is_some()))),
        ]);
        if self.sampler.cycle() > 0 {
            let drawn = shape.iter();
            values.extend(drawn.map(|(axis, size)| (format!("elastic/{axis}"), size as f64)));
        }
        Ok(StepReport {
            values,
            examples: images,
            waited,
            skipped,
        })
    }

    fn probe(&mut self) -> Result<Vec<(String, f64)>, LearnerError> {
        let intact = self.space.intact();
        let mut shapes = vec![self.space.smallest(), self.space.middle(), intact.clone()];
        shapes.dedup();
        let mut values = Vec::new();
        self.meet(&intact)?;
        let parent = self.features(&intact, &self.probe.queries)?;
        for shape in shapes {
            self.meet(&shape)?;
            let queries = if shape == intact {
                parent.clone()
            } else {
                self.features(&shape, &self.probe.queries)?
            };
            let value = match &self.probe.references {
                Some(images) => {
                    let references = self.features(&shape, images)?;
                    let references = Labelled {
                        features: &references,
                        labels: &images.labels,
                    };
                    let queries = Labelled {
                        features: &queries,
                        labels: &self.probe.queries.labels,
                    };
                    let knn = offshoot_eval::knn(
                        references,
                        queries,
                        self.probe.classes,
                        &[20],
                        TEMPERATURE,
                        &self.device,
                    )?;
                    ("knn@20", knn.scores[0].accuracy)
                }
                None => (
                    "agreement@20",
                    offshoot_eval::agreement(&parent, &queries, K, &self.device)?.value,
                ),
            };
            values.push((format!("{}/{shape}", value.0), value.1));
        }
        Ok(values)
    }

    fn state(&self) -> TrainState {
        let mut state = TrainState::default();
        state.put("student", &self.student);
        state.put("teacher", &self.teacher);
        self.adam.put(&mut state);
        state.counts.insert("skipped".into(), self.skipped);
        state
    }

    fn restore(&mut self, state: TrainState) -> Result<(), LearnerError> {
        let specs: Vec<TensorSpec> = self.specs.values().cloned().collect();
        let checked = |name: &str| {
            let weights = state.role(name);
            match weights.mismatch(&specs) {
                Some(problem) => Err(LearnerError::State(format!("{name}: {problem}"))),
                None => Ok(weights),
            }
        };
        (self.student, self.teacher) = (checked("student")?, checked("teacher")?);
        let elements = |name: &str| self.specs.get(name).map(TensorSpec::elements);
        self.adam.take(&state, elements).map_err(LearnerError::State)?;
        self.skipped = state.counts.get("skipped").copied().unwrap_or(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// elastic.md 8.2.
    #[test]
    fn a_fifth_dropped_of_a_hundred_is_eighty() {
        assert_eq!(kept(100, 0.2), 80);
        assert_eq!((kept(1, 0.2), kept(3, 0.9), kept(7, 0.0)), (1, 1, 7));
        let subsets = |branch| {
            RandomSubsets {
                rule: StochasticDepth::Subset,
                blocks: ((0..2).collect(), 1),
                rate: 0.2,
                seed: 1,
                step: 2,
                pass: Pass::IntactGlobal,
            }
            .subset(branch, 100)
            .unwrap()
        };
        assert_eq!((subsets(0).images.len(), subsets(0).scale), (80, 1.25));
        assert_eq!(subsets(0), subsets(0));
        assert_ne!(subsets(0), subsets(1));
    }
}
